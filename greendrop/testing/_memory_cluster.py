"""A Kafka cluster in memory, for tests: no broker, no socket, no waiting.

Producers run unchanged, with validation, middleware, events, buffer, handles and
pollers. Only librdkafka is replaced, by `_memory_producer`.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from typing import TYPE_CHECKING

from greendrop._librdkafka import backend
from greendrop._librdkafka.error_codes import error_code
from greendrop._producer import registry
from greendrop.errors import GreendropError
from greendrop.testing._memory_log import (
    CallFailure,
    Failure,
    MemoryLog,
    Record,
    check_partitions,
)
from greendrop.testing._memory_producer import MemoryProducer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop._client.client import Client
    from greendrop.oauth import OAuthToken

#: Seconds of the longest round trip.
_MAX_ROUND_TRIP = 3600.0

#: Calls that `MemoryCluster.fail_calls` can let fail.
_CALLS = frozenset(
    {
        "init_transactions",
        "begin_transaction",
        "commit_transaction",
        "abort_transaction",
        "send_offsets_to_transaction",
    }
)

_numbers = itertools.count(1)

# Clusters of this process, for the hook that runs in a forked child.
_clusters: weakref.WeakSet[MemoryCluster] = weakref.WeakSet()


class _Backend:
    """Builds the producers of one cluster; see `backend.Backend`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        #: The producers that still exist.
        self.producers: weakref.WeakSet[MemoryProducer] = weakref.WeakSet()

    def build(self, kafka: dict[str, object], logger: object) -> MemoryProducer:  # noqa: ARG002
        producer = MemoryProducer(kafka, self._log)
        self.producers.add(producer)
        return producer

    def main_queue(self, producer: MemoryProducer) -> backend.MainQueue:
        return producer.arrived

    def fatal_error(self, producer: MemoryProducer) -> tuple[int, str] | None:
        return producer.fatal

    def trigger_fatal_error(
        self, producer: MemoryProducer, code: int, reason: str
    ) -> None:
        producer.fail(code, reason)

    def purge(self, producer: MemoryProducer) -> None:
        producer.purge()

    def set_oauth_token(self, producer: MemoryProducer, token: OAuthToken) -> int:  # noqa: ARG002
        return 0  # accepted: there is no login

    def notify(self) -> None:
        """Notify all producers that the brokers have changed."""
        for producer in list(self.producers):
            producer.on_change()


class MemoryCluster:
    """Brokers in memory, for producers that have their address.

    A context manager, safe to use from any thread. It opens no port, and starts a
    thread only while a delayed answer is due. A forked child has an independent copy.

    Args:
        partitions: Number of partitions of topics that are created by their first
            message.
        create_topics: Create topics by their first message. Otherwise a message to an
            unknown topic fails at once, with UNKNOWN_TOPIC_OR_PARTITION.
    """

    def __init__(self, *, partitions: int = 4, create_topics: bool = True) -> None:
        check_partitions(partitions)
        self._log = MemoryLog(partitions, create_topics=create_topics)
        self._backend = _Backend(self._log)
        # A name that never resolves (RFC 2606).
        self._address = f"memory-{next(_numbers)}.invalid:9092"
        self._accepts_all = False
        self._closed = False
        backend.test_backends.append(self._backend_for)
        _clusters.add(self)

    def _backend_for(
        self, kafka: Mapping[str, str]
    ) -> backend.Backend[MemoryProducer] | None:
        servers = kafka.get("bootstrap.servers", kafka.get("metadata.broker.list"))
        return self._backend if self._accepts_all or servers == self._address else None

    @property
    def bootstrap_servers(self) -> str:
        """The address of the brokers, for `bootstrap.servers`."""
        return self._address

    # --- contents ----------------------------------------------------------------

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        """Create a topic that does not exist yet.

        Raises:
            GreendropError: The topic exists.
            ValueError: The number of partitions is out of range.
        """
        check_partitions(partitions)
        if not self._log.create(topic, partitions):
            raise GreendropError(f"topic {topic!r} exists already")

    @property
    def topics(self) -> Mapping[str, int]:
        """The number of partitions, by topic."""
        return self._log.topics

    def records(
        self, topic: str | None = None, *, uncommitted: bool = False
    ) -> list[Record]:
        """Return the stored records, in the order of arrival.

        Args:
            topic: The topic; all topics if omitted.
            uncommitted: Include the records of open and aborted transactions, which
                `read_committed` consumers don't see.
        """
        return self._log.records(topic, uncommitted=uncommitted)

    def committed_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """Return the offsets that transactions have committed for a consumer group.

        Returns:
            Offsets by topic and partition.
        """
        return self._log.offsets_of(group)

    def clear(self) -> None:
        """Remove all topics, records and faults."""
        self._log.forget()
        self.forgive()

    # --- faults ------------------------------------------------------------------

    def round_trip(self, seconds: float) -> None:
        """Delay the acknowledgements of messages that are sent from now on."""
        if not 0 <= seconds <= _MAX_ROUND_TRIP:
            raise ValueError(
                f"{seconds!r} seconds are not between 0 and {_MAX_ROUND_TRIP:g}"
            )
        self._log.faults.round_trip = seconds

    def broker_down(self) -> None:
        """Stop answering. Messages wait until `message.timeout.ms`."""
        self._log.faults.down = True
        self._backend.notify()

    def broker_up(self) -> None:
        """Answer again. Waiting messages are delivered, in order."""
        self._log.faults.down = False
        self._backend.notify()

    def fail_messages(
        self,
        error: str | int,
        times: int | None = 1,
        *,
        topic: str | None = None,
        when: Callable[[Record], bool] | None = None,
    ) -> None:
        """Let the next messages fail for good; they are not stored.

        Args:
            error: The name of the error in Kafka or librdkafka, such as
                "TOPIC_AUTHORIZATION_FAILED" or "_MSG_TIMED_OUT", or its code.
            times: Number of messages; None for all from now on.
            topic: Only messages to this topic.
            when: Only messages for which this function returns true. It is called with
                the record as it would be stored, except for the offset.

        Raises:
            ValueError: No error has that name.
        """

        def applies(record: Record) -> bool:
            return topic in (None, record.topic) and (when is None or when(record))

        remaining = math.inf if times is None else times
        failure = Failure(error_code(error), remaining, applies)
        self._log.faults.messages.append(failure)

    def fail_calls(
        self,
        call: str,
        error: str | int,
        times: int = 1,
        *,
        retriable: bool = False,
        abortable: bool = False,
        fatal: bool = False,
    ) -> None:
        """Let the next calls of transactional producers fail.

        Args:
            call: "init_transactions", "begin_transaction", "commit_transaction",
                "abort_transaction" or "send_offsets_to_transaction".
            error: As for `fail_messages`.
            times: Number of calls.
            retriable: The call may succeed when it is repeated.
            abortable: The transaction has to be aborted.
            fatal: The client can't be used any more.

        Raises:
            ValueError: The call or the error is unknown.
        """
        if call not in _CALLS:
            raise ValueError(f"no call {call!r}; there are {', '.join(sorted(_CALLS))}")
        failure = CallFailure(error_code(error), times, retriable, abortable, fatal)
        self._log.faults.calls[call].append(failure)

    def forgive(self) -> None:
        """Remove all faults: brokers are up, and answer without delay."""
        self._log.faults.messages.clear()
        self._log.faults.calls.clear()
        self.round_trip(0)
        self.broker_up()

    # --- closing -----------------------------------------------------------------

    def close(self) -> None:
        """Disconnect the producers of this cluster; a second call does nothing.

        Messages in flight are dropped. The producers connect again at their next use,
        to the brokers that they are configured with.

        Blocking:
            Until the dropped messages are reported. Lets other greenlets run.
        """
        if self._closed:
            return
        self._closed = True
        backend.test_backends.remove(self._backend_for)
        registry.discard(self._is_ours, idle=self._accepts_all)

    def _begin_in_child(self) -> None:
        # The producers belong to the parent, and one of its threads may have held the
        # lock.
        self._backend.producers.clear()
        self._log.renew_lock()

    def _is_ours(self, client: Client) -> bool:
        return client.backend is self._backend

    def __enter__(self) -> MemoryCluster:
        """Return the cluster."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cluster."""
        self.close()


def in_memory(*, partitions: int = 4, create_topics: bool = True) -> MemoryCluster:
    """Let every producer of the process connect to brokers in memory.

        with in_memory() as cluster:
            shop.order("tea")  # sends with a producer of its own
            assert cluster.records("orders")[0].payload == b"tea"

    This applies to all producers, whatever their `bootstrap.servers`, also to those
    that were constructed before the block. Connected producers keep their connection.
    At the end of the block the producers that connected in it are disconnected, and
    messages that were buffered in it are dropped.

    Args:
        partitions, create_topics: See `MemoryCluster`.
    """
    cluster = MemoryCluster(partitions=partitions, create_topics=create_topics)
    cluster._accepts_all = True  # noqa: SLF001 - same package
    return cluster


def _after_fork_in_child() -> None:
    for cluster in list(_clusters):
        cluster._begin_in_child()  # noqa: SLF001 - same package


os.register_at_fork(after_in_child=_after_fork_in_child)
