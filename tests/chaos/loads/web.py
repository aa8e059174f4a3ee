"""gunicorn with gevent workers, reloaded by SIGHUP and restarted after SIGTERM."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from tests.chaos.loads.hosted import read_facts
from tests.chaos.loads.load import Account, Setup
from tests.chaos.records import Sent, Summary
from tests.kafka.running import Program
from tests.kafka.web_clients import WebClients
from tests.servers._ports import free_ports

_CLIENTS = 30
#: Seconds between two requests of a client, and between two signals, on average.
_REST, _EVERY = 0.05, 12.0
#: The share of SIGTERM among the signals.
_TERM = 0.3
#: Seconds for gunicorn to end. It gives its workers 30 s.
_ENDING = 90.0


def run(setup: Setup) -> Account:
    """Post to gunicorn, and reload and restart it meanwhile."""
    summary = Summary(slowest=0.0)
    dice = random.Random(setup.seed)
    deadline = time.monotonic() + setup.seconds
    port = free_ports(1)[0]
    starts = 0
    with WebClients(f"127.0.0.1:{port}", "/", _CLIENTS, rest=_REST) as clients:
        while starts == 0 or time.monotonic() < deadline:
            starts += 1
            with _start(setup, port, starts) as server:
                restart_by_signals(server, dice, deadline, _EVERY, summary)
                summary.stuck += server.wait(_ENDING) != 0
    read_facts(setup.folder, summary)
    summary.slowest = clients.slowest
    summary.errors.update(f"status {each}" for each in clients.refused.values())
    if clients.dropped:
        summary.errors["no answer"] = clients.dropped
    return Account(
        [
            Sent(text, "acknowledged" if text in clients.answered else "unknown")
            for text in clients.sent
        ],
        summary,
    )


def restart_by_signals(
    server: Program,
    dice: random.Random,
    deadline: float,
    every: float,
    summary: Summary,
) -> None:
    """Send SIGHUP a few times, and SIGTERM at last, at the deadline at the latest."""
    name = "SIGHUP"
    while name != "SIGTERM":
        time.sleep(min(2 * dice.random() * every, max(deadline - time.monotonic(), 1)))
        late = time.monotonic() >= deadline
        name = "SIGTERM" if late or dice.random() < _TERM else "SIGHUP"
        server.signal(signal.Signals[name])
        summary.signals[name] += 1


def _start(setup: Setup, port: int, number: int) -> Program:
    return Program(
        *("-m", "gunicorn", "--worker-class=gevent", "--workers=2"),
        f"--config={Path(__file__).with_name('gunicorn_config.py')}",
        *(f"--bind=127.0.0.1:{port}", "--no-control-socket"),
        "tests.chaos.loads.web_app:app",
        quiet=True,
        log_file=setup.folder / f"gunicorn-{number}.log",
        SERVERS=setup.bootstrap_servers,
        TOPIC=setup.topic,
        FOLDER=str(setup.folder),
    )
