"""Producers, pools and tasks of a soak: whatever they do is noted in the ledger."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from greendrop import GreendropError, IllegalWaitError, Message, Producer
from tests import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greendrop.events import Event
    from tests.soak.ledger import Attempt, Ledger

TOPIC = "soak"
PARTITIONS = 3

#: Seconds that anything may take beyond its limit on a busy machine.
SLACK = 15.0
#: Seconds that a sender waits for space in a queue, and for the number of partitions.
QUEUE_FULL, PARTITION_COUNT = 1.0, 5.0
#: Messages that a listener sends, at most.
_ECHOES = 20
#: Seconds that a listener waits.
_SLOW_LISTENER = 0.002


class MistakeError(Exception):
    """A mistake of the program: its listeners and transactions raise it."""


@dataclass(frozen=True)
class Kind:
    """The kind of a producer.

    Attributes:
        guarantee: "plain", "idempotent" or "transactional".
        queue: The limit of messages in librdkafka's queue.
        linger: Milliseconds.
        message_timeout: Milliseconds.
        patience: The producer's `max_wait_timeout`, in seconds.
        listener: "none", "raises", "sends" or "waits".
        reloads: Whether it replaces its client after a fatal error.
        statistics: Milliseconds between two events; 0 for none.
    """

    guarantee: str
    queue: int
    linger: int
    message_timeout: int
    patience: float
    listener: str
    reloads: bool
    statistics: int

    def producer(self, servers: str, number: int) -> Producer:
        """Construct a producer of this kind."""
        kafka: dict[str, Any] = {
            "bootstrap.servers": servers,
            "queue.buffering.max.messages": self.queue,
            "linger.ms": self.linger,
            "message.timeout.ms": self.message_timeout,
            "statistics.interval.ms": self.statistics,
            "reconnect.backoff.ms": 10,
            "reconnect.backoff.max.ms": 50,
            "retry.backoff.ms": 10,
            "retry.backoff.max.ms": 50,
            "topic.metadata.refresh.fast.interval.ms": 20,
        }
        settings: dict[str, Any] = {
            "id": f"soak-{number}",
            "max_wait_timeout": self.patience,
            "wait_timeout_on_queue_full": QUEUE_FULL,
            "reload_on_idempotent_fatal_error": self.reloads,
            "reload_on_transaction_fatal_error": self.reloads,
            "wait_backoff_on_idempotent_fatal_error": 0.01,
            "wait_backoff_on_transaction_fatal_error": 0.01,
            "wait_backoff_on_transaction_command": 0.01,
            "wait_timeout_on_transaction_abort": 0.1,
        }
        if self.guarantee == "idempotent":
            kafka["enable.idempotence"] = True
        if self.guarantee == "transactional":
            kafka["transactional.id"] = f"soak-{number}"
        return Producer(kafka=kafka, **settings)


class Subject:
    """A producer whose messages are noted in the ledger."""

    def __init__(self, ledger: Ledger, producer: Producer, listener: str) -> None:
        self.producer = producer
        self._ledger = ledger
        self._echoes = 0
        if listener == "raises":
            producer.monitor.subscribe("message.acknowledged", self._raise)
            producer.monitor.subscribe("error.occurred", self._raise)
        ledger.listen(producer)
        self._pid = os.getpid()
        if listener == "sends":
            producer.monitor.subscribe("message.acknowledged", self._echo)
            producer.monitor.subscribe("error.occurred", self._echo)
        if listener == "waits":
            producer.monitor.subscribe("message.acknowledged", self._wait)
        producer.monitor.subscribe("statistics.emitted", lambda _: None)

    @staticmethod
    def _raise(_: Event) -> None:
        raise MistakeError

    @staticmethod
    def _wait(_: Event) -> None:
        pause(_SLOW_LISTENER)

    def _echo(self, event: Event) -> None:
        # A forked child has a copy of the ledger, and would send labels that the parent
        # sends later.
        if os.getpid() != self._pid:
            return
        if "delivery_report" in event.payload and self._echoes < _ECHOES:
            self._echoes += 1
            # A transactional producer would have to wait for a transaction here.
            self.send("async", 1, "listener", allowed=IllegalWaitError)

    @property
    def patience(self) -> float:
        """Seconds that a sync verb may take."""
        wait: Any = self.producer.max_wait_timeout
        # The begin, the messages and the end of a transaction have a wait each, and a
        # second one each if the transaction has to be rolled back.
        waits = 6 if self.producer.transactional else 1
        return float(waits * wait + QUEUE_FULL + PARTITION_COUNT + SLACK)

    def send(
        self,
        verb: str,
        count: int,
        sender: str,
        *,
        producer: Producer | None = None,
        allowed: type[GreendropError] | None = None,
        **fields: Any,
    ) -> list[Attempt]:
        """Send messages by one verb.

        Args:
            verb: One of `VERBS`.
            count: The number of messages.
            sender: The name of the task.
            producer: A variant of the producer.
            allowed: An error that is no mistake here, beside the usual ones.
            fields: Fields of all messages.
        """
        producer = producer or self.producer
        sender = f"{sender} of {producer.id} {dict(producer.topic_config)}"
        sent: list[Attempt] = []
        for size in [count] if verb in MANY else [1] * count:
            attempts = self._ledger.begin(producer, sender, size)
            messages = [
                Message(
                    **{"topic": TOPIC, "payload": each.label, **fields},
                    label=each.label,
                )
                for each in attempts
            ]
            send = partial(_send, producer, verb, messages)
            self.call(verb, send, attempts, allowed)
            sent += attempts
        return sent

    def call(
        self,
        name: str,
        function: Callable[[], Any],
        attempts: Sequence[Attempt] = (),
        allowed: type[GreendropError] | None = None,
        patience: float | None = None,
    ) -> None:
        """Call a verb; note its result, the error, and how long it took."""
        with within(
            self._ledger, name, self.patience if patience is None else patience
        ):
            try:
                result = function()
            except GreendropError as error:
                self._ledger.fail(attempts, error)
                self._ledger.count_error(error)
                if isinstance(error, IllegalWaitError) and allowed is None:
                    self._ledger.note_broken(f"{name} raised {error!r}")
            except BaseException as error:
                self._ledger.fail(attempts, error)
                if isinstance(error, Exception) and not isinstance(error, MistakeError):
                    text = "".join(traceback.format_exception(error))
                    self._ledger.note_broken(f"{name} raised {text}")
                raise
            else:
                if attempts:
                    self._ledger.end(attempts, result)

    def transact(self, sender: str, sizes: Sequence[int], ending: str) -> None:
        """Run a transaction: some batches, and an ending."""
        sent: list[Attempt] = []
        transaction = self.producer.transaction()

        def block() -> None:
            with suppress(MistakeError), transaction:
                for index, size in enumerate(sizes):
                    verb = ("async", "many_async", "sync")[index % 3]
                    sent.extend(self.send(verb, size, sender))
                if ending == "abort":
                    transaction.abort()
                if ending == "raise":
                    raise MistakeError

        limit = self.patience * (1 + len(sizes))
        self.call("transaction", block, (), None, limit)
        handles = [each.handle for each in sent if each.handle is not None]
        if transaction.outcome == "committed":
            for each in handles:
                if each.report is None:
                    text = f"{each} is not delivered, and its transaction is committed"
                    self._ledger.note_broken(text)

    def close(self, timeout: float | None, *, force: bool) -> None:
        """Close the producer, and take over what it could not send."""
        producer = self.producer
        limit = SLACK + (producer.max_wait_timeout if timeout is None else timeout or 0)
        self.call(
            "close",
            partial(producer.close, timeout, force=force),
            patience=limit,
        )
        if producer.status != "closed":
            self._ledger.note_broken(f"after close {producer!r}")
        self._ledger.unsent += [each.label for each in producer.buffered]


#: The verbs that take one message, and those that take many, by their short names.
SINGLE = {
    "sync": "produce_sync",
    "async": "produce_async",
    "buffer": "buffer",
}
MANY = {
    "many_sync": "produce_many_sync",
    "many_async": "produce_many_async",
    "buffer_many": "buffer_many",
}
VERBS = sorted(SINGLE | MANY)


def _send(producer: Producer, verb: str, messages: list[Message]) -> Any:
    if verb in MANY:
        return getattr(producer, MANY[verb])(messages)
    (message,) = messages
    result = getattr(producer, SINGLE[verb])(**message._asdict())
    return None if result is None else [result]


@contextmanager
def within(ledger: Ledger, name: str, seconds: float) -> Iterator[None]:
    """Note that a block took too long, if it did."""
    started = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - started
        if taken > seconds:
            text = f"{name} took {taken:.1f} s, and not {seconds:.1f} s at most"
            ledger.note_broken(text)


class Job:
    """A task that runs beside the program: a greenlet, or a native thread."""

    def __init__(
        self, ledger: Ledger, function: Callable[[], object], *, native: bool
    ) -> None:
        self._ledger = ledger
        self._function = function
        self._done = False
        gevent = sys.modules.get("gevent")
        #: The greenlet, if it is one.
        self.greenlet: Any = None
        if gevent is None or (native and not is_patched()):
            threading.Thread(target=self._run, daemon=True).start()
        elif native:
            gevent.get_hub().threadpool.spawn(self._run)
        else:
            self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - noted
            text = "".join(traceback.format_exception(error))
            self._ledger.note_broken(f"a task ended with {text}")
        finally:
            if self.greenlet is None:
                _end_hub()
            self._done = True

    def kill(self) -> None:
        """End the greenlet wherever it is."""
        if self.greenlet is not None:
            self.greenlet.kill(block=False)

    def join(self, seconds: float) -> None:
        """Wait for the end of the task."""
        deadline = time.monotonic() + seconds
        # A greenlet that is killed before it begins never runs.
        while not (self._done or (self.greenlet is not None and self.greenlet.dead)):
            if time.monotonic() > deadline:
                self._ledger.note_broken(f"a task runs for over {seconds:.0f} s")
                return
            pause(0.005)


def _end_hub() -> None:
    """Destroy the hub that this thread got by waiting, as gevent's own threads do."""
    local: Any = sys.modules.get("gevent._hub_local")
    hub = None if local is None else local.get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)


def is_patched() -> bool:
    """Return whether gevent has patched threads in this program."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def pause(seconds: float) -> None:
    """Let other tasks run, on a thread with a hub or without."""
    tasks.sleep(seconds)
