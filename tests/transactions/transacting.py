"""What the tests of transactions share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from greendrop import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greendrop import DeliveryHandle, Event, Producer

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 20.0
#: How a transaction may end, as events tell it.
ENDS = ("committed", "aborted", "finished")


def send(producer: Producer, count: int = 1, **fields: Any) -> list[DeliveryHandle]:
    """Send messages without waiting; give their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number, **fields)
        for number in range(count)
    ]


def events_of(producer: Producer, *wanted: str) -> list[Event]:
    """Note from now on events by name."""
    heard: list[Event] = []
    for name in wanted:
        producer.monitor.subscribe(name, heard.append)
    return heard


def transaction_events(producer: Producer) -> list[Event]:
    """Note from now on what is told of transactions."""
    return events_of(producer, *(f"transaction.{each}" for each in ("started", *ENDS)))


def names(heard: Iterable[Event]) -> list[str]:
    """Tell what was heard, briefly."""
    return [each.name.removeprefix("transaction.") for each in heard]


def outcomes(heard: Iterable[Event]) -> list[str]:
    """Tell how the transactions ended of which was heard."""
    return [each["outcome"] for each in heard if each.name == "transaction.finished"]


class Failing:
    """A command of a client's that fails so often, with an error of our choice."""

    def __init__(
        self, producer: Producer, name: str, times: int, *, code: int = 7, **flags: bool
    ) -> None:
        native = producer._slot.client.kafka_handle  # type: ignore[union-attr]
        self._real = getattr(native, name)
        self._times = times
        self._code = code
        self._flags = flags
        #: When it was called.
        self.called: list[float] = []
        setattr(native, name, self)

    def __call__(self, *arguments: object) -> object:
        """Fail, or do it."""
        self.called.append(time.monotonic())
        if len(self.called) <= self._times:
            name = "REQUEST_TIMED_OUT" if self._code > 0 else "_TIMED_OUT"
            raise BrokerError("not now", self._code, name, **self._flags)
        return self._real(*arguments)
