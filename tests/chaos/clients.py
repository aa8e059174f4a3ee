"""Transactional clients for the chaos: greendrop's, and confluent-kafka's alone.

Both run transactions of a few messages, of which some are rolled back on purpose, and
record the outcomes. Run as a program by `transactions`, which reads the records as JSON
from standard output::

    python -m tests.chaos.clients '{"peer": "greendrop", "bootstrap_servers": ...}'
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop import Producer
    from greendrop.transaction import Transaction

Outcome = Literal["committed", "aborted", "unknown"]

#: Messages of one transaction.
MESSAGES = 5
#: The share of the transactions that are rolled back on purpose.
ABORTED = 0.33
#: Longest duration, in seconds, of the block of a transaction that is rolled back:
#: connections break meanwhile.
_LONGEST_BLOCK = 0.5
#: Seconds that clients may take to end, once their time is over.
ENDING = 120.0
#: Seconds for one call of confluent-kafka, which is repeated up to `_CALLS` times.
_CALL = 10.0
_CALLS = 30
#: Seconds that confluent-kafka waits for the first report before it rolls back, as
#: greendrop waits for all.
_FIRST_REPORT = 5.0


@dataclass
class Plan:
    """The work of the clients.

    Attributes:
        peer: "greendrop", or "raw" for confluent-kafka alone.
        bootstrap_servers: Addresses of the brokers.
        topic: The topic of the messages.
        clients: The number of producers.
        seconds: How long they begin transactions.
        seed: Of keys and rollbacks.
    """

    peer: str
    bootstrap_servers: str
    topic: str
    clients: int
    seconds: float
    seed: int

    def transactional_id(self, client: int) -> str:
        """Return the id by which the brokers know a client."""
        return f"{self.topic}-{client}"

    def configuration(self, client: int) -> dict[str, Any]:
        """Return librdkafka's configuration of a client."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "transactional.id": self.transactional_id(client),
            "transaction.timeout.ms": 60_000,
            "message.timeout.ms": 60_000,
            # librdkafka's 10 s are long for a run of two minutes.
            "reconnect.backoff.max.ms": 1_000,
        }


@dataclass
class Record:
    """The outcome of one transaction.

    Attributes:
        name: Its messages have the payloads NAME-0, NAME-1 and so on.
        outcome: As the producer reported it.
        reports: Partition and offset of each message; None without a successful report.
    """

    name: str
    outcome: Outcome
    reports: list[tuple[int, int | None] | None]


@dataclass
class Records:
    """The records of all clients.

    Attributes:
        transactions: One record each.
        errors: How often each error was raised, by its first words.
        connections: Native clients that were built, one after the other. A higher
            number than that of producers means that some were replaced.
        stuck: Clients that did not end in time.
    """

    transactions: list[Record] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    stuck: int = 0

    def add_error(self, error: BaseException) -> None:
        """Count an error."""
        text = f"{type(error).__name__}: {error}"[:120]
        self.errors[text] = self.errors.get(text, 0) + 1


@dataclass
class Wish:
    """The plan of one transaction.

    Attributes:
        name: Of the transaction.
        keys: Of its messages.
        commit: Whether to commit, or to roll back.
        pause: Seconds before it is rolled back.
        hasty: Whether it is rolled back without waiting for reports, as by an
            interrupt.
    """

    name: str
    keys: list[str]
    commit: bool
    pause: float
    hasty: bool

    @property
    def payloads(self) -> list[str]:
        """The payloads of its messages."""
        return [f"{self.name}-{index}" for index in range(len(self.keys))]


class Client(Protocol):
    """One transactional producer."""

    def run(self, wish: Wish) -> Record:
        """Run one transaction."""
        ...

    def close(self) -> None:
        """End the producer."""
        ...


class _Interrupt(BaseException):
    """Ends a block as Ctrl-C does."""


class GreendropClient:
    """A producer of greendrop."""

    def __init__(self, plan: Plan, number: int, records: Records) -> None:
        import greendrop  # noqa: PLC0415 - after its program was monkey-patched

        self._topic = plan.topic
        self._records = records
        self._error = greendrop.GreendropError
        self._producer = greendrop.Producer(kafka=plan.configuration(number))
        self._producer.monitor.subscribe("producer.connected", self._on_connected)

    def run(self, wish: Wish) -> Record:
        """Run one transaction."""
        handles = []
        transaction = self._producer.transaction()
        try:
            with transaction:
                for payload, key in zip(wish.payloads, wish.keys, strict=True):
                    handles.append(
                        self._producer.produce_async(
                            topic=self._topic, payload=payload, key=key
                        )
                    )
                if not wish.commit:
                    self._roll_back(transaction, wish)
        except self._error as error:
            self._records.add_error(error)
        except _Interrupt:
            pass
        reports = [handle.report for handle in handles]
        places = [each and (each.partition, each.offset) for each in reports]
        return Record(wish.name, transaction.outcome or "aborted", places)

    @staticmethod
    def _roll_back(transaction: Transaction[Producer], wish: Wish) -> NoReturn:
        time.sleep(wish.pause)
        if wish.hasty:
            raise _Interrupt
        transaction.abort()

    def close(self) -> None:
        """End the producer."""
        self._producer.close(timeout=20)

    def _on_connected(self, _: object) -> None:
        self._records.connections += 1


class RawClient:
    """A producer of confluent-kafka, used as its documentation says."""

    def __init__(self, plan: Plan, number: int, records: Records) -> None:
        self._plan = plan
        self._number = number
        self._records = records
        self._producer: Any = None

    def run(self, wish: Wish) -> Record:
        """Run one transaction."""
        from confluent_kafka import KafkaException  # noqa: PLC0415

        reports: list[tuple[int, int | None] | None] = [None] * len(wish.keys)
        outcome: Outcome = "aborted"
        try:
            producer = self._connected()
            producer.begin_transaction()
            for index, payload in enumerate(wish.payloads):
                report = _RawReport(reports, index)
                key = wish.keys[index]
                producer.produce(self._plan.topic, payload, key, on_delivery=report)
            if wish.commit:
                outcome = "unknown"
                self._call(producer.commit_transaction)
                outcome = "committed"
            else:
                deadline = time.monotonic() + wish.pause
                while time.monotonic() < deadline:
                    producer.poll(0.01)
                deadline += 0.0 if wish.hasty else _FIRST_REPORT
                while reports[0] is None and time.monotonic() < deadline:
                    producer.poll(0.01)
                self._call(producer.abort_transaction)
        except KafkaException as error:
            self._records.add_error(error)
            if error.args[0].txn_requires_abort() and self._aborts():
                outcome = "aborted"
        return Record(wish.name, outcome, reports)

    def _connected(self) -> Any:
        from confluent_kafka import Producer  # noqa: PLC0415

        if self._producer is None:
            configuration = self._plan.configuration(self._number)
            self._producer = Producer({**configuration, "linger.ms": 0, "log_level": 0})
            self._records.connections += 1
            self._call(self._producer.init_transactions)
        return self._producer

    def _aborts(self) -> bool:
        from confluent_kafka import KafkaException  # noqa: PLC0415

        try:
            self._call(self._producer.abort_transaction)
        except KafkaException as error:
            self._records.add_error(error)
            return False
        return True

    def _call(self, function: Callable[[float], object]) -> None:
        """Make a call, and repeat it after timeouts."""
        from confluent_kafka import KafkaException  # noqa: PLC0415

        for _ in range(_CALLS):
            try:
                function(_CALL)
            except KafkaException as raised:
                error, last = raised.args[0], raised
                again = error.retriable() or error.name() in {"_TIMED_OUT", "_CONFLICT"}
                if error.fatal():
                    self._producer = None
                if error.fatal() or error.txn_requires_abort() or not again:
                    raise
                time.sleep(0.2)
            else:
                return
        raise last

    def close(self) -> None:
        """End the producer: its destructor does."""
        self._producer = None


class _RawReport:
    """Takes the delivery report of one message."""

    def __init__(
        self, reports: list[tuple[int, int | None] | None], index: int
    ) -> None:
        self._reports = reports
        self._index = index

    def __call__(self, error: object, message: Any) -> None:
        if error is None:
            self._reports[self._index] = message.partition(), message.offset()


def run_client(plan: Plan, number: int, records: Records) -> None:
    """Run the transactions of one client until its time is over."""
    kind: type[GreendropClient | RawClient]
    kind = GreendropClient if plan.peer == "greendrop" else RawClient
    client: Client = kind(plan, number, records)
    dice = random.Random(f"{plan.seed}-{number}")
    deadline = time.monotonic() + plan.seconds
    count = 0
    while time.monotonic() < deadline:
        wish = Wish(
            name=f"{number}-{count}",
            keys=[f"{dice.random()}" for _ in range(MESSAGES)],
            commit=dice.random() > ABORTED,
            pause=dice.choice((0.0, dice.random() * _LONGEST_BLOCK)),
            hasty=dice.random() < 0.5,
        )
        record = client.run(wish)
        records.transactions.append(record)
        if wish.commit and record.outcome != "committed":
            time.sleep(0.05)
        count += 1
    client.close()


def run_greenlets(plan: Plan, records: Records) -> None:
    """Run all clients in greenlets."""
    import gevent  # noqa: PLC0415

    jobs = [
        gevent.spawn(run_client, plan, number, records)
        for number in range(plan.clients)
    ]
    gevent.joinall(jobs, timeout=plan.seconds + ENDING)
    records.stuck = sum(not job.ready() for job in jobs)
    for job in jobs:
        if job.exception is not None:
            records.add_error(job.exception)


def run_threads(plan: Plan, records: Records) -> None:
    """Run all clients in threads."""
    import threading  # noqa: PLC0415

    jobs = [
        threading.Thread(target=run_client, args=(plan, number, records), daemon=True)
        for number in range(plan.clients)
    ]
    for job in jobs:
        job.start()
    deadline = time.monotonic() + plan.seconds + ENDING
    for job in jobs:
        job.join(max(deadline - time.monotonic(), 0.0))
    records.stuck = sum(job.is_alive() for job in jobs)


def main() -> None:
    """Run the plan in the first argument."""
    plan = Plan(**json.loads(sys.argv[1]))
    records = Records()
    if plan.peer == "greendrop":
        from gevent import monkey  # noqa: PLC0415

        monkey.patch_all()
        # Errors of connections are expected here.
        logging.getLogger("greendrop").setLevel(logging.CRITICAL)
        run_greenlets(plan, records)
    else:
        run_threads(plan, records)
    print(json.dumps(asdict(records)), flush=True)
    # Clients that are stuck must not keep the program from ending.
    os._exit(0)


if __name__ == "__main__":
    main()
