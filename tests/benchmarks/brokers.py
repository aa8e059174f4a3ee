"""Keyless messages and a slow broker: `python -m tests.benchmarks.brokers`.

Three brokers, a topic with 50 partitions. The way to one broker is slow. The brokers
are a mock cluster, or with `--kafka` three nodes of Apache Kafka behind proxies.
Greenlets produce and wait; compared are greendrop's default, a partition for 10 ms and
then another one, with a random partition for each message, and with one partition after
the other. docs/decisions/0028 has results.

Each measurement is a process of its own, in rounds whose measurements follow each other
closely.
"""

# ruff: noqa: PLC0415 - only a measured process imports gevent and greendrop

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import uuid
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

from confluent_kafka.admin import AdminClient

from greendrop.testing import MockCluster
from tests.benchmarks.instruments import clock, percentile
from tests.benchmarks.page import as_markdown
from tests.servers.kafka import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_PARTITIONS = 50
_PAYLOAD = b"x" * 100
#: Seconds for one measurement to end, and before it counts.
_LONGEST_WAIT = 120.0
_WARM_UP = 0.5
#: A busy machine exceeds the limits of the tests.
_BROKER_CONFIG = {
    "broker.session.timeout.ms": 9_000,
    "broker.heartbeat.interval.ms": 2_000,
}
#: The id of the slow broker.
_SLOW = 1
_WAYS = ("sticky 10 ms", "random", "round robin")

Figures = dict[str, float]


def _measure(
    *,
    servers: str,
    topic: str,
    way: str,
    greenlets: int,
    pause: float,
    seconds: float,
) -> str:
    """Produce and wait; return the waits, and the messages of each partition."""
    import gevent

    from greendrop import Producer

    kafka: dict[str, str | int] = {"bootstrap.servers": servers}
    if way == "random":
        kafka["sticky.partitioning.linger.ms"] = 0
    counts = [0] * _PARTITIONS
    waits: list[float] = []
    sent = 0

    def loop(end: float) -> None:
        nonlocal sent
        before = clock()
        while before < end:
            partition = sent % _PARTITIONS if way == "round robin" else None
            sent += 1
            report = producer.produce_sync(
                topic=topic, payload=_PAYLOAD, partition=partition
            )
            counts[report.partition] += 1
            waits.append(clock() - before)
            if pause:
                gevent.sleep(pause)
            before = clock()

    def run(seconds: float) -> float:
        started_at = clock()
        gevent.joinall(
            [gevent.spawn(loop, started_at + seconds) for _ in range(greenlets)],
            raise_error=True,
        )
        return clock() - started_at

    with Producer(kafka=kafka) as producer:
        run(_WARM_UP)
        counts[:] = [0] * _PARTITIONS
        waits.clear()
        took = run(seconds)
    figures = {"rate": len(waits) / took}
    figures |= {f"p{share}": percentile(waits, share / 100) for share in (50, 99)}
    return json.dumps({"figures": figures, "counts": counts})


@contextmanager
def _brokers(round_trip: float, *, kafka: bool) -> Iterator[tuple[str, str]]:
    """Start three brokers, one of them slow; return addresses and a topic."""
    topic = f"brokers-{uuid.uuid4().hex[:8]}"
    if kafka:
        with KafkaCluster(3, proxied=True, broker_config=_BROKER_CONFIG) as cluster:
            cluster.proxies[_SLOW - 1].round_trip = round_trip
            cluster.create_topic(topic, partitions=_PARTITIONS, replication_factor=1)
            yield cluster.proxied_bootstrap_servers, topic
    else:
        with MockCluster.spawn(3) as mock:
            mock.round_trip(round_trip, _SLOW)
            mock.create_topic(topic, _PARTITIONS)
            yield mock.bootstrap_servers, topic


def _leaders(servers: str, topic: str) -> list[int]:
    metadata = AdminClient({"bootstrap.servers": servers}).list_topics(topic)
    partitions = metadata.topics[topic].partitions
    return [partitions[number].leader for number in range(_PARTITIONS)]


def _measured(order: dict[str, Any]) -> Figures:
    """Measure once, in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.brokers"]
    leaders = _leaders(order["servers"], order["topic"])
    done = subprocess.run(
        [*command, "--measure", json.dumps(order)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_LONGEST_WAIT,
        check=True,
    )
    answer = json.loads(done.stdout)
    figures: Figures = answer["figures"]
    counts: list[int] = answer["counts"]
    total, mean = sum(counts), sum(counts) / _PARTITIONS
    at_slow = [
        count for count, leader in zip(counts, leaders, strict=True) if leader == _SLOW
    ]
    # As many partitions as there are, so that 1.0 means a fair share.
    figures["slow_share"] = sum(at_slow) / total * _PARTITIONS / len(at_slow)
    figures["least"] = min(counts) / mean
    figures["most"] = max(counts) / mean
    return figures


_COLUMNS = {
    "rate": ("messages per second", "{:,.0f}", 1),
    "p50": ("wait, median, ms", "{:.1f}", 1000),
    "p99": ("wait, p99, ms", "{:.1f}", 1000),
    "slow_share": ("share of a partition of the slow broker", "{:.2f}", 1),
    "least": ("smallest share", "{:.2f}", 1),
    "most": ("largest share", "{:.2f}", 1),
}


def _table(rounds: list[dict[str, Figures]]) -> str:
    rows = [["", *(title for title, _, _ in _COLUMNS.values())]]
    for way in _WAYS:
        row = [way]
        for name, (_, text, factor) in _COLUMNS.items():
            value = median(each[way][name] for each in rounds)
            row.append(text.format(value * factor))
        rows.append(row)
    return as_markdown(rows)


def main() -> None:
    """Measure, and print a table for each number of greenlets."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.brokers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--greenlets", type=int, nargs="+", default=[10, 100, 1_000])
    parser.add_argument("--pause", type=float, default=0.0, help="after a message")
    parser.add_argument("--kafka", action="store_true", help="Apache Kafka")
    parser.add_argument("--round-trip", type=float, default=0.02, help="seconds more")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(_measure(**json.loads(arguments.measure)))
        return
    with _brokers(arguments.round_trip, kafka=arguments.kafka) as (servers, topic):
        order = {
            "servers": servers,
            "topic": topic,
            "way": _WAYS[0],
            "greenlets": 100,
            "pause": arguments.pause,
            "seconds": arguments.seconds,
        }
        _measured(order)  # a warm-up
        for greenlets in arguments.greenlets:
            rounds = [
                {
                    way: _measured({**order, "way": way, "greenlets": greenlets})
                    for way in _WAYS
                }
                for _ in range(arguments.rounds)
            ]
            print(f"\n{greenlets:,} greenlets\n\n{_table(rounds)}", flush=True)


if __name__ == "__main__":
    main()
