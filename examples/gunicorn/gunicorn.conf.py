"""gunicorn's configuration. None of it is for greendrop, but for the hook."""

# First of all, if the application is to be preloaded and uses gevent itself. gunicorn
# patches by itself otherwise, in each worker.
from gevent import monkey

monkey.patch_all()

# Delivers what is on its way when a worker ends. It would be without this, too; with
# it, gunicorn's log tells what was lost.
from greendrop.contrib.gunicorn import worker_exit  # noqa: E402, F401

worker_class = "gevent"
workers = 2
bind = "127.0.0.1:0"
graceful_timeout = 20
