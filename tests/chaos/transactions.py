"""Transactions while brokers die: is each stored as a whole, once, or not at all?

Clients commit and roll back (`clients`) while brokers or the network fail: of three
nodes of Apache Kafka one after the other is killed or paused, or the network before a
single node loses answers. Afterwards an independent client reads the topic.
Seeds decide the faults and the messages; brokers and clients decide the rest, so the
same seed gives similar runs, not equal ones::

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
from typing import TYPE_CHECKING, Protocol

from confluent_kafka import Producer

from tests.chaos.clients import ENDING, MESSAGES, Plan, Record, Records
from tests.servers.kafka import KafkaCluster
from tests.servers.reading import read_topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.servers.kafka import KafkaNode
    from tests.servers.proxy import TcpProxy
    from tests.servers.reading import Record as Stored

#: More than a transaction has messages, so that most batches are of one message: the
#: next batch of a partition looks like any other then, to a broker that confuses them.
_PARTITIONS = 12
#: Seconds that a killed node stays away, or that a pause lasts. The leaders have moved
#: by then.
_KILLED, _PAUSED = 2.0, 3.0
#: Seconds between two faults, on average.
_EVERY = {"nodes": 4.0, "network": 1.0}
#: Longest durations, in seconds, for which the network holds answers before it loses
#: them, and for which it is gone then.
_HELD, _CUT = 0.3, 1.0
#: Seconds for the clients to begin before the first fault.
_WARM_UP = 5.0
#: Seconds to read the whole topic.
_READING = 180.0
#: Broken transactions that are described, one by one.
_DESCRIBED = 6


@dataclass
class Figures:
    """The result of a run.

    Attributes:
        faults: How often a node was killed or paused, or answers were lost.
        committed: Transactions that were committed, as their producer reported.
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


class Fault(Protocol):
    """Breaks something for a moment."""

    def __call__(self, dice: random.Random) -> None:
        """Cause the fault, and repair it."""
        ...


class BrokenNode:
    """Kills or pauses one of the nodes, and repairs it."""

    def __init__(self, nodes: Sequence[KafkaNode]) -> None:
        self._nodes = nodes

    def __call__(self, dice: random.Random) -> None:
        """Break and repair a node."""
        node = dice.choice(self._nodes)
        if dice.random() < 0.5:
            node.kill()
            time.sleep(_KILLED)
            node.start()
        else:
            node.pause()
            time.sleep(_PAUSED)
            node.resume()


class LostAnswers:
    """Passes requests on, and then cuts all connections before the answers."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy

    def __call__(self, dice: random.Random) -> None:
        """Lose answers, and cut the network for a while."""
        self._proxy.hold_answers()
        time.sleep(dice.random() * _HELD)
        self._proxy.cut()
        time.sleep(dice.random() * _CUT)
        self._proxy.resume()


def run(plan: Plan, fault: Fault, every: float) -> tuple[Records, int]:
    """Run the clients while faults happen.

    Args:
        plan: The work of the clients.
        fault: The fault to cause.
        every: Seconds between two faults, on average.

    Returns:
        The records of the clients, and the number of faults.
    """
    program = [sys.executable, "-m", "tests.chaos.clients", json.dumps(asdict(plan))]
    dice = random.Random(plan.seed)
    faults = 0
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as clients:
        deadline = time.monotonic() + plan.seconds - _PAUSED
        time.sleep(_WARM_UP)
        try:
            while time.monotonic() < deadline:
                fault(dice)
                faults += 1
                time.sleep(2 * dice.random() * every)
            text, _ = clients.communicate(timeout=plan.seconds + 2 * ENDING)
        finally:
            clients.kill()
    records = json.loads(text)
    records["transactions"] = [Record(**each) for each in records["transactions"]]
    return Records(**records), faults


def end_open_transactions(plan: Plan, bootstrap_servers: str) -> None:
    """Have the brokers roll back open transactions, which would hide later messages."""
    for number in range(plan.clients):
        keys = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        Producer({**plan.configuration(number), **keys}).init_transactions(60)


def judge(
    records: Records, faults: int, committed: Sequence[Stored], stored: Sequence[Stored]
) -> Figures:
    """Compare the records of the clients with the stored messages.

    Args:
        records: The records of the clients.
        faults: The number of faults.
        committed: The messages visible to a reader of committed messages.
        stored: All stored messages.
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
    parser.add_argument("--faults", choices=("nodes", "network"), default="nodes")
    parser.add_argument("--every", type=float, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    of_network = options.faults == "network"
    with KafkaCluster(nodes=1 if of_network else 3, proxied=of_network) as cluster:
        fault: Fault
        if of_network:
            servers = cluster.proxied_bootstrap_servers
            fault = LostAnswers(cluster.proxy)
        else:
            servers = cluster.bootstrap_servers
            fault = BrokenNode(cluster.nodes)
        plan = Plan(
            peer=options.peer,
            bootstrap_servers=servers,
            topic="chaos",
            clients=options.clients,
            seconds=options.duration,
            seed=options.seed,
        )
        cluster.create_topic(plan.topic, partitions=_PARTITIONS)
        every = options.every or _EVERY[options.faults]
        records, faults = run(plan, fault, every)
        cluster.restore()
        end_open_transactions(plan, cluster.bootstrap_servers)
        place = cluster.bootstrap_servers, plan.topic
        committed = read_topic(*place, "read_committed", timeout=_READING)
        stored = read_topic(*place, "read_uncommitted", timeout=_READING)
    figures = judge(records, faults, committed, stored)
    result = {"peer": options.peer, "of": options.faults, "seed": options.seed}
    result |= asdict(figures)
    errors = dict(Counter(records.errors).most_common(8))
    print(json.dumps({**result, "good": figures.is_good, "errors": errors}))
    return 0 if figures.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
