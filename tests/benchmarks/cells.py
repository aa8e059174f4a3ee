"""The measurements, their contenders, and the goals of greendrop.

Data only. A table has cells, a cell has a load and the contenders that run it, each in
a process of its own. The goals are those of the project; seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: Names of contenders, see `contenders.CONTENDERS`.
GREENDROP = "greendrop"
UNBATCHED = "greendrop linger 0 unbatched"
LINGER_1 = "greendrop linger 1"
LINGER_5 = "greendrop linger 5"
FLUSH = "raw flush"
FLUSH_LINGER_0 = "raw flush linger 0"
POLL_THREAD = "raw poll thread linger 0"
POLL_THREAD_LINGER_5 = "raw poll thread linger 5"
CALLBACK = "raw callback"
CALLBACK_LINGER_0 = "raw callback linger 0"
ONE_PRODUCER = "greendrop, one producer"
TRANSACTIONS = "raw transactions in a thread"
TRANSACTIONS_LINGER_0 = "raw transactions in a thread, linger 0"
AIOKAFKA = "aiokafka on uvloop"
AIOKAFKA_1_MB = "aiokafka on uvloop, 1 MB batches"
AIO_PRODUCER = "AIOProducer on uvloop"
AIO_PRODUCER_1_MS = "AIOProducer on uvloop, buffer_timeout 1 ms, linger 0"
KAFKA_PYTHON = "kafka-python patched by gevent"

_FIXED = (UNBATCHED, LINGER_1, LINGER_5)


@dataclass(frozen=True)
class Load:
    """The work of one measurement.

    Attributes:
        kind: "wait" is loops that produce and wait, "fire" sends without waiting,
            "batch" sends batches one after another, "burst" has all reports arrive at
            once, "memory" fills the queue of a producer without a broker, "idle" does
            nothing while connected, "transact" makes transactions, each worker with a
            producer of its own.
        workers: Concurrent loops.
        worker_kind: The kind of a worker; aiokafka's are always tasks.
        count: Messages, where not the time decides; of a batch, or a transaction, its
            size.
        keys: Different keys; none means no key.
        ticker: A greenlet that wants to run every millisecond measures its lateness.
    """

    kind: Literal["wait", "fire", "batch", "burst", "memory", "idle", "transact"]
    workers: int = 1
    worker_kind: Literal["greenlets", "threads"] = "greenlets"
    count: int = 0
    keys: int = 0
    ticker: bool = False


@dataclass(frozen=True)
class Goal:
    """A limit for one figure of greendrop in a cell.

    Attributes:
        figure: The name of the figure.
        against: Contenders to be compared with: with the best of them. Without any the
            figure itself is meant.
        difference: Compare by subtraction, not by division.
        at_least, at_most: The limit; one of them.
    """

    figure: str
    against: tuple[str, ...] = ()
    difference: bool = False
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Cell:
    """One load, run by several contenders."""

    name: str
    load: Load
    contenders: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    server: Literal["kafka", "mock", "none"] = "kafka"
    partitions: int = 4
    #: Of the mock cluster.
    round_trip: float = 0.0


@dataclass(frozen=True)
class Table:
    """Cells that are shown together, once for each of the figures."""

    name: str
    title: str
    figures: tuple[str, ...]
    cells: tuple[Cell, ...]
    #: At most; figures that are bound by a round trip vary little.
    rounds: int = field(default=99)


def _wait(greenlets: int) -> Cell:
    contenders: tuple[str, ...] = (GREENDROP, *_FIXED, POLL_THREAD, AIOKAFKA)
    goals = [Goal("rate", _FIXED, at_least=0.9)]
    if greenlets == 1:
        contenders += (POLL_THREAD_LINGER_5, FLUSH, FLUSH_LINGER_0)
        goals.append(Goal("p50", (FLUSH, FLUSH_LINGER_0), at_most=1.1))
        goals.append(Goal("p50", (POLL_THREAD_LINGER_5,), at_most=1 / 15))
    elif greenlets < 100:
        goals.append(Goal("rate", (AIOKAFKA,), at_least=0.9))
    else:
        contenders += (AIOKAFKA_1_MB,)
        goals.append(Goal("rate", (AIOKAFKA,), at_least=1.0))
        goals.append(Goal("rate", (POLL_THREAD,), at_least=4.0))
    load = Load("wait", workers=greenlets)
    return Cell(f"wait-{greenlets}", load, contenders, tuple(goals))


def _threads(threads: int) -> Cell:
    goal = Goal("rate", (FLUSH, FLUSH_LINGER_0), at_least=3.0)
    if threads == 1:
        goal = Goal("p50", (FLUSH, FLUSH_LINGER_0), at_most=1.15)
    load = Load("wait", workers=threads, worker_kind="threads")
    contenders = (GREENDROP, FLUSH, FLUSH_LINGER_0)
    return Cell(f"threads-{threads}", load, contenders, (goal,))


def _trap(milliseconds: int, greenlets: int) -> Cell:
    goals = (Goal("rate", (UNBATCHED,), at_least=0.85),) if greenlets == 100 else ()
    return Cell(
        f"trap-{milliseconds}ms-{greenlets}",
        Load("wait", workers=greenlets, keys=1_000),
        (GREENDROP, *_FIXED, AIOKAFKA),
        goals,
        server="mock",
        partitions=50,
        round_trip=milliseconds / 1000,
    )


def _clients(workers: int) -> Cell:
    contenders = (GREENDROP, POLL_THREAD, AIO_PRODUCER, AIO_PRODUCER_1_MS)
    contenders += (KAFKA_PYTHON, AIOKAFKA)
    return Cell(f"clients-{workers}", Load("wait", workers=workers), contenders)


def _hub(greenlets: int) -> Cell:
    goals = (Goal("late_p99", at_most=0.002),) if greenlets == 100 else ()
    load = Load("wait", workers=greenlets, ticker=True)
    contenders = (GREENDROP, POLL_THREAD)
    return Cell(f"hub-{greenlets}", load, contenders, goals, server="mock")


_HUB_FIRE = Cell(
    "hub-fire",
    Load("fire", workers=10, count=200_000, ticker=True),
    (GREENDROP,),
    server="mock",
)

TABLES = (
    Table(
        "wait",
        "Greenlets that produce and wait: Apache Kafka, 4 partitions, no key",
        ("rate", "p50", "cpu"),
        tuple(_wait(greenlets) for greenlets in (1, 10, 30, 100, 300, 1_000)),
    ),
    Table(
        "clients",
        "Clients for Python, to be compared: Apache Kafka, 4 partitions, no key",
        ("rate", "p50", "cpu"),
        tuple(_clients(workers) for workers in (1, 10, 100, 1_000)),
        rounds=3,
    ),
    Table(
        "threads",
        "Threads that produce and wait, no gevent: Apache Kafka, 4 partitions, no key",
        ("rate", "p50"),
        tuple(_threads(threads) for threads in (1, 8, 64)),
    ),
    Table(
        "trap",
        "Many partitions and a slow network: mock cluster, 50 partitions, 1,000 keys",
        ("rate",),
        tuple(
            _trap(milliseconds, greenlets)
            for milliseconds in (5, 20)
            for greenlets in (10, 100, 1_000)
        ),
        rounds=3,
    ),
    Table(
        "batch",
        "Batches of 1,000, one after another, beside a 1 ms ticker: Apache Kafka",
        ("rate", "late_p99", "late_max"),
        (
            Cell(
                "batch-1000",
                Load("batch", count=1_000, ticker=True),
                (GREENDROP, FLUSH),
                (
                    Goal("rate", (FLUSH,), at_least=0.75),
                    Goal("late_p99", at_most=0.005),
                ),
            ),
        ),
    ),
    Table(
        "transact",
        "Transactions of 100 messages: Apache Kafka, and ten producers at a round trip"
        " of 20 ms on the mock cluster",
        ("rate", "p50"),
        (
            Cell(
                "transact-100",
                Load("transact", count=100),
                (GREENDROP, TRANSACTIONS, TRANSACTIONS_LINGER_0),
                (Goal("p50", (TRANSACTIONS, TRANSACTIONS_LINGER_0), at_most=1.15),),
            ),
            Cell(
                "transact-20ms-1",
                Load("transact", count=100),
                (GREENDROP, TRANSACTIONS, TRANSACTIONS_LINGER_0),
                (Goal("p50", (TRANSACTIONS, TRANSACTIONS_LINGER_0), at_most=1.15),),
                server="mock",
                round_trip=0.02,
            ),
            Cell(
                "transact-20ms-10",
                Load("transact", workers=10, count=100),
                (GREENDROP, ONE_PRODUCER),
                (Goal("rate", (ONE_PRODUCER,), at_least=5.0),),
                server="mock",
                round_trip=0.02,
            ),
        ),
    ),
    Table(
        "fire",
        "200,000 messages without waiting: Apache Kafka, 4 partitions, no key",
        ("rate", "cpu"),
        (
            Cell(
                "fire-200k",
                Load("fire", count=200_000),
                (GREENDROP, CALLBACK, CALLBACK_LINGER_0),
                (
                    Goal("rate", (CALLBACK,), at_least=0.9),
                    Goal("cpu", (CALLBACK,), difference=True, at_most=1.5e-6),
                ),
            ),
        ),
    ),
    Table(
        "memory",
        "Memory of a message in flight, beyond its payload; its handle included",
        ("bytes",),
        (
            Cell(
                "memory-100k",
                Load("memory", count=100_000),
                (GREENDROP, CALLBACK),
                (Goal("bytes", at_most=400),),
                server="none",
            ),
        ),
        rounds=3,
    ),
    Table(
        "hub",
        "How late a 1 ms ticker is beside the load: mock cluster",
        ("rate", "late_p99", "late_max"),
        (*(_hub(greenlets) for greenlets in (10, 100, 1_000)), _HUB_FIRE),
    ),
    Table(
        "burst",
        "100,000 reports that arrive at once: how late a 1 ms ticker is",
        ("late_p99", "late_max", "late_max_no_gc"),
        (
            Cell(
                "burst-100k",
                Load("burst", count=100_000, ticker=True),
                (GREENDROP,),
                (Goal("late_max_no_gc", at_most=0.01),),
                server="none",
            ),
        ),
        rounds=3,
    ),
    Table(
        "idle",
        "An idle connected producer with the fd driver",
        ("threads", "wakeups", "idle_cpu"),
        (
            Cell(
                "idle",
                Load("idle"),
                (GREENDROP, POLL_THREAD),
                (Goal("threads", at_most=0), Goal("wakeups", at_most=0)),
                server="mock",
            ),
        ),
        rounds=2,
    ),
)
