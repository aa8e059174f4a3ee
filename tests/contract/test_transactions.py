"""The contract for transactions, on brokers in memory."""

import re

import pytest

from greendrop.testing import MemoryCluster
from tests.contract.suite import producer_on_cluster  # noqa: F401 - a fixture
from tests.contract.transactions import *  # noqa: F403 - the tests


@pytest.fixture
def cluster():
    """Run a cluster in memory."""
    with MemoryCluster() as cluster:
        yield cluster


@pytest.fixture
def topic(request):
    """Name a topic after the test."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", request.node.name)[:200]
