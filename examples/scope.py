"""Requests that wait for their own messages only.

Three handlers run concurrently, and each sends five messages in a scope. Meanwhile
another greenlet sends telemetry without end to a topic whose broker is slow. A scope
does not wait for the telemetry, as a flush would. The last handler sends to a topic for
which it has no permission, and answers with the error.

    python examples/scope.py

It sends to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
There no broker is slow, and no message is refused.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import gevent

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from greendrop import ProduceManyError, Producer
from greendrop.testing import MockCluster

EVENTS = "greendrop-scope-events"
CLOSED = "greendrop-scope-closed"
TELEMETRY = "greendrop-scope-telemetry"
#: Round trip of the mock brokers, in seconds.
FAST, SLOW = 0.03, 1.0


def say(actor: str, text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{actor:<11}{text}\n")
    sys.stdout.flush()


def handle_request(producer: Producer, number: int, topic: str) -> None:
    """Send some messages and then answer, as a web handler does."""
    name = f"request {number}"
    started = time.perf_counter()
    try:
        with producer.scope(timeout=5.0):
            for step in range(4):
                audit(producer, number, step)
            producer.produce_async(topic=topic, partition=0, payload=b"order")
            say(name, "has sent 5 messages, and waited for none")
    except ProduceManyError as error:
        say(name, f"answers 503: {error.__cause__}")
        return
    elapsed = (time.perf_counter() - started) * 1000
    others = producer.queue_size
    say(name, f"answers 200 after {elapsed:.0f} ms; {others} others are in flight")


def audit(producer: Producer, number: int, step: int) -> None:
    """Send from a part of the program that knows nothing of scopes."""
    text = f"request {number}, step {step}"
    producer.produce_async(topic=EVENTS, partition=0, payload=text)


def send_telemetry(producer: Producer) -> None:
    """Send without end and without waiting."""
    while True:
        producer.produce_async(topic=TELEMETRY, partition=0, payload=b"x" * 100)
        gevent.sleep(0.002)


def slow_cluster(stack: ExitStack) -> str:
    """Start a cluster in which the broker of the telemetry is slow."""
    cluster = stack.enter_context(MockCluster(brokers=2))
    for broker, topic in ((1, EVENTS), (1, CLOSED), (2, TELEMETRY)):
        cluster.create_topic(topic, partitions=1)
        cluster.lead_partition(topic, 0, broker)
    cluster.fail_topic(CLOSED, "TOPIC_AUTHORIZATION_FAILED")
    cluster.round_trip(FAST, broker=1)
    cluster.round_trip(SLOW, broker=2)
    return cluster.bootstrap_servers


def main() -> None:
    """Run the handlers beside the telemetry."""
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS") or slow_cluster(stack)
        producer = stack.enter_context(Producer(kafka={"bootstrap.servers": servers}))
        telemetry = gevent.spawn(send_telemetry, producer)
        gevent.sleep(0.2)
        handlers = [
            gevent.spawn(handle_request, producer, number, topic)
            for number, topic in enumerate((EVENTS, EVENTS, CLOSED), 1)
        ]
        gevent.joinall(handlers, raise_error=True)
        telemetry.kill()
        say("main", f"closes, and delivers the other {producer.queue_size}")


if __name__ == "__main__":
    main()
