"""Whether a hub stands still while messages wait to be told of, and because of what.

A handler that blocks the hub makes each of its messages look slow, and the broker seem
so. A native thread asks the hub to answer, again and again, for as long as it has
something to do; when no answer comes it looks what the hub's thread is at. While there
is nothing to do it sleeps, without a single wakeup.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

from greendrop._concurrency import hub as hubs
from greendrop._concurrency import native, waiters
from greendrop._concurrency.deadline import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

#: The hub is asked so many times in the time after which it counts as held: what is
#: told is that much too short at worst.
_QUESTIONS = 4
#: Seconds between two questions at least.
_SHORTEST = 0.01
#: Seconds between two looks whether a hub that does not answer is still there.
_LONGEST_WAIT = 0.5
#: Innermost lines of a stack that are told.
_FRAMES = 30


class Alarm(NamedTuple):
    """What is told of a hub that is held.

    Attributes:
        seconds: For how long it is at least; 0 turns the alarm off.
        tell: Given the seconds and the stack, if there is one; in a thread of its own.
    """

    seconds: float
    tell: Callable[[float, str | None], object]


class HubWatchdog:
    """Watches one hub.

    Args:
        hub: Which.
        alarm: Above 0 seconds.
        busy: Whether to go on asking.
        outstanding: How many messages wait to be told of.
    """

    def __init__(
        self,
        hub: Hub,
        alarm: Alarm,
        busy: Callable[[], bool],
        outstanding: Callable[[], int],
    ) -> None:
        self._hub = hub
        self._limit, self._tell = alarm
        self._pause = max(alarm.seconds / _QUESTIONS, _SHORTEST)
        self._busy = busy
        self._outstanding = outstanding
        self._stopped = False
        self._awake = waiters.ThreadWaiter()
        self._rest = waiters.ThreadWaiter()
        native.start_new_thread(self._run, ())

    def look(self) -> None:
        """Begin to ask, if it does not yet; from any thread."""
        self._awake.wake()

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopped = True
        self._rest.wake()
        self._awake.wake()

    def _over(self) -> bool:
        return self._stopped or hubs.hub_is_dead(self._hub)

    def _run(self) -> None:
        while not self._over():
            self._awake.wait(native.LONGEST)
            while self._busy() and not self._over():
                self._ask()
                self._sleep()

    def _ask(self) -> None:
        question = _Question()
        hubs.call_soon_threadsafe(self._hub, question.answer)
        if question.answered.wait(self._limit):
            return
        late = monotonic() - question.asked - self._limit
        waited_for = self._outstanding() > 0
        stack = self._stack()
        # Woken late, it may have looked when all was over.
        answered = late > self._pause and question.answered.wait(_SHORTEST)
        if answered:
            stack = None
        while not (answered or question.answered.wait(_LONGEST_WAIT)):
            if self._over():
                return
        if waited_for:
            self._tell(question.took, stack)

    def _sleep(self) -> None:
        began = monotonic()
        self._rest.wait(self._pause)
        late = monotonic() - began - self._pause
        # Not even this thread could run: something holds the interpreter's lock, in C
        # that we can't look into, and by now it is gone.
        if late >= self._limit and self._outstanding() > 0 and not self._stopped:
            self._tell(late, None)

    def _stack(self) -> str | None:
        # Under its own name, and not longer than needed: a frame holds all it has.
        frame = sys._current_frames().get(self._hub.thread_ident)  # noqa: SLF001 - there is no other way
        if frame is None:
            return None
        return "".join(traceback.format_stack(frame, _FRAMES)).rstrip()


class _Question:
    """What the hub answers when it runs."""

    __slots__ = ("answered", "asked", "took")

    def __init__(self) -> None:
        self.answered = waiters.ThreadWaiter()
        #: Seconds until the answer.
        self.took = 0.0
        self.asked = monotonic()

    def answer(self) -> None:
        self.took = monotonic() - self.asked
        self.answered.wake()
