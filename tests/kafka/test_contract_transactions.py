"""The contract for transactions, on Apache Kafka."""

from tests.contract.suite import producer_on_cluster  # noqa: F401 - a fixture
from tests.contract.transactions import *  # noqa: F403 - the tests
from tests.kafka.test_contract import cluster  # noqa: F401 - a fixture
