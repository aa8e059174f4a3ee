"""Runs Locust with `locustfile.py`: 200 users for six seconds, without its web page.

    python examples/locust/run_locust.py

Messages go to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from greendrop.testing import MockCluster

HERE = Path(__file__).parent
#: Round trip of the mock brokers, in seconds.
ROUND_TRIP = 0.02


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
        if not servers:
            cluster = stack.enter_context(MockCluster.spawn())
            servers = cluster.bootstrap_servers
            cluster.round_trip(ROUND_TRIP)
            print(f"the brokers take {ROUND_TRIP * 1000:.0f} ms to answer", flush=True)
        check(servers)
        locust = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
        locust += [
            "--users=200",
            "--spawn-rate=100",
            "--run-time=6",
            "--loglevel=ERROR",
        ]
        done = subprocess.run(
            locust,
            cwd=HERE,
            env=os.environ | {"GREENDROP_BOOTSTRAP_SERVERS": servers},
            stderr=subprocess.STDOUT,
            check=False,
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
