"""For tests of programs that use greendrop: a Kafka in memory, and one that fails.

`in_memory` replaces librdkafka and the network for all producers of the process;
everything else runs as it is. Nothing to start, nothing to wait for.

    with in_memory() as cluster:
        shop.order("tea")
        assert cluster.records("orders")[0].payload == b"tea"

`MockCluster` is the mock cluster of librdkafka: real brokers on local ports, without
set-up. It knows no SASL, TLS, quotas or throttling, and it neither fences producers nor
hides aborted transactions: an Apache Kafka decides what these are about.

    with MockCluster() as cluster:
        cluster.round_trip(0.02)
        producer = Producer(kafka={"bootstrap.servers": cluster.bootstrap_servers})

`Recorder` keeps events. None of it takes part in a program that does not import this
module; docs/start/testing.md says when to use what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency
from greendrop._librdkafka.error_names import error_code, number_of
from greendrop.errors import GreendropError
from greendrop.testing import _reader
from greendrop.testing._memory_cluster import MemoryCluster, in_memory
from greendrop.testing._memory_log import Record, check_partitions
from greendrop.testing._native_mock_cluster import NativeMockCluster
from greendrop.testing._recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

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

#: Kafka's numbers for the requests that the mock cluster knows.
REQUESTS: Mapping[str, int] = {
    "Produce": 0,
    "Fetch": 1,
    "ListOffsets": 2,
    "Metadata": 3,
    "OffsetCommit": 8,
    "OffsetFetch": 9,
    "FindCoordinator": 10,
    "JoinGroup": 11,
    "Heartbeat": 12,
    "LeaveGroup": 13,
    "SyncGroup": 14,
    "ApiVersions": 18,
    "InitProducerId": 22,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
    "GetTelemetrySubscriptions": 71,
    "PushTelemetry": 72,
}
_REQUEST_NAMES = {number: name for name, number in REQUESTS.items()}

_ALL = -1
_LONGEST = 3600.0
#: Seconds that a cluster in another process may take to start, answer or end.
_LONGEST_WAIT = 30.0


class _Driver(Protocol):
    """Where the brokers are: in this process or in another one."""

    def call(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Call a method of `NativeMockCluster`."""

    def close(self) -> None:
        """Stop the brokers."""


class MockCluster:
    """Brokers on local ports, in memory, that fail when told to.

    A context manager. Any greenlet and any thread may call it. Topics that are not
    created get four partitions when first used.

    Args:
        brokers: How many; they are numbered from 1.
        own_process: See `spawn`.

    Raises:
        GreendropError: The librdkafka of confluent-kafka can't be reached.
        ValueError: There is to be no broker.
    """

    def __init__(self, brokers: int = 1, *, own_process: bool = False) -> None:
        if brokers < 1:
            raise ValueError(f"a cluster needs at least one broker, not {brokers!r}")
        self._driver: _Driver = (
            _Subprocess(brokers) if own_process else _InProcess(brokers)
        )

    @classmethod
    def spawn(cls, brokers: int = 1) -> MockCluster:
        """Start the brokers in a process of their own.

        For measurements: brokers in the measured process would share its CPU time.
        That process ends with this one, even if this one is killed.

        Blocking:
            Until the process is up, about 0.3 s.
        """
        return cls(brokers, own_process=True)

    @property
    def bootstrap_servers(self) -> str:
        """The addresses, as `bootstrap.servers` takes them."""
        return str(self._driver.call("bootstraps"))

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        """Create a topic that does not exist yet.

        Raises:
            ValueError: It can't have so many partitions.
        """
        check_partitions(partitions)
        self._driver.call("topic_create", topic, partitions)

    def round_trip(self, seconds: float, broker: int | None = None) -> None:
        """Let each request take as long as this from now on; whole milliseconds."""
        self._driver.call("set_rtt", _milliseconds(seconds), _number(broker))

    def broker_down(self, broker: int | None = None) -> None:
        """Cut all connections of a broker, or of all, and take no new ones.

        It stays the leader of its partitions.
        """
        self._driver.call("broker_set_down", _number(broker))

    def broker_up(self, broker: int | None = None) -> None:
        """Take connections again.

        Clients come back after their `reconnect.backoff.max.ms` (10 s by default);
        set that lower in tests.
        """
        self._driver.call("broker_set_up", _number(broker))

    def fail_requests(
        self, request: str | int, error: str | int, times: int = 1
    ) -> None:
        """Have the next requests of a kind fail, whichever broker gets them.

        Args:
            request: Such as "Produce"; see `REQUESTS`.
            error: Kafka's or librdkafka's name of it, or its number, such as
                "NOT_LEADER_OR_FOLLOWER"; "_TRANSPORT" cuts the connection.
            times: How many requests.
        """
        codes = [error_code(error)] * times
        self._driver.call("push_request_errors", _request(request), codes)

    def delay_requests(
        self, request: str | int, seconds: float, times: int = 1, *, broker: int = 1
    ) -> None:
        """Have one broker answer the next requests of a kind so much later."""
        answers = [(0, _milliseconds(seconds))] * times
        self._driver.call("push_request_error_rtts", broker, _request(request), answers)

    def forgive_requests(self, request: str | int) -> None:
        """Forget what `fail_requests` has ordered and has not happened yet."""
        self._driver.call("clear_request_errors", _request(request))

    def fail_topic(self, topic: str, error: str | int) -> None:
        """Have clients told an error when they ask for a topic; "NONE" ends it.

        librdkafka waits out some of them: a message to an unknown topic stays queued
        until its own timeout.
        """
        self._driver.call("topic_set_error", topic, error_code(error))

    def lead_partition(self, topic: str, partition: int, broker: int | None) -> None:
        """Make a broker the leader of a partition; None leaves it without one."""
        self._driver.call("partition_set_leader", topic, partition, _number(broker))

    def coordinate_transactions(self, transactional_id: str, broker: int) -> None:
        """Make a broker the coordinator of a transactional producer."""
        self._driver.call("coordinator_set", "transaction", transactional_id, broker)

    def records(
        self, topic: str, *, uncommitted: bool = False, timeout: float = 10.0
    ) -> list[Record]:
        """Read what a topic has; see `read_topic`.

        Each request takes a round trip: set that to 0 before.
        """
        return read_topic(
            self.bootstrap_servers, topic, uncommitted=uncommitted, timeout=timeout
        )

    def watch_requests(self) -> None:
        """Remember requests from now on, and forget earlier ones."""
        self._driver.call("clear_requests")
        self._driver.call("start_request_tracking")

    def requests(self) -> list[str]:
        """Name the requests since `watch_requests`, of all clients, in order."""
        kinds = [kind for _, kind in self._driver.call("requests")]
        return [_REQUEST_NAMES.get(kind, str(kind)) for kind in kinds]

    def close(self) -> None:
        """Stop the brokers; a second call does nothing."""
        self._driver.close()

    def __enter__(self) -> MockCluster:
        """Give the running cluster."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the brokers."""
        self.close()


class _InProcess:
    """Brokers on threads of this process."""

    def __init__(self, brokers: int) -> None:
        self._kafka_handle = NativeMockCluster(brokers)
        self._pid = os.getpid()

    def call(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401
        found = getattr(self._kafka_handle, name)
        return found(*arguments) if callable(found) else found

    def close(self) -> None:
        # The threads of the brokers are not in a forked child: stopping them there
        # would wait for them for ever.
        if os.getpid() == self._pid:
            self._kafka_handle.destroy()


class _Subprocess:
    """Brokers in a child process: a line with a call goes in, one with a result out.

    The child ends when its standard input does, so it can't outlive this process.
    """

    def __init__(self, brokers: int) -> None:
        # Pipes of our own: gevent's would belong to the hub that started the child.
        orders, self._stdin = os.pipe()
        self._stdout, answers = os.pipe()
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "greendrop.testing", str(brokers)],
                stdin=orders,
                stdout=answers,
                # Ctrl-C is for this process, which then ends the child in good order.
                start_new_session=True,
            )
        except BaseException:
            self._hang_up()
            raise
        finally:
            _concurrency.close_fd(orders)
            _concurrency.close_fd(answers)
        self._closed = False
        #: Held while an order waits for its answer.
        self._talking = _concurrency.new_lock()

    def call(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401
        order = json.dumps([name, arguments]).encode() + b"\n"
        # Off the hub, where nobody can be cut short between order and answer either.
        answer = _concurrency.run_in_thread(lambda: self._ask(order), _LONGEST_WAIT)
        if not answer:
            status = self._child.wait(_LONGEST_WAIT)
            raise GreendropError(f"the mock cluster's process ended, status {status}")
        problem, result = json.loads(answer)
        if problem is not None:
            raise GreendropError(problem)
        return result

    def _ask(self, order: bytes) -> bytes:
        """Give the line that answers, or nothing if the child has ended."""
        with self._talking:
            if self._closed:
                raise GreendropError("the mock cluster is closed")
            reader, answer = self._stdout, b""
            with suppress(BrokenPipeError):
                os.write(self._stdin, order)
                while not answer.endswith(b"\n") and (more := os.read(reader, 4096)):
                    answer += more
        return answer

    def close(self) -> None:
        with self._talking:
            if not self._closed:
                self._closed = True
                self._hang_up()
        self._child.wait(_LONGEST_WAIT)

    def _hang_up(self) -> None:
        _concurrency.close_fd(self._stdin)
        _concurrency.close_fd(self._stdout)


def _serve(brokers: int) -> None:
    """Do what `_Subprocess` asks on standard input, until that ends."""
    driver = _InProcess(brokers)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        problem = result = None
        try:
            result = driver.call(name, *arguments)
        except GreendropError as error:
            problem = str(error)
        sys.stdout.write(json.dumps([problem, result]) + "\n")
        sys.stdout.flush()
    driver.close()


def _milliseconds(seconds: float) -> int:
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{seconds!r} seconds are not between 0 and {_LONGEST:g}")
    return round(seconds * 1000)


def _number(broker: int | None) -> int:
    return _ALL if broker is None else broker


def _request(request: str | int) -> int:
    if isinstance(request, int):
        return request
    return number_of(request, REQUESTS, "request")


def read_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    uncommitted: bool = False,
    timeout: float = 10.0,
    kafka: Mapping[str, str | int | bool] | None = None,
) -> list[Record]:
    """Read a topic of any Kafka from its beginning to its end.

    Args:
        bootstrap_servers: Addresses of brokers.
        topic: Its name. One that doesn't exist has no records, and is not created.
        uncommitted: Also what transactions have written that are open or were aborted.
        timeout: Seconds for all of it.
        kafka: More of librdkafka's configuration: how to get in, for example.

    Returns:
        The records by partition, and in a partition by offset.

    Raises:
        GreendropError: The brokers can't be reached, or the end was not, in time.

    Blocking:
        Lets other greenlets run where the thread has a hub, else blocks the thread.
    """
    configuration = {**(kafka or {}), "bootstrap.servers": bootstrap_servers}
    return _reader.read_topic(configuration, topic, timeout, uncommitted=uncommitted)


def trigger_fatal_error(
    producer: Producer, code: int = 47, reason: str = "triggered by a test"
) -> None:
    """Make a connected producer's client fail for good, as if a broker had said so.

    Args:
        producer: Has sent a message already, so that it has a client.
        code: Kafka's number; 47 is INVALID_PRODUCER_EPOCH, which fences a producer.
        reason: Text of the error.

    Raises:
        GreendropError: There is no client, or it can't be reached.
    """
    native = _client(producer).kafka_handle
    native.backend.trigger_fatal_error(native.producer, code, reason)


def fatal_error(producer: Producer) -> tuple[int, str] | None:
    """Give code and text of the error that ended a producer's client, if any."""
    native = _client(producer).kafka_handle
    return native.backend.fatal_error(native.producer)


def _client(producer: Producer) -> Client:
    core = producer._core  # noqa: SLF001
    client = None if core is None else producer._slot.client  # noqa: SLF001
    if client is None:
        raise GreendropError(f"producer {producer.id!r} has no client yet")
    return client
