"""How greendrop waits: letting greenlets run where there is a hub, blocking elsewhere.

The only importer of gevent and greenlet, and the only place that decides between those
and native threads (`threads`). It decides at the moment of waiting, from the calling
thread, and never imports gevent for a program that did not. Knows nothing of Kafka.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from itertools import starmap
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _wording
from greendrop._concurrency import threads
from greendrop._concurrency.deadline import Deadline
from greendrop.errors import IllegalWaitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

monotonic = time.monotonic

#: Seconds that libev takes for "in the next round of the loop".
_NEXT_ROUND = 1e-6
#: Shortest time that a timer of every loop knows (libuv's grain), in seconds.
_SHORTEST = 0.001
#: Seconds after which the timer of a wait fires again, until the wait has ended.
_REPEAT = 0.1
#: Seconds between two checks whether a greenlet of a dead hub has been woken.
_DEAD_HUB_POLL = 0.01
#: Seconds between two looks of a timer that is only there to hold the loop.
_LONG = 3600.0


def current_hub() -> Hub | None:
    """Find the calling thread's hub; never make gevent part of a program.

    A monkey-patched main thread is given its hub: everything that will wait there
    waits on it. Other native threads are not: no greenlet lives there to be starved.
    A dead hub counts as none. An exception that reaches a hub while it starts, such as
    the KeyboardInterrupt of a signal, kills it. gevent keeps it as the thread's hub,
    but no greenlet of the thread can run any more, so blocking it starves nobody.
    """
    local: Any = sys.modules.get("gevent._hub_local")
    if local is None:
        return None
    hub: Hub | None = local.get_hub_if_exists()
    if hub is None:
        monkey: Any = sys.modules.get("gevent.monkey")
        if (
            monkey is not None
            and monkey.is_module_patched("threading")
            and threads.get_ident() == sys.modules["gevent.hub"].MAIN_THREAD_IDENT
        ):
            hub = local.get_hub()
    return None if hub is None or hub.dead else hub


def hub_getter() -> Callable[[], Hub | None]:
    """Give gevent's own function that gives the calling thread's hub, if it has one.

    The cheapest way to ask "am I in this hub's thread"; for those who have a hub.
    """
    getter: Callable[[], Hub | None] = sys.modules[
        "gevent._hub_local"
    ].get_hub_if_exists
    return getter


#: Seconds of the longest wait that anybody asks for on purpose. What is above was most
#: likely written in milliseconds, WaterDrop's and librdkafka's unit.
DAY = 86_400


def check_timeout(timeout: object) -> None:
    """Refuse what is no finite number of seconds, or looks like milliseconds.

    Raises:
        ValueError: It is none.
    """
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 <= timeout < float("inf")
    ):
        text = f"timeout needs to be finite seconds, 0 or more, not {timeout!r}"
        raise ValueError(text)
    if timeout > DAY:
        text = (
            f"timeout={timeout!r} seconds is more than a day and looks like"
            f" milliseconds; did you mean {timeout / 1000:g}?"
        )
        raise ValueError(text)


def hub_is_dead(hub: Hub) -> bool:
    """Tell whether nothing that is scheduled on this hub will ever run."""
    # A destroyed hub has no loop; one whose thread ended is dead but keeps its loop,
    # and silently accepts callbacks.
    return hub.loop is None or bool(hub.dead)


def current_task() -> object:
    """Identify the running greenlet, or the thread where there is no hub.

    A thread's main greenlet is told by its thread: it stays the same task when the
    thread gets a hub meanwhile.
    """
    if current_hub() is not None:
        current = sys.modules["greenlet"].getcurrent()
        if current.parent is not None:
            return current
    return threads.get_ident()


def is_current(task: object) -> bool:
    """Tell whether the caller is what `current_task` gave once; the cheaper way."""
    if isinstance(task, int):
        return task == current_task()
    return sys.modules["greenlet"].getcurrent() is task


def in_hub() -> bool:
    """Tell whether the caller runs in the hub itself, where nobody may wait."""
    hub = current_hub()
    return hub is not None and sys.modules["greenlet"].getcurrent() is hub


class Waiter(Protocol):
    """Somebody who waits to be woken, once."""

    def wait(self, seconds: float) -> bool:
        """Wait until woken, True, or until the time is over, False."""
        ...

    def wait_slice(self, seconds: float) -> bool:
        """Wait so, or until it is time to look whether somebody still works for it.

        The hub that does may stand still in a native call, or be gone.
        """
        ...

    def wake(self) -> None:
        """Wake the waiter, from any thread, any number of times."""
        ...


class ThreadWaiter:
    """A native thread that blocks."""

    __slots__ = ("_lock",)

    #: Longest patient wait, in seconds.
    SLICE = 0.1

    #: Whether nothing can wake it any more.
    is_dead = False

    def __init__(self) -> None:
        self._lock = threads.allocate_lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        return self._lock.acquire(timeout=min(max(seconds, 0.0), threads.LONGEST))

    def wait_slice(self, seconds: float) -> bool:
        return self.wait(min(seconds, self.SLICE))

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            return  # woken before


class GreenletWaiter:
    """A greenlet that lets its hub run others."""

    __slots__ = (
        "_callback",
        "_hub",
        "_shared_timer",
        "_switch",
        "_timed_out_by_timer",
        "_woken",
        "greenlet",
    )

    # Longer: while its own hub runs, whoever works for it there runs, too.
    SLICE = 1.0

    def __init__(
        self,
        hub: Hub,
        greenlet: Any,  # noqa: ANN401
        shared_timer: SharedTimer | None = None,
    ) -> None:
        self._hub = hub
        self._shared_timer = shared_timer
        #: Who waits.
        self.greenlet = greenlet
        # There while it waits, and only then.
        self._switch: Any = None
        self._callback: Any = None
        self._woken = False
        self._timed_out_by_timer = False

    @property
    def is_dead(self) -> bool:
        """Whether nothing can wake it any more."""
        return hub_is_dead(self._hub)

    def wait(self, seconds: float) -> bool:
        loop: Any = self._hub.loop
        # The timer also holds the loop: with nothing else to wait for, gevent would
        # raise LoopExit in a greenlet that waits for a report only.
        # It repeats, because a signal handler may raise at the entry of `time_out`: the
        # exception goes to the main greenlet, and a one-shot timer would be spent.
        timer = loop.timer(seconds if seconds > _SHORTEST else _SHORTEST, _REPEAT)  # noqa: FURB136 - faster
        try:
            timer.start(self.time_out, update=True)
            return self._sleep(seconds)
        finally:
            timer.close()

    def wait_slice(self, seconds: float) -> bool:
        shared_timer = self._shared_timer
        if shared_timer is None or shared_timer.closed or seconds < self.SLICE:
            return self.wait(min(seconds, self.SLICE))
        # A timer of its own is a sixth of all that a message costs the hub.
        try:
            shared_timer.add(self)
            return self._sleep(self.SLICE)
        finally:
            shared_timer.discard(self)

    def _sleep(self, seconds: float) -> bool:
        hub = self._hub
        self._switch = self.greenlet.switch
        try:
            while not (self._woken or self._timed_out_by_timer):
                if hub.dead:
                    return self._block(seconds)
                hub.switch()
        finally:
            # From here a late wake-up finds nobody: it must not switch into a
            # greenlet that has gone on to something else.
            self._switch = None
            if self._callback is not None:
                self._callback.stop()
        if not self._woken:
            self._timed_out_by_timer, self._callback = False, None
        return self._woken

    def _block(self, seconds: float) -> bool:
        """Block the thread until woken or for some seconds, because the hub is dead.

        The hub can't run a timer or resume a greenlet any more. A switch to it returns
        at once, so that a loop around the switch would spin without an end.
        """
        deadline = Deadline(seconds)
        pause = ThreadWaiter()
        while not (self._woken or deadline.has_expired):
            pause.wait(min(deadline.remaining(), _DEAD_HUB_POLL))
        return self._woken

    @property
    def waits(self) -> bool:
        """Whether it does so now."""
        return self._switch is not None

    def time_out(self) -> None:
        """End a wait without waking: its time is over. In the hub's thread."""
        self._timed_out_by_timer = True
        if self._switch is not None and self._callback is None:
            loop: Any = self._hub.loop
            self._callback = loop.run_callback(self._switch)

    def wake(self) -> None:
        self._woken = True
        hub = self._hub
        loop: Any = hub.loop
        if loop is None or threads.get_ident() != hub.thread_ident:
            call_soon_threadsafe(hub, self._resume)
        elif self._switch is not None and self._callback is None:
            # The short way: in this thread nothing runs between question and answer.
            self._callback = loop.run_callback(self._switch)

    def _resume(self) -> None:
        if self._switch is not None:
            self._switch()


class SharedTimer:
    """The greenlets of one hub that wait patiently, with one timer for them all.

    It holds the loop while anybody is there, as a timer of each one's own would, and
    sends everybody on before their patience is over. In the hub's thread only.
    """

    __slots__ = ("_new", "_old", "_timer", "closed")

    def __init__(self, hub: Hub) -> None:
        ensure_threadsafe_calls(hub)
        loop: Any = hub.loop
        rest = GreenletWaiter.SLICE / 2
        self._timer: Any = loop.timer(rest, rest)
        # Since the timer's last turn, and before: who was there for a whole one goes.
        self._new: set[GreenletWaiter] = set()
        self._old: set[GreenletWaiter] = set()
        #: Nobody may enter any more.
        self.closed = False

    def add(self, waiter: GreenletWaiter) -> None:
        """Be there, until `leave`."""
        if not (self._new or self._old):
            self._timer.start(self._send_on, update=True)
        self._new.add(waiter)

    def discard(self, waiter: GreenletWaiter) -> None:
        """Be there no more."""
        self._new.discard(waiter)
        self._old.discard(waiter)
        if not (self._new or self._old or self.closed):
            self._timer.stop()

    def _send_on(self) -> None:
        for waiter in self._old:
            waiter.time_out()
        # They are here until they leave, so that the loop is held. One may have been
        # kept from that by a signal handler that raised.
        there = self._new | self._old
        self._new, self._old = set(), {each for each in there if each.waits}
        if not self._old:
            self._timer.stop()

    def close(self) -> None:
        """Send all on, for good."""
        self.closed = True
        self._timer.close()
        for waiter in (*self._new, *self._old):
            waiter.time_out()


class RawLink:
    """A callback that `gevent.wait` and the like linked to an object."""

    __slots__ = ("_hub", "_source", "_timer", "callback")

    def __init__(
        self, hub: Hub, callback: Callable[[Any], object], source: object
    ) -> None:
        self._hub = hub
        self._source = source
        self.callback = callback
        # Holds the loop, as the timer of a wait does: who links is waiting.
        loop: Any = hub.loop
        self._timer: Any = loop.timer(_LONG, _LONG)
        self._timer.start(lambda: None)

    def wake(self) -> None:
        call_soon_threadsafe(self._hub, self._call)

    def cancel(self) -> None:
        """Let go of the loop; in the hub's thread."""
        self._timer.close()

    def _call(self) -> None:
        self.cancel()
        self.callback(self._source)


def call_soon_threadsafe(
    hub: Hub, function: Callable[..., object], *args: object
) -> None:
    """Have a hub call a function soon; from any thread. Ignored if the hub is gone."""
    if hub_is_dead(hub):
        return
    loop: Any = hub.loop
    if threads.get_ident() == hub.thread_ident:
        loop.run_callback(function, *args)
    else:
        # Whoever can be woken in a hub has looked into its mail before.
        mail: ThreadsafeCalls = getattr(hub, _THREADSAFE_CALLS)
        mail.send(function, *args)


class ThreadsafeCalls:
    """What other threads want a hub to call. Made by `ensure_threadsafe_calls`.

    gevent's own `run_callback_threadsafe` counts in the loop, from the other thread.
    When a timer of the hub fires at that moment, a count gets lost: the loop then takes
    itself for idle, and ends with `LoopExit` while greenlets wait. (Two threads and
    thirty greenlets that sleep: within half a second, gevent 26.9.) Here only an async
    watcher is sent to, and that counts nothing.
    """

    __slots__ = ("_loop", "_wanted", "_watcher")

    def __init__(self, hub: Hub) -> None:
        """Begin to take some; in the hub's thread."""
        self._loop: Any = hub.loop
        self._wanted: deque[tuple[Any, ...]] = deque()
        self._watcher: Any = self._loop.async_(ref=False)
        self._watcher.start(self._open)

    def send(self, *wanted: object) -> None:
        """Have a function called, with arguments; from any thread."""
        self._wanted.append(wanted)
        with contextlib.suppress(ValueError):  # the loop was just destroyed
            self._watcher.send()

    def resume(self) -> None:
        """Schedule what an interrupted `_open` has left; in the hub's thread."""
        if self._wanted:
            self._watcher.send()

    def _open(self) -> None:
        # No bytecode runs between taking a call and scheduling it: a signal handler
        # that raised there would lose the call.
        with contextlib.suppress(IndexError):
            deque(starmap(self._loop.run_callback, iter(self._wanted.popleft, None)), 0)


#: The attribute of a hub that has its mail.
_THREADSAFE_CALLS = "greendrop_mail"
#: The hub that a forked child got from its parent, until it is used.
_inherited: Hub | None = None


def ensure_threadsafe_calls(hub: Hub) -> None:
    """Let other threads call in a hub from now on; in its own thread."""
    global _inherited  # noqa: PLW0603 - once in each child
    if hub is _inherited:
        _inherited = None
        # After an `os.fork` without gevent's patches, as multiprocessing's, it listens
        # where its parent does. If gevent has done this already, it does no harm.
        loop: Any = hub.loop
        loop.reinit()
    mail: ThreadsafeCalls | None = getattr(hub, _THREADSAFE_CALLS, None)
    if mail is None:
        setattr(hub, _THREADSAFE_CALLS, ThreadsafeCalls(hub))
    else:
        mail.resume()


def _note_inherited_hub() -> None:
    global _inherited  # noqa: PLW0603 - once in each child
    local: Any = sys.modules.get("gevent._hub_local")
    _inherited = None if local is None else local.get_hub_if_exists()


os.register_at_fork(after_in_child=_note_inherited_hub)


def new_waiter() -> ThreadWaiter | GreenletWaiter:
    """Make the kind of waiter that fits the calling thread.

    Raises:
        IllegalWaitError: The caller runs in the hub itself.
    """
    hub = current_hub()
    if hub is None:
        return ThreadWaiter()
    ensure_threadsafe_calls(hub)
    return waiter_in(hub)


def waiter_in(hub: Hub, shared_timer: SharedTimer | None = None) -> GreenletWaiter:
    """Make a waiter for the calling greenlet, whose hub this is.

    Args:
        hub: That.
        shared_timer: Where it may wait patiently.

    Raises:
        IllegalWaitError: The caller runs in the hub itself.
    """
    greenlet = sys.modules["greenlet"].getcurrent()
    if greenlet is hub:
        text = "can't wait in the hub itself (a callback of gevent's event loop)"
        raise IllegalWaitError(text)
    return GreenletWaiter(hub, greenlet, shared_timer)


def link(callback: Callable[[Any], object], source: object) -> RawLink:
    """Make a waiter that calls back in the calling thread's hub."""
    hub = current_hub()
    if hub is None:
        hub = sys.modules["gevent._hub_local"].get_hub()
    ensure_threadsafe_calls(hub)
    return RawLink(hub, callback, source)


def yield_to_hub() -> None:
    """Let the hub have a turn, timers and descriptors included, if it may be left.

    `gevent.sleep(0)` does less: it only runs what is ready, and what that made ready,
    for as long as there is any. Two that take turns by it keep all timers waiting.
    """
    hub = current_hub()
    if hub is not None and sys.modules["greenlet"].getcurrent() is not hub:
        grain = _SHORTEST if "libuv" in type(hub.loop).__module__ else _NEXT_ROUND
        sys.modules["gevent"].sleep(grain)


class CooperativeLoop:
    """Lets others run every so often, in a long loop of our own."""

    __slots__ = ("_ends",)

    #: Items between two calls of `checkpoint`; 128 messages take 0.2 to 0.5 ms.
    CHUNK = 128
    #: Seconds that the loop may hold the hub. Batches of 1,000, one after another, then
    #: hold up a ticker for 2 ms (its p99); with 2 ms here for 4, and are no faster.
    LENGTH = 0.0005

    def __init__(self) -> None:
        self._ends = monotonic() + self.LENGTH

    def checkpoint(self) -> None:
        """Let others run if the time is up."""
        if monotonic() > self._ends:
            yield_to_hub()
            self._ends = monotonic() + self.LENGTH


def spawn(function: Callable[[], object]) -> None:
    """Run a function by itself: in a greenlet where there is a hub, else a thread.

    On the spot, when the interpreter is ending and starts no thread.
    """
    if current_hub() is not None:
        sys.modules["gevent"].spawn(function)
    elif not threads.start_thread(function):
        function()


def spawn_thread(function: Callable[[], object]) -> None:
    """Run a function that may block on a native thread of its own.

    A hub that the function makes there, as what gevent has patched does, ends with it.
    On the spot, when the interpreter is ending and starts no thread.
    """

    def work() -> None:
        try:
            function()
        finally:
            _end_own_hub()

    if not threads.start_thread(work):
        function()


def _end_own_hub() -> None:
    local: Any = sys.modules.get("gevent._hub_local")
    hub = None if local is None else local.get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)


def spawn_in_hub(hub: Hub, function: Callable[[], object]) -> None:
    """Run a function by itself in a greenlet of a hub; from any thread."""
    call_soon_threadsafe(hub, sys.modules["gevent"].spawn, function)


class ThreadCall:
    """A call that blocks natively, on a native thread of its own.

    Who waits for it may be cut short and come back: its result is kept. When the
    interpreter is ending, and starts no thread, the call is made on the spot.
    """

    __slots__ = ("_outcome", "_waiter")

    def __init__(self, function: Callable[[], Any]) -> None:
        """Start it.

        Args:
            function: Ends by itself.

        Raises:
            RuntimeError: The system has no more threads.
        """
        self._outcome: list[tuple[Any, BaseException | None]] = []
        self._waiter: Waiter | None = None

        def work() -> None:
            try:
                self._outcome.append((function(), None))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller
                self._outcome.append((None, error))
            waiter = self._waiter
            if waiter is not None:
                waiter.wake()

        if not threads.start_thread(work):
            work()  # the interpreter is ending: nobody else needs the hub

    @property
    def ended(self) -> bool:
        """Whether its result is there."""
        return bool(self._outcome)

    def wait(self, seconds: float) -> Any:  # noqa: ANN401
        """Give its result, or raise what it raised; one task at a time.

        Raises:
            TimeoutError: It did not end in time; it goes on by itself.
        """
        # Set first, then asked: the thread does it in the opposite order.
        self._waiter = waiter = new_waiter()
        if not self._outcome and not waiter.wait(seconds) and not self._outcome:
            text = f"a native call did not end within {_wording.seconds(seconds)}"
            raise TimeoutError(text)
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value


def run_in_thread(function: Callable[[], Any], seconds: float) -> Any:  # noqa: ANN401
    """Run a call that blocks natively, off the hub, and wait for its result.

    Without a hub the call is made on the spot, and so it is when the interpreter is
    ending and starts no thread. In the hub itself, where nobody can wait, it is started
    and left alone.

    Args:
        function: Ends by itself within about `seconds`.
        seconds: How long to wait for it.

    Raises:
        TimeoutError: It did not end in time; it goes on by itself.
    """
    if current_hub() is None:
        return function()
    call = ThreadCall(function)
    return None if in_hub() else call.wait(seconds)
