"""One producer and three concurrent tasks: two send and wait, one does other work.

With gevent the tasks are greenlets of one thread. With `--threads`, or where gevent is
not installed, they are threads. The tasks are the same code in both cases: greendrop
decides at each wait, from the calling thread, how to wait.

    python examples/concurrent.py
    python examples/concurrent.py --threads

It sends to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from greendrop import Message, ProduceError, ProduceManyError, Producer
from greendrop.testing import MockCluster

THREADS = "--threads" in sys.argv[1:] or find_spec("gevent") is None
if not THREADS:
    import gevent

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC = "greendrop-concurrent"
#: Round trip of the mock brokers, in seconds.
ROUND_TRIP = 0.03

STARTED = time.perf_counter()


def say(task: str, text: str) -> None:
    """Write a line, with the time since the start."""
    elapsed = (time.perf_counter() - STARTED) * 1000
    sys.stdout.write(f"{elapsed:5.0f} ms  {task:<7}{text}\n")
    sys.stdout.flush()


def send_orders(producer: Producer) -> None:
    """Send ten messages with one key, each after the previous one is stored."""
    say("orders", "sends 10 orders, one after another")
    for number in range(1, 11):
        try:
            report = producer.produce_sync(
                topic=TOPIC, key="customer-7", payload=f"order {number}"
            )
        except ProduceError as error:
            say("orders", f"order {number} failed: {error}")
            return  # later orders would overtake it
        say("orders", f"order {number} is at {report.partition}@{report.offset}")


def send_batch(producer: Producer) -> None:
    """Send a hundred messages together, and wait for all of them."""
    batch = [Message(TOPIC, f"reading {number}") for number in range(100)]
    say("batch", f"sends {len(batch)} readings")
    try:
        reports = producer.produce_many_sync(batch)
    except ProduceManyError as error:
        failed = sum(1 for handle in error.dispatched if handle.error is not None)
        unsent = len(batch) - len(error.dispatched)
        say("batch", f"{failed} not delivered, {unsent} not sent: {error}")
        return
    except ProduceError as error:
        say("batch", f"failed: {error}")
        return
    partitions = {report.partition for report in reports}
    say("batch", f"all {len(reports)} are delivered, to {len(partitions)} partitions")


def work(_: Producer) -> None:
    """Do something else, in small steps."""
    for step in range(1, 19):
        pause(0.025)
        say("work", f"step {step} of 18")


def pause(seconds: float) -> None:
    """Sleep, and let the other tasks run."""
    if THREADS:
        time.sleep(seconds)
    else:
        gevent.sleep(seconds)


def run_together(producer: Producer, *tasks: Callable[[Producer], None]) -> None:
    """Run the tasks concurrently, and wait for all of them."""
    if not THREADS:
        greenlets = [gevent.spawn(task, producer) for task in tasks]
        gevent.joinall(greenlets, raise_error=True)
        return
    threads = [threading.Thread(target=task, args=(producer,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Run the three tasks."""
    servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")
    with ExitStack() as stack:
        if not servers:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(ROUND_TRIP)
            servers = cluster.bootstrap_servers
        producer = stack.enter_context(
            Producer(kafka={"bootstrap.servers": servers, "message.timeout.ms": 10_000})
        )
        run_together(producer, send_orders, send_batch, work)
        kind = "threads" if THREADS else "greenlets"
        say("main", f"three {kind} and one producer, polling by {producer.polling}")


if __name__ == "__main__":
    main()
