"""Ten tasks that share three producers; each task has one of them to itself.

    python examples/pool.py

It sends to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import gevent

from greendrop import Producer, ProducerPool
from greendrop.testing import MockCluster

TOPIC = "greendrop-pool"


def work(pool: ProducerPool, task: int) -> str:
    """Check out a producer, send five messages, and return its name."""
    with pool.producer() as producer:
        for number in range(5):
            producer.produce_sync(topic=TOPIC, payload=f"task {task}, {number}")
        return f"task {task} sent 5 messages by {producer.id}"


def main() -> None:
    """Run the tasks."""
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
        if not servers:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(0.01)
            servers = cluster.bootstrap_servers
        kafka = {"bootstrap.servers": servers}
        pool = stack.enter_context(
            ProducerPool(lambda slot: Producer(kafka=kafka, id=f"slot-{slot}"), size=3)
        )
        tasks = [gevent.spawn(work, pool, number) for number in range(10)]
        gevent.joinall(tasks, raise_error=True)
        for task in tasks:
            sys.stdout.write(f"{task.value}\n")
        sys.stdout.write(f"{pool.stats}\n")


if __name__ == "__main__":
    main()
