"""The records of a topic, read by a client that shares no code with ours.

kafka-python is written in Python from the protocol up. A record that librdkafka wrote
and kafka-python can read is right, not just consistently wrong.
"""

from __future__ import annotations

import time
import warnings
from typing import Any, Literal, NamedTuple

#: Seconds to read a topic to its end.
_READ_TIMEOUT = 30.0

IsolationLevel = Literal["read_uncommitted", "read_committed"]


class Record(NamedTuple):
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    #: Milliseconds since 1970.
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def read_topic(
    bootstrap_servers: str,
    topic: str,
    isolation_level: IsolationLevel = "read_uncommitted",
    *,
    timeout: float = _READ_TIMEOUT,
) -> list[Record]:
    """Read a topic from its beginning to its current end.

    Args:
        bootstrap_servers: Addresses of a plaintext listener.
        topic: Its name. One that doesn't exist (yet) has no records.
        isolation_level: "read_committed" hides aborted records, and ends before the
            first open transaction.
        timeout: Seconds for all of it.

    Returns:
        The records by partition, and in a partition by offset.

    Raises:
        TimeoutError: The end was not reached in time.
    """
    # Imported late: starting a broker needs no kafka-python. Its way to read its own
    # files is deprecated since Python 3.11, which is not for us to repair.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from kafka import KafkaConsumer, TopicPartition  # noqa: PLC0415

    deadline = time.monotonic() + timeout
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap_servers.split(","),
        isolation_level=isolation_level,
        enable_auto_commit=False,
        allow_auto_create_topics=False,
    )
    records: list[Record] = []
    try:
        numbers = consumer.partitions_for_topic(topic) or ()
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        if not partitions:
            return []
        consumer.assign(partitions)
        # For "read_committed" these are the last stable offsets.
        ends = consumer.end_offsets(partitions, timeout_ms=timeout * 1000)
        consumer.seek_to_beginning(*partitions)
        while any(consumer.position(each) < ends[each] for each in partitions):
            if time.monotonic() > deadline:
                positions = {each: consumer.position(each) for each in partitions}
                message = f"read to {positions!r} only, not to {ends!r}, in {timeout} s"
                raise TimeoutError(message)
            for batch in consumer.poll(timeout_ms=100).values():
                records += [
                    _record(each)
                    for each in batch
                    if each.offset < ends[TopicPartition(topic, each.partition)]
                ]
    finally:
        consumer.close()
    return sorted(records, key=lambda record: (record.partition, record.offset))


def _record(theirs: Any) -> Record:
    return Record(
        topic=theirs.topic,
        partition=theirs.partition,
        offset=theirs.offset,
        timestamp=theirs.timestamp,
        key=theirs.key,
        value=theirs.value,
        headers=list(theirs.headers),
    )
