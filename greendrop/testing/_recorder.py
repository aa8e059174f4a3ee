"""`Recorder`: records the events of producers, or of the process, for tests."""

from __future__ import annotations

from typing import Protocol, TypeVar

from greendrop import _concurrency, _wording
from greendrop.events import EVENTS, PROCESS_EVENTS, Event, EventName, Monitor

#: Not recorded by default: with a listener librdkafka makes statistics, and greendrop
#: parses them.
_STATISTICS = "statistics.emitted"
#: Not recorded: its listeners have to provide a token.
_NEEDS_ANSWER = "oauthbearer.token_refresh"
_KNOWN = {**EVENTS, **PROCESS_EVENTS}

_N = TypeVar("_N", bound=EventName)


class Monitored(Protocol):
    """An object with a monitor, such as a producer."""

    monitor: Monitor


class Recorder:
    """Records the events of one or several producers, in order.

    All but `oauthbearer.token_refresh`, whose listeners have to provide a token. As a
    context manager it stops recording at the end; the events stay.

    Args:
        sources: Producers, or other objects with a `monitor`; or monitors, such as
            `greendrop.monitor`.
        statistics: Also record `statistics.emitted`. Then construct the recorder before
            the first message.
    """

    def __init__(self, *sources: Monitored | Monitor, statistics: bool = False) -> None:
        #: All events so far.
        self.events: list[Event] = []
        self._new_events = _concurrency.WaitQueue()
        self._monitors = [
            each if isinstance(each, Monitor) else each.monitor for each in sources
        ]
        for monitor in self._monitors:
            for name in monitor.events:
                if name != _NEEDS_ANSWER and (statistics or name != _STATISTICS):
                    monitor.subscribe(name, self._note)

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self._new_events.notify_all()

    @property
    def names(self) -> list[str]:
        """The names of all events so far."""
        return [event.name for event in self.events]

    def named(self, name: _N) -> list[Event[_N]]:
        """Return the events of one name."""
        if name not in _KNOWN:
            raise ValueError(f"no event {name!r}; there are {', '.join(_KNOWN)}")
        return [event for event in self.events if event.name == name]

    @property
    def errors(self) -> list[BaseException]:
        """The errors of all `error.occurred` events, in order."""
        return [event["error"] for event in self.named("error.occurred")]

    def wait_for(
        self, name: _N, count: int = 1, timeout: float = 5.0
    ) -> list[Event[_N]]:
        """Wait until there are `count` events of one name, and return them.

        Args:
            name: A key of `greendrop.events.EVENTS`, or of `PROCESS_EVENTS`.
            count: Number of events, from the beginning.
            timeout: Seconds.

        Raises:
            AssertionError: There were too few in time; the text lists the events.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """

        def are_enough() -> bool:
            return len(self.named(name)) >= count

        deadline = _concurrency.Deadline(timeout)
        if not self._new_events.wait_until(are_enough, deadline):
            found = f"{len(self.named(name))} of {count} {name!r}"
            text = f"{found} within {_wording.seconds(timeout)}"
            raise AssertionError(f"{text}; there were {self.names}")
        return self.named(name)

    def clear(self) -> None:
        """Forget all events."""
        self.events.clear()

    def stop(self) -> None:
        """Stop recording."""
        for monitor in self._monitors:
            monitor.unsubscribe(self._note)

    def __enter__(self) -> Recorder:
        """Return the recorder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording."""
        self.stop()
