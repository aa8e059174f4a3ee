"""Native primitives: threads, locks and descriptors as they were before patching.

The only importer of `_thread`. gevent's monkey-patching replaces names in modules; the
functions here were bound to the originals when this module was imported.
"""

from __future__ import annotations

import _thread
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _original(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - any attribute
    """Return a module's function as it was before monkey-patching."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module.__name__, name)
    return getattr(module, name)


allocate_lock: Callable[[], _thread.LockType] = _original(_thread, "allocate_lock")
get_ident: Callable[[], int] = _original(_thread, "get_ident")
start_new_thread: Callable[..., int] = _original(_thread, "start_new_thread")
#: gevent's version leaves the descriptor open until its hub runs, if it ever does.
close_fd: Callable[[int], None] = _original(os, "close")
#: Longest timeout that a native lock accepts, in seconds.
LONGEST: float = _thread.TIMEOUT_MAX


class Lock(Protocol):
    """The type of the locks that `new_lock` returns."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002
        """Acquire the lock; return False if that was not possible in time."""

    def release(self) -> None:
        """Release the lock."""


class _LockOfPython314(_thread.RLock):  # type: ignore[misc]  # not final at run time
    """A lock that no `with` statement of Python 3.14 leaves acquired.

    There a signal handler can run between `__enter__` and the block of the statement.
    If it raises, `__exit__` is not called (python/cpython#148874, repaired in 3.15).
    Python looks for signals after a call of a C function, and not when a loop gets an
    item or when a Python function returns. So this `__enter__` acquires by a loop. It
    takes 0.35 us instead of 0.08.
    """

    __slots__ = ()

    def __enter__(self) -> bool:  # type: ignore[override]  # `with` passes nothing
        acquired = False
        for acquired in iter(self.acquire, None):  # noqa: B007
            break
        return acquired


_lock_class = _LockOfPython314 if sys.version_info[:2] == (3, 14) else _thread.RLock

# References without callbacks: an exception that a signal handler raises in such a
# callback is lost.
_locks: set[weakref.ref[_thread.RLock]] = set()
#: Number of references at which those to dead locks are removed.
_many_locks = 100


def new_lock() -> _thread.RLock:
    """Return a native reentrant lock; signal handlers acquire it again.

    gevent doesn't patch `_thread.RLock`, so the lock is native in any program. Hold it
    only over code that can't switch greenlets, because all greenlets of a thread own it
    together. In a forked child the lock is free, even if a thread of the parent held it
    at the fork.
    """
    global _many_locks  # noqa: PLW0603 - grows with the number of live locks
    lock = _lock_class()
    _locks.add(weakref.ref(lock))
    if len(_locks) > _many_locks:
        _locks.difference_update({each for each in list(_locks) if each() is None})
        _many_locks = 100 + 2 * len(_locks)
    return lock


def free_locks_in_child() -> None:
    """Free the locks that threads of the parent held at the fork; see `fork`."""
    for reference in list(_locks):
        lock: Any = reference()
        # A lock that the forking thread holds is released by that thread.
        if lock is not None and not lock._is_owned():  # noqa: SLF001 - as `threading` does
            lock._at_fork_reinit()  # noqa: SLF001
