"""Runs a Celery worker with `invoices.py`: a hundred tasks in each of two pools.

    python examples/celery/run_celery.py [POOL ...]

Pools are gevent, prefork, threads and solo. Messages go to a built-in mock
cluster, or to the brokers in `GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from greendrop.testing import MockCluster

HERE = Path(__file__).parent
TASKS = 100
OPTIONS = {
    "gevent": ["--concurrency=50"],
    "prefork": ["--concurrency=2"],
    "threads": ["--concurrency=8"],
    "solo": [],
}


def run_worker(pool: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a worker."""
    celery = [sys.executable, "-m", "celery", "--app=invoices", "worker"]
    celery += [f"--pool={pool}", *OPTIONS[pool], "--without-mingle"]
    celery += ["--without-gossip", "--without-heartbeat"]
    with log.open("wb") as output:
        return subprocess.Popen(celery, cwd=HERE, stdout=output, stderr=output)


def show(pool: str, folder: Path) -> None:
    """Put tasks into the queue, run a worker, and wait for their results."""
    # Import it after the environment is set.
    invoices: Any = importlib.import_module("invoices")
    results = [invoices.invoice.delay(number) for number in range(TASKS)]
    log = folder / "log"
    started = time.perf_counter()
    worker = run_worker(pool, log)
    try:
        places = [result.get(timeout=30, interval=0.02) for result in results]
        elapsed = time.perf_counter() - started
        print(f"{pool}: {len(places)} tasks, the first one's invoice: {places[0]}")
        print(f"{pool}: {elapsed:.1f} s with the worker's start", flush=True)
        worker.terminate()
        print(f"{pool}: the worker ends with {worker.wait(20)}")
    except BaseException:
        worker.kill()
        print(log.read_text())
        raise


def check(servers: str) -> None:
    """Exit with the findings of `greendrop doctor` if these brokers don't answer."""
    doctor = [sys.executable, "-m", "greendrop", "doctor", "-b", servers]
    done = subprocess.run(doctor, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)


def main() -> None:
    """Run the example."""
    pools = sys.argv[1:] or ["gevent", "prefork"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("queue", "control", "results"):
            (folder / name).mkdir()
        servers = (
            os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
            or stack.enter_context(MockCluster.spawn()).bootstrap_servers
        )
        check(servers)
        os.environ["GREENDROP_BOOTSTRAP_SERVERS"] = servers
        os.environ["CELERY_FOLDER"] = str(folder)
        for pool in pools:
            show(pool, folder)


if __name__ == "__main__":
    main()
