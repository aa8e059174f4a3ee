"""Runs uWSGI with gevent and `hello_uwsgi.py`, and sends it three hundred requests.

    python examples/uwsgi/run_uwsgi.py

It needs Debian's packages uwsgi-core, uwsgi-plugin-python3 and
uwsgi-plugin-gevent-python3, and this Python to be of the same version as the system's.
Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import which

import greendrop
from greendrop.testing import MockCluster

HERE = Path(__file__).parent
PYTHON = f"python{sys.version_info[0]}{sys.version_info[1]}"
REQUESTS = 300


def ask(address: str) -> str:
    """Post a message, and return the answer."""
    with urllib.request.urlopen(f"http://{address}/", b"x", timeout=30) as answer:
        return str(answer.read().decode())


def start(servers: str, address: str, log: Path) -> subprocess.Popen[bytes]:
    """Start uWSGI with this Python's packages, and wait until it listens."""
    packages = [sysconfig.get_path("platlib"), Path(greendrop.__file__).parents[1]]
    environment = {
        "GREENDROP_BOOTSTRAP_SERVERS": servers,
        "PYTHONPATH": ":".join(map(str, packages)),
        "UWSGI_ADDRESS": address,
        "UWSGI_PLUGINS": f"{PYTHON},gevent_{PYTHON}",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["uwsgi", "--ini", "uwsgi.ini"],  # noqa: S607 - that of the system
            cwd=HERE,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
        )
    for _ in range(600):
        with suppress(OSError):
            ask(address)
            return server
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
    if which("uwsgi") is None:
        raise SystemExit(__doc__)
    with ExitStack() as stack:
        servers = (
            os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
            or stack.enter_context(MockCluster.spawn()).bootstrap_servers
        )
        check(servers)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        server = start(servers, address, log)
        stack.callback(server.kill)
        with ThreadPoolExecutor(30) as clients:
            answers = [*clients.map(ask, [address] * REQUESTS)]
        workers = Counter(answer.partition(":")[0] for answer in answers)
        for worker, count in workers.items():
            print(f"{worker} has stored {count} messages")
        print(f"delivery reports arrive by {answers[0].rpartition(' ')[2]!r}")
        server.terminate()
        print(f"after SIGTERM uWSGI ends with {server.wait(30)}")


if __name__ == "__main__":
    main()
