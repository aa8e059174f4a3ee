"""Reads topics of millions of messages, by a consumer of confluent-kafka."""

from __future__ import annotations

import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Partition

from tests.chaos.judge import Stored

#: Seconds to read a topic.
_READING = 300.0
#: Messages of one call.
_BATCH = 10_000


def read_visible(bootstrap_servers: str, topic: str) -> list[Stored]:
    """Read what consumers of committed messages see, up to the end of each partition.

    Raises:
        TimeoutError: The end was not reached in time.
        confluent_kafka.KafkaException: A partition can't be read.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "chaos",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        known = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        unread = set(known)
        consumer.assign([Partition(topic, each, OFFSET_BEGINNING) for each in known])
        found: list[Stored] = []
        deadline = time.monotonic() + _READING
        while unread:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: partitions {unread} have no end")
            for each in consumer.consume(_BATCH, 1.0):
                error = each.error()
                if error is None:
                    payload = (each.value() or b"").decode()
                    found.append(Stored(each.partition(), each.offset(), payload))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(each.partition())
                elif error.fatal():
                    raise KafkaException(error)
    finally:
        consumer.close()
    return found
