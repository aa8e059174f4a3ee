"""The ledger of a soak: the outcome of each message, as every source reports it.

A message is known by its label, which is its payload too. The verb that sent it, its
handle, the events and the stored records each report something about it; `check` finds
where they disagree.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from greendrop import MessagesAbandonedError, ProduceError, ProduceManyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greendrop import DeliveryHandle, DeliveryReport, Producer
    from greendrop.events import Event
    from greendrop.testing import Record

#: How sending went: "sending" until the verb has returned, "interrupted" if an
#: exception of the program has ended it.
State = Literal[
    "sending", "interrupted", "queued", "reported", "failed", "buffered", "delivered"
]

#: Places of stored records: topic, partition and offset.
Place = tuple[str, int, int]


@dataclass
class Attempt:
    """One message, and how its verb ended.

    Attributes:
        label: The message's label and payload; unique.
        sender: The task that has sent it, and its producer. Messages with one sender
            were sent one after the other.
        idempotent: Whether it must be stored once, and in the order of its sender.
        transactional: Whether a rollback may take it back after its acknowledgement.
        state: See `State`.
        handle: The handle that the verb returned.
        report: The report that the verb returned.
        error: The exception that the verb raised.
        may_be_doubled: Whether an answer of a broker that does not know sequence
            numbers may have got lost.
        may_be_late: Whether such a broker may have refused it, and not the next one.
    """

    label: str
    sender: str
    idempotent: bool
    transactional: bool
    state: State = "sending"
    handle: DeliveryHandle | None = None
    report: DeliveryReport | None = None
    error: BaseException | None = None
    may_be_doubled: bool = False
    may_be_late: bool = False

    @property
    def final_report(self) -> DeliveryReport | None:
        """The report of a delivered message."""
        return self.report if self.handle is None else self.handle.report


class Ledger:
    """All messages of one program, and the rules that it has seen broken."""

    def __init__(self) -> None:
        #: Descriptions of broken promises.
        self.broken: list[str] = []
        #: How often each class of error was raised.
        self.errors: Counter[str] = Counter()
        self._attempts: dict[str, Attempt] = {}
        self._numbers = itertools.count(1)
        # Appending is atomic; listeners run on all kinds of threads.
        self._outcomes: deque[tuple[str, str]] = deque()
        #: Labels of messages that left the buffer without having been sent.
        self.unsent: deque[str] = deque()
        #: Whether all later messages may be doubled, or late; see `Attempt`.
        self.may_double = False
        self.may_delay = False

    def note_broken(self, text: str) -> None:
        """Note a broken promise, and print it: to shrink the program takes long."""
        self.broken.append(text)
        print(text[:2_000], file=sys.stderr, flush=True)

    # --- what the program does ---------------------------------------------------

    def begin(self, producer: Producer, sender: str, count: int) -> list[Attempt]:
        """Note that a task is about to send so many messages."""
        attempts = [
            Attempt(
                label=f"{next(self._numbers)}",
                sender=sender,
                idempotent=producer.idempotent,
                transactional=producer.transactional,
                may_be_doubled=self.may_double,
                may_be_late=self.may_delay,
            )
            for _ in range(count)
        ]
        self._attempts.update((each.label, each) for each in attempts)
        return attempts

    def end(self, attempts: Sequence[Attempt], result: Sequence[Any] | None) -> None:
        """Note what a verb has returned: handles, reports, or None if it buffers."""
        if result is not None and len(result) != len(attempts):
            text = f"{len(result)} results for {len(attempts)} messages"
            self.note_broken(text)
            return
        for index, attempt in enumerate(attempts):
            if result is None:
                attempt.state = "buffered"
            elif hasattr(result[index], "wait"):
                attempt.state, attempt.handle = "queued", result[index]
            else:
                attempt.state, attempt.report = "reported", result[index]

    def fail(self, attempts: Sequence[Attempt], error: BaseException) -> None:
        """Note that a verb has raised."""
        handles: Sequence[DeliveryHandle] = ()
        cause: BaseException | None = error
        if isinstance(error, ProduceManyError):
            handles, cause = error.dispatched or error.rolled_back, error.__cause__
        for index, attempt in enumerate(attempts):
            if index < len(handles):
                attempt.state, attempt.handle = "queued", handles[index]
            elif isinstance(cause, ProduceError):
                attempt.state, attempt.error = "failed", cause
            else:
                attempt.state, attempt.error = "interrupted", error

    def count_error(self, error: BaseException) -> None:
        """Count an error that was raised, and is allowed."""
        self.errors[type(error).__name__] += 1
        if isinstance(error, MessagesAbandonedError):
            self.unsent += [each.label for each in error.buffered]

    def expect_lost_answers(self) -> None:
        """Note that answers to messages in flight may be lost now."""
        for attempt in self._without_outcome():
            attempt.may_be_doubled = attempt.may_be_late = True

    def expect_delays(self) -> None:
        """Note that messages in flight may be refused now, and stored later."""
        for attempt in self._without_outcome():
            attempt.may_be_late = True

    def _without_outcome(self) -> list[Attempt]:
        # Other tasks go on: copying a dictionary or a deque is atomic.
        done = {label for label, _ in self._outcomes.copy()}
        attempts = self._attempts.copy()
        return [each for label, each in attempts.items() if label not in done]

    # --- what the producers say --------------------------------------------------

    def listen(self, producer: Producer) -> None:
        """Follow the events of a producer."""
        for name in ("message.acknowledged", "message.purged", "error.occurred"):
            producer.monitor.subscribe(name, self._note_outcome)
        producer.monitor.subscribe("buffer.purged", self._note_purge)

    def _note_outcome(self, event: Event) -> None:
        if event.name == "error.occurred":
            if event["type"] == "librdkafka.dispatch_error":
                self._outcomes.append((event["label"], "failed"))
        elif event.name == "message.purged":
            self._outcomes.append((event["label"], "failed"))
        else:
            self._outcomes.append((event["label"], "acknowledged"))

    def _note_purge(self, event: Event) -> None:
        self.unsent += [each.label for each in event["messages"]]

    # --- what is true ------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged messages."""
        return sum(kind == "acknowledged" for _, kind in self._outcomes)

    @property
    def sent(self) -> int:
        """The number of messages that the program has tried to send."""
        return len(self._attempts)

    def check(self, stored: Iterable[Record]) -> list[str]:
        """Compare all that is known, once all producers are closed.

        Args:
            stored: The records of all topics.

        Returns:
            All broken promises.
        """
        places: dict[Place, str] = {}
        copies: Counter[str] = Counter()
        for record in stored:
            label = (record.payload or b"").decode()
            places[record.topic, record.partition, record.offset] = label
            copies[label] += 1
        outcomes = Counter(self._outcomes)
        unsent = set(self.unsent)
        broken = list(self.broken)
        for label, attempt in self._attempts.items():
            acknowledged = outcomes[label, "acknowledged"]
            failed = outcomes[label, "failed"]
            texts = [
                *_check_outcome(attempt, acknowledged, failed, unsent=label in unsent),
                *_check_record(attempt, acknowledged, copies[label], places),
            ]
            broken += [f"{text}: {attempt}" for text in texts]
        broken += [
            f"a message that was never sent is stored: {label!r}"
            for label in copies.keys() - self._attempts.keys()
        ]
        return broken + self._check_order()

    def _check_order(self) -> list[str]:
        """Messages of one sender in one partition are stored in the order of calls."""
        broken = []
        last: dict[tuple[str, str, int], tuple[int, str]] = {}
        for attempt in self._attempts.values():
            report = attempt.final_report
            if report is None or report.offset is None:
                continue
            if not attempt.idempotent or attempt.may_be_late:
                continue
            queue = attempt.sender, report.topic, report.partition
            offset, before = last.get(queue, (-1, ""))
            if report.offset <= offset:
                broken.append(f"{attempt} is stored before {before}")
            last[queue] = report.offset, attempt.label
        return broken


def _check_outcome(
    attempt: Attempt, acknowledged: int, failed: int, *, unsent: bool
) -> list[str]:
    """The verb or handle of a message, and its events, say the same."""
    count = acknowledged + failed
    transactional = attempt.transactional
    # A message returns to the buffer if its client has failed, or its transaction was
    # rolled back. The next flush sends it again.
    outcomes = count
    if attempt.state == "buffered":
        outcomes = 0 if transactional else acknowledged
    if outcomes > 1:
        return [f"{acknowledged} acknowledgements and {failed} failures are reported"]
    if attempt.state == "queued":
        return _check_handle(attempt, acknowledged, failed)
    state: str = attempt.state
    if isinstance(attempt.error, ProduceError) and state == "failed":
        state = attempt.error.message_state
    rules = {
        "sending": (True, "the verb has not returned"),
        "reported": (not acknowledged, "a report was returned, and no event has it"),
        "buffered": (
            not count and not unsent,
            "a buffered message was lost without a word",
        ),
        "not_sent": (count > 0, "it was not sent, and has an outcome"),
        "not_delivered": (
            acknowledged and not transactional,
            "it was not delivered, and is acknowledged",
        ),
        "unknown": (
            not count and not transactional,
            "its outcome was unknown, and no event has it",
        ),
    }
    is_broken, text = rules.get(state, (False, ""))
    return [text] if is_broken else []


def _check_handle(attempt: Attempt, acknowledged: int, failed: int) -> list[str]:
    handle = attempt.handle
    assert handle is not None
    if not handle.done:
        return ["its handle is pending"]
    if handle.report is not None and not acknowledged:
        return ["its handle has a report, and no event has it"]
    if handle.error is not None and (acknowledged or not failed):
        return [f"its handle failed ({handle.error!r}), and no event says so"]
    return []


def _check_record(
    attempt: Attempt, acknowledged: int, copies: int, places: dict[Place, str]
) -> list[str]:
    """The log has what was acknowledged, where the report says, and once."""
    broken = []
    report = attempt.final_report
    if acknowledged and not copies:
        broken.append("it is acknowledged, and not stored")
    if report is not None and report.offset is not None:
        place = report.topic, report.partition, report.offset
        if places.get(place) != attempt.label:
            broken.append(f"at its place is {places.get(place)!r}")
    error = attempt.error
    if isinstance(error, ProduceError) and error.message_state == "not_sent" and copies:
        broken.append("it was not sent, and is stored")
    # Mock brokers show the messages of transactions that were rolled back.
    again = attempt.transactional and attempt.state == "buffered"
    once = attempt.idempotent and not attempt.may_be_doubled and not again
    if copies > 1 and once:
        broken.append(f"it is stored {copies} times")
    return broken
