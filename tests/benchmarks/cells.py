"""The measurements, their contenders, and the goals of greendrop.

Data only. A table has cells, a cell has a load and the contenders that run it, each in
a process of its own. The goals are those of the project; seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Names of contenders, see `contenders.CONTENDERS`.
GREENDROP = "greendrop"
UNBATCHED = "greendrop, linger 0, no batching"
LINGER_1 = "greendrop, linger 1"
ONE_PRODUCER = "greendrop, one producer"
FLUSH = "raw flush, linger 5"
FLUSH_LINGER_0 = "raw flush, linger 0"
POLL_THREAD = "raw poll thread, linger 0"
POLL_THREAD_LINGER_5 = "raw poll thread, linger 5"
POLL_GREENLET = "raw poll(0) every 1 ms, linger 0"
CALLBACK = "raw callback, linger 5"
CALLBACK_LINGER_0 = "raw callback, linger 0"
TRANSACTIONS = "raw transactions in a thread, linger 5"
TRANSACTIONS_LINGER_0 = "raw transactions in a thread, linger 0"
KAFKA_PYTHON = "kafka-python, patched"
AIOKAFKA = "aiokafka on uvloop"
AIOKAFKA_1_MB = "aiokafka on uvloop, 1 MB batches"
AIO_PRODUCER = "AIOProducer on uvloop"
AIO_PRODUCER_1_MS = "AIOProducer on uvloop, buffer_timeout 1 ms, linger 0"

#: Other ways to send from a program on gevent.
GEVENT_PEERS = (POLL_THREAD, POLL_GREENLET, KAFKA_PYTHON)
#: `linger.ms=5` sends larger batches, which can pay with so many greenlets or more.
_MANY = 100


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
        against: The contenders that are the reference: each of them. Without any the
            figure itself is meant.
        called: A common name of several references.
        difference: Compare by subtraction, not by division.
        at_least, at_most: The limit; one of them.
    """

    figure: str
    against: tuple[str, ...] = ()
    called: str = ""
    difference: bool = False
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Cell:
    """One load, run by several contenders.

    Attributes:
        name: For the command line, `remarks`, and the files of figures.
        head: The head of its column.
        load: The work.
        contenders: Those that do it.
        goals: For greendrop.
        server: The broker.
        partitions: Of the topic.
        round_trip: Of the mock cluster.
    """

    name: str
    head: str
    load: Load
    contenders: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    server: Literal["kafka", "mock", "none"] = "kafka"
    partitions: int = 4
    round_trip: float = 0.0


@dataclass(frozen=True)
class Table:
    """Cells that are shown together.

    Attributes:
        name: For the command line.
        title: With what all of its cells have in common.
        grids: The figures that are shown side by side, once for each group.
        cells: Its columns.
    """

    name: str
    title: str
    grids: tuple[tuple[str, ...], ...]
    cells: tuple[Cell, ...]


def _ahead(*peers: str) -> Goal:
    """Return the goal to send as much as the best gevent peer at least."""
    return Goal("rate", peers, "each gevent peer", at_least=1.0)


def _beside(reference: str, at_least: float) -> Goal:
    return Goal("rate", (reference,), at_least=at_least)


def _peers(greenlets: int) -> tuple[str, ...]:
    return (*GEVENT_PEERS, *((POLL_THREAD_LINGER_5,) if greenlets >= _MANY else ()))


#: Goals by number of greenlets: the rate beside aiokafka as shipped.
_NO_KEY = {1: 1.0, 10: 1.2, 30: 1.1, 100: 1.1, 300: 1.1, 1_000: 1.5}
_KEYS = {10: 0.85, 30: 0.8, 100: 1.0, 300: 1.0, 1_000: 1.0}


def _wait(greenlets: int) -> Cell:
    contenders = (GREENDROP, UNBATCHED, LINGER_1, *_peers(greenlets), AIOKAFKA)
    goals = [
        _beside(AIOKAFKA, _NO_KEY[greenlets]),
        _ahead(*_peers(greenlets)),
        Goal("rate", (UNBATCHED, LINGER_1), "each fixed linger", at_least=0.9),
    ]
    if greenlets in {10, 100, 1_000}:
        goals.append(Goal("p99", (AIOKAFKA,), at_most=1.2))
    if greenlets in {1, 100}:
        contenders += (AIO_PRODUCER, AIO_PRODUCER_1_MS)
    if greenlets == 1:
        contenders += (POLL_THREAD_LINGER_5, FLUSH, FLUSH_LINGER_0)
        goals.append(Goal("p50", (FLUSH,), at_most=1.2))
        goals.append(Goal("p50", (FLUSH_LINGER_0,), at_most=1.2))
        goals.append(Goal("p50", (POLL_THREAD_LINGER_5,), at_most=1 / 15))
    if greenlets == 1_000:
        contenders += (AIOKAFKA_1_MB,)
        goals.append(_beside(AIOKAFKA_1_MB, 1.0))
    return Cell(
        f"wait-{greenlets}",
        f"{greenlets:,}",
        Load("wait", workers=greenlets),
        contenders,
        tuple(goals),
    )


def _keys(greenlets: int) -> Cell:
    return Cell(
        f"keys-{greenlets}",
        f"{greenlets:,}",
        Load("wait", workers=greenlets, keys=1_000),
        (GREENDROP, *_peers(greenlets), AIOKAFKA),
        (_beside(AIOKAFKA, _KEYS[greenlets]), _ahead(*_peers(greenlets))),
    )


def _threads(threads: int) -> Cell:
    goal = _beside(FLUSH_LINGER_0, 3.0)
    if threads == 1:
        goal = Goal("p50", (FLUSH_LINGER_0,), at_most=1.15)
    return Cell(
        f"threads-{threads}",
        f"{threads}",
        Load("wait", workers=threads, worker_kind="threads"),
        (GREENDROP, FLUSH_LINGER_0),
        (goal,),
    )


def _trap(milliseconds: int, greenlets: int) -> Cell:
    # kafka-python can't read the mock cluster's answers.
    peers = tuple(peer for peer in _peers(greenlets) if peer != KAFKA_PYTHON)
    goals = [_ahead(*peers)]
    if greenlets == _MANY:
        goals += [_beside(UNBATCHED, 0.9), _beside(AIOKAFKA, 0.95)]
    return Cell(
        f"trap-{milliseconds}ms-{greenlets}",
        f"{greenlets:,}, {milliseconds} ms",
        Load("wait", workers=greenlets, keys=1_000),
        (GREENDROP, UNBATCHED, *peers, AIOKAFKA),
        tuple(goals),
        server="mock",
        partitions=50,
        round_trip=milliseconds / 1000,
    )


def _hub(greenlets: int) -> Cell:
    goals = (Goal("late_p99", at_most=0.0015),) if greenlets == _MANY else ()
    return Cell(
        f"hub-{greenlets}",
        f"{greenlets:,}",
        Load("wait", workers=greenlets, ticker=True),
        (GREENDROP, POLL_THREAD, POLL_GREENLET),
        goals,
        server="mock",
    )


_WAIT = Table(
    "wait",
    "Greenlets that produce and wait, no key",
    (("rate", "cpu"), ("p50", "p99")),
    tuple(_wait(greenlets) for greenlets in _NO_KEY),
)
_WAIT_KEYS = Table(
    "keys",
    "Greenlets that produce and wait, 1,000 keys",
    (("rate", "cpu"), ("p50", "p99")),
    tuple(_keys(greenlets) for greenlets in _KEYS),
)
_THREADS = Table(
    "threads",
    "Threads that produce and wait, no gevent",
    (("rate", "cpu"), ("p50", "p99")),
    tuple(_threads(threads) for threads in (1, 8, 64)),
)
_TRAP = Table(
    "trap",
    "Many partitions and a slow network: mock cluster, 50 partitions, 1,000 keys",
    (("rate", "cpu"), ("p50", "p99")),
    tuple(
        _trap(milliseconds, greenlets)
        for milliseconds, greenlets in ((5, _MANY), (20, _MANY), (20, 1_000))
    ),
)
_FIRE = Table(
    "fire",
    "200,000 messages without waiting",
    (("rate", "cpu"),),
    (
        Cell(
            "fire-200k",
            "200,000 messages",
            Load("fire", count=200_000),
            (GREENDROP, CALLBACK, CALLBACK_LINGER_0, *_peers(_MANY), AIOKAFKA),
            (
                _beside(AIOKAFKA, 2.0),
                _beside(CALLBACK, 0.45),
                Goal("cpu", (CALLBACK,), difference=True, at_most=1.9e-6),
                _ahead(*_peers(_MANY)),
            ),
        ),
    ),
)
_BATCH = Table(
    "batch",
    "Batches of 1,000, one after another, beside a 1 ms ticker",
    (("rate", "cpu"), ("late_p99", "late_max")),
    (
        Cell(
            "batch-1000",
            "1,000 messages",
            Load("batch", count=1_000, ticker=True),
            (GREENDROP, FLUSH, *_peers(_MANY), AIOKAFKA),
            (
                _beside(AIOKAFKA, 2.0),
                _beside(FLUSH, 0.4),
                _ahead(*_peers(_MANY)),
                Goal("late_p99", at_most=0.002),
            ),
        ),
    ),
)
_TRANSACT = Table(
    "transact",
    "Transactions of 100 messages: Apache Kafka, and a mock cluster at 20 ms",
    (("rate", "cpu"), ("p50",)),
    (
        Cell(
            "transact-100",
            "Apache Kafka",
            Load("transact", count=100),
            (GREENDROP, TRANSACTIONS, TRANSACTIONS_LINGER_0),
            (
                Goal("p50", (TRANSACTIONS,), at_most=1.35),
                Goal("p50", (TRANSACTIONS_LINGER_0,), at_most=1.35),
            ),
        ),
        Cell(
            "transact-20ms-1",
            "20 ms",
            Load("transact", count=100),
            (GREENDROP, TRANSACTIONS),
            (Goal("p50", (TRANSACTIONS,), at_most=1.05),),
            server="mock",
            round_trip=0.02,
        ),
        Cell(
            "transact-20ms-10",
            "20 ms, 10 greenlets",
            Load("transact", workers=10, count=100),
            (GREENDROP, ONE_PRODUCER),
            (_beside(ONE_PRODUCER, 5.0),),
            server="mock",
            round_trip=0.02,
        ),
    ),
)
_HUB = Table(
    "hub",
    "How late a 1 ms ticker is beside greenlets that produce and wait",
    (("rate", "cpu"), ("late_p99", "late_max")),
    (
        *(_hub(greenlets) for greenlets in (10, _MANY, 1_000)),
        Cell(
            "hub-fire",
            "200,000 messages without waiting",
            Load("fire", workers=10, count=200_000, ticker=True),
            (GREENDROP,),
            server="mock",
        ),
    ),
)
_BURST = Table(
    "burst",
    "100,000 reports that arrive at once: how late a 1 ms ticker is",
    (("late_p99", "late_max", "late_max_no_gc"),),
    (
        Cell(
            "burst-100k",
            "100,000 reports",
            Load("burst", count=100_000, ticker=True),
            (GREENDROP,),
            (Goal("late_max_no_gc", at_most=0.01),),
            server="none",
        ),
    ),
)
_IDLE = Table(
    "idle",
    "An idle connected producer in a hub",
    (("wakeups", "threads", "idle_cpu"),),
    (
        Cell(
            "idle",
            "idle",
            Load("idle"),
            (GREENDROP, POLL_THREAD, POLL_GREENLET),
            (Goal("threads", at_most=0), Goal("wakeups", at_most=0)),
            server="mock",
        ),
    ),
)
_MEMORY = Table(
    "memory",
    "Memory of a message in flight, beyond its payload; its handle included",
    (("bytes",),),
    (
        Cell(
            "memory-100k",
            "100,000 messages",
            Load("memory", count=100_000),
            (GREENDROP, CALLBACK),
            (Goal("bytes", at_most=370),),
            server="none",
        ),
    ),
)

TABLES = (
    _WAIT,
    _WAIT_KEYS,
    _THREADS,
    _TRAP,
    _FIRE,
    _BATCH,
    _TRANSACT,
    _HUB,
    _BURST,
    _IDLE,
    _MEMORY,
)
