"""Helpers of the tests of transactions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from greendrop import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greendrop import DeliveryHandle, Event, Producer

#: Seconds; a working test takes much less.
LONG = 20.0
#: Kafka's error code for a fenced producer.
INVALID_PRODUCER_EPOCH = 47
#: Names of the events that report the end of a transaction.
ENDS = ("committed", "aborted", "finished")


def send(producer: Producer, count: int = 1, **fields: Any) -> list[DeliveryHandle]:
    """Send messages without waiting, and return their handles."""
    return [
        producer.produce_async(topic="t", payload=b"x", label=number, **fields)
        for number in range(count)
    ]


def events_of(producer: Producer, *wanted: str) -> list[Event]:
    """Record events by name from now on."""
    heard: list[Event] = []
    for name in wanted:
        producer.monitor.subscribe(name, heard.append)
    return heard


def transaction_events(producer: Producer) -> list[Event]:
    """Record the events of transactions from now on."""
    return events_of(producer, *(f"transaction.{each}" for each in ("started", *ENDS)))


def names(heard: Iterable[Event]) -> list[str]:
    """Return the names of events, without the prefix of transactions."""
    return [each.name.removeprefix("transaction.") for each in heard]


def outcomes(heard: Iterable[Event]) -> list[str]:
    """Return the outcomes of the finished transactions among these events."""
    return [each["outcome"] for each in heard if each.name == "transaction.finished"]


class Failing:
    """A client command that fails a number of times with a chosen error."""

    def __init__(
        self, producer: Producer, name: str, times: int, *, code: int = 7, **flags: bool
    ) -> None:
        native = producer._slot.client.kafka_handle  # type: ignore[union-attr]
        self._real = getattr(native, name)
        self._times = times
        self._code = code
        self._flags = flags
        #: The times of its calls.
        self.called: list[float] = []
        setattr(native, name, self)

    def __call__(self, *arguments: object) -> object:
        """Fail, or call the real command."""
        self.called.append(time.monotonic())
        if len(self.called) <= self._times:
            name = "REQUEST_TIMED_OUT" if self._code > 0 else "_TIMED_OUT"
            raise BrokerError("not now", self._code, name, **self._flags)
        return self._real(*arguments)
