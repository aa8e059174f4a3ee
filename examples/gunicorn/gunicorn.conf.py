"""Configuration of gunicorn. Only the hook `worker_exit` is there for greendrop."""

# Needed first of all for a preloaded application that uses gevent itself. Otherwise
# gunicorn patches each worker by itself.
from gevent import monkey

monkey.patch_all()

# Delivers the messages in flight when a worker ends. That happens without the hook,
# too; with it, gunicorn's log contains what was lost.
from greendrop.contrib.gunicorn import worker_exit  # noqa: E402, F401

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:0"
graceful_timeout = 20
