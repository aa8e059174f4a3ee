"""Runs gunicorn with `web.py`, sends it a thousand requests, and ends it.

    python examples/gunicorn/run_gunicorn.py

Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path

from greendrop.testing import MockCluster

HERE = Path(__file__).parent
CLIENTS, REQUESTS = 50, 20


def ask(address: str, client: int) -> list[int]:
    """Post some messages, one after the other, and return the HTTP statuses."""
    answers = []
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        for number in range(REQUESTS):
            connection.request("POST", "/", f"message {number} of client {client}")
            answer = connection.getresponse()
            answer.read()
            answers.append(answer.status)
    return answers


def address_in(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Wait until gunicorn has logged its address."""
    for _ in range(600):
        if found := re.search(r"Listening at: http://(\S+)", log.read_text()):
            return found[1]
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
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "web:app"],
                cwd=HERE,
                env=os.environ | {"GREENDROP_BOOTSTRAP_SERVERS": servers},
                stdout=output,
                stderr=output,
            )
        stack.callback(server.kill)
        address = address_in(log, server)
        print(f"gunicorn listens at {address}, with two gevent workers")

        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as clients:
            statuses = clients.map(partial(ask, address), range(CLIENTS))
            answers = [*chain.from_iterable(statuses)]
        elapsed = time.perf_counter() - started
        print(f"{answers.count(200)} of {len(answers)} answers say: stored")
        print(
            f"{CLIENTS} clients at once, {len(answers) / elapsed:.0f} requests a second"
        )

        server.send_signal(signal.SIGTERM)
        print(f"after SIGTERM gunicorn ends with {server.wait(30)}")
        if "greendrop" in log.read_text():
            raise SystemExit(log.read_text())


if __name__ == "__main__":
    main()
