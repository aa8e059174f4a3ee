"""A configuration of gunicorn that patches in its first line, and has the hook."""

from gevent import monkey

monkey.patch_all()

from greendrop.contrib.gunicorn import worker_exit  # noqa: E402

__all__ = ["worker_exit"]
