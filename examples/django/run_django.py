"""Runs the shop with Django's server, places orders in both ways, and runs the relay.

    python examples/django/run_django.py

Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError, URLError

from greendrop.testing import MockCluster

HERE = Path(__file__).parent
ORDERS = 30


def manage(*arguments: str) -> None:
    """Run a command of `manage.py`."""
    sys.stdout.flush()
    command = [sys.executable, "manage.py", *arguments]
    subprocess.run(command, cwd=HERE, check=True)


def order(url: str, number: int) -> int:
    """Place an order, sometimes one that is too large; return the HTTP status."""
    count = 1000 if number % 10 == 0 else 1 + number
    body = json.dumps({"what": "books", "count": count}).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=30) as answer:  # noqa: S310 - http
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def serve(address: str, log: Path) -> subprocess.Popen[bytes]:
    """Start Django's server, which handles each request in a thread; wait for it."""
    command = [sys.executable, "manage.py", "runserver", "--noreload", address]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=HERE, stdout=output, stderr=output)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=30):
                pass
        except HTTPError as error:
            error.close()
            return server  # no such page, but the server answers
        except URLError:
            if server.poll() is not None:
                break
        time.sleep(0.05)
    raise SystemExit(log.read_text())


def check(servers: str) -> None:
    """Exit with the findings of `greendrop doctor` if these brokers don't answer."""
    doctor = [sys.executable, "-m", "greendrop", "doctor", "-b", servers]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)


def main() -> None:
    """Run the example."""
    with ExitStack() as stack:
        servers = (
            os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
            or stack.enter_context(MockCluster.spawn()).bootstrap_servers
        )
        check(servers)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["GREENDROP_BOOTSTRAP_SERVERS"] = servers
        os.environ["SHOP_DATABASE"] = str(folder / "shop.db")
        manage("check")
        manage("migrate", "--run-syncdb", "--verbosity=0")
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        server = serve(address, folder / "log")
        stack.callback(server.kill)
        for way in ("order", "order-surely"):
            with ThreadPoolExecutor(8) as clients:
                urls = [f"http://{address}/{way}"] * ORDERS
                answers = Counter(clients.map(order, urls, range(ORDERS)))
            print(f"/{way}: answers {dict(sorted(answers.items()))}")
        server.terminate()
        server.wait(30)
        manage("relay", "--until-empty")


if __name__ == "__main__":
    main()
