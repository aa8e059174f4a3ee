"""Fixtures for the tests of programs that use greendrop.

pytest loads this wherever greendrop is installed, for each of its runs. So it imports
nothing: greendrop, confluent-kafka and gevent come with the first fixture that is
used, and a test suite may patch what it likes before. It is no part of the package
`greendrop` for that reason: to import a module of a package is to import the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greendrop import Producer
    from greendrop.testing import MemoryCluster, Record, Recorder


@pytest.fixture
def greendrop_cluster() -> Iterator[MemoryCluster]:
    """Have all producers connect to brokers in memory, while the test runs.

    See `greendrop.testing.MemoryCluster` for what it offers. The other fixtures need
    only its `bootstrap_servers` and `records`: a test suite that overrides this one
    with a `greendrop.testing.MockCluster` gets that everywhere.
    """
    from greendrop.testing import in_memory  # noqa: PLC0415 - see above

    with in_memory() as cluster:
        yield cluster


@pytest.fixture
def greendrop_producer(greendrop_cluster: MemoryCluster) -> Iterator[Producer]:
    """Give a producer that is connected to `greendrop_cluster`, and closed at the end.

    Its sync verbs wait for 10 s at most.
    """
    from greendrop import Producer  # noqa: PLC0415 - see above

    producer = Producer(
        kafka={"bootstrap.servers": greendrop_cluster.bootstrap_servers},
        max_wait_timeout=10,
    )
    yield producer
    producer.close(force=True)


@pytest.fixture
def greendrop_records(
    greendrop_cluster: MemoryCluster,
) -> Callable[[str], list[Record]]:
    """Return a function that lists a topic's records: `greendrop_records("orders")`."""
    return greendrop_cluster.records


@pytest.fixture
def greendrop_events(greendrop_producer: Producer) -> Iterator[Recorder]:
    """Record the events of `greendrop_producer`; see `greendrop.testing.Recorder`."""
    from greendrop.testing import Recorder  # noqa: PLC0415 - see above

    with Recorder(greendrop_producer) as recorder:
        yield recorder
