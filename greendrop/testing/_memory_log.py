"""The storage and the faults of a `MemoryCluster`.

Topics with their records, transactions and consumer offsets, shared by all producers of
the cluster.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop._librdkafka.partitioners import Partitioner
    from greendrop.message import HeaderValue


#: Maximum partitions of a topic. librdkafka aborts the process if it has no memory for
#: them.
_MAX_PARTITIONS = 10_000


def check_partitions(count: object) -> None:
    """Check the number of partitions of a topic.

    Raises:
        ValueError: It is out of range, or not an integer.
    """
    is_integer = isinstance(count, int) and not isinstance(count, bool)
    if not is_integer or not 1 <= count <= _MAX_PARTITIONS:  # type: ignore[operator]
        text = f"a topic has 1 to {_MAX_PARTITIONS:,} partitions, not {count!r}"
        raise ValueError(text)


class Record(NamedTuple):
    """One record of a topic.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its offset in the partition.
        timestamp: Milliseconds since 1970.
        key: Bytes, or None.
        payload: Bytes, or None: a tombstone.
        headers: Pairs of name and value; a repeated header has several.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    payload: bytes | None
    headers: list[tuple[str, HeaderValue]]


class Transaction:
    """One transaction of a producer.

    Attributes:
        outcome: "open", "committed" or "aborted".
        partitions: The partitions with records of it; its end takes an offset in each.
        offsets: The offsets that it commits for consumer groups.
    """

    def __init__(self) -> None:
        self.outcome = "open"
        self.partitions: set[tuple[str, int]] = set()
        self.offsets: dict[tuple[str, str, int], int] = {}


@dataclass
class Failure:
    """A fault: messages that fail.

    Attributes:
        code: The error code.
        remaining: Number of messages that still have to fail.
        applies: Whether a record is one of them.
    """

    code: int
    remaining: float
    applies: Callable[[Record], bool] = lambda _: True


@dataclass
class CallFailure:
    """A fault: calls of a client that fail, such as `commit_transaction`."""

    code: int
    remaining: float
    retriable: bool
    abortable: bool
    fatal: bool


@dataclass
class Faults:
    """The faults of a cluster.

    Attributes:
        round_trip: Seconds until an acknowledgement.
        down: Whether the brokers don't answer.
        messages: Faults of messages.
        calls: Faults of calls, by name.
    """

    round_trip: float = 0.0
    down: bool = False
    messages: list[Failure] = field(default_factory=list)
    calls: dict[str, list[CallFailure]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def message(self, record: Record) -> int | None:
        """Return the error code if a message has to fail, else None."""
        for failure in self.messages:
            if failure.remaining > 0 and failure.applies(record):
                failure.remaining -= 1
                return failure.code
        return None

    def call(self, name: str) -> CallFailure | None:
        """Return the fault if a call has to fail, else None."""
        for failure in self.calls.get(name, ()):
            if failure.remaining > 0:
                failure.remaining -= 1
                return failure
        return None


class MemoryLog:
    """The storage of one cluster; safe to use from any thread.

    Args:
        partitions: Number of partitions of topics that are created by their first
            message.
        create_topics: Create topics by their first message.
    """

    def __init__(self, partitions: int, *, create_topics: bool) -> None:
        self._partitions = partitions
        self._create_topics = create_topics
        #: The current faults.
        self.faults = Faults()
        # Held only for moments, and never together with another lock.
        self._lock = _concurrency.new_lock()
        # Next offsets, by partition.
        self._topics: dict[str, list[int]] = {}
        # In the order of arrival.
        self._records: list[tuple[Record, Transaction | None]] = []
        self._offsets: dict[tuple[str, str, int], int] = {}
        # The producer of each `transactional.id`: the last one that has claimed it.
        self._owners: dict[str, object] = {}

    def renew_lock(self) -> None:
        """Replace the lock, in a forked child."""
        self._lock = _concurrency.new_lock()

    def create(self, topic: str, partitions: int) -> bool:
        """Create a topic; return False if it exists."""
        with self._lock:
            if topic in self._topics:
                return False
            self._topics[topic] = [0] * partitions
        return True

    def partitions_of(self, topic: str, *, create: bool) -> int:
        """Return the number of partitions of a topic; 0 if it doesn't exist.

        Args:
            topic: The name.
            create: Create the topic now, if the cluster creates topics.
        """
        if create and self._create_topics:
            self.create(topic, self._partitions)
        return len(self._topics.get(topic, ()))

    @property
    def topics(self) -> Mapping[str, int]:
        """The number of partitions, by topic."""
        return {topic: len(offsets) for topic, offsets in self._topics.items()}

    def append(self, record: Record, transaction: Transaction | None) -> int:
        """Store a record and return its offset."""
        with self._lock:
            offsets = self._topics[record.topic]
            offset = offsets[record.partition]
            offsets[record.partition] += 1
            stored = record._replace(offset=offset)
            self._records.append((stored, transaction))
            if transaction is not None:
                transaction.partitions.add((record.topic, record.partition))
        return offset

    def records(self, topic: str | None, *, uncommitted: bool) -> list[Record]:
        """Return the stored records, in the order of arrival.

        Args:
            topic: The topic, or None for all.
            uncommitted: Include the records of open and aborted transactions.
        """
        with self._lock:
            return [
                record
                for record, transaction in self._records
                if (topic is None or record.topic == topic)
                and (
                    uncommitted
                    or transaction is None
                    or transaction.outcome == "committed"
                )
            ]

    def forget(self) -> None:
        """Remove all topics, records and offsets."""
        with self._lock:
            self._topics.clear()
            self._records.clear()
            self._offsets.clear()

    def end(self, transaction: Transaction, outcome: str) -> None:
        """Commit or abort. As in Kafka, a marker takes an offset in each partition."""
        with self._lock:
            transaction.outcome = outcome
            for topic, partition in transaction.partitions:
                if topic in self._topics:
                    self._topics[topic][partition] += 1
            if outcome == "committed":
                self._offsets.update(transaction.offsets)

    def offsets_of(self, group: str) -> dict[tuple[str, int], int]:
        """Return the offsets that were committed for a consumer group."""
        with self._lock:
            return {
                (topic, partition): offset
                for (owner, topic, partition), offset in self._offsets.items()
                if owner == group
            }

    def claim(self, transactional_id: str, owner: object) -> None:
        """Assign a `transactional.id` to a producer; its previous owner is fenced."""
        with self._lock:
            self._owners[transactional_id] = owner

    def is_owner(self, transactional_id: str, owner: object) -> bool:
        """Return whether a producer still owns a `transactional.id`."""
        return self._owners.get(transactional_id) is owner


def choose_partition(
    key: bytes | None, count: int, name: str, partitioner: Partitioner | None
) -> int:
    """Choose a partition as librdkafka does.

    Args:
        key: The key of the message.
        count: Number of partitions.
        name: The name of the partitioner, as in `kafka["partitioner"]`.
        partitioner: The function of that name; None if it ignores keys.
    """
    is_random = name.endswith("_random") and not key
    if partitioner is None or is_random:
        return random.randrange(count)  # noqa: S311 - as librdkafka
    return partitioner(key or b"", count)
