"""Serves `shop_flask.py` with gevent, and places a hundred orders at once.

    python examples/flask/run_flask.py

Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

# First of all: the sockets of server and clients become cooperative.
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from contextlib import ExitStack  # noqa: E402

import gevent  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from shop_flask import create_app  # noqa: E402

from greendrop.testing import MockCluster  # noqa: E402

ORDERS = 100
#: Round trip of the mock brokers, in seconds.
ROUND_TRIP = 0.1


def order(address: str, number: int) -> int:
    """Place an order, and return the HTTP status."""
    url = f"http://{address}/orders"
    body = f"order {number}".encode()
    with urllib.request.urlopen(url, body, timeout=30) as answer:
        return int(answer.status)


def check(servers: str) -> None:
    """Exit with the findings of `greendrop doctor` if these brokers don't answer."""
    doctor = [sys.executable, "-m", "greendrop", "doctor", "-b", servers]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)


def main() -> None:
    """Run the example."""
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")
        cluster = None
        if not servers:
            cluster = stack.enter_context(MockCluster.spawn())
            servers = cluster.bootstrap_servers
        check(servers)
        kafka = {"bootstrap.servers": servers}
        app = create_app(GREENDROP_KAFKA=kafka, AUDIT_KAFKA=kafka | {"linger.ms": 100})
        server = WSGIServer(("127.0.0.1", 0), app, log=None)
        server.start()
        stack.callback(server.stop)
        address = f"127.0.0.1:{server.server_port}"
        order(address, 0)  # connects the producer
        if cluster is not None:
            cluster.round_trip(ROUND_TRIP)
            print(f"the brokers take {ROUND_TRIP * 1000:.0f} ms to answer")

        started = time.perf_counter()
        orders = [gevent.spawn(order, address, number) for number in range(ORDERS)]
        gevent.joinall(orders, raise_error=True)
        elapsed = (time.perf_counter() - started) * 1000
        stored = [each.value for each in orders].count(200)
        print(
            f"{stored} of {ORDERS} orders are stored, all of them in {elapsed:.0f} ms"
        )

        for name in ("greendrop", "audit"):
            producer = app.extensions[name]
            producer.close()
            print(f"the producer of {name!r} is {producer.status}")


if __name__ == "__main__":
    main()
