"""All loads, and how their programs are run."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from tests.chaos.loads import pipeline, tasks, web
from tests.chaos.loads.load import Account, Load, Setup
from tests.chaos.loads.programs import ENDING, Plan, configuration, transactional_id
from tests.chaos.records import Summary, read_sent

if TYPE_CHECKING:
    from collections.abc import Iterable


def run_program(
    setup: Setup, module: str, mode: str, tasks: int, *, idempotent: bool = True
) -> Account:
    """Run a program of this package.

    Raises:
        subprocess.CalledProcessError: It failed.
        subprocess.TimeoutExpired: It did not end.
    """
    plan = Plan(
        mode=mode,
        bootstrap_servers=setup.bootstrap_servers,
        topic=setup.topic,
        tasks=setup.tasks or tasks,
        seconds=setup.seconds,
        seed=setup.seed,
        folder=str(setup.folder),
        idempotent=idempotent,
        peer=setup.peer,
    )
    subprocess.run(
        [sys.executable, "-m", f"tests.chaos.loads.{module}", plan.text()],
        check=True,
        timeout=setup.seconds + 2 * ENDING,
    )
    sent = read_sent(setup.folder / "sent.tsv")
    return Account(sent, Summary.read(setup.folder / "sent.json"))


def end_transactions(setup: Setup, ids: Iterable[str]) -> None:
    """Have the brokers roll back open transactions, which would hide later messages."""
    for each in ids:
        keys = {"transactional.id": each, "log_level": 0}
        Producer({**configuration(setup.direct_servers), **keys}).init_transactions(60)


def _run_transactions(setup: Setup) -> Account:
    mode = "greenlets" if setup.peer == "greendrop" else "threads"
    tasks = setup.tasks or 6
    account = run_program(setup, "transactions", mode, tasks)
    end_transactions(setup, [transactional_id(setup.topic, n) for n in range(tasks)])
    return account


LOADS = {
    "greenlets": Load(
        "30 greenlets, idempotent",
        partial(run_program, module="senders", mode="greenlets", tasks=30),
    ),
    "plain": Load(
        "30 greenlets, not idempotent",
        partial(
            run_program, module="senders", mode="greenlets", tasks=30, idempotent=False
        ),
        once=False,
    ),
    "threads": Load(
        "16 threads, idempotent",
        partial(run_program, module="senders", mode="threads", tasks=16),
    ),
    "transactions": Load(
        "6 transactional producers, a third of the transactions aborted",
        _run_transactions,
    ),
    "pipeline": Load(
        "2 workers that consume, transform and produce, killed",
        pipeline.run,
        partitions=pipeline.PARTITIONS,
    ),
    "gunicorn": Load("gunicorn with 2 gevent workers, reloaded", web.run),
    "celery": Load("a Celery worker with 50 greenlets, restarted", tasks.run),
}
