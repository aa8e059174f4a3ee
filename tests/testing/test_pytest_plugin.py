"""The pytest fixtures of greendrop, used as users use them."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.patched]

# Prints the modules that a run of pytest has imported.
TELLS_MODULES = """
import sys

def pytest_unconfigure():
    wanted = {"gevent", "greenlet", "confluent_kafka", "greendrop", "pytest_greendrop"}
    print("modules:", sorted(wanted & set(sys.modules)))
"""

PASSING = """
def test_nothing():
    pass
"""

# A user's program, with a producer at module level, and its tests.
SHOP = """
from greendrop import Producer

producer = Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})


def order(what):
    return producer.produce_sync(topic="orders", payload=what, key="shop")
"""
SHOP_TESTS = """
import pytest
import shop
from greendrop import DeliveryError


@pytest.mark.parametrize("what", ["tea", "coffee"])
def test_an_order_is_sent(greendrop_records, what):
    shop.order(what)

    (record,) = greendrop_records("orders")
    assert record.payload == what.encode()


def test_an_order_fails(greendrop_cluster):
    greendrop_cluster.fail_messages("TOPIC_AUTHORIZATION_FAILED")

    with pytest.raises(DeliveryError):
        shop.order("tea")


def test_events(greendrop_producer, greendrop_events, greendrop_records):
    greendrop_producer.produce_sync(topic="t", payload=b"x")

    assert greendrop_events.wait_for("message.acknowledged")
    assert len(greendrop_records("t")) == 1
    assert greendrop_records("orders") == []
"""
MOCK = """
import pytest
from greendrop.testing import MockCluster


@pytest.fixture
def greendrop_cluster():
    with MockCluster() as cluster:
        yield cluster
"""


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest in a folder with these files, and return its output."""

    def run(*command, **files):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        done = subprocess.run(
            [sys.executable, *command, "pytest", "-q", "-p", "no:cacheprovider"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=45,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_plugin_is_free_until_it_is_used(run_pytest):
    """Loading it imports neither greendrop nor its dependencies."""
    output = run_pytest("-m", conftest=TELLS_MODULES, test_it=PASSING)

    assert "modules: ['pytest_greendrop']" in output


def test_programs_are_tested_without_brokers(run_pytest):
    """Module-level producers work, too, without gevent and without a warning."""
    output = run_pytest(
        "-Werror", "-m", conftest=TELLS_MODULES, shop=SHOP, test_it=SHOP_TESTS
    )

    assert "4 passed" in output
    assert "'gevent'" not in output
    assert "'greendrop'" in output


def test_programs_are_tested_monkey_patched(run_pytest):
    """The whole suite is patched before it starts."""
    output = run_pytest(
        "-m", "gevent.monkey", "--module", shop=SHOP, test_it=SHOP_TESTS
    )

    assert "4 passed" in output


def test_the_cluster_can_be_replaced(run_pytest):
    """A suite that overrides one fixture makes the others use it."""
    test = SHOP_TESTS[SHOP_TESTS.index("def test_events") :]

    output = run_pytest("-m", conftest=MOCK, test_it=test)

    assert "1 passed" in output
