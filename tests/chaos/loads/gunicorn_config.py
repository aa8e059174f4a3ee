"""A configuration of gunicorn that patches in its first line, and has the hook."""

from gevent import monkey

monkey.patch_all()

from greendrop.contrib import gunicorn  # noqa: E402


def worker_exit(server, worker):
    """Close the producers of a worker, and write its facts."""
    gunicorn.worker_exit(server, worker)
    from tests.chaos.loads import web_app  # noqa: PLC0415 - it belongs to the worker

    web_app.hosted.report()
