"""The contract, on brokers in memory and on the mock cluster."""

import re

import pytest

from greendrop.testing import MemoryCluster, MockCluster
from tests.contract.faults import *  # noqa: F403 - the tests
from tests.contract.suite import *  # noqa: F403 - the tests


@pytest.fixture(
    params=[
        pytest.param(MemoryCluster, id="memory"),
        # A consumer takes half a second to read stored records.
        pytest.param(MockCluster, id="mock", marks=pytest.mark.slow),
    ]
)
def cluster(request):
    """Run a cluster in memory, or a mock cluster."""
    with request.param() as cluster:
        yield cluster


@pytest.fixture
def topic(request):
    """Name a topic after the test."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name)[:200]
