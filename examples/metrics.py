"""A producer's metrics, as Prometheus would scrape them.

    python examples/metrics.py

Needs `prometheus-client` (`pip install greendrop[prometheus]`). It sends to a built-in
mock cluster, or where `GREENDROP_BOOTSTRAP_SERVERS` says. The dashboards that show such
metrics are in examples/dashboards.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

# Python looks for modules beside a script first, and `concurrent.py` there would hide
# that of the standard library.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import gevent
from prometheus_client import start_http_server

from greendrop import Producer
from greendrop.listeners.prometheus import PrometheusListener
from greendrop.testing import MockCluster

ORDERS, CLICKS = "greendrop-orders", "greendrop-clicks"


def work(producer: Producer) -> None:
    """Send some messages and wait, and some without."""
    for number in range(20):
        producer.produce_sync(topic=ORDERS, payload=f"order {number}")
        producer.produce_many_async(
            {"topic": CLICKS, "payload": f"click {each}"} for each in range(10)
        )


def main() -> None:
    """Run five greenlets, then read the page."""
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
        if not servers:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(0.01)
            servers = cluster.bootstrap_servers
        # Every second, for who can't wait; by default it is every five.
        kafka = {"bootstrap.servers": servers, "statistics.interval.ms": 1_000}
        producer = stack.enter_context(Producer(kafka=kafka))
        # Before the first message: statistics are off if nobody wants them then.
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
