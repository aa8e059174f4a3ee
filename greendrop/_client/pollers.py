"""Who serves a client: the task that polls librdkafka for the client's whole life.

Two drivers of one behaviour. In a thread with a hub, a greenlet that sleeps on a file
descriptor which librdkafka signals: no thread, no polling interval, no cost when idle.
Everywhere else a native thread that blocks in short polls. What is done at each turn
is passed in; nothing of Kafka is known here.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from greendrop import _concurrency
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.wait_queue import WaitQueue
from greendrop._concurrency.watchdog import HubWatchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

    from greendrop._concurrency.wakeup import WakeupFd
    from greendrop._concurrency.watchdog import Alarm

#: Seconds between looks at the queue while messages are outstanding. librdkafka
#: signals once per non-empty queue: a signal that got lost would be lost for ever.
_SAFETY_INTERVAL = 0.5
#: Seconds between looks whether the hub of a task is gone, while its end is awaited.
_LOOK = 0.05
#: Seconds of one blocking poll. From 0.2 s on confluent-kafka 2.13 to 2.15.0 sleeps
#: the whole time, whatever arrives.
_POLL = 0.1


class ServeOnce(Protocol):
    """Poll for up to some seconds and tell what came.

    Returns an exception that was meant for the program, such as KeyboardInterrupt.
    """

    def __call__(self, seconds: float) -> BaseException | None: ...


class Periodic(NamedTuple):
    """What a task does beside, every so often, whether anything arrives or not.

    Attributes:
        seconds: How often; 0 for never.
        callback: Must not wait.
    """

    seconds: float
    callback: Callable[[], None]


class GreenletPoller:
    """A greenlet that serves when the descriptor becomes readable."""

    polling: Literal["fd"] = "fd"

    def __init__(
        self,
        hub: Hub,
        signal: WakeupFd,
        turn: ServeOnce,
        outstanding: Callable[[], int],
        *,
        pulse: Periodic,
        alarm: Alarm,
        is_wanted: Callable[[GreenletPoller], bool],
    ) -> None:
        """Start in the calling thread, whose hub it is.

        It serves for as long as it `is_wanted`, from its first turn on.
        """
        self.hub = hub
        self._is_wanted = is_wanted
        self._signal = signal
        self._turn = turn
        self._outstanding = outstanding
        self._stopped = False
        self._ended = False
        #: Called when it has ended.
        self.on_end: Callable[[], object] = lambda: None
        # Whether the safety timer runs, and whether it holds the loop.
        self._safety_timer_runs = False
        self._holds = False
        self._end = WaitQueue()
        # An idle producer must not hold gevent's loop: `gevent.wait()` would never
        # return. While messages are outstanding the safety timer holds it: a program
        # that only waits for what a listener does would get `LoopExit`.
        loop: Any = hub.loop
        self._io = loop.io(signal.fileno(), 1, ref=False)
        # libuv shares one handle between the watchers of a descriptor, and forgets to
        # hand the wish on to it.
        shared = getattr(self._io, "_watcher_ref", None)
        if shared is not None:
            shared.ref = False
        self._safety_timer = loop.timer(_SAFETY_INTERVAL, _SAFETY_INTERVAL, ref=False)
        #: Where those wait that it serves. With it the hub takes mail.
        self.shared_timer = _concurrency.SharedTimer(hub)
        self._periodic_callback = pulse.callback
        self._periodic_timer: Any = None
        if pulse.seconds:
            self._periodic_timer = loop.timer(pulse.seconds, pulse.seconds, ref=False)
            # Not the function itself: `stop` lets go of it when the hub is gone.
            self._periodic_timer.start(lambda: self._periodic_callback())  # noqa: PLW0108 - see above
        self._watch: HubWatchdog | None = None
        if alarm.seconds:
            self._watch = HubWatchdog(
                hub, alarm, lambda: self._safety_timer_runs, outstanding
            )
        #: The task.
        self.greenlet: Any = sys.modules["gevent"].spawn(self._run)

    @property
    def alive(self) -> bool:
        """Whether it serves, and will go on."""
        return not (self._stopped or self._over())

    def _over(self) -> bool:
        # The greenlet itself is asked: killed before its first line, it can't tell.
        return bool(self.greenlet.dead) or _concurrency.hub_is_dead(self.hub)

    def is_current(self) -> bool:
        """Tell whether the caller is this task: a listener, that is."""
        return _concurrency.is_current(self.greenlet)

    def start_safety_timer(self) -> None:
        """Hold the loop, and look after messages, until none is outstanding.

        From any thread.
        """
        if self._holds:
            return
        self._holds = True
        if not self._safety_timer_runs:
            self._safety_timer_runs = True
            if self._watch is not None:
                self._watch.look()
        if _concurrency.get_ident() == self.hub.thread_ident:
            self._hold()
        else:
            _concurrency.call_soon_threadsafe(self.hub, self._hold)

    def release(self) -> None:
        """Let go of the loop, because no message is outstanding.

        In another thread than the hub's this does nothing: the safety timer does it.
        """
        if self._holds and _concurrency.get_ident() == self.hub.thread_ident:
            # The flag first, then the count: a thread that sends in between sets it.
            self._holds = False
            if not self._ended:
                self._safety_timer.ref = False
            if self._outstanding() > 0:
                self.start_safety_timer()

    def pause(self) -> None:
        """Let the hub have a turn."""
        _concurrency.yield_to_hub()

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopped = True
        self._signal.set()
        if self._watch is not None:
            self._watch.stop()
        if self.greenlet.dead and not self._ended:
            _concurrency.call_soon_threadsafe(self.hub, self._close_watchers)
        if _concurrency.hub_is_dead(self.hub):
            if self.hub.thread_ident == _concurrency.get_ident() and self.hub.loop:
                self._ended = True
                self._close_watchers()  # a dead hub of this thread
            # gevent keeps the watcher of a destroyed loop, and with it the greenlet,
            # for ever. The client behind it need not stay as well.
            for name in ("_turn", "_outstanding", "_periodic_callback", "_is_wanted"):
                vars(self).pop(name, None)  # stopped before, maybe

    def join(self, seconds: float) -> bool:
        """Wait for the end, not in the task itself; False when it didn't come."""
        deadline = Deadline(seconds)
        while not (self._ended or self._over()):
            if deadline.has_expired:
                return False
            # A hub may be about to end with its thread: it wakes nobody.
            soon = Deadline(_LOOK).earlier(deadline)
            self._end.wait_until(lambda: self._ended, _concurrency.new_waiter(), soon)
        return True

    @property
    def has_ended(self) -> bool:
        """Whether it has let go of the descriptor."""
        return self._ended

    def _run(self) -> None:
        try:
            while not self._stopped and self._is_wanted(self):
                try:
                    interrupt = self._serve()
                except BaseException as error:  # noqa: BLE001
                    interrupt = error
                if isinstance(interrupt, sys.modules["greenlet"].GreenletExit):
                    raise interrupt
                if interrupt is not None:
                    # A signal handler raised. KeyboardInterrupt and the like go on in
                    # the main greenlet.
                    self.hub.handle_error(self, type(interrupt), interrupt, None)
        finally:
            self._ended = True
            self._close_watchers()
            self.on_end()
            self._end.notify_all()

    def _serve(self) -> BaseException | None:
        # Drained first, then polled: what comes after the drain signals anew.
        self._signal.clear()
        interrupt = self._turn(0)
        if interrupt is None and not self._stopped:
            self._sleep()
        return interrupt

    def _close_watchers(self) -> None:
        self._safety_timer.close()
        self._io.close()
        self.shared_timer.close()
        if self._periodic_timer is not None:
            self._periodic_timer.close()

    def _sleep(self) -> None:
        # The watcher runs only while we sleep. While a listener waits elsewhere the
        # descriptor may stay readable, and would keep the hub spinning.
        self._io.start(self.greenlet.switch)
        try:
            self.hub.switch()
        finally:
            self._io.stop()

    def _hold(self) -> None:
        if not (self._ended or self._stopped):
            self._safety_timer.ref = True
            if not self._safety_timer.active:
                self._safety_timer.again(self._on_safety_timer, update=True)

    def _on_safety_timer(self) -> None:
        # The flags first, then the count: a thread that sends in between sets them.
        self._safety_timer_runs = self._holds = False
        if self._stopped or self._outstanding() <= 0:
            self._safety_timer.ref = False
            self._safety_timer.stop()
        else:
            self.start_safety_timer()
            self._signal.set()


class ThreadPoller:
    """A native thread that blocks in short polls, and rests while others do.

    At the end of a program there may be no thread to be had: then only others poll.
    """

    polling: Literal["thread"] = "thread"

    def __init__(
        self, turn: ServeOnce, interrupt_poll: Callable[[], None], pulse: Periodic
    ) -> None:
        """Start the thread.

        Args:
            turn: See `ServeOnce`.
            interrupt_poll: Makes a poll that is going on return.
            pulse: See `Periodic`.
        """
        self._periodic = pulse
        self._turn = turn
        self._interrupt_poll = interrupt_poll
        #: Threads that wait do so here, and poll.
        self.lead = LeaderFollowers(turn, interrupt_poll)
        self._stopped = False
        self._ended = False
        self._ident: int | None = None
        self._end = WaitQueue()
        self._rest = _concurrency.ThreadWaiter()
        #: Whether there is no thread, because the interpreter is ending and starts
        #: none. Who waits has to poll.
        self.threadless = not _concurrency.start_thread(self._run)

    @property
    def alive(self) -> bool:
        """Whether it serves, and will go on."""
        return not (self._stopped or self._ended)

    def is_current(self) -> bool:
        """Tell whether the caller is this task: a listener, that is."""
        return _concurrency.get_ident() == self._ident

    def start_safety_timer(self) -> None:
        """Do nothing: it polls all the time."""

    def release(self) -> None:
        """Do nothing: it holds no loop."""

    def pause(self) -> None:
        """Do nothing: it holds no hub."""

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopped = True
        self._ended = self._ended or self.threadless
        self.lead.stop()
        self._rest.wake()

    def join(self, seconds: float) -> bool:
        """Wait for the end, not in the task itself; False when it didn't come."""
        return self._ended or self._end.wait_until(
            lambda: self._ended, _concurrency.new_waiter(), Deadline(seconds)
        )

    def _run(self) -> None:
        self._ident = _concurrency.get_ident()
        last_beat = _concurrency.monotonic()
        try:
            while not self._stopped:
                if self._periodic.seconds:
                    now = _concurrency.monotonic()
                    if now >= last_beat + self._periodic.seconds:
                        last_beat = now
                        self._periodic.callback()
                if self.lead.was_taken():
                    self.lead.pass_on()
                    self._rest.wait(_POLL)
                else:
                    self._turn(_POLL)
        finally:
            self._ended = True
            self._end.notify_all()


class PollingWaiter:
    """A thread that takes the lead while it waits, or follows.

    Args:
        lead: Where.
        done: Whether that is there what it waits for. Without it, it waits to be woken.
    """

    __slots__ = ("_done", "_lead", "_waiter", "_woken")

    def __init__(self, lead: LeaderFollowers, done: Callable[[], bool] | None) -> None:
        self._lead = lead
        self._woken = False
        self._done = done or (lambda: self._woken)
        self._waiter = _concurrency.ThreadWaiter()

    def wait(self, seconds: float) -> bool:
        self._lead.wait(self._waiter, self._done, seconds)
        if self._lead.stopped and not self._done():
            # Another task serves, and wakes it; or its message has gone to another
            # client, which does.
            self._waiter.wait(seconds)
        return self._done()

    def wait_slice(self, seconds: float) -> bool:
        return self.wait(min(seconds, _concurrency.ThreadWaiter.SLICE))

    def wake(self) -> None:
        self._woken = True
        self._waiter.wake()


class LeaderFollowers:
    """Which of the threads that wait for reports polls for all of them.

    A report that another thread polls reaches its waiter two thread switches later,
    which is half of what a message takes. So a thread that waits polls itself, if no
    other does; the others follow: they sleep until their report is told, or until the
    leader, whose own report came, wakes one of them to lead. While there are leaders
    the `ThreadPoller` rests.

    Args:
        turn: See `ServeOnce`.
        interrupt_poll: Makes a poll that is going on return.
    """

    def __init__(self, turn: ServeOnce, interrupt_poll: Callable[[], None]) -> None:
        # Who leads. Not a lock: a signal handler that raises just after it was taken
        # would leave it taken for ever. This tells by whom.
        self._leader: dict[str, object] = {}
        self._turn = turn
        self._interrupt_poll = interrupt_poll
        self._taken = False
        #: Whether this way of waiting is over.
        self.stopped = False
        self._followers: deque[_concurrency.Waiter] = deque()

    def was_taken(self) -> bool:
        """Tell whether somebody took the lead since this was last asked."""
        taken, self._taken = self._taken, False
        return taken

    def wait(
        self, waiter: _concurrency.Waiter, done: Callable[[], bool], seconds: float
    ) -> None:
        """Wait until done, or the time is over; poll meanwhile, if nobody else does.

        Returns early when this way of waiting is stopped.

        Args:
            waiter: The caller's; woken when it is done.
            done: Whether it is.
            seconds: How long.

        Blocking:
            Blocks the thread.
        """
        me = object()
        deadline = _concurrency.monotonic() + seconds
        while not (done() or self.stopped):
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                return
            try:
                if self._leader.setdefault("leader", me) is me:
                    self._poll_until(done, deadline)
                else:
                    self._follow(waiter, done, left)
            finally:
                if self._leader.get("leader") is me:
                    del self._leader["leader"]
                    self.pass_on()

    def stop(self) -> None:
        """Send all away, soon: another task serves from now on."""
        self.stopped = True
        self._interrupt_poll()
        while self.pass_on():
            pass

    def pass_on(self) -> bool:
        """Wake one who follows, to lead; False if there is none."""
        try:
            waiter = self._followers.popleft()
        except IndexError:
            return False
        waiter.wake()
        return True

    def _poll_until(self, done: Callable[[], bool], deadline: float) -> None:
        if not self._taken:
            # It is the thread task that polls. It makes shared_timer for us.
            self._taken = True
            self._interrupt_poll()
        while not (done() or self.stopped):
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                return
            self._taken = True
            interrupt = self._turn(min(left, _POLL))
            if interrupt is not None:
                raise interrupt

    def _follow(
        self, waiter: _concurrency.Waiter, done: Callable[[], bool], seconds: float
    ) -> None:
        self._followers.append(waiter)
        try:
            # Asked once more, now that we are known to follow: the leader may have
            # left, with nobody to wake, between our first try and this.
            if self._leader and not self.stopped:
                waiter.wait(seconds)
        finally:
            try:
                self._followers.remove(waiter)
            except ValueError:
                # Woken to lead. Who has no need of that wakes the next one.
                if done():
                    self.pass_on()
