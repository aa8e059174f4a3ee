"""Pollers: the tasks that poll librdkafka for one client.

`GreenletPoller` runs in a thread with a hub. It sleeps on a file descriptor that
librdkafka signals: no thread, no polling interval, no cost when idle. `ThreadPoller` is
a native thread that blocks in short polls. Beside it `LeaderFollowers` lets one of the
waiting threads poll for all. `poll_loop` chooses between them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Protocol

from greendrop import _concurrency
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.wait_queue import WaitQueue
from greendrop._concurrency.watchdog import HubWatchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent import Greenlet
    from gevent._types import _TimerWatcher
    from gevent.hub import Hub

    from greendrop._client.batcher import ThreadBatcher
    from greendrop._concurrency.wakeup import WakeupFd

#: Seconds between polls while messages are in flight, in case of a lost wake-up:
#: librdkafka signals only once until its queue is polled.
_SAFETY_INTERVAL = 0.5
#: Seconds between two checks whether the poller's hub is dead, while its end is
#: awaited.
_HUB_CHECK_INTERVAL = 0.05
#: Seconds of one blocking poll. From 0.2 s on confluent-kafka 2.13 to 2.15.0 sleeps for
#: the whole time, whatever arrives.
_POLL_SECONDS = 0.1
#: librdkafka counts milliseconds: a shorter poll would not wait, and the thread would
#: spin until its deadline.
_SHORTEST_POLL = 0.001
#: Bytes that are read from the descriptor at once: more than it usually holds, which is
#: 8 of an eventfd, and 8 for each signal of a pipe.
_WAKEUP_BYTES = 4096


class PollTarget(Protocol):
    """The poll loop of a client, as pollers need it."""

    #: The current poller. A poller that is another one ends.
    poller: GreenletPoller | ThreadPoller | None

    @property
    def interval(self) -> float:
        """Seconds between two calls of `on_interval`; 0 for never."""

    def on_interval(self) -> None:
        """Do periodic checks; must not wait."""

    def poll_and_dispatch(self, seconds: float, thread: int) -> BaseException | None:
        """Poll for up to some seconds, call listeners and resolve handles.

        Args:
            seconds: The timeout of the poll.
            thread: The number of the calling thread; 0 in a hub.

        Returns:
            An exception of a signal handler of the program, such as KeyboardInterrupt.
        """

    def interrupt_poll(self) -> None:
        """Let a running poll return early; from any thread."""

    def count_in_flight(self) -> int:
        """Return the number of messages that the poller has to wait for."""

    def note_stall(self, seconds: float, stack: str | None) -> None:
        """Emit `hub.stalled` with the next poll; from any thread."""


class GreenletPoller:
    """A greenlet that polls when the descriptor becomes readable.

    Args:
        hub: The hub of the calling thread.
        target: The poll loop.
        wakeup: The descriptor that librdkafka writes to.
        stall_threshold: Seconds for which the hub may be blocked before `note_stall` is
            called; 0 for no watchdog.
    """

    kind: Literal["fd"] = "fd"

    def __init__(
        self, hub: Hub, target: PollTarget, wakeup: WakeupFd, stall_threshold: float
    ) -> None:
        self.hub = hub
        self._target: PollTarget | None = target
        self._wakeup = wakeup
        self._stopped = False
        self._ended = False
        #: Whether to close the descriptor when the poller has ended.
        self.closes_descriptor = False
        # Whether the safety timer runs.
        self._safety_timer_runs = False
        #: Whether the safety timer keeps the loop alive.
        self.keeps_loop_alive = False
        self._end = WaitQueue()
        # An idle producer must not keep gevent's loop alive: `gevent.wait()` would
        # never return. While messages are in flight the safety timer keeps the loop
        # alive: a program that waits only for an action of a listener would get
        # `LoopExit`.
        loop = hub.loop
        self._io = loop.io(wakeup.read_fd, 1, ref=False)
        # libuv shares one handle between the watchers of a descriptor, and does not
        # pass `ref` on to it.
        shared = getattr(self._io, "_watcher_ref", None)
        if shared is not None:
            shared.ref = False
        self._safety_timer: Any = loop.timer(
            _SAFETY_INTERVAL, _SAFETY_INTERVAL, ref=False
        )
        #: The timer of waits for this poller. It also lets other threads call in the
        #: hub.
        self.shared_timer = _concurrency.SharedTimer(hub)
        self._periodic_timer: _TimerWatcher | None = None
        if target.interval:
            self._periodic_timer = loop.timer(
                target.interval, target.interval, ref=False
            )
            self._periodic_timer.start(self._on_interval)
        self._watchdog: HubWatchdog | None = None
        if stall_threshold:
            self._watchdog = HubWatchdog(hub, stall_threshold, self)
        #: The greenlet.
        self.greenlet: Greenlet[[], None] = sys.modules["gevent"].spawn(self._run)

    @property
    def alive(self) -> bool:
        """Whether it polls, and will go on."""
        return not (self._stopped or self._is_dead())

    def _is_dead(self) -> bool:
        # Not a flag: a greenlet that is killed before its first line sets none.
        return bool(self.greenlet.dead) or _concurrency.hub_is_dead(self.hub)

    def is_current(self) -> bool:
        """Return whether the caller is this poller, that is, a listener."""
        return _concurrency.is_current(self.greenlet)

    def start_safety_timer(self) -> None:
        """Keep the loop alive and poll regularly, until no message is in flight.

        From any thread.
        """
        if self.keeps_loop_alive:
            return
        self.keeps_loop_alive = True
        if not self._safety_timer_runs:
            self._safety_timer_runs = True
            if self._watchdog is not None:
                self._watchdog.resume()
        if _concurrency.get_ident() != self.hub.thread_ident:
            _concurrency.call_soon_threadsafe(self.hub, self._hold)
        elif self._safety_timer.active:
            self._safety_timer.ref = True
        else:
            self._hold()

    def release(self) -> None:
        """Stop keeping the loop alive, because no message is in flight.

        Does nothing in another thread than the hub's, where the safety timer does it.
        Check for new messages afterwards.
        """
        if self.keeps_loop_alive and _concurrency.get_ident() == self.hub.thread_ident:
            self.keeps_loop_alive = False
            if not self._ended:
                self._safety_timer.ref = False

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopped = True
        self._wakeup.set()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self.greenlet.dead and not self._ended:
            _concurrency.call_soon_threadsafe(self.hub, self._close_watchers)
        if _concurrency.hub_is_dead(self.hub):
            if self.hub.thread_ident == _concurrency.get_ident() and self.hub.loop:
                self._ended = True
                self._close_watchers()  # a dead hub of this thread
            # gevent keeps the watcher of a destroyed loop, and so the greenlet, for
            # ever. Release the client.
            self._target = None

    def join(self, seconds: float) -> bool:
        """Wait for the end; return False if it has not come in time."""
        deadline = Deadline(seconds)
        while not (self._ended or self._is_dead()):
            if deadline.has_expired:
                return False
            # A hub that ends with its thread wakes no waiter.
            soon = Deadline(_HUB_CHECK_INTERVAL).earlier(deadline)
            self._end.wait_until(self.has_ended, soon)
        return True

    def count_in_flight(self) -> int:
        """Return the number of messages that the poller has to wait for."""
        return 0 if self._target is None else self._target.count_in_flight()

    @property
    def is_busy(self) -> bool:
        """Whether messages were sent since the safety timer has last fired."""
        return self._safety_timer_runs

    def on_stall(self, seconds: float, stack: str | None) -> None:
        """Pass a stall of the hub on; called by the watchdog."""
        if self._target is not None:
            self._target.note_stall(seconds, stack)

    def _on_interval(self) -> None:
        if self._target is not None:
            self._target.on_interval()

    def has_ended(self) -> bool:
        """Return whether it does not use the descriptor any more."""
        return self._ended

    def _run(self) -> None:
        with contextlib.suppress(sys.modules["greenlet"].GreenletExit):
            self._poll_until_stopped()
        # Not reached if a signal handler raised between two polls. While messages are
        # in flight, the safety timer then starts another greenlet.
        self._ended = True
        self._close_watchers()
        if self.closes_descriptor:
            self._wakeup.close()
        self._end.notify_all()

    def _poll_until_stopped(self) -> None:
        # A signal handler may have prevented the publication of this poller, or may
        # have published another one.
        while (
            not self._stopped
            and (target := self._target) is not None
            and target.poller is self
        ):
            try:
                interrupt = self._poll_and_sleep()
            except BaseException as error:  # noqa: BLE001
                interrupt = error
            if isinstance(interrupt, sys.modules["greenlet"].GreenletExit):
                raise interrupt
            if interrupt is not None:
                # A signal handler raised. gevent raises KeyboardInterrupt and the like
                # in the main greenlet.
                self.hub.handle_error(self, type(interrupt), interrupt, None)

    def _poll_and_sleep(self) -> BaseException | None:
        # Drain the descriptor first: an event that arrives between the drain and the
        # poll signals again. In the opposite order its signal could be drained unseen.
        try:  # noqa: SIM105 - each call costs every message
            os.read(self._wakeup.read_fd, _WAKEUP_BYTES)
        except OSError:
            pass  # nothing has signalled
        target = self._target
        interrupt = None if target is None else target.poll_and_dispatch(0, 0)
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
        # The watcher runs only during the sleep. While a listener waits, the descriptor
        # may stay readable, and a running watcher would keep the hub spinning.
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
        # The flags first, then the count: a thread that sends in between sets the
        # flags.
        self._safety_timer_runs = self.keeps_loop_alive = False
        if self._stopped or self.count_in_flight() <= 0:
            self._safety_timer.ref = False
            self._safety_timer.stop()
        else:
            self.start_safety_timer()
            if self.greenlet.dead:
                self.greenlet = sys.modules["gevent"].spawn(self._run)
            self._wakeup.set()


class ThreadPoller:
    """A native thread that blocks in short polls, and rests while other threads poll.

    While the interpreter is ending it may start no thread: then waiting threads poll.

    Args:
        target: The poll loop.
        batcher: Batches sends during polls; None if sends are not batched.
    """

    kind: Literal["thread"] = "thread"
    #: True, as if it had a safety timer that runs: the thread polls all the time.
    keeps_loop_alive = True

    def __init__(self, target: PollTarget, batcher: ThreadBatcher | None) -> None:
        self._target = target
        self._batcher = batcher
        #: The waiting threads, one of which polls.
        self.followers = LeaderFollowers(target)
        self._stopped = False
        self._ended = False
        self._ident: int | None = None
        self._end = WaitQueue()
        self._rest = _concurrency.ThreadWaiter()
        #: Whether there is no thread, because the interpreter is ending. Then waiting
        #: threads have to poll.
        self.has_no_thread = not _concurrency.start_thread(self._run)

    @property
    def alive(self) -> bool:
        """Whether it polls, and will go on."""
        return not (self._stopped or self._ended)

    def is_current(self) -> bool:
        """Return whether the caller is this poller, that is, a listener."""
        return _concurrency.get_ident() == self._ident

    def start_safety_timer(self) -> None:
        """Do nothing: the thread polls all the time."""

    def release(self) -> None:
        """Do nothing: the thread keeps no loop alive."""

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopped = True
        if self._batcher is not None:
            self._batcher.end()
        self._ended = self._ended or self.has_no_thread
        self.followers.stop()
        self._rest.wake()

    def join(self, seconds: float) -> bool:
        """Wait for the end; return False if it has not come in time."""
        return self._end.wait_until(self._has_ended, Deadline(seconds))

    def _has_ended(self) -> bool:
        return self._ended

    def _run(self) -> None:
        ident = self._ident = _concurrency.get_ident()
        interval = self._target.interval
        next_interval = Deadline(interval)
        try:
            while not self._stopped:
                if interval and next_interval.has_expired:
                    next_interval = Deadline(interval)
                    self._target.on_interval()
                if self.followers.have_polled():
                    self.followers.wake_next()
                    self._rest.wait(_POLL_SECONDS)
                else:
                    self._target.poll_and_dispatch(_POLL_SECONDS, ident)
        finally:
            # A later thread may get the same identifier, and is no listener.
            self._ident = None
            self._ended = True
            self._end.notify_all()


class PollingWaiter:
    """A waiter for a thread that polls while it waits, or follows a thread that does.

    Args:
        followers: The waiting threads of the client.
        is_done: Whether the wait is over; by default, whether the waiter was woken.
    """

    __slots__ = ("_followers", "_is_done", "_waiter", "_woken")

    def __init__(
        self, followers: LeaderFollowers, is_done: Callable[[], bool] | None
    ) -> None:
        self._followers = followers
        self._woken = False
        self._is_done = is_done or self._was_woken
        self._waiter = _concurrency.ThreadWaiter()

    def _was_woken(self) -> bool:
        return self._woken

    def wait(self, seconds: float) -> bool:
        self._followers.wait(self._waiter, self._is_done, Deadline(seconds))
        if self._followers.stopped and not self._is_done():
            # Another poller wakes this waiter; or its message was passed on to another
            # client, whose poller does.
            self._waiter.wait(seconds)
        return self._is_done()

    def wait_slice(self, seconds: float) -> bool:
        return self.wait(min(seconds, _concurrency.ThreadWaiter.SLICE))

    def wake(self) -> None:
        self._woken = True
        self._waiter.wake()


class LeaderFollowers:
    """The threads that wait for reports; one of them polls for all (leader/followers).

    A report that another thread polls reaches its waiter two thread switches later,
    which is half of the time that a message takes. So a waiting thread polls itself if
    no other one does. The others follow: they sleep until their report is dispatched,
    or until the leader, whose own report has come, wakes one of them to lead. While
    there are leaders the `ThreadPoller` rests.

    Args:
        target: The poll loop.
    """

    def __init__(self, target: PollTarget) -> None:
        # The leader. Not a lock: a signal handler that raises just after it was taken
        # would leave the lock taken for ever. This says by which call.
        self._leader: dict[str, object] = {}
        self._target = target
        self._has_polled = False
        #: Whether another poller has taken over for good.
        self.stopped = False
        self._followers: deque[_concurrency.Waiter] = deque()

    def have_polled(self) -> bool:
        """Return whether a waiting thread has polled since the last call."""
        has_polled, self._has_polled = self._has_polled, False
        return has_polled

    def wait(
        self,
        waiter: _concurrency.Waiter,
        is_done: Callable[[], bool],
        deadline: Deadline,
    ) -> None:
        """Wait until done, or the time is over; poll if no other thread does.

        Returns early when another poller takes over.

        Args:
            waiter: The caller's; woken when the wait is over.
            is_done: Whether the wait is over.
            deadline: When to give up.

        Blocking:
            Blocks the thread.
        """
        call = object()
        while not (is_done() or self.stopped or deadline.has_expired):
            try:
                if self._leader.setdefault("leader", call) is call:
                    self._poll_until(is_done, deadline)
                else:
                    self._follow(waiter, is_done, deadline)
            finally:
                if self._leader.get("leader") is call:
                    del self._leader["leader"]
                    self.wake_next()

    def stop(self) -> None:
        """Let all threads return soon, because another poller takes over."""
        self.stopped = True
        self._target.interrupt_poll()
        while self.wake_next():
            pass

    def wake_next(self) -> bool:
        """Wake the first follower, to lead; return False if there is none."""
        try:
            waiter = self._followers.popleft()
        except IndexError:
            return False
        waiter.wake()
        return True

    def _poll_until(self, is_done: Callable[[], bool], deadline: Deadline) -> None:
        if not self._has_polled:
            # The thread of the `ThreadPoller` is polling. Let it rest instead.
            self._has_polled = True
            self._target.interrupt_poll()
        thread = _concurrency.get_ident()
        while not (is_done() or self.stopped or deadline.has_expired):
            self._has_polled = True
            seconds = min(max(deadline.remaining(), _SHORTEST_POLL), _POLL_SECONDS)
            interrupt = self._target.poll_and_dispatch(seconds, thread)
            if interrupt is not None:
                raise interrupt

    def _follow(
        self,
        waiter: _concurrency.Waiter,
        is_done: Callable[[], bool],
        deadline: Deadline,
    ) -> None:
        self._followers.append(waiter)
        try:
            # Check again, now that this thread is among the followers: the leader may
            # have left, with no follower to wake, between the first check and this one.
            if self._leader and not self.stopped:
                waiter.wait(deadline.remaining())
        finally:
            try:
                self._followers.remove(waiter)
            except ValueError:
                # Woken to lead. If this thread is done it wakes the next one instead.
                if is_done():
                    self.wake_next()
