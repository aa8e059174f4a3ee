"""The public verbs, in the form that the sweep runs: each a few lines of a program."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from greendrop import Producer, ProducerPool

if TYPE_CHECKING:
    from collections.abc import Callable

#: The topic of all messages.
TOPIC = "sweep"
#: Seconds. Longer than any healthy call takes; a longer wait is stuck.
PATIENCE = 40.0

_numbers = itertools.count(1)


class Program:
    """The subject of one point of the sweep: a producer and its messages.

    Args:
        servers: Address of the cluster.
        transactional: Whether the producer makes transactions.
    """

    def __init__(self, servers: str, *, transactional: bool) -> None:
        self.servers = servers
        self.transactional = transactional
        self._number = next(_numbers)
        self.producer = self.make(0)
        self.pool: ProducerPool | None = None
        #: Handles of all messages that the program has sent.
        self.handles: list[Any] = []
        #: Payloads of messages that the broker has acknowledged.
        self.stored: list[bytes] = []
        #: Payloads of messages in the buffer.
        self.buffered: list[bytes] = []

    def make(self, slot: int) -> Producer:
        """Construct a producer, the program's own or one for a slot of its pool."""
        kafka = {"bootstrap.servers": self.servers, "message.timeout.ms": 30_000}
        kafka["statistics.interval.ms"] = 0
        settings: dict[str, Any] = {}
        if self.transactional:
            kafka["transactional.id"] = f"{os.getpid()}-{self._number}-{slot}"
            settings = {
                "wait_timeout_on_transaction_abort": 0.0,
                "wait_backoff_on_transaction_command": 0.01,
                "wait_backoff_on_transaction_fatal_error": 0.0,
            }
        return Producer(kafka=kafka, max_wait_timeout=PATIENCE, **settings)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a message with a unique payload."""
        number = next(_numbers)
        payload = f"{os.getpid()}-{number}".encode()
        return {"topic": TOPIC, "payload": payload, "label": payload}

    def send(self) -> None:
        """Send one message, and wait."""
        fields = self.fields()
        self.producer.produce_sync(**fields)
        self.stored.append(fields["payload"])

    def send_async(self) -> None:
        """Send one message, and keep its handle."""
        self.handles.append(self.producer.produce_async(**self.fields()))

    def end(self) -> None:
        """Close all producers and pools."""
        if self.pool is not None:
            self.pool.close(force=True)
        self.producer.close(force=True)


def _send_async_and_wait(program: Program) -> None:
    program.send_async()
    program.handles[-1].wait(PATIENCE)


def _many_sync(program: Program) -> None:
    batch = [program.fields() for _ in range(20)]
    reports = program.producer.produce_many_sync(batch)
    program.stored += [report.label for report in reports]


def _many_async(program: Program) -> None:
    batch = [program.fields() for _ in range(20)]
    program.handles += program.producer.produce_many_async(batch)


def _buffer(program: Program) -> None:
    for _ in range(2):
        fields = program.fields()
        program.producer.buffer(**fields)
        program.buffered.append(fields["payload"])
    batch = [program.fields() for _ in range(3)]
    program.producer.buffer_many(batch)
    program.buffered += [fields["payload"] for fields in batch]


def _flush_sync(program: Program) -> None:
    _buffer(program)
    reports = program.producer.flush_sync()
    program.stored += [report.label for report in reports]


def _flush_async(program: Program) -> None:
    _buffer(program)
    program.handles += program.producer.flush_async()


def _scope(program: Program) -> None:
    with program.producer.scope():
        program.send_async()
        program.send_async()


def _commit(program: Program) -> None:
    sent = []
    with program.producer.transaction():
        for _ in range(2):
            program.send_async()
            sent.append(program.handles[-1].label)
    program.stored += sent


def _abort(program: Program) -> None:
    with program.producer.transaction() as transaction:
        program.send_async()
        transaction.abort()


class _Read:
    """A message that a consumer has read."""

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


_consumers: list[Any] = []


def make_consumer() -> None:
    """Make the consumer of the verb "offsets".

    Not in the verb: confluent-kafka replaces an interrupt of its constructor by another
    error.

    Only the consumer's group is asked for, which takes no broker. So the consumer gets
    no address: it would connect some seconds later, in the middle of any point, where
    its descriptors would count as left open.
    """
    if not _consumers:
        from confluent_kafka import Consumer  # noqa: PLC0415 - where it is needed

        _consumers.append(Consumer({"group.id": "sweep", "log_level": 0}))


def _offsets(program: Program) -> None:
    with program.producer.transaction() as transaction:
        program.send_async()
        transaction.mark_as_consumed(_consumers[0], _Read())


def _pool(program: Program) -> None:
    if program.pool is None:
        program.pool = ProducerPool(program.make, size=2)
    with program.pool.producer() as producer:
        program.handles.append(producer.produce_async(**program.fields()))


def _pool_transaction(program: Program) -> None:
    if program.pool is None:
        program.pool = ProducerPool(program.make, size=2)
    with program.pool.transaction() as transaction:
        handle = transaction.producer.produce_async(**program.fields())
        program.handles.append(handle)


def _disconnect(program: Program) -> None:
    program.producer.disconnect()


def _close(program: Program) -> None:
    program.send_async()
    program.producer.close(PATIENCE)


def _reset(program: Program) -> None:
    program.producer.reset()
    program.send()


#: Verbs of all producers. Those in `FRESH` get a producer that was not used before,
#: the others one that has sent something.
VERBS: dict[str, Callable[[Program], None]] = {
    "first": Program.send,
    "first_async": Program.send_async,
    "sync": Program.send,
    "async": _send_async_and_wait,
    "many_sync": _many_sync,
    "many_async": _many_async,
    "flush_sync": _flush_sync,
    "flush_async": _flush_async,
    "scope": _scope,
    "pool": _pool,
    "disconnect": _disconnect,
    "close": _close,
    "reset": _reset,
}
#: Those of transactional producers only.
TRANSACTIONAL = {
    "commit": _commit,
    "abort": _abort,
    "offsets": _offsets,
    "pool_transaction": _pool_transaction,
}
FRESH = {"first", "first_async"}
#: Those after which the producer can't be used.
ENDING = {"close"}
#: Those that run in a forked child, whose parent has used the producer.
FORKED = {"reset"}
