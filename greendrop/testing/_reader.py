"""Reading a topic, for tests, with librdkafka's consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from confluent_kafka import cimpl

from greendrop import _concurrency, _wording
from greendrop._librdkafka import bindings
from greendrop.errors import GreendropError
from greendrop.testing._memory_log import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds of one poll, during which a thread without a hub can't be interrupted.
_POLL = 0.1
#: Seconds for closing the consumer, after the reader's own timeout.
_GRACE = 5.0
_PARTITION_EOF = cimpl.KafkaError._PARTITION_EOF  # noqa: SLF001 - librdkafka's name
_UNKNOWN_TOPIC = (cimpl.KafkaError.UNKNOWN_TOPIC_OR_PART,)


def read_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    uncommitted: bool = False,
    timeout: float = 10.0,
    kafka: Mapping[str, str | int | bool] | None = None,
) -> list[Record]:
    """Read a topic of any Kafka cluster, from its beginning to its end.

    Args:
        bootstrap_servers: Addresses of brokers.
        topic: The name. A topic that doesn't exist has no records, and is not created.
        uncommitted: Include the records of open and aborted transactions.
        timeout: Seconds for the whole call.
        kafka: Further keys of librdkafka's configuration, such as those of a login.

    Returns:
        The records, ordered by partition and offset.

    Raises:
        GreendropError: The brokers could not be reached, or the end of the topic was
            not reached in time.

    Blocking:
        Lets other greenlets run where the thread has a hub, else blocks the thread.
    """
    level = "read_uncommitted" if uncommitted else "read_committed"
    configuration = {
        **(kafka or {}),
        "bootstrap.servers": bootstrap_servers,
        "group.id": "greendrop-testing",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "isolation.level": level,
        "log_level": 0,
    }
    records = _concurrency.run_in_thread(
        timeout + _GRACE, _read, configuration, topic, timeout
    )
    return sorted(
        cast("list[Record]", records),
        key=lambda record: (record.partition, record.offset),
    )


def _read(conf: dict[str, Any], topic: str, seconds: float) -> list[Record]:
    deadline = _concurrency.Deadline(seconds)
    consumer = bindings.extension_class(cimpl.Consumer)(conf)
    records: list[Record] = []
    try:
        unfinished = _partitions(consumer, topic, seconds)
        consumer.assign([cimpl.TopicPartition(topic, each, 0) for each in unfinished])
        while unfinished:
            if deadline.has_expired:
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
                unfinished.discard(message.partition())
    except cimpl.KafkaException as error:
        raise GreendropError(f"can't read {topic!r}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    return records


def _partitions(consumer: cimpl.Consumer, topic: str, seconds: float) -> set[int]:
    metadata = consumer.list_topics(topic, seconds).topics[topic]
    if metadata.error is not None and metadata.error.code() not in _UNKNOWN_TOPIC:
        raise cimpl.KafkaException(metadata.error)
    return set(metadata.partitions)


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
