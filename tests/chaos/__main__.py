"""Runs loads while faults happen, one after the other, and judges them.

Exits with 1 if a promise was broken, and then leaves the records of the load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests import results
from tests.chaos.faults import CHOICES, Faults
from tests.chaos.judge import judge
from tests.chaos.loads.load import Setup
from tests.chaos.loads.registry import LOADS
from tests.chaos.reading import read_visible
from tests.chaos.report import Result
from tests.chaos.ticker import EmptyProgram
from tests.servers._jars import KAFKA_VERSION
from tests.servers.kafka import KafkaCluster

#: Seconds between two faults, on average, by the choice of faults.
_EVERY = {"all": 3.0, "nodes": 4.0, "network": 1.0, "wire": 1.0}
#: Of the command, as of `nice`.
_PRIORITY = -10
#: Longer than in other tests. The interval is also the time limit of a heartbeat, which
#: a busy machine exceeds, and then nodes never count each other in.
_BROKER_CONFIG = {
    "broker.session.timeout.ms": 6000,
    "broker.heartbeat.interval.ms": 2000,
}


def run(
    cluster: KafkaCluster, name: str, seed: int, options: argparse.Namespace
) -> Result:
    """Run one load while faults happen, and judge it."""
    load, topic = LOADS[name], f"chaos-{name}"
    cluster.create_topic(topic, partitions=load.partitions)
    folder = Path(options.folder, name)
    folder.mkdir()
    seconds = options.duration / len(options.load)
    setup = Setup(
        bootstrap_servers=cluster.proxied_bootstrap_servers,
        direct_servers=cluster.bootstrap_servers,
        topic=topic,
        folder=folder,
        seconds=seconds,
        seed=seed,
        peer=options.peer,
        tasks=options.tasks,
    )
    faults = Faults(
        cluster,
        CHOICES[options.faults],
        seed=seed,
        seconds=seconds,
        every=options.every or _EVERY[options.faults],
    )
    with EmptyProgram() as empty, faults:
        account = load.run(setup)
    stored = read_visible(cluster.bootstrap_servers, topic)
    return Result(
        title=load.title,
        seed=seed,
        seconds=seconds,
        once=load.once,
        figures=judge(account.sent, stored),
        summary=account.summary,
        empty_gap=empty.gap,
        faults=faults.counts,
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--duration", type=float, default=600.0, help="seconds of all loads together"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first load; the next has the next"
    )
    parser.add_argument(
        "--load",
        type=lambda text: text.split(","),
        default=list(LOADS),
        help="comma separated, of: " + ", ".join(LOADS),
    )
    parser.add_argument("--faults", choices=CHOICES, default="all")
    parser.add_argument("--every", type=float, help="seconds between two faults")
    parser.add_argument("--tasks", type=int, help="greenlets or threads of a load")
    parser.add_argument(
        "--peer",
        choices=("greendrop", "raw"),
        default="greendrop",
        help="raw is confluent-kafka alone, for the load of transactions",
    )
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=3)
    parser.add_argument(
        "--keep", action="store_true", help="write the result to docs/reliability.json"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.load) - LOADS.keys():
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    if options.peer == "raw" and options.load != ["transactions"]:
        parser.error("--peer raw is for --load transactions")
    return options


def take_priority() -> None:
    """Put this process and its children before others, if the system allows it.

    A machine that is busy with other work would stop nodes and hubs for seconds.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


def main() -> int:
    """Run the loads, and print the result of each."""
    options = parse()
    take_priority()
    options.folder = tempfile.mkdtemp(prefix="greendrop-chaos-")
    ran = []
    with KafkaCluster(
        options.nodes, proxied=True, broker_config=_BROKER_CONFIG
    ) as cluster:
        # Each load has other faults, and its own seed repeats it alone.
        for seed, name in enumerate(options.load, options.seed):
            result = run(cluster, name, seed, options)
            ran.append(result)
            print(result.describe(), flush=True)
            if options.keep:
                results.keep(
                    "chaos",
                    "make chaos",
                    [result.case],
                    results.versions(**{"Apache Kafka": KAFKA_VERSION}),
                )
    if any(each.violations for each in ran):
        print(f"the records are in {options.folder}")
        return 1
    shutil.rmtree(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
