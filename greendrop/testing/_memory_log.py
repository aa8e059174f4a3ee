"""What brokers that live in memory store, and what they were told to do wrong.

Topics with their records, transactions and consumers' offsets, shared by all producers
of one `MemoryCluster`. Knows nothing of how messages get here (`_memory_producer`).
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


#: More partitions than anybody's test needs. librdkafka aborts the process when there
#: is no memory for them.
_MOST_PARTITIONS = 10_000


def check_partitions(count: object) -> None:
    """Refuse what is no number of partitions of a topic.

    Raises:
        ValueError: It is none.
    """
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 1 <= count <= _MOST_PARTITIONS:  # type: ignore[operator]
        text = f"a topic has 1 to {_MOST_PARTITIONS:,} partitions, not {count!r}"
        raise ValueError(text)


class Record(NamedTuple):
    """One record of a topic.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its place there.
        timestamp: Milliseconds since 1970.
        key: Bytes, or None.
        payload: Bytes, or None: a tombstone.
        headers: Pairs of name and value; a header that is repeated has several.
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
        outcome: What became of it.
        partitions: Where it has written; its end takes an offset in each.
        offsets: What it commits for groups of consumers.
    """

    def __init__(self) -> None:
        self.outcome = "open"
        self.partitions: set[tuple[str, int]] = set()
        self.offsets: dict[tuple[str, str, int], int] = {}


@dataclass
class Failure:
    """Messages, or calls, that are to fail.

    Attributes:
        code: Of the error.
        left: How many are still to fail.
        wanted: Whether a record is one of them.
    """

    code: int
    left: float
    wanted: Callable[[Record], bool] = lambda _: True


@dataclass
class CallFailure:
    """Calls of a producer's client that are to fail, such as `commit_transaction`."""

    code: int
    left: float
    retriable: bool
    abortable: bool
    fatal: bool


@dataclass
class Faults:
    """What goes wrong at present.

    Attributes:
        round_trip: Seconds that an acknowledgement takes.
        down: Whether nothing answers.
        messages: Those that are to fail.
        calls: The same, by name.
    """

    round_trip: float = 0.0
    down: bool = False
    messages: list[Failure] = field(default_factory=list)
    calls: dict[str, list[CallFailure]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def message(self, record: Record) -> int | None:
        """Give the code of the error that a message is to fail with, if it is."""
        for failure in self.messages:
            if failure.left > 0 and failure.wanted(record):
                failure.left -= 1
                return failure.code
        return None

    def call(self, name: str) -> CallFailure | None:
        """Give how a call is to fail, if it is."""
        for failure in self.calls.get(name, ()):
            if failure.left > 0:
                failure.left -= 1
                return failure
        return None


class MemoryLog:
    """The records of one cluster. Used from any thread.

    Args:
        partitions: How many a topic gets that is created by its first message.
        create_topics: Whether it is.
    """

    def __init__(self, partitions: int, *, create_topics: bool) -> None:
        self._partitions = partitions
        self._create_topics = create_topics
        #: What goes wrong at present.
        self.faults = Faults()
        # Held for a moment, and alone.
        self._lock = _concurrency.new_lock()
        # Next offsets, by partition.
        self._topics: dict[str, list[int]] = {}
        # In the order in which they came.
        self._records: list[tuple[Record, Transaction | None]] = []
        self._offsets: dict[tuple[str, str, int], int] = {}
        # Who has a `transactional.id`: the last one that asked for it.
        self._owners: dict[str, object] = {}

    def renew_lock(self) -> None:
        """Have a lock that nobody holds, in a forked child."""
        self._lock = _concurrency.new_lock()

    def create(self, topic: str, partitions: int) -> bool:
        """Create a topic; False if there is one of that name."""
        with self._lock:
            if topic in self._topics:
                return False
            self._topics[topic] = [0] * partitions
        return True

    def partitions_of(self, topic: str, *, create: bool) -> int:
        """Tell how many partitions a topic has; 0 if there is none.

        Args:
            topic: Its name.
            create: Whether it is created now, where the cluster does that.
        """
        if create and self._create_topics:
            self.create(topic, self._partitions)
        return len(self._topics.get(topic, ()))

    @property
    def topics(self) -> Mapping[str, int]:
        """The topics there are, and how many partitions each of them has."""
        return {topic: len(offsets) for topic, offsets in self._topics.items()}

    def append(self, record: Record, transaction: Transaction | None) -> int:
        """Store a record, whatever its offset says; give the offset that it gets."""
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
        """Give what is stored, in the order in which it came.

        Args:
            topic: None for all.
            uncommitted: Also of transactions that are open or were aborted.
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
        """Drop all topics, records and offsets."""
        with self._lock:
            self._topics.clear()
            self._records.clear()
            self._offsets.clear()

    def end(self, transaction: Transaction, outcome: str) -> None:
        """Commit or abort; Kafka writes a marker, which takes an offset."""
        with self._lock:
            transaction.outcome = outcome
            for topic, partition in transaction.partitions:
                if topic in self._topics:
                    self._topics[topic][partition] += 1
            if outcome == "committed":
                self._offsets.update(transaction.offsets)

    def offsets_of(self, group: str) -> dict[tuple[str, int], int]:
        """Give the offsets that were committed for a group of consumers."""
        with self._lock:
            return {
                (topic, partition): offset
                for (owner, topic, partition), offset in self._offsets.items()
                if owner == group
            }

    def own(self, transactional_id: str, owner: object) -> None:
        """Give a `transactional.id` to one who asks; who had it before is fenced."""
        with self._lock:
            self._owners[transactional_id] = owner

    def owns(self, transactional_id: str, owner: object) -> bool:
        """Tell whether nobody else has asked for a `transactional.id` since."""
        return self._owners.get(transactional_id) is owner


def choose_partition(
    key: bytes | None, count: int, name: str, partitioner: Partitioner | None
) -> int:
    """Choose a partition as librdkafka does.

    Args:
        key: The message's.
        count: How many partitions there are.
        name: The partitioner's, as `partitioner` in `kafka` has it.
        partitioner: The function of that name, None if it looks at no key.
    """
    random_without = name.endswith("_random") and not key
    if partitioner is None or random_without:
        return random.randrange(count)  # noqa: S311 - as librdkafka
    return partitioner(key or b"", count)
