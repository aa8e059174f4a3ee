"""A Celery worker with greenlets, restarted by SIGHUP and after SIGTERM."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from tests.chaos.loads.hosted import read_facts
from tests.chaos.loads.load import Account, Setup
from tests.chaos.loads.restarting import keep_restarting
from tests.chaos.records import Sent, Summary
from tests.kafka.running import Program

_APP = "tests.chaos.loads.celery_app"
_WORKER = (f"--app={_APP}", "worker", "--pool=gevent", "--concurrency=50")
_QUIET = ("--loglevel=ERROR", "--without-mingle", "--without-gossip")


def run(setup: Setup) -> Account:
    """Run tasks, and restart their worker meanwhile."""
    for name in ("queue", "outbox", "control", "results"):
        (setup.folder / name).mkdir()
    summary = Summary()
    with _start(setup, "client", "-m", _APP, str(setup.seconds)) as client:
        keep_restarting(setup, partial(_start_worker, setup), summary, line="[queues]")
        summary.stuck += client.wait() != 0
    read_facts(setup.folder, summary)
    succeeded = _succeeded(setup.folder / "results")
    return Account(
        [
            Sent(each, "acknowledged" if each in succeeded else "unknown")
            for path in setup.folder.glob("sent-*.txt")
            for each in path.read_text().splitlines()
        ],
        summary,
    )


def _succeeded(results: Path) -> set[str]:
    """Return the payloads of tasks that have returned."""
    payloads: set[str] = set()
    for path in results.iterdir():
        # A task that was cut short while it wrote its result has none.
        outcome = json.loads(path.read_text() or "{}")
        if outcome.get("status") == "SUCCESS":
            payloads.update(outcome["result"])
    return payloads


def _start_worker(setup: Setup, number: int) -> Program:
    celery = str(Path(sys.executable).with_name("celery"))
    return _start(setup, f"worker-{number}", celery, *_WORKER, *_QUIET)


def _start(setup: Setup, name: str, *arguments: str) -> Program:
    return Program(
        *arguments,
        quiet=True,
        log_file=setup.folder / f"{name}.log",
        SERVERS=setup.bootstrap_servers,
        TOPIC=setup.topic,
        FOLDER=str(setup.folder),
    )
