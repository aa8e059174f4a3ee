"""Test doubles of Kafka, for tests of programs that use greendrop.

`in_memory` replaces librdkafka and the network for all producers of the process; the
rest of greendrop runs unchanged. It needs no start-up and no waiting.

    with in_memory() as cluster:
        shop.order("tea")
        assert cluster.records("orders")[0].payload == b"tea"

`MockCluster` is the mock cluster of librdkafka: brokers on local ports that need no
set-up. It has no SASL, TLS, quotas or throttling, and neither fences producers nor
hides aborted transactions; tests of these need an Apache Kafka.

    with MockCluster() as cluster:
        cluster.round_trip(0.02)
        producer = Producer(kafka={"bootstrap.servers": cluster.bootstrap_servers})

`Recorder` records events. Programs that do not import this package load none of it.
docs/start/testing.md compares the test doubles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop.errors import GreendropError
from greendrop.testing._memory_cluster import MemoryCluster, in_memory
from greendrop.testing._memory_log import Record
from greendrop.testing._mock_cluster import MockCluster
from greendrop.testing._reader import read_topic
from greendrop.testing._recorder import Recorder

if TYPE_CHECKING:
    from greendrop._client.client import Client
    from greendrop.producer import Producer

__all__ = [
    "MemoryCluster",
    "MockCluster",
    "Record",
    "Recorder",
    "fatal_error",
    "in_memory",
    "read_topic",
    "trigger_fatal_error",
]


def trigger_fatal_error(
    producer: Producer, code: int = 47, reason: str = "triggered by a test"
) -> None:
    """Cause a fatal error in the client of a producer, as a broker could.

    Args:
        producer: A producer that has sent a message, and so has a client.
        code: Kafka's error code; 47 is INVALID_PRODUCER_EPOCH, which fences a producer.
        reason: The text of the error.

    Raises:
        GreendropError: The producer has no client, or librdkafka can't be called.
    """
    handle = _client(producer).kafka_handle
    handle.backend.trigger_fatal_error(handle.producer, code, reason)


def fatal_error(producer: Producer) -> tuple[int, str] | None:
    """Return code and text of the fatal error of a producer's client, if any."""
    handle = _client(producer).kafka_handle
    return handle.backend.fatal_error(handle.producer)


def _client(producer: Producer) -> Client:
    core = producer._core  # noqa: SLF001
    client = None if core is None else producer._slot.client  # noqa: SLF001
    if client is None:
        raise GreendropError(f"producer {producer.id!r} has no client yet")
    return client
