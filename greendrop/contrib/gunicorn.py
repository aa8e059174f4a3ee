"""A hook for gunicorn that delivers pending messages when a worker ends.

In `gunicorn.conf.py`:

    from greendrop.contrib.gunicorn import worker_exit

Without it the same happens a little later, when the worker's interpreter exits. The
hook runs before Python waits for non-daemon threads, so a thread that runs until
gunicorn kills the worker can't prevent it. It also writes losses to gunicorn's log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop._producer.registry import close_in_use

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

__all__ = ["worker_exit"]


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Close all producers of a worker, and log what was not delivered.

    Args:
        server: The arbiter, as inherited by this process.
        worker: The worker that ends.

    Blocking:
        Until all messages are delivered; at most the longest `exit_timeout` of the
        worker's producers (10 s), and at most gunicorn's `graceful_timeout`.
    """

    def log(loss: str) -> None:
        server.log.error("greendrop, worker %s: %s", worker.pid, loss)

    close_in_use(log, worker.cfg.graceful_timeout)
