"""A hook of gunicorn's: what is not delivered when a worker ends, is then.

In `gunicorn.conf.py`:

    from greendrop.contrib.gunicorn import worker_exit

Without it the same happens a little later, when the worker's interpreter exits. The
hook comes before Python waits for threads that are not daemons: one that goes on until
gunicorn kills the worker can't keep it away. And it tells gunicorn's log of losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop._producer.shutdown import close_in_use

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

__all__ = ["worker_exit"]


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Close all producers of a worker that ends; log what was not delivered.

    Args:
        server: The arbiter, as this process inherited it.
        worker: Who ends.

    Blocking:
        Until all is delivered, for the longest `exit_timeout` of the worker's producers
        at most (10 s), and for gunicorn's `graceful_timeout` at most.
    """

    def tell(loss: str) -> None:
        server.log.error("greendrop, worker %s: %s", worker.pid, loss)

    close_in_use(tell, worker.cfg.graceful_timeout)
