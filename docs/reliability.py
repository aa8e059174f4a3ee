"""The page docs/reliability.md: promises, the checks that hold them, and last results.

The results are in docs/reliability.json, whose shape is described in tests/results.py.
docs/generate.py writes the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DOCS = Path(__file__).parent
RESULTS = DOCS / "reliability.json"


class Promise(NamedTuple):
    """A promise to users.

    Attributes:
        text: What is promised.
        checks: Keys of `CHECKS`, and paths of test files.
    """

    text: str
    checks: tuple[str, ...]


class Check(NamedTuple):
    """A command that tests promises for as long as one likes.

    Attributes:
        title: Heading of its results.
        target: Of make.
        text: Its work, and its conditions for failure.
    """

    title: str
    target: str
    text: str


PROMISES = (
    Promise(
        "A `DeliveryReport` means that the brokers have stored the message, as `acks`"
        " demands.",
        ("chaos", "tests/kafka/test_broken.py"),
    ),
    Promise(
        "A message that was accepted is delivered, or its handle has an error. Nothing"
        " is dropped silently: neither at `close`, nor at interpreter exit, nor when a"
        " producer is no longer referenced.",
        ("chaos", "soak", "tests/kafka/test_gunicorn.py", "tests/kafka/test_celery.py"),
    ),
    Promise(
        "With `enable.idempotence` each message is stored once, and the messages of a"
        " key are stored in the order in which they were sent. One case is excepted: an"
        " acknowledgement was lost, and another message of the producer fails before"
        " the retry ([0030](decisions/0030-idempotence-after-a-failure.md)).",
        ("chaos", "tests/kafka/test_lost_answers.py"),
    ),
    Promise(
        "A committed transaction is visible as a whole, once. Nothing of an aborted"
        " transaction is visible to consumers that read committed messages.",
        ("chaos", "tests/kafka/test_lost_answers.py"),
    ),
    Promise(
        "A program that reads, transforms and writes in transactions processes each"
        " record exactly once, whatever is killed.",
        ("chaos", "tests/kafka/test_exactly_once.py"),
    ),
    Promise(
        "No call stops the other greenlets of the hub.",
        ("chaos", "tests/client/test_cooperation.py"),
    ),
    Promise("Every wait ends by its deadline.", ("sweep", "soak")),
    Promise(
        "An interrupt (`gevent.Timeout`, a killed greenlet, Ctrl-C) keeps its type, and"
        " leaves the producer usable.",
        ("sweep",),
    ),
    Promise(
        "A listener, an interceptor or a logger that raises affects no message.",
        ("soak", "tests/public/test_events.py"),
    ),
    Promise(
        "A closed producer leaves nothing behind: no thread, greenlet, descriptor or"
        " memory.",
        ("soak", "endurance", "tests/client/test_leaks.py"),
    ),
    Promise(
        "No secret of a configuration appears in what comes out, and no input crashes"
        " or stops a program: it is sent as it is, or refused with an error.",
        ("hostile-input", "tests/security/test_secrets.py"),
    ),
)

CHECKS = {
    "chaos": Check(
        "Chaos",
        "chaos",
        """\
Three nodes of Apache Kafka, with replication factor 3 and `min.insync.replicas` 2,
run behind TCP proxies. Every few seconds one of the nodes is killed or paused, or its
network resets connections, leaves them half-open, delays them by 200 ms, loses
answers, or replaces 1 % of what it carries with random bytes. Meanwhile programs
send. Afterwards a consumer of confluent-kafka reads the topics.

The run fails if an acknowledged message is lost or is not where its report says, if
anything of an aborted transaction is visible or a transaction is visible in part, or
if an idempotent producer stored a message twice or out of order. It also fails if a
greenlet that wants to run each millisecond was kept from it for 20 ms longer than the
same greenlet in an empty program beside it. The hub of that program only waits for
another thread all the time, and so shows how long the machine itself stops a hub.

Errors are expected: random bytes in an answer make librdkafka give up its messages
(`_BAD_MSG`), and a server that ends drops connections. Without idempotence messages
may be stored twice. With idempotence that can happen only in the case that
[0030](decisions/0030-idempotence-after-a-failure.md) describes, and fails the run.""",
    ),
    "soak": Check(
        "Soak",
        "soak",
        "Random programs run on mock brokers that fail: producers of all kinds, with"
        " variants, scopes, transactions, buffers and pools, used by greenlets and"
        " threads, interrupted, forked, and closed while others use them; listeners"
        " that raise, wait and send; brokers that stop, refuse, are late, or move"
        " partitions; fatal errors. The run fails if an acknowledged message is not"
        " stored where its report says, or more than once with idempotence; if the"
        " verb, the handle and the events of a message disagree; if a call takes longer"
        " than its limit or raises anything but greendrop's errors; if a handle stays"
        " pending; or if a thread, a descriptor or a client is left. What needs brokers"
        " that know sequence numbers, such as lost answers, is left to the chaos.",
    ),
    "endurance": Check(
        "Endurance",
        "endurance",
        "Producers come and go, ten at a time, in greenlets and threads, and send by"
        " all kinds of verbs. With no producer open, the memory, descriptors, threads,"
        " greenlets and objects of the process are measured. The run fails if the"
        " median of the last fifth is 2 % or more above that of the fifth after the"
        " warm-up, or if a message is not delivered.",
    ),
    "sweep": Check(
        "Interruptions",
        "sweep",
        "A signal handler raises, or sends, at the entry of every function that a verb"
        " runs, in programs with gevent, patched by it and without it. Each time the"
        " next messages and the next transaction must arrive, nothing may be lost"
        " without an error, and one client and one poller must be left.",
    ),
    "hostile-input": Check(
        "Hostile input",
        "hostile-input",
        "hypothesis invents messages, batches, configurations, statistics, lines and"
        " files for the command line, and variants: wrong types, broken text, control"
        " characters, huge numbers. Each must be sent as it is, or be refused with an"
        " error of greendrop; nothing may crash, hang or get lost.",
    ),
    "matrix": Check(
        "Matrix",
        "matrix",
        "The short tests run with each Python, the oldest libraries, each event loop of"
        " gevent, and gevent without compiled modules. With libuv only those run that"
        " start an interpreter. Beside agents that trace or profile programs, those of"
        " a message's journey run. See [Versions](versions.md) for what the agents and"
        " loops restrict.",
    ),
}

#: Tests without a command of their own.
OTHER_TESTS = """\
- Contract tests run against brokers in memory, librdkafka's mock cluster and Apache
  Kafka, so that tests of your program with brokers in memory can be trusted.
- Cooperation is measured with a clock: a ticker greenlet runs beside the call, and the
  test limits its longest delay.
- After each test, leftover threads, greenlets, descriptors and producers fail the test.

`make test` runs the tests that need no broker and a sample of the interruptions, and
`make kafka-test` those that start Apache Kafka. `.ci/run` runs both, the matrix, all
interruptions, and the chaos and the soak for two minutes each. See
[Contributing](contributing.md).
"""


def page(note: str) -> str:
    """Write the page.

    Args:
        note: The comment of generated pages.
    """
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    promises = [(each.text, "; ".join(map(_named, each.checks))) for each in PROMISES]
    return f"""# Reliability

{note}
What is promised, which check holds it, and the figures of the last long run of each
check.

## Promises

{_table(("promise", "checked by"), promises)}
One thing cannot be promised: that a message with an error is not stored. The broker may
have stored it, and its acknowledgement was lost. [Errors](reference/errors.md) says for
each error what is known, and so does its `message_state`.

## Checks

Most checks are random and seeded, and run for as long as you like. The seed decides the
faults and the messages. Brokers, clients and the scheduler decide the rest, so that
equal seeds give similar runs, not equal ones.

{"".join(_sections(results))}## Other tests

{OTHER_TESTS}"""


def _named(check: str) -> str:
    if check in CHECKS:
        title = CHECKS[check].title
        return f"[{title}](#{title.lower().replace(' ', '-')})"
    return f"`{check}`"


def _sections(results: dict[str, Any]) -> Iterator[str]:
    for name, check in CHECKS.items():
        yield f"### {check.title}\n\n`make {check.target}`. {check.text}\n\n"
        if name in results:
            yield from _result(results[name])


def _result(result: dict[str, Any]) -> Iterator[str]:
    cases: list[dict[str, Any]] = result["cases"]
    versions = ", ".join(f"{name} {of}" for name, of in result["versions"].items())
    text = f"Last long runs: `{result['command']}`, with {versions}. "
    yield f"{text}{result.get('note', '')}".rstrip() + "\n\n"
    figures = list(dict.fromkeys(name for case in cases for name in case["figures"]))
    table = [("", "date", "seed", "seconds", *figures, "result")]
    table += [
        (
            case["name"],
            case["date"],
            "" if case["seed"] is None else str(case["seed"]),
            _number(case["seconds"]),
            *(_number(case["figures"].get(name, "")) for name in figures),
            "passed" if case["passed"] else "**failed**",
        )
        for case in cases
    ]
    # A table is rather high than wide.
    if len(figures) > len(cases):
        table = list(zip(*table, strict=True))
    yield _table(table[0], table[1:]) + "\n"


def _number(figure: float | str) -> str:
    """Write a figure: whole numbers with separators, others with up to one decimal."""
    if isinstance(figure, str):
        return figure
    return f"{figure:,.1f}".removesuffix(".0")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
