"""Log lines, statistics and the stall alarm.

A hook gives every producer of the program a `LogListener`, and collects the round trips
of the brokers. Then two requests are slow: the first because of a slow broker, the
second because its handler blocks the hub, and the stall alarm names the line. At the
end the broker goes away for a second, which is logged once and not ten times.

    python examples/observing.py

It sends to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
There no broker is slow, and none goes away.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gevent

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import structlog

import greendrop
from greendrop import Producer
from greendrop.listeners.log import LogListener
from greendrop.testing import MockCluster

if TYPE_CHECKING:
    from greendrop import Event

TOPIC = "greendrop-observing"
#: Seconds that the slow broker takes, and that the bad handler blocks the hub.
SLOW, BLOCKED = 0.4, 0.4

log = structlog.get_logger("example")
round_trips: dict[str, int] = {}


def configure_logging() -> None:
    """Configure structlog, as a program does when it starts; greendrop never does."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=24),
        ]
    )


def watch_all_producers() -> None:
    """Subscribe to every producer, as a library for metrics does."""
    listener = LogListener()

    @greendrop.monitor.subscribe("producer.configured")
    def watch(event: Event) -> None:
        monitor = event["producer"].monitor
        monitor.subscribe(listener)
        monitor.subscribe("statistics.emitted", note_round_trips)


def note_round_trips(event: Event) -> None:
    """Record the slowest round trip of each broker, in microseconds."""
    for broker in event["statistics"]["brokers"].values():
        if broker["nodeid"] >= 0:
            name = broker["nodename"]
            round_trips[name] = max(round_trips.get(name, 0), broker["rtt"]["max"])


def request(producer: Producer, number: int) -> None:
    """Handle a request, and wait for its message."""
    structlog.contextvars.bind_contextvars(request=number)
    producer.produce_sync(topic=TOPIC, payload=f"request {number}")


def bad_request(producer: Producer, number: int) -> None:
    """Handle a request, and block the hub meanwhile."""
    structlog.contextvars.bind_contextvars(request=number)
    handle = producer.produce_async(topic=TOPIC, payload=f"request {number}")
    time.sleep(BLOCKED)  # not gevent.sleep: nothing else runs
    handle.wait(5)


def main() -> None:
    """Handle the requests, one after the other."""
    configure_logging()
    watch_all_producers()
    servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
    with MockCluster() as cluster:
        kafka = {
            "bootstrap.servers": servers or cluster.bootstrap_servers,
            "statistics.interval.ms": 100,
            "reconnect.backoff.max.ms": 100,
        }
        with Producer(kafka, id="shop", stall_alarm=0.1) as producer:
            request(producer, 1)
            cluster.round_trip(SLOW)
            gevent.spawn(request, producer, 2).get()
            cluster.round_trip(0)
            gevent.spawn(bad_request, producer, 3).get()
            gevent.sleep(0.2)
            cluster.broker_down()
            gevent.sleep(1.0)
            cluster.broker_up()
            request(producer, 4)
        for broker, slowest in round_trips.items():
            log.info("slowest round trip", broker=broker, ms=slowest // 1000)


if __name__ == "__main__":
    main()
