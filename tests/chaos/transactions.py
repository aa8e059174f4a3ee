"""Transactions while brokers die: is each there as a whole, once, or not at all?

Three nodes of Apache Kafka, of which one after the other is killed or paused, and
clients that commit and roll back meanwhile (`clients`). Afterwards a client that shares
no code with ours reads what is stored. Seeds decide which node, how, and the messages;
brokers and clients decide the rest, so the same seed gives similar runs, not equal
ones::

    python -m tests.chaos.transactions --duration 120 --seed 7 --peer greendrop

Exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from tests.chaos.clients import ENDING, MESSAGES, Plan, Record, Records
from tests.servers.kafka import KafkaCluster
from tests.servers.reading import read_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.servers.kafka import KafkaNode
    from tests.servers.reading import Record as Stored

_PARTITIONS = 6
#: Seconds that a killed node stays away, and a paused one stands still. Its leaders
#: have moved by then.
_KILLED, _PAUSED = 2.0, 3.0
#: Seconds for the clients to begin before the first fault.
_WARM_UP = 5.0
#: Seconds to read all that is stored.
_READING = 180.0
#: Broken transactions that are described, one by one.
_DESCRIBED = 6


@dataclass
class Figures:
    """What a run has come to.

    Attributes:
        faults: How often a node was killed or paused.
        committed: Transactions that were committed, as their producer said.
        aborted: Transactions of which nothing may be visible.
        unknown: Transactions that may be visible, as a whole.
        lost: Committed transactions that lack a message.
        visible: Transactions that were rolled back, and of which a message is visible.
        torn: Unknown transactions of which some messages are visible, and some not.
        doubled: Messages that are visible more than once.
        misplaced: Messages of committed transactions that are not where their report
            says.
        stuck: Clients that did not end.
        connections: Native clients that were built; see `Records`.
    """

    faults: int
    committed: int
    aborted: int
    unknown: int
    lost: int
    visible: int
    torn: int
    doubled: int
    misplaced: int
    stuck: int
    connections: int

    @property
    def is_good(self) -> bool:
        """Whether all promises were kept."""
        broken = (self.lost, self.visible, self.torn, self.doubled, self.misplaced)
        return not any(broken) and not self.stuck and self.committed > 0


class Chaos:
    """Breaks one node after the other, and mends it."""

    def __init__(self, cluster: KafkaCluster, seed: int, every: float) -> None:
        self._cluster = cluster
        self._dice = random.Random(seed)
        self._every = every
        #: How often.
        self.faults = 0

    def run(self, until: float) -> None:
        """Break nodes, with pauses, until a time by the monotonic clock."""
        time.sleep(min(_WARM_UP, self._every))
        while time.monotonic() < until:
            self._break(self._dice.choice(self._cluster.nodes))
            time.sleep(self._every)

    def _break(self, node: KafkaNode) -> None:
        self.faults += 1
        if self._dice.random() < 0.5:
            node.kill()
            time.sleep(_KILLED)
            node.start()
        else:
            node.pause()
            time.sleep(_PAUSED)
            node.resume()


def run(plan: Plan, cluster: KafkaCluster, every: float) -> tuple[Records, int]:
    """Run the clients while nodes break.

    Args:
        plan: What the clients do.
        cluster: What breaks.
        every: Seconds between two faults.

    Returns:
        What the clients were told, and the number of faults.
    """
    program = [sys.executable, "-m", "tests.chaos.clients", json.dumps(asdict(plan))]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as clients:
        chaos = Chaos(cluster, plan.seed, every)
        try:
            chaos.run(time.monotonic() + plan.seconds - _PAUSED)
            text, _ = clients.communicate(timeout=plan.seconds + 2 * ENDING)
        finally:
            clients.kill()
    told = json.loads(text)
    told["transactions"] = [Record(**each) for each in told["transactions"]]
    return Records(**told), chaos.faults


def end_open_transactions(plan: Plan) -> None:
    """Have the brokers roll back what clients left open: it would hide the rest."""
    for number in range(plan.clients):
        configuration = {**plan.configuration(number), "log_level": 0}
        Producer(configuration).init_transactions(60)


def judge(
    records: Records, faults: int, committed: Sequence[Stored], stored: Sequence[Stored]
) -> Figures:
    """Compare what the clients were told with what is there.

    Args:
        records: What the clients were told.
        faults: How many there were.
        committed: What a reader of committed messages sees.
        stored: All that is stored.
    """
    visible = Counter(_payload(each) for each in committed)
    places = {_payload(each): (each.partition, each.offset) for each in committed}
    owners = {(each.partition, each.offset): _payload(each) for each in stored}
    figures = Figures(
        *(faults, 0, 0, 0, 0, 0, 0, 0, 0), records.stuck, records.connections
    )
    figures.doubled = sum(count > 1 for count in visible.values())
    for record in records.transactions:
        payloads = [f"{record.name}-{index}" for index in range(MESSAGES)]
        there = sum(payload in visible for payload in payloads)
        if record.outcome == "committed":
            figures.committed += 1
            figures.misplaced += sum(
                report is not None
                and report[1] is not None
                and payload in places
                and tuple(report) != places[payload]
                for payload, report in zip(payloads, record.reports, strict=True)
            )
            if there != MESSAGES:
                figures.lost += 1
                if figures.lost <= _DESCRIBED:
                    _describe(record, payloads, visible, owners)
        elif record.outcome == "aborted":
            figures.aborted += 1
            figures.visible += there > 0
        else:
            figures.unknown += 1
            figures.torn += 0 < there < MESSAGES
    return figures


def _payload(stored: Stored) -> str:
    return (stored.value or b"").decode()


def _describe(
    record: Record,
    payloads: list[str],
    visible: Counter[str],
    owners: dict[tuple[int, int], str],
) -> None:
    for payload, report in zip(payloads, record.reports, strict=True):
        state = "visible" if payload in visible else "MISSING"
        owner = None
        if report is not None and report[1] is not None:
            owner = owners.get((report[0], report[1]))
        print(f"{payload}: {state}, reported at {report}, where there is {owner}")


def main() -> int:
    """Run once, and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.transactions", description=main.__doc__
    )
    parser.add_argument("--peer", choices=("greendrop", "raw"), default="greendrop")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds")
    parser.add_argument("--every", type=float, default=4.0, help="seconds to a fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    with KafkaCluster(nodes=3) as cluster:
        plan = Plan(
            peer=options.peer,
            bootstrap_servers=cluster.bootstrap_servers,
            topic="chaos",
            clients=options.clients,
            seconds=options.duration,
            seed=options.seed,
        )
        cluster.create_topic(plan.topic, partitions=_PARTITIONS)
        records, faults = run(plan, cluster, options.every)
        cluster.restore()
        end_open_transactions(plan)
        place = cluster.bootstrap_servers, plan.topic
        committed = read_topic(*place, "read_committed", timeout=_READING)
        stored = read_topic(*place, "read_uncommitted", timeout=_READING)
    figures = judge(records, faults, committed, stored)
    result = {"peer": options.peer, "seed": options.seed, **asdict(figures)}
    errors = dict(Counter(records.errors).most_common(8))
    print(json.dumps({**result, "good": figures.is_good, "errors": errors}))
    return 0 if figures.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
