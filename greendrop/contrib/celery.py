"""The beginning and the end of Celery's workers, whatever their pool.

Where the tasks are:

    from greendrop import Producer
    from greendrop.contrib.celery import connect

    producer = Producer(kafka={"bootstrap.servers": "localhost:9092"})
    connect()

The children of the prefork pool end by `os._exit`, so that Python's exit handlers, and
greendrop's among them, don't run there; Celery's signals do.

| pool | begins with | ends with |
|---|---|---|
| prefork, each child | `worker_process_init` | `worker_process_shutdown` |
| prefork, main process | `worker_init` | `worker_shutdown` |
| gevent, threads | `worker_init` | `worker_shutdown` |
| solo | `worker_init`, `worker_process_init` | `worker_shutdown` |
"""

from __future__ import annotations

import logging
import math
from functools import partial

from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
)

from greendrop import _concurrency
from greendrop._producer.shutdown import close_in_use, reset_inherited

__all__ = ["connect"]

_log = logging.getLogger("greendrop")


def connect(timeout: float = math.inf) -> None:
    """Have Celery's signals reset and close the producers of its processes.

    All producers that a process has in use are closed when it ends, once its tasks are
    done. Functions of yours that send at the worker's end have to be connected before.
    In a child of the prefork pool those that its parent has used are reset first. Call
    it once, at module level; a second call changes the timeout.

    Args:
        timeout: Seconds that closing may take, for all producers together. Never longer
            than the longest `exit_timeout` among them (10 s).
    """
    if timeout != math.inf:
        _concurrency.check_timeout(timeout)
    end = partial(_end, timeout)
    for signal, receiver in (
        (worker_process_init, _begin),
        (worker_process_shutdown, end),
        (worker_shutdown, end),
    ):
        signal.disconnect(dispatch_uid="greendrop")
        signal.connect(receiver, weak=False, dispatch_uid="greendrop")


def _begin(**_: object) -> None:
    reset_inherited()


def _end(timeout: float, **_: object) -> None:
    close_in_use(partial(_log.error, "%s"), timeout)
