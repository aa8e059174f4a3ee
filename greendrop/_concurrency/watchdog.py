"""The hub watchdog: notices that a hub is blocked while delivery reports are waiting.

A handler that blocks the hub makes each of its messages, and so the broker, look slow.
A native thread asks the hub for an answer, again and again, while messages are in
flight. If no answer comes it takes the stack of the hub's thread. While nothing is in
flight the thread sleeps, without a single wake-up.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Protocol

from greendrop._concurrency import hub as hubs
from greendrop._concurrency import native, waiters
from greendrop._concurrency.deadline import monotonic

if TYPE_CHECKING:
    from gevent.hub import Hub

#: Questions within the time after which a hub counts as blocked. The reported time is
#: too short by at most one pause between questions.
_QUESTIONS = 4
#: Minimum seconds between two questions.
_MIN_PAUSE = 0.01
#: Seconds between two checks whether a hub that does not answer is dead.
_CHECK_INTERVAL = 0.5
#: Number of innermost frames in a reported stack.
_FRAMES = 30


class WatchedPoller(Protocol):
    """The poller of the watched hub."""

    @property
    def is_busy(self) -> bool:
        """Whether to go on asking."""

    def count_in_flight(self) -> int:
        """Return the number of messages whose reports are waited for."""

    def on_stall(self, seconds: float, stack: str | None) -> None:
        """Handle a stall; called in the watchdog's thread."""


class HubWatchdog:
    """Watches one hub.

    Args:
        hub: The hub.
        threshold: Seconds after which the hub counts as blocked; above 0.
        poller: The poller of the hub.
    """

    def __init__(self, hub: Hub, threshold: float, poller: WatchedPoller) -> None:
        self._hub = hub
        self._threshold = threshold
        self._poller = poller
        self._pause = max(threshold / _QUESTIONS, _MIN_PAUSE)
        self._stopped = False
        self._resumed = waiters.ThreadWaiter()
        self._rest = waiters.ThreadWaiter()
        native.start_new_thread(self._run, ())

    def resume(self) -> None:
        """Start asking again, if it has paused; from any thread."""
        self._resumed.wake()

    def stop(self) -> None:
        """Stop soon; from any thread."""
        self._stopped = True
        self._rest.wake()
        self._resumed.wake()

    def _is_over(self) -> bool:
        return self._stopped or hubs.hub_is_dead(self._hub)

    def _run(self) -> None:
        while not self._is_over():
            self._resumed.wait(native.LONGEST)
            while self._poller.is_busy and not self._is_over():
                self._ask()
                self._sleep()

    def _ask(self) -> None:
        question = _Question()
        hubs.call_soon_threadsafe(self._hub, question.answer)
        if question.answered.wait(self._threshold):
            return
        late = monotonic() - question.asked - self._threshold
        has_waiting = self._poller.count_in_flight() > 0
        stack = self._stack()
        # This thread may have woken so late that the stack was taken after the stall.
        answered = late > self._pause and question.answered.wait(_MIN_PAUSE)
        if answered:
            stack = None
        while not (answered or question.answered.wait(_CHECK_INTERVAL)):
            if self._is_over():
                return
        if has_waiting:
            self._poller.on_stall(question.took, stack)

    def _sleep(self) -> None:
        started = monotonic()
        self._rest.wait(self._pause)
        late = monotonic() - started - self._pause
        # Not even this thread could run: C code held the interpreter's lock. Its stack
        # can't be taken.
        if (
            late >= self._threshold
            and self._poller.count_in_flight() > 0
            and not self._stopped
        ):
            self._poller.on_stall(late, None)

    def _stack(self) -> str | None:
        # A local of this function only: a frame keeps its variables alive.
        frame = sys._current_frames().get(self._hub.thread_ident)  # noqa: SLF001 - there is no other way
        if frame is None:
            return None
        return "".join(traceback.format_stack(frame, _FRAMES)).rstrip()


class _Question:
    """A question that the hub answers as soon as it runs."""

    __slots__ = ("answered", "asked", "took")

    def __init__(self) -> None:
        self.answered = waiters.ThreadWaiter()
        #: Seconds until the answer.
        self.took = 0.0
        self.asked = monotonic()

    def answer(self) -> None:
        self.took = monotonic() - self.asked
        self.answered.wake()
