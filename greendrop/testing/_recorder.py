"""Keeps the events of producers, or of the process, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _wording
from greendrop.events import EVENTS, PROCESS_EVENTS, Event, Monitor

if TYPE_CHECKING:
    from types import TracebackType

#: The event that costs something when somebody listens: librdkafka then makes
#: statistics, and greendrop parses them.
_STATISTICS = "statistics.emitted"
#: The one whose listeners have to answer.
_QUESTION = "oauthbearer.token_refresh"
_KNOWN = {**EVENTS, **PROCESS_EVENTS}


class Monitored(Protocol):
    """A producer, say."""

    monitor: Monitor


class Recorder:
    """Keeps the events of one or several producers, in the order in which they came.

    All but `oauthbearer.token_refresh`, whose listeners have to answer.

    A context manager, which stops recording at the end. The events stay.

    Args:
        sources: Producers, or whatever has a `monitor`; or monitors, such as
            `greendrop.monitor`.
        statistics: Whether `statistics.emitted` is wanted, too. Then librdkafka makes
            statistics, and it must be asked for before the first message.
    """

    def __init__(self, *sources: Monitored | Monitor, statistics: bool = False) -> None:
        #: All events so far.
        self.events: list[Event] = []
        self._waiters: list[_concurrency.Waiter] = []
        self._monitors = [
            each if isinstance(each, Monitor) else each.monitor for each in sources
        ]
        for monitor in self._monitors:
            for name in monitor.events:
                if name != _QUESTION and (statistics or name != _STATISTICS):
                    monitor.subscribe(name, self._note)

    def _note(self, event: Event) -> None:
        self.events.append(event)
        for waiter in list(self._waiters):
            waiter.wake()

    @property
    def names(self) -> list[str]:
        """The names of all events so far."""
        return [event.name for event in self.events]

    def named(self, name: str) -> list[Event]:
        """Give the events of one name."""
        if name not in _KNOWN:
            raise ValueError(f"no event {name!r}; there are {', '.join(_KNOWN)}")
        return [event for event in self.events if event.name == name]

    @property
    def errors(self) -> list[BaseException]:
        """What `error.occurred` told, in order."""
        return [event["error"] for event in self.named("error.occurred")]

    def wait_for(self, name: str, count: int = 1, timeout: float = 5.0) -> list[Event]:
        """Wait until so many events of one name have come.

        Args:
            name: A key of `greendrop.events.EVENTS`, or of `PROCESS_EVENTS`.
            count: How many, from the beginning.
            timeout: Seconds.

        Raises:
            AssertionError: They did not come in time; the text tells what did.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        deadline = _concurrency.monotonic() + timeout
        while len(found := self.named(name)) < count:
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                within = _wording.seconds(timeout)
                text = f"{len(found)} of {count} {name!r} within {within}"
                raise AssertionError(f"{text}; there were {self.names}")
            waiter = _concurrency.new_waiter()
            self._waiters.append(waiter)
            try:
                if len(self.named(name)) < count:
                    waiter.wait(left)
            finally:
                self._waiters.remove(waiter)
        return found

    def clear(self) -> None:
        """Forget the events so far."""
        self.events.clear()

    def stop(self) -> None:
        """Record no more."""
        for monitor in self._monitors:
            monitor.unsubscribe(self._note)

    def __enter__(self) -> Recorder:
        """Give the recorder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record no more."""
        self.stop()
