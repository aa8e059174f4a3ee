"""A Kafka in memory, for tests: no broker, no socket, no waiting.

Producers run as they are, with validation, middleware, events, buffer, handles and
serving tasks; only librdkafka is replaced, by `_memory_producer`. Whoever doesn't
import this never meets it.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from typing import TYPE_CHECKING, Any

from greendrop._librdkafka import backend
from greendrop._librdkafka.error_names import error_code
from greendrop._producer import shutdown
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
    from types import TracebackType

    from greendrop._client.client import Client
    from greendrop.oauth import OAuthToken

#: Seconds. Nothing that a test wants to see takes longer to be answered.
_LONGEST = 3600.0

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
    """What `handle` builds producers with that go to one cluster."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        #: Those that were built and still exist.
        self.producers: weakref.WeakSet[MemoryProducer] = weakref.WeakSet()

    def build(self, kafka: dict[str, Any], logger: object) -> MemoryProducer:  # noqa: ARG002
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
        return 0  # whatever it is: nobody has to log in

    def look(self) -> None:
        """Tell all that the brokers behave differently now."""
        for producer in list(self.producers):
            producer.look()


class MemoryCluster:
    """Brokers in memory, for producers that have its address.

    A context manager. Nothing is listened on and no thread is started, except while
    something is to happen later. From any thread. A forked child has a copy, of which
    its parent never hears.

    Args:
        partitions: How many a topic gets that is created by its first message.
        create_topics: Whether it is. If not, a message to an unknown topic fails at
            once, with UNKNOWN_TOPIC_OR_PARTITION.
    """

    def __init__(self, *, partitions: int = 4, create_topics: bool = True) -> None:
        check_partitions(partitions)
        self._log = MemoryLog(partitions, create_topics=create_topics)
        self._backend = _Backend(self._log)
        # A name that no resolver knows (RFC 2606), should it ever get to one.
        self._address = f"memory-{next(_numbers)}.invalid:9092"
        self._takes_all = False
        self._closed = False
        backend.test_backends.append(self._engine_for)
        _clusters.add(self)

    def _engine_for(self, kafka: Mapping[str, str]) -> backend.Backend | None:
        servers = kafka.get("bootstrap.servers", kafka.get("metadata.broker.list"))
        return self._backend if self._takes_all or servers == self._address else None

    @property
    def bootstrap_servers(self) -> str:
        """The address, as `bootstrap.servers` takes it."""
        return self._address

    # --- what is in it -----------------------------------------------------------

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        """Create a topic that does not exist yet.

        Raises:
            GreendropError: It does.
            ValueError: It can't have so many partitions.
        """
        check_partitions(partitions)
        if not self._log.create(topic, partitions):
            raise GreendropError(f"topic {topic!r} exists already")

    @property
    def topics(self) -> Mapping[str, int]:
        """The topics there are, and how many partitions each of them has."""
        return self._log.topics

    def records(
        self, topic: str | None = None, *, uncommitted: bool = False
    ) -> list[Record]:
        """Give what was produced, in the order in which it came.

        Args:
            topic: None for all topics.
            uncommitted: Also of transactions that are open or were aborted, which
                consumers don't see that read what is committed.
        """
        return self._log.records(topic, uncommitted=uncommitted)

    def committed_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """Give the offsets of a group of consumers that transactions committed.

        Returns:
            Offsets by topic and partition.
        """
        return self._log.offsets_of(group)

    def clear(self) -> None:
        """Forget all topics, with their records, and all orders to fail."""
        self._log.forget()
        self.forgive()

    # --- what goes wrong ---------------------------------------------------------

    def round_trip(self, seconds: float) -> None:
        """Let each message that is sent from now on take so long to be acknowledged."""
        if not 0 <= seconds <= _LONGEST:
            raise ValueError(f"{seconds!r} seconds are not between 0 and {_LONGEST:g}")
        self._log.faults.round_trip = seconds

    def broker_down(self) -> None:
        """Answer nobody. Messages wait, until they time out (`message.timeout.ms`)."""
        self._log.faults.down = True
        self._backend.look()

    def broker_up(self) -> None:
        """Answer again; what waits is delivered, in order."""
        self._log.faults.down = False
        self._backend.look()

    def fail_messages(
        self,
        error: str | int,
        times: int | None = 1,
        *,
        topic: str | None = None,
        when: Callable[[Record], bool] | None = None,
    ) -> None:
        """Have the next messages fail, for good; none of them is stored.

        Args:
            error: Kafka's or librdkafka's name of it, or its number, such as
                "TOPIC_AUTHORIZATION_FAILED" or "_MSG_TIMED_OUT".
            times: How many messages; None for all from now on.
            topic: Only those to this topic.
            when: Only those that this function says yes to. It gets the record as it
                would be stored, but for its offset.

        Raises:
            ValueError: No error has that name.
        """

        def wanted(record: Record) -> bool:
            return topic in (None, record.topic) and (when is None or when(record))

        left = math.inf if times is None else times
        failure = Failure(error_code(error), left, wanted)
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
        """Have the next calls of transactional producers' clients fail.

        Args:
            call: "init_transactions", "begin_transaction", "commit_transaction",
                "abort_transaction" or "send_offsets_to_transaction".
            error: As for `fail_messages`.
            times: How many calls.
            retriable: The error says that the same call may succeed later.
            abortable: It says that the transaction has to be aborted.
            fatal: It ends the client.

        Raises:
            ValueError: There is no such call or error.
        """
        if call not in _CALLS:
            raise ValueError(f"no call {call!r}; there are {', '.join(sorted(_CALLS))}")
        failure = CallFailure(error_code(error), times, retriable, abortable, fatal)
        self._log.faults.calls[call].append(failure)

    def forgive(self) -> None:
        """Forget what is ordered to fail and has not yet; brokers are up, and fast."""
        self._log.faults.messages.clear()
        self._log.faults.calls.clear()
        self.round_trip(0)
        self.broker_up()

    # --- its end -----------------------------------------------------------------

    def close(self) -> None:
        """Let go of the producers that use it; a second call does nothing.

        They are disconnected: what is still on its way is dropped, and they connect
        anew when they are used again, wherever that leads then.

        Blocking:
            Until the dropped messages are told of. Lets other greenlets run.
        """
        if self._closed:
            return
        self._closed = True
        backend.test_backends.remove(self._engine_for)
        shutdown.abandon(self._is_ours, idle=self._takes_all)

    def _begin_in_child(self) -> None:
        # The producers are the parent's, and a thread of it may have held the lock.
        self._backend.producers.clear()
        self._log.renew_lock()

    def _is_ours(self, client: Client) -> bool:
        return client.backend is self._backend

    def __enter__(self) -> MemoryCluster:
        """Give the cluster."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the producers that use it."""
        self.close()


def in_memory(*, partitions: int = 4, create_topics: bool = True) -> MemoryCluster:
    """Have every producer of the process connect to brokers in memory.

        with in_memory() as cluster:
            shop.order("tea")  # whatever sends with a producer of its own
            assert cluster.records("orders")[0].payload == b"tea"

    Whatever their `bootstrap.servers` say, and whenever they were made: also at module
    level, before the block. Producers that are connected already stay where they are.
    At the end of the block those that connected in it are disconnected, and what was
    buffered in it is dropped.

    Args:
        partitions, create_topics: See `MemoryCluster`.
    """
    cluster = MemoryCluster(partitions=partitions, create_topics=create_topics)
    cluster._takes_all = True  # noqa: SLF001 - of our own
    return cluster


def _after_fork_in_child() -> None:
    for cluster in list(_clusters):
        cluster._begin_in_child()  # noqa: SLF001 - of our own


os.register_at_fork(after_in_child=_after_fork_in_child)
