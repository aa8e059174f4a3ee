"""The contract, on Apache Kafka."""

import pytest

from greendrop.testing import read_topic
from tests.contract.suite import *  # noqa: F403 - the tests


class Cluster:
    """A Kafka with the methods that the contract needs."""

    def __init__(self, kafka):
        self._kafka = kafka
        self.bootstrap_servers = kafka.bootstrap_servers

    def create_topic(self, topic, partitions):
        """Create a topic."""
        self._kafka.create_topic(topic, partitions=partitions)

    def records(self, topic, *, uncommitted=False):
        """Read a topic."""
        return read_topic(
            self.bootstrap_servers, topic, uncommitted=uncommitted, timeout=30
        )


@pytest.fixture
def cluster(kafka):
    """Use any Kafka."""
    return Cluster(kafka)
