"""Shared fixtures, and the check that no test leaves anything behind.

Each test starts in a thread without a hub, whatever the test before it did: a test that
needs a hub uses the fixture `hub`, which is destroyed afterwards.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from greendrop import Message, Producer
from greendrop._producer import registry
from greendrop.testing import MockCluster
from tests import interpreter
from tests.resources import Open
from tests.security.output import out  # noqa: F401 - a fixture
from tests.tasks import LongestGap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds that threads may take to end after a test.
_LONGEST_WAIT = 5.0

# In a separate process, since tests may not find gevent imported.
_VERSIONS = """
import gevent, greenlet, confluent_kafka, platform
loop = gevent.config.loop
print(
    "python", platform.python_version(),
    "| gevent", gevent.__version__, loop.__module__ + "." + loop.__name__,
    "| greenlet", greenlet.__version__,
    "| confluent-kafka", confluent_kafka.__version__,
    "| librdkafka", confluent_kafka.libversion()[0],
)
"""


def pytest_configure() -> None:
    """Have Ctrl-C raise, even if a shell started the tests in its background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Name the versions of the libraries that greendrop is built on."""
    command = [sys.executable, "-c", _VERSIONS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- clusters and producers -----------------------------------------------------------


@pytest.fixture
def mock_cluster() -> Iterator[MockCluster]:
    """A mock cluster of one broker in this process, new and without faults."""
    with MockCluster() as cluster:
        yield cluster


@pytest.fixture
def make_producer(mock_cluster) -> Iterator[Callable[..., Producer]]:
    """Make producers on the mock cluster; they are closed after the test.

    Takes the arguments of `Producer`; `kafka` is added to the cluster's address.
    """
    made = []

    def make(kafka: dict[str, Any] | None = None, **settings: Any) -> Producer:
        servers = {"bootstrap.servers": mock_cluster.bootstrap_servers}
        producer = Producer(kafka=servers | (kafka or {}), **settings)
        made.append(producer)
        return producer

    yield make
    for producer in made:
        producer.close(force=True)


@pytest.fixture
def transactional(make_producer) -> Callable[..., Producer]:
    """Make transactional producers that retry and reload without delay."""
    made: list[Producer] = []

    def make(kafka: dict[str, Any] | None = None, **settings: Any) -> Producer:
        options = {
            "wait_backoff_on_transaction_command": 0.01,
            "wait_backoff_on_transaction_fatal_error": 0.0,
            # The mock cluster does not need it.
            "wait_timeout_on_transaction_abort": 0.0,
        }
        name = {"transactional.id": f"tx-{len(made)}", "retry.backoff.ms": 10}
        made.append(make_producer(name | (kafka or {}), **options | settings))
        return made[-1]

    return make


@pytest.fixture
def connected(transactional) -> Callable[..., Producer]:
    """Make transactional producers that have committed something."""

    def make(*arguments: Any, **settings: Any) -> Producer:
        producer: Producer = transactional(*arguments, **settings)
        producer.produce_sync(topic="t", payload=b"x")
        return producer

    return make


@pytest.fixture
def stored(mock_cluster) -> Callable[[str], int]:
    """Count the messages of a topic of the mock cluster; sets its round trip to 0."""

    def count(topic: str) -> int:
        mock_cluster.round_trip(0)
        consumer = Consumer(
            {
                "bootstrap.servers": mock_cluster.bootstrap_servers,
                "group.id": "counting",
                "log_level": 0,
            }
        )
        try:
            partitions = consumer.list_topics(topic, 10).topics[topic].partitions
            ends = [
                consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1]
                for number in partitions
            ]
        finally:
            consumer.close()
        return sum(ends)

    return count


@pytest.fixture
def sent(make_producer) -> tuple[Producer, list[Message]]:
    """Make a producer, and the list of messages that it sent by its events."""
    producer = make_producer()
    messages: list[Message] = []
    for name in ("message.produced_sync", "message.produced_async"):
        producer.monitor.subscribe(
            name, lambda event: messages.append(event["message"])
        )
    for name in ("messages.produced_sync", "messages.produced_async"):
        producer.monitor.subscribe(
            name, lambda event: messages.extend(event["messages"])
        )
    return producer, messages


# --- time and other interpreters ------------------------------------------------------


@pytest.fixture
def hub() -> Any:
    """Give the test's thread a hub, so that its code runs as in a gevent program."""
    import gevent  # noqa: PLC0415 - not for tests without a hub

    _watch_hubs()
    return gevent.get_hub()


@pytest.fixture
def longest_gap(hub) -> type[LongestGap]:
    """Measure the longest time that other greenlets had to wait.

    Use it as `with longest_gap() as gap:`, then read `gap.seconds`.
    """
    return LongestGap


@pytest.fixture
def run_script() -> Callable[..., interpreter.Ended]:
    """Run a program in a fresh interpreter; see `tests.interpreter.run`."""
    return interpreter.run


# --- with and without a hub -----------------------------------------------------------


@pytest.fixture(params=["threads", "greenlets"])
def world(request) -> str:
    """Run a test with a hub and without one."""
    if request.param == "greenlets":
        request.getfixturevalue("hub")
    return str(request.param)


@pytest.fixture
def spawn(world) -> Callable[[Callable[[], object]], Any]:
    """Start a function in a greenlet or thread; return an object with `join`."""

    def start(function: Callable[[], object]) -> Any:
        if world == "greenlets":
            return sys.modules["gevent"].spawn(function)
        thread = threading.Thread(target=function)
        thread.start()
        return thread

    return start


@pytest.fixture
def pause(world) -> Callable[[float], object]:
    """Let other greenlets, or other threads, run for some seconds."""
    return sys.modules["gevent"].sleep if world == "greenlets" else time.sleep


@pytest.fixture
def until(pause) -> Callable[..., None]:
    """Let other tasks run until a condition holds."""

    def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "not in time"
            pause(0.002)

    return wait


# --- the check for leftovers ----------------------------------------------------------

# Exceptions that ended a greenlet or a callback and that only the hub has seen. pytest
# itself reports those that end threads and those in destructors.
_hub_errors: list[tuple[object, BaseException]] = []


@pytest.fixture
def hub_errors() -> list[tuple[object, BaseException]]:
    """Exceptions that hubs have seen. A test that expects some clears the list."""
    return _hub_errors


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves something open, and close it for the next test."""
    _watch_hubs()
    before = Open.now()
    yield
    left = [*_close_producers(), *_end_hub()]
    left += before.left_open(_LONGEST_WAIT)
    left += [f"an uncaught error: {error!r}" for error in _hub_errors]
    _hub_errors.clear()
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


def _watch_hubs() -> None:
    module = sys.modules.get("gevent.hub")
    if module is not None and module.Hub.print_exception is not _note_hub_error:
        module.Hub.print_exception = _note_hub_error


def _note_hub_error(hub: object, context: object, *error: Any) -> None:
    _hub_errors.append((context, error[1]))


def _close_producers() -> list[str]:
    left = list(registry._in_use)
    for each in left:
        each.close(0.0, force=True)
    return [f"producer {each.name!r} was left open" for each in left]


def _end_hub() -> list[str]:
    """End the main thread's hub; describe greenlets of ours that still ran there."""
    local: Any = sys.modules.get("gevent._hub_local")
    hub = None if local is None else local.get_hub_if_exists()
    if hub is None:
        return []
    greenlet: Any = sys.modules["gevent"].Greenlet
    left = [
        f"greenlet {each!r}"
        for each in gc.get_objects()
        # Not isinstance: it evaluates properties of some objects.
        if issubclass(type(each), greenlet)
        and each.parent is hub
        and not each.dead
        and str(getattr(each._run, "__module__", "")).startswith("greendrop")
    ]
    hub.destroy(destroy_loop=True)
    return left
