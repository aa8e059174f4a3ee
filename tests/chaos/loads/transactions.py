"""Transactional clients: greendrop's, and confluent-kafka's alone.

Both run transactions of a few messages, of which some are rolled back on purpose, and
record the outcomes. A program, run by `loads`::

    python -m tests.chaos.loads.transactions '{"peer": "greendrop", ...}'
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tests.chaos.loads.programs import (
    Plan,
    configuration,
    leave,
    run_tasks,
    transactional_id,
)
from tests.chaos.records import Recorder, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop import Producer
    from greendrop.transaction import Transaction
    from tests.chaos.records import Outcome

#: Where the brokers have stored a message, by its report; None without one.
Place = tuple[int, "int | None"] | None

#: Messages of one transaction.
MESSAGES = 5
#: The share of the transactions that are rolled back on purpose.
ABORTED = 0.33
#: Longest duration, in seconds, of the block of a transaction that is rolled back:
#: connections break meanwhile.
_LONGEST_BLOCK = 0.5
#: Longest rest, in seconds, after a transaction.
_REST = 0.1
#: Seconds for one call of confluent-kafka, which is repeated up to `_CALLS` times.
_CALL = 10.0
_CALLS = 30
#: Seconds that confluent-kafka waits for the first report before it rolls back, as
#: greendrop waits for all.
_FIRST_REPORT = 5.0


def client_configuration(plan: Plan, client: int) -> dict[str, Any]:
    """Return librdkafka's configuration of a client."""
    return {
        **configuration(plan.bootstrap_servers),
        "transactional.id": transactional_id(plan.topic, client),
        "transaction.timeout.ms": 60_000,
        "message.timeout.ms": 60_000,
    }


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

    def run(self, wish: Wish) -> tuple[Outcome, Sequence[Place]]:
        """Run one transaction; return its outcome, and the places of its messages."""
        ...

    def close(self) -> None:
        """End the producer."""
        ...


class _Interrupt(BaseException):
    """Ends a block as Ctrl-C does."""


class GreendropClient:
    """A producer of greendrop."""

    def __init__(self, plan: Plan, number: int, recorder: Recorder) -> None:
        import greendrop  # noqa: PLC0415 - after its program was monkey-patched

        self._topic = plan.topic
        self._recorder = recorder
        self._error = greendrop.GreendropError
        self._producer = greendrop.Producer(kafka=client_configuration(plan, number))
        self._producer.monitor.subscribe("producer.connected", self._on_connected)

    def run(self, wish: Wish) -> tuple[Outcome, Sequence[Place]]:
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
            self._recorder.error(error)
        except _Interrupt:
            pass
        reports = [handle.report for handle in handles]
        places = [each and (each.partition, each.offset) for each in reports]
        outcome = transaction.outcome or "aborted"
        return ("acknowledged" if outcome == "committed" else outcome), places

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
        self._recorder.summary.connections += 1


class RawClient:
    """A producer of confluent-kafka, used as its documentation says."""

    def __init__(self, plan: Plan, number: int, recorder: Recorder) -> None:
        self._plan = plan
        self._number = number
        self._recorder = recorder
        self._producer: Any = None

    def run(self, wish: Wish) -> tuple[Outcome, Sequence[Place]]:
        """Run one transaction."""
        from confluent_kafka import KafkaException  # noqa: PLC0415

        reports: list[Place] = [None] * len(wish.keys)
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
                outcome = "acknowledged"
            else:
                deadline = time.monotonic() + wish.pause
                while time.monotonic() < deadline:
                    producer.poll(0.01)
                deadline += 0.0 if wish.hasty else _FIRST_REPORT
                while reports[0] is None and time.monotonic() < deadline:
                    producer.poll(0.01)
                self._call(producer.abort_transaction)
        except KafkaException as error:
            self._recorder.error(error)
            if error.args[0].txn_requires_abort() and self._aborts():
                outcome = "aborted"
        return outcome, reports

    def _connected(self) -> Any:
        from confluent_kafka import Producer  # noqa: PLC0415

        if self._producer is None:
            keys = client_configuration(self._plan, self._number)
            self._producer = Producer({**keys, "linger.ms": 0, "log_level": 0})
            self._recorder.summary.connections += 1
            self._call(self._producer.init_transactions)
        return self._producer

    def _aborts(self) -> bool:
        from confluent_kafka import KafkaException  # noqa: PLC0415

        try:
            self._call(self._producer.abort_transaction)
        except KafkaException as error:
            self._recorder.error(error)
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

    def __init__(self, reports: list[Place], index: int) -> None:
        self._reports = reports
        self._index = index

    def __call__(self, error: object, message: Any) -> None:
        if error is None:
            self._reports[self._index] = message.partition(), message.offset()


def run_client(plan: Plan, number: int, recorder: Recorder) -> None:
    """Run the transactions of one client until its time is over."""
    kind: type[GreendropClient | RawClient]
    kind = GreendropClient if plan.peer == "greendrop" else RawClient
    client: Client = kind(plan, number, recorder)
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
        started = time.monotonic()
        outcome, places = client.run(wish)
        if outcome == "acknowledged":
            recorder.acknowledged(started)
        group = wish.name if outcome == "unknown" else ""
        # A message that was refused has no place, nor have those behind it.
        for payload, place in zip_longest(wish.payloads, places):
            recorder.record(Sent(payload, outcome, *(place or (None, None)), group))
        time.sleep(dice.random() * _REST)
        count += 1
    client.close()


def main() -> None:
    """Run the plan in the first argument."""
    plan = Plan.parse(sys.argv[1])
    plan.prepare()
    import greendrop  # noqa: F401, PLC0415 - after the patch, and before the clock runs

    recorder = Recorder(Path(plan.folder))
    clients = [partial(run_client, plan, each, recorder) for each in range(plan.tasks)]
    run_tasks(plan, clients, recorder)
    recorder.close()
    leave()


if __name__ == "__main__":
    main()
