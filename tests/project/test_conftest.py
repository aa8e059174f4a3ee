"""The check for leftovers of tests finds each kind."""

import subprocess
import sys

import pytest

from tests.interpreter import ROOT

pytestmark = pytest.mark.slow

LEAVES = """
import os
import threading
import time

import gevent

from greendrop import Producer


kept = []


def test_that_leaves_things(mock_cluster, hub):
    servers = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    producer = Producer(servers, id="mine")
    kept.append(producer)
    producer.produce_sync(topic="events", payload=b"x")
    os.pipe()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    gevent.spawn(lambda: 1 / 0).join()


def test_that_leaves_nothing(make_producer, longest_gap, stored):
    producer = make_producer()
    with longest_gap():
        producer.produce_sync(topic="events", payload=b"x")
    assert stored("events") == 1


def test_that_finds_no_hub(make_producer):
    producer = make_producer()
    producer.produce_sync(topic="events", payload=b"x")
    assert producer.polling == "thread"
"""


def test_a_test_that_leaves_something_fails(tmp_path):
    """The failure names the producer, descriptors, thread or error left behind."""
    path = tmp_path / "test_leaving.py"
    path.write_text(LEAVES)
    options = ["-p", "tests.conftest", "-p", "no:randomly", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-c", ROOT / "tox.ini", *options, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    _, failure = done.stdout.split("\nleft behind: ")
    assert "producer 'mine'" in failure
    assert "of pipe" in failure
    # Since Python 3.14 the system knows threads by their names in Python.
    own_names = sys.version_info >= (3, 14)
    assert ("; thread Thread-" if own_names else "; thread python") in failure
    assert "ZeroDivisionError" in failure
    assert "3 passed, 1 error" in done.stdout
