"""Metrics of a producer, as Prometheus scrapes them.

    python examples/metrics.py

Needs `python -m pip install ".[prometheus]"`. Messages go to a built-in mock cluster,
or to the brokers in `GREENDROP_BOOTSTRAP_SERVERS`. Dashboards for these metrics are in
examples/dashboards.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import gevent
from prometheus_client import start_http_server

from greendrop import Producer
from greendrop.listeners.prometheus import PrometheusListener
from greendrop.testing import MockCluster

ORDERS, CLICKS = "greendrop-orders", "greendrop-clicks"


def work(producer: Producer) -> None:
    """Send some messages with waiting, and some without."""
    for number in range(20):
        producer.produce_sync(topic=ORDERS, payload=f"order {number}")
        producer.produce_many_async(
            {"topic": CLICKS, "payload": f"click {each}"} for each in range(10)
        )


def main() -> None:
    """Run five greenlets, then print the page with the metrics."""
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
        if not servers:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(0.01)
            servers = cluster.bootstrap_servers
        # Every second, to keep the example short; the default is every five.
        kafka = {"bootstrap.servers": servers, "statistics.interval.ms": 1_000}
        producer = stack.enter_context(Producer(kafka=kafka))
        # Subscribe before the first message: without a subscriber by then, statistics
        # stay off.
        producer.monitor.subscribe(PrometheusListener())
        server, thread = start_http_server(0, "127.0.0.1")
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)

        gevent.joinall([gevent.spawn(work, producer) for _ in range(5)])
        gevent.sleep(1.2)

        address = f"http://127.0.0.1:{server.server_port}/metrics"
        with urlopen(address) as answer:
            page = answer.read().decode()
    sys.stdout.writelines(
        f"{line}\n"
        for line in page.splitlines()
        if line.startswith("greendrop_")
        and not re.search("_(bucket|created)[{ ]", line)
    )


if __name__ == "__main__":
    main()
