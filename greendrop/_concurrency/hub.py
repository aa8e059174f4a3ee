"""gevent's hub of the calling thread: finding it, yielding to it, calling into it.

gevent is looked up in `sys.modules` and never imported here, so that it doesn't become
part of a program that doesn't use it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from itertools import starmap
from typing import TYPE_CHECKING

from greendrop._concurrency import native
from greendrop._concurrency.deadline import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

#: Seconds of a timer that libev runs in the next iteration of its loop.
_NEXT_ITERATION = 1e-6
#: Shortest timer that all of gevent's loops support, in seconds: libuv's resolution.
SHORTEST_TIMER = 0.001

# --- finding the hub ----------------------------------------------------------------


def current_hub() -> Hub | None:
    """Return the calling thread's hub, or None if waits have to block the thread.

    A monkey-patched main thread gets a hub if it has none, since all waits there use
    it. Other threads don't: without a hub they run no greenlets that a blocking wait
    could starve.

    A dead hub counts as none. An exception that reaches a hub while it starts, such as
    the KeyboardInterrupt of a signal, kills it. gevent keeps it as the thread's hub,
    but no greenlet of the thread can run any more, so a blocking wait starves none.
    """
    local = sys.modules.get("gevent._hub_local")
    if local is None:
        return None
    hub: Hub | None = local.get_hub_if_exists()
    if hub is None:
        monkey = sys.modules.get("gevent.monkey")
        if (
            monkey is not None
            and monkey.is_module_patched("threading")
            and native.get_ident() == sys.modules["gevent.hub"].MAIN_THREAD_IDENT
        ):
            hub = local.get_hub()
    return None if hub is None or hub.dead else hub


def hub_getter() -> Callable[[], Hub | None]:
    """Return gevent's own function that returns the calling thread's hub, or None.

    Callers that have a hub use it on the hot path, to compare that hub with the calling
    thread's.
    """
    getter: Callable[[], Hub | None] = sys.modules[
        "gevent._hub_local"
    ].get_hub_if_exists
    return getter


def hub_is_dead(hub: Hub) -> bool:
    """Return whether callbacks that are scheduled on the hub will never run."""
    # A destroyed hub has no loop. A hub whose thread has ended is dead but keeps its
    # loop, which silently accepts callbacks.
    return hub.loop is None or bool(hub.dead)


def in_hub() -> bool:
    """Return whether the caller runs in the hub itself, where waiting is illegal."""
    hub = current_hub()
    return hub is not None and sys.modules["greenlet"].getcurrent() is hub


# --- tasks --------------------------------------------------------------------------


def current_task() -> object:
    """Return the running greenlet, or the thread's identifier where there is no hub.

    The main greenlet of a thread is represented by the thread's identifier. So it stays
    the same task when the thread gets a hub in the meantime.
    """
    if current_hub() is not None:
        current = sys.modules["greenlet"].getcurrent()
        if current.parent is not None:
            return current
    return native.get_ident()


def is_current(task: object) -> bool:
    """Return whether a task that `current_task` returned is the caller."""
    if isinstance(task, int):
        return task == current_task()
    return sys.modules["greenlet"].getcurrent() is task


# --- yielding -----------------------------------------------------------------------


def yield_to_hub() -> None:
    """Run one iteration of the hub's loop, with its timers and descriptors.

    Does nothing without a hub, and in the hub itself.

    `gevent.sleep(0)` does less: it runs the callbacks that are ready, and those that
    they schedule, for as long as there are any. Two greenlets that take turns by it
    keep all timers waiting.
    """
    hub = current_hub()
    if hub is not None and sys.modules["greenlet"].getcurrent() is not hub:
        uses_libuv = "libuv" in type(hub.loop).__module__
        sys.modules["gevent"].sleep(SHORTEST_TIMER if uses_libuv else _NEXT_ITERATION)


class CooperativeLoop:
    """Yields to the hub at intervals, in a long loop."""

    __slots__ = ("_next_yield",)

    #: Items between two calls of `checkpoint`; 128 messages take 0.2 to 0.5 ms.
    CHUNK = 128
    #: Seconds that the loop may hold the hub. Batches of 1,000, one after another, then
    #: hold up a ticker for 2 ms (its p99); with 2 ms here for 4, and are no faster.
    LENGTH = 0.0005

    def __init__(self) -> None:
        self._next_yield = monotonic() + self.LENGTH

    def checkpoint(self) -> None:
        """Yield to the hub if the loop has held it for `LENGTH`."""
        if monotonic() > self._next_yield:
            yield_to_hub()
            self._next_yield = monotonic() + self.LENGTH


# --- calls from other threads -------------------------------------------------------


class ThreadsafeCalls:
    """Calls that other threads schedule in a hub. Made by `ensure_threadsafe_calls`.

    gevent's own `run_callback_threadsafe` changes a counter of the loop, from the other
    thread. If a timer of the hub fires at that moment, a count gets lost: the loop then
    considers itself idle, and ends with `LoopExit` while greenlets wait. (Two threads
    and thirty greenlets that sleep: within half a second, gevent 26.9.) An async
    watcher, as used here, changes no counter.

    Constructed in the hub's thread.
    """

    __slots__ = ("_calls", "_loop", "_watcher")

    def __init__(self, hub: Hub) -> None:
        self._loop = hub.loop
        self._calls: deque[tuple[object, ...]] = deque()
        self._watcher = self._loop.async_(ref=False)
        self._watcher.start(self._schedule)

    def send(self, *call: object) -> None:
        """Schedule a call: a function and its arguments; from any thread."""
        self._calls.append(call)
        with contextlib.suppress(ValueError):  # the loop was just destroyed
            self._watcher.send()

    def resume(self) -> None:
        """Schedule what an interrupted `_schedule` has left; in the hub's thread."""
        if self._calls:
            self._watcher.send()

    def _schedule(self) -> None:
        # No bytecode runs between removing a call from the deque and scheduling it: a
        # signal handler that raised there would lose the call.
        with contextlib.suppress(IndexError):
            deque(starmap(self._loop.run_callback, iter(self._calls.popleft, None)), 0)


#: The attribute of a hub that holds its `ThreadsafeCalls`.
_THREADSAFE_CALLS = "greendrop_threadsafe_calls"
#: The hub that a forked child inherited from its parent, until the child uses it.
_inherited: Hub | None = None


def ensure_threadsafe_calls(hub: Hub) -> None:
    """Make `call_soon_threadsafe` work for a hub; in the hub's own thread."""
    global _inherited  # noqa: PLW0603 - once in each child
    if hub is _inherited:
        _inherited = None
        # After an `os.fork` without gevent's patches, such as multiprocessing's, the
        # hub shares the descriptors of its parent's loop. A second `reinit` after
        # gevent's own does no harm.
        hub.loop.reinit()
    calls: ThreadsafeCalls | None = getattr(hub, _THREADSAFE_CALLS, None)
    if calls is None:
        setattr(hub, _THREADSAFE_CALLS, ThreadsafeCalls(hub))
    else:
        calls.resume()


def note_inherited_hub() -> None:
    """Remember the hub of the parent in a forked child; see `fork`."""
    global _inherited  # noqa: PLW0603 - once in each child
    local = sys.modules.get("gevent._hub_local")
    _inherited = None if local is None else local.get_hub_if_exists()


def call_soon_threadsafe(
    hub: Hub, function: Callable[..., object], *args: object
) -> None:
    """Schedule a call in a hub; from any thread. Does nothing if the hub is dead."""
    if hub_is_dead(hub):
        return
    if native.get_ident() == hub.thread_ident:
        hub.loop.run_callback(function, *args)
    else:
        # There, because each waiter of a hub was made after `ensure_threadsafe_calls`.
        calls: ThreadsafeCalls = getattr(hub, _THREADSAFE_CALLS)
        calls.send(function, *args)


def spawn_in_hub(hub: Hub, function: Callable[..., object], *args: object) -> None:
    """Call a function in a new greenlet of a hub; from any thread."""
    call_soon_threadsafe(hub, sys.modules["gevent"].spawn, function, *args)
