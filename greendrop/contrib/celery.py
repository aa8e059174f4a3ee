"""Integration with Celery: producers are reset and closed with its processes.

In the module of the tasks:

    from greendrop import Producer
    from greendrop.contrib.celery import connect

    producer = Producer(kafka={"bootstrap.servers": "localhost:9092"})
    connect()

Children of the prefork pool end by `os._exit`, which runs no exit handlers of Python
and so none of greendrop's. Celery's signals are sent:

| pool | start | end |
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
from greendrop._producer.registry import close_in_use, reset_inherited

__all__ = ["connect"]

_log = logging.getLogger("greendrop")


def connect(timeout: float = math.inf) -> None:
    """Connect Celery's signals, to reset and close the producers of its processes.

    All producers that a process uses are closed when it ends, after its tasks. Connect
    your own functions that send at the end of a worker before this one. In a child of
    the prefork pool, producers that the parent has used are reset first. Call `connect`
    once, at module level; a second call changes the timeout.

    Args:
        timeout: Seconds that closing may take, for all producers together; at most the
            longest `exit_timeout` among them (10 s).
    """
    if timeout != math.inf:
        _concurrency.check_timeout(timeout)
    on_end = partial(_on_end, timeout)
    for signal, receiver in (
        (worker_process_init, _on_start),
        (worker_process_shutdown, on_end),
        (worker_shutdown, on_end),
    ):
        signal.disconnect(dispatch_uid="greendrop")
        signal.connect(receiver, weak=False, dispatch_uid="greendrop")


def _on_start(**_: object) -> None:
    reset_inherited()


def _on_end(timeout: float, **_: object) -> None:
    close_in_use(partial(_log.error, "%s"), timeout)
