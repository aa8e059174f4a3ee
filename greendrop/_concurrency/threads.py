"""What is native whatever gevent has patched: threads, locks, descriptors.

The only importer of `_thread`. Knows of gevent only that it may have patched something.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def _kafka_handle(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - whatever it has
    """Get a function of a module as it was before monkey-patching.

    Bound once at import: patching replaces names in modules, not what we hold.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module.__name__, name)
    return getattr(module, name)


allocate_lock: Callable[[], _thread.LockType] = _kafka_handle(_thread, "allocate_lock")
get_ident: Callable[[], int] = _kafka_handle(_thread, "get_ident")
start_new_thread: Callable[..., int] = _kafka_handle(_thread, "start_new_thread")
#: gevent's own leaves a descriptor open until the hub comes round, if it ever does.
close_fd: Callable[[int], None] = _kafka_handle(os, "close")
#: Longest single wait that a C lock takes, in seconds.
LONGEST: float = _thread.TIMEOUT_MAX


class Lock(Protocol):
    """What `new_lock` makes."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
        """Take it; False if it was not to be had."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


# References without callbacks: what a signal handler raises in one of those is lost.
_locks: set[weakref.ref[Any]] = set()
#: Locks from which on those that are gone are looked for.
_many_locks = 100


def new_lock() -> Any:  # noqa: ANN401 - a `Lock`, and a context manager
    """Make a lock that its own thread may take again (a signal handler does).

    gevent leaves `_thread.RLock` alone, so it is native, patched or not. Hold it only
    over code that can't switch greenlets: all greenlets of a thread own it together. It
    is free in a forked child, whoever of the parent's threads held it.
    """
    global _many_locks  # noqa: PLW0603 - grows with what lives
    lock = _thread.RLock()
    _locks.add(weakref.ref(lock))
    if len(_locks) > _many_locks:
        _locks.difference_update({each for each in list(_locks) if each() is None})
        _many_locks = 100 + 2 * len(_locks)
    return lock


def _free_locks_in_child() -> None:
    for reference in list(_locks):
        lock: Any = reference()
        # One that this thread holds is released by it.
        if lock is not None and not lock._is_owned():  # noqa: SLF001 - as `threading` does
            lock._at_fork_reinit()  # noqa: SLF001


os.register_at_fork(after_in_child=_free_locks_in_child)


def start_thread(function: Callable[..., object], *args: object) -> bool:
    """Start a native thread; False if there is none to be had any more.

    Python 3.12 starts none once the main thread has come to its end, also not for what
    is run at exit.

    Raises:
        RuntimeError: The system has no more threads.
    """
    try:
        start_new_thread(function, args)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        return False
    return True


def run_apart(function: Callable[[], Any], seconds: float) -> Any:  # noqa: ANN401
    """Run a function on a native thread of its own, and wait for its result natively.

    Signal handlers run in the main thread only. They may run, and raise, while the
    caller waits here, and so may anything else that interrupts it: the function goes on
    to its end all the same. So what it does is done as a whole or not at all.

    On the spot, when the interpreter is ending and starts no thread.

    Args:
        function: Ends by itself. It must not need a lock that the caller may hold.
        seconds: How long to wait.

    Raises:
        TimeoutError: It did not end in time; it goes on by itself.
        RuntimeError: The system has no more threads.

    Blocking:
        Blocks the thread, and its hub.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    running = allocate_lock()
    running.acquire()

    def work() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            outcome.append((None, error))
        running.release()

    if not start_thread(work):
        work()
    if not running.acquire(timeout=seconds):
        raise TimeoutError
    value, error = outcome.pop()
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def batch_scheduling() -> Iterator[None]:
    """Make native threads that are started inside not preempt others when they wake.

    Threads inherit Linux's SCHED_BATCH: same share of the processor, no privilege
    needed. librdkafka wakes a thread at the first message that it is handed; if that
    one takes the processor over at once, it sends the message alone, and the next, and
    the next, at ten times the price. Polite, it waits until the hub sleeps or another
    processor is free. See docs/decisions/0005. Does nothing elsewhere than on Linux,
    or where it is forbidden, or when the caller has a policy of its own.
    """
    try:
        usual = os.sched_getscheduler(0) == os.SCHED_OTHER
        if usual:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):
        usual = False
    try:
        yield
    finally:
        if usual:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
