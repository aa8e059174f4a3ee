"""gunicorn with gevent workers, reloaded and restarted while it serves clients."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.chaos.loads.hosted import read_facts
from tests.chaos.loads.load import Account, Setup
from tests.chaos.loads.restarting import keep_restarting
from tests.chaos.records import Sent, Summary
from tests.kafka.running import Program
from tests.kafka.web_clients import WebClients
from tests.servers._ports import free_ports

_CLIENTS, _WORKERS = 30, 2
#: Seconds between two requests of a client.
_REST = 0.05


def run(setup: Setup) -> Account:
    """Post to gunicorn, and reload and restart it meanwhile."""
    summary = Summary()
    port = free_ports(1)[0]
    with WebClients(f"127.0.0.1:{port}", "/", _CLIENTS, rest=_REST) as clients:
        start = partial(_start, setup, port)
        keep_restarting(setup, start, summary, line="Booting worker", lines=_WORKERS)
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


def _start(setup: Setup, port: int, number: int) -> Program:
    return Program(
        *("-m", "gunicorn", "--worker-class=gevent", f"--workers={_WORKERS}"),
        f"--config={Path(__file__).with_name('gunicorn_config.py')}",
        *(f"--bind=127.0.0.1:{port}", "--no-control-socket"),
        "tests.chaos.loads.web_app:app",
        quiet=True,
        log_file=setup.folder / f"gunicorn-{number}.log",
        SERVERS=setup.bootstrap_servers,
        TOPIC=setup.topic,
        FOLDER=str(setup.folder),
    )
