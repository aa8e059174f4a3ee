"""What is in a topic, for tests: read with librdkafka's consumer.

Beside `handle` the only importer of confluent_kafka; only `testing` imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confluent_kafka import cimpl

from greendrop import _concurrency, _wording
from greendrop._librdkafka import bindings
from greendrop.errors import GreendropError
from greendrop.testing._memory_log import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds of one poll: as long as a hub-less thread can't be interrupted.
_POLL = 0.1
_PARTITION_EOF = cimpl.KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's name
_UNKNOWN_TOPIC = (cimpl.KafkaError.UNKNOWN_TOPIC_OR_PART,)


def read_topic(
    kafka: Mapping[str, str | int | bool],
    topic: str,
    seconds: float,
    *,
    uncommitted: bool = False,
) -> list[Record]:
    """Read a topic from its beginning to its end, without leaving a trace.

    Args:
        kafka: librdkafka's configuration: addresses, and how to get in.
        topic: Its name. One that doesn't exist has no records.
        seconds: For all of it.
        uncommitted: Also what transactions have written that are open or were aborted.

    Returns:
        The records by partition, and in a partition by offset.

    Raises:
        GreendropError: The brokers can't be reached, or the end was not, in time.

    Blocking:
        Lets other greenlets run where the thread has a hub, else blocks the thread.
    """
    level = "read_uncommitted" if uncommitted else "read_committed"
    conf = {
        **kafka,
        "group.id": "greendrop-testing",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "isolation.level": level,
        "log_level": 0,
    }
    records: list[Record] = _concurrency.run_in_thread(
        lambda: _read(conf, topic, seconds), seconds + 5
    )
    return sorted(records, key=lambda record: record[1:3])


def _read(conf: dict[str, Any], topic: str, seconds: float) -> list[Record]:
    deadline = _concurrency.monotonic() + seconds
    consumer = bindings.extension_class(cimpl.Consumer)(conf)
    records: list[Record] = []
    try:
        left = _partitions(consumer, topic, seconds)
        consumer.assign([cimpl.TopicPartition(topic, each, 0) for each in left])
        while left:
            if _concurrency.monotonic() > deadline:
                read = _wording.count(len(records), "record")
                text = f"read {read} of {topic!r} in {_wording.seconds(seconds)}"
                raise GreendropError(f"{text}, and not all")
            message = consumer.poll(_POLL)
            if message is None:
                continue
            error = message.error()
            if error is None:
                records.append(_record(message))
            elif error.code() == _PARTITION_EOF:
                left.discard(message.partition())
    except cimpl.KafkaException as error:
        raise GreendropError(f"can't read {topic!r}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    return records


def _partitions(consumer: cimpl.Consumer, topic: str, seconds: float) -> set[int]:
    told = consumer.list_topics(topic, seconds).topics[topic]
    if told.error is not None and told.error.code() not in _UNKNOWN_TOPIC:
        raise cimpl.KafkaException(told.error)
    return set(told.partitions)


def _record(message: Any) -> Record:  # noqa: ANN401 - a Message
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        list(message.headers() or ()),
    )
