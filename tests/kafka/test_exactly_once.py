"""The example `exactly_once.py`, whose worker and brokers are killed repeatedly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from greendrop import Producer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "exactly_once.py"
#: Seconds until all records are processed.
SLICE = 420


class Worker:
    """The example's worker, which is restarted whenever it was killed."""

    def __init__(self, log_file, *arguments):
        self._log = log_file.open("ab")
        self._command = [sys.executable, str(EXAMPLE), "--work", *arguments]
        self.kills = 0
        self._start()

    def _start(self):
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT
        )

    @property
    def status(self):
        """Its exit status; None while it runs."""
        return self._process.poll()

    def kill(self):
        """Kill the worker, and start another one."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.kills += 1
        self._start()

    def close(self):
        """End the worker."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def fill(servers, topic, count):
    """Write numbered records."""
    with Producer(kafka={"bootstrap.servers": servers, "linger.ms": 5}) as producer:
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            producer.produce_many_sync(
                {"topic": topic, "key": str(each), "payload": f"x{each}"}
                for each in numbers
            )


def test_each_record_exactly_once(kafka_three, topic, read_topic, tmp_path):
    """Each of 100,000 records is in the output once, whatever is killed meanwhile."""
    count = 100_000
    servers = kafka_three.bootstrap_servers
    source, target = f"{topic}-in", f"{topic}-out"
    for name in (source, target):
        kafka_three.create_topic(name, partitions=3)
    fill(servers, source, count)
    dice = random.Random(5)
    log_file = tmp_path / "worker.log"
    worker = Worker(log_file, servers, source, target)
    broker_kills = 0
    deadline = time.monotonic() + SLICE
    try:
        while worker.status is None and time.monotonic() < deadline:
            time.sleep(dice.uniform(0.5, 3.0))
            if worker.status is not None:
                break
            if worker.kills < 8:
                worker.kill()
            elif broker_kills < 3:
                node = kafka_three.nodes[broker_kills]
                node.kill()
                broker_kills += 1
                time.sleep(dice.uniform(1.0, 5.0))
                node.start()
                kafka_three.wait_until_ready()
                worker.kill()
        assert worker.status == 0, log_file.read_text()
    finally:
        worker.close()
    print(log_file.read_text())
    print(worker.kills, "workers and", broker_kills, "brokers were killed")

    records = read_topic(servers, target, "read_committed", timeout=120)
    seen = Counter(int(each.value[1:]) for each in records)
    everything = read_topic(servers, target, "read_uncommitted", timeout=120)
    print(len(everything) - len(records), "records were rolled back")
    assert set(seen) == set(range(count))
    assert set(seen.values()) == {1}
    assert worker.kills >= 8
