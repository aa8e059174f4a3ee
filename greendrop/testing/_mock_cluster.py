"""`MockCluster`: librdkafka's mock brokers, in this process or in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency
from greendrop._librdkafka.error_codes import error_code, number_of
from greendrop.errors import GreendropError
from greendrop.testing._memory_log import Record, check_partitions
from greendrop.testing._mock_brokers import MockBrokers
from greendrop.testing._reader import read_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Kafka's numbers of the requests that the mock cluster handles.
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

_ALL_BROKERS = -1
#: Seconds of the longest delay.
_MAX_DELAY = 3600.0
#: Seconds that a child process may take to start, answer or end.
_CHILD_TIMEOUT = 30.0


class _Driver(Protocol):
    """Access to the brokers, which run in this process or in a child process."""

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401
        """Call a method of `MockBrokers`."""

    def close(self) -> None:
        """Stop the brokers."""


class MockCluster:
    """Kafka brokers on local ports, in memory, with faults on demand.

    A context manager; safe to use from any greenlet and thread. Topics that were not
    created get four partitions at first use.

    Args:
        brokers: Number of brokers; they are numbered from 1.
        own_process: Run the brokers in a child process; see `spawn`.

    Raises:
        GreendropError: The librdkafka of confluent-kafka can't be called.
        ValueError: `brokers` is below 1.
    """

    def __init__(self, brokers: int = 1, *, own_process: bool = False) -> None:
        if brokers < 1:
            raise ValueError(f"a cluster needs at least one broker, not {brokers!r}")
        self._driver: _Driver = (
            _Subprocess(brokers) if own_process else _InProcess(brokers)
        )

    @classmethod
    def spawn(cls, brokers: int = 1) -> MockCluster:
        """Start the brokers in a child process.

        For measurements: brokers in the measured process would share its CPU time. The
        child process ends with this one, even if this one is killed.

        Blocking:
            Until the process is up, about 0.3 s.
        """
        return cls(brokers, own_process=True)

    @property
    def bootstrap_servers(self) -> str:
        """The addresses of the brokers, for `bootstrap.servers`."""
        return str(self._driver.call("bootstraps"))

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        """Create a topic that does not exist yet.

        Raises:
            ValueError: The number of partitions is out of range.
        """
        check_partitions(partitions)
        self._driver.call("topic_create", topic, partitions)

    def round_trip(self, seconds: float, broker: int | None = None) -> None:
        """Delay the answers to all requests by so many seconds (whole milliseconds)."""
        self._driver.call("set_rtt", _milliseconds(seconds), _number(broker))

    def broker_down(self, broker: int | None = None) -> None:
        """Close all connections of one or all brokers, and refuse new ones.

        A broker that is down stays the leader of its partitions.
        """
        self._driver.call("broker_set_down", _number(broker))

    def broker_up(self, broker: int | None = None) -> None:
        """Accept connections again.

        Clients reconnect after their `reconnect.backoff.max.ms` (10 s by default); set
        it lower in tests.
        """
        self._driver.call("broker_set_up", _number(broker))

    def fail_requests(
        self, request: str | int, error: str | int, times: int = 1
    ) -> None:
        """Let the next requests of a kind fail, on any broker.

        Args:
            request: The kind, such as "Produce"; see `REQUESTS`.
            error: The name of the error in Kafka or librdkafka, such as
                "NOT_LEADER_OR_FOLLOWER", or its code; "_TRANSPORT" closes the
                connection.
            times: Number of requests.
        """
        codes = [error_code(error)] * times
        self._driver.call("push_request_errors", _request(request), codes)

    def delay_requests(
        self, request: str | int, seconds: float, times: int = 1, *, broker: int = 1
    ) -> None:
        """Delay one broker's answers to the next requests of a kind."""
        answers = [(0, _milliseconds(seconds))] * times
        self._driver.call("push_request_error_rtts", broker, _request(request), answers)

    def forgive_requests(self, request: str | int) -> None:
        """Cancel the failures by `fail_requests` that have not happened yet."""
        self._driver.call("clear_request_errors", _request(request))

    def fail_topic(self, topic: str, error: str | int) -> None:
        """Answer metadata requests for a topic with an error; "NONE" ends it.

        librdkafka retries after some errors: a message to an unknown topic stays queued
        until its own timeout.
        """
        self._driver.call("topic_set_error", topic, error_code(error))

    def lead_partition(self, topic: str, partition: int, broker: int | None) -> None:
        """Make a broker the leader of a partition; None leaves it without one.

        Use None before the first message to the partition only. A client that knows
        another leader still sends to that one, and the brokers of librdkafka 2.16
        crash their process when such a message arrives at a partition without leader.
        """
        self._driver.call("partition_set_leader", topic, partition, _number(broker))

    def coordinate_transactions(self, transactional_id: str, broker: int) -> None:
        """Make a broker the coordinator of a transactional producer."""
        self._driver.call("coordinator_set", "transaction", transactional_id, broker)

    def records(
        self, topic: str, *, uncommitted: bool = False, timeout: float = 10.0
    ) -> list[Record]:
        """Read the records of a topic; see `read_topic`.

        Each request takes a round trip: set `round_trip` to 0 before.
        """
        return read_topic(
            self.bootstrap_servers, topic, uncommitted=uncommitted, timeout=timeout
        )

    def watch_requests(self) -> None:
        """Start recording requests; earlier ones are forgotten."""
        self._driver.call("clear_requests")
        self._driver.call("start_request_tracking")

    def requests(self) -> list[str]:
        """Return the kinds of all requests since `watch_requests`, in order."""
        kinds = [kind for _, kind in self._driver.call("requests")]
        return [_REQUEST_NAMES.get(kind, str(kind)) for kind in kinds]

    def close(self) -> None:
        """Stop the brokers; a second call does nothing."""
        self._driver.close()

    def __enter__(self) -> MockCluster:
        """Return the running cluster."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the brokers."""
        self.close()


class _InProcess:
    """Brokers on threads of this process."""

    def __init__(self, brokers: int) -> None:
        self._brokers = MockBrokers(brokers)
        self._pid = os.getpid()

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401
        found = getattr(self._brokers, name)
        return found(*arguments) if callable(found) else found

    def close(self) -> None:
        # Not in a forked child: the threads of the brokers do not exist there, and
        # stopping them would wait for ever.
        if os.getpid() == self._pid:
            self._brokers.destroy()


class _Subprocess:
    """Brokers in a child process, which reads calls and writes results, line by line.

    The child ends with its standard input, so it can't outlive this process.
    """

    def __init__(self, brokers: int) -> None:
        # Own pipes: gevent's would belong to the hub that started the child.
        requests, self._stdin = os.pipe()
        self._stdout, answers = os.pipe()
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "greendrop.testing", str(brokers)],
                stdin=requests,
                stdout=answers,
                # Keep Ctrl-C from the child; this process ends it.
                start_new_session=True,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            _concurrency.close_fd(requests)
            _concurrency.close_fd(answers)
        self._closed = False
        # Held from a request to its answer.
        self._lock = _concurrency.new_lock()

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401
        request = json.dumps([name, arguments]).encode() + b"\n"
        # In a thread, where no exception can come between request and answer.
        answer = _concurrency.run_in_thread(_CHILD_TIMEOUT, self._ask, request)
        if not answer:
            status = self._child.wait(_CHILD_TIMEOUT)
            raise GreendropError(f"the mock cluster's process ended, status {status}")
        problem, result = json.loads(answer)
        if problem is not None:
            raise GreendropError(problem)
        return result

    def _ask(self, request: bytes) -> bytes:
        """Return the line of the answer, or nothing if the child has ended."""
        with self._lock:
            if self._closed:
                raise GreendropError("the mock cluster is closed")
            reader, answer = self._stdout, b""
            with suppress(BrokenPipeError):
                os.write(self._stdin, request)
                while not answer.endswith(b"\n") and (more := os.read(reader, 4096)):
                    answer += more
        return answer

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close_pipes()
        self._child.wait(_CHILD_TIMEOUT)

    def _close_pipes(self) -> None:
        _concurrency.close_fd(self._stdin)
        _concurrency.close_fd(self._stdout)


def serve(brokers: int) -> None:
    """Execute the calls of `_Subprocess` on standard input, until its end."""
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
    if not 0 <= seconds <= _MAX_DELAY:
        raise ValueError(f"{seconds!r} seconds are not between 0 and {_MAX_DELAY:g}")
    return round(seconds * 1000)


def _number(broker: int | None) -> int:
    return _ALL_BROKERS if broker is None else broker


def _request(request: str | int) -> int:
    if isinstance(request, int):
        return request
    return number_of(request, REQUESTS, "request")
