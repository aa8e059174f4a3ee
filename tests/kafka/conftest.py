"""A real Apache Kafka for the tests in this folder.

Without Java or Maven they are skipped, or fail with `GREENDROP_REQUIRE_KAFKA=1`. With
`GREENDROP_BOOTSTRAP_SERVERS`, the tests that only need some Kafka use that one.
"""

from __future__ import annotations

import os
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kafka.running import Program
from tests.servers import reading
from tests.servers.kafka import Kafka, KafkaCluster, unavailable_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HERE = Path(__file__).parent

#: Seconds per test. Its fixtures count, and the first test may have to fetch Kafka and
#: to start three nodes.
_TIMEOUT = 180

#: Fixtures that need a Kafka started by the tests.
_OWN = {"kafka_three", "kafka_secure", "kafka_proxied"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as tests that need Kafka."""
    for item in items:
        # The hook gets the tests of all folders.
        if _HERE in item.path.parents:
            item.add_marker("kafka")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_TIMEOUT))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose Kafka is not available."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if _given() and "kafka" in fixtures and not fixtures & _OWN:
        return
    reason = unavailable_reason()
    if reason and os.environ.get("GREENDROP_REQUIRE_KAFKA") == "1":
        pytest.fail(f"Apache Kafka can't run here: {reason}", pytrace=False)
    if reason:
        pytest.skip(f"Apache Kafka can't run here: {reason}")


def _given() -> str:
    return os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")


@pytest.fixture(scope="session")
def _clusters() -> list[KafkaCluster]:
    """All clusters started by this session."""
    return []


@pytest.fixture(scope="session")
def _one_node(_clusters: list[KafkaCluster]) -> Iterator[KafkaCluster]:
    """One node with all listeners: cheaper than a node for each of them."""
    with KafkaCluster(secure=True, proxied=True) as cluster:
        _clusters.append(cluster)
        yield cluster


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Kafka:
    """Any Kafka; tests must not kill or pause it."""
    if _given():
        return Kafka(_given())
    cluster: KafkaCluster = request.getfixturevalue("_one_node")
    return cluster


@pytest.fixture(scope="session")
def kafka_secure(_one_node: KafkaCluster) -> KafkaCluster:
    """One node with SASL and TLS listeners, to be killed or paused at will."""
    return _one_node


@pytest.fixture(scope="session")
def kafka_proxied(_one_node: KafkaCluster) -> KafkaCluster:
    """One node with a slow or broken network before it, see `KafkaCluster.proxy`."""
    return _one_node


@pytest.fixture(scope="session")
def kafka_three(_clusters: list[KafkaCluster]) -> Iterator[KafkaCluster]:
    """Three nodes, to be killed or paused at will; one may be missing."""
    with KafkaCluster(nodes=3) as cluster:
        _clusters.append(cluster)
        yield cluster


@pytest.fixture(autouse=True)
def _restored(_clusters: list[KafkaCluster]) -> Iterator[None]:
    """Restore all nodes for the next test."""
    yield
    for cluster in _clusters:
        cluster.restore()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """Name a topic that does not exist; its first use creates it."""
    test = re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name)
    return f"{test[:80]}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def read_topic() -> Callable[..., list[reading.Record]]:
    """Read a topic with kafka-python, see `tests.servers.reading.read_topic`."""
    return reading.read_topic


@pytest.fixture
def start(kafka: Kafka, topic: str, tmp_path: Path) -> Callable[..., Program]:
    """Start a host program; it ends with the `with` block at the latest."""

    def start(*arguments: str, log: str = "log", **more: str) -> Program:
        return Program(
            *arguments,
            log_file=tmp_path / log,
            SERVERS=kafka.bootstrap_servers,
            TOPIC=topic,
            FOLDER=str(tmp_path),
            **more,
        )

    return start


@pytest.fixture
def stored(kafka: Kafka, topic: str) -> Callable[[], Counter[str]]:
    """Count how often each payload is in the topic."""

    def stored() -> Counter[str]:
        records = reading.read_topic(kafka.bootstrap_servers, topic)
        return Counter((record.value or b"").decode() for record in records)

    return stored
