"""A test double of librdkafka's producer, with brokers in memory.

It has the methods of `cimpl.Producer` that `_librdkafka.handle` calls, and behaves like
librdkafka in all that a program can observe: order, limits of the queue, partitions,
timeouts, reports inside `poll`, transactions and fencing.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop import _concurrency
from greendrop._librdkafka import error_codes
from greendrop._librdkafka.backend import KafkaException, native_error
from greendrop._librdkafka.partitioners import partitioner
from greendrop._validation import UNASSIGNED, size_of
from greendrop.testing._event_queue import EventQueue
from greendrop.testing._memory_log import (
    MemoryLog,
    Record,
    Transaction,
    choose_partition,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from greendrop.message import HeaderValue

# librdkafka's own defaults.
_MAX_BYTES = 1_000_000
_QUEUE_MESSAGES = 100_000
_QUEUE_KILOBYTES = 1_048_576
_MESSAGE_TIMEOUT = 300_000

#: Seconds of a wait without limit, longer than any test.
_FOREVER = 86_400.0

#: Seconds between two checks whether another thread has polled the awaited reports.
_CHECK_INTERVAL = 0.01

# The format of `consumer_group_metadata()`: generation, name, and more.
_GROUP = re.compile(rb"CGMDv\d:.{4}([^\0]*)\0", re.DOTALL)


class _Sent:
    """A message in flight.

    Attributes:
        due: When a broker answers; None while the brokers are down.
        expires: When the message times out.
    """

    __slots__ = ("callback", "due", "expires", "record", "started", "transaction")

    def __init__(
        self,
        record: Record,
        callback: Callable[..., object],
        expires: float,
        transaction: Transaction | None,
    ) -> None:
        self.record = record
        self.callback = callback
        self.started = _concurrency.monotonic()
        self.expires = expires
        self.due: float | None = None
        self.transaction = transaction


class _Report(NamedTuple):
    """The message that a delivery callback receives."""

    chosen: int | None
    stored_at: int | None
    milliseconds: int
    seconds: float

    def partition(self) -> int | None:
        return self.chosen

    def offset(self) -> int | None:
        return self.stored_at

    def timestamp(self) -> tuple[int, int]:
        return (1, self.milliseconds)

    def latency(self) -> float:
        return self.seconds


class _TopicMetadata(NamedTuple):
    """The metadata of a topic."""

    error: Any
    partitions: Mapping[int, object]


class _Metadata(NamedTuple):
    """The metadata of the cluster."""

    topics: Mapping[str, _TopicMetadata]


class MemoryProducer:
    """A producer that sends to brokers in memory; safe to use from any thread.

    Args:
        kafka: librdkafka's configuration, with callbacks.
        log: The storage of the brokers.
    """

    def __init__(self, kafka: Mapping[str, Any], log: MemoryLog) -> None:
        self._log = log
        self._on_error: Callable[..., object] = kafka.get("error_cb", lambda _: None)
        self._partitioner_name: str = kafka.get("partitioner", "consistent_random")
        self._partitioner = partitioner(self._partitioner_name)
        self._max_bytes = int(kafka.get("message.max.bytes", _MAX_BYTES))
        self._limits = (
            int(kafka.get("queue.buffering.max.messages", _QUEUE_MESSAGES)) or math.inf,
            int(kafka.get("queue.buffering.max.kbytes", _QUEUE_KILOBYTES)) * 1024,
        )
        acks = kafka.get("acks", kafka.get("request.required.acks"))
        self._acknowledged = acks != "0"
        timeout = kafka.get("message.timeout.ms", kafka.get("delivery.timeout.ms"))
        milliseconds = float(_MESSAGE_TIMEOUT if timeout is None else timeout)
        self._timeout = milliseconds / 1000 or math.inf
        self._id: str | None = kafka.get("transactional.id")
        self._transaction: Transaction | None = None
        self._initialised = False
        # The error after which a transaction can only be aborted.
        self._must_abort: int | None = None
        # Number of messages of the transaction that were not delivered.
        self._failed = 0
        #: Code and text of the fatal error, if any.
        self.fatal: tuple[int, str] | None = None
        self._closed = False
        # Held only for moments. The lock of the log may be taken inside it.
        self._lock = _concurrency.new_lock()
        # In the order of sending, which is also that of answers and timeouts.
        self._sent: deque[_Sent] = deque()
        self._bytes = 0
        self._last_due = 0.0
        # Topics whose number of partitions is known to this client.
        self._known_topics: set[str] = set()
        #: Events that wait for a poll.
        self.arrived = EventQueue()
        self._timer_runs = False
        self._timer = _concurrency.ThreadWaiter()
        if log.faults.down:
            self._report_down()

    def __len__(self) -> int:
        return len(self._sent) + len(self.arrived)

    # --- sending -----------------------------------------------------------------

    def produce(  # noqa: PLR0917 - confluent-kafka's signature
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        callback: Callable[..., object],
        _: None = None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, HeaderValue]] | None = None,
    ) -> None:
        """Queue a message.

        Raises:
            BufferError: The queue is full.
            KafkaException: The message was refused.
        """
        record = Record(
            topic,
            partition,
            -1,
            timestamp or time.time_ns() // 1_000_000,
            key,
            value,
            list(headers or ()),
        )
        with self._lock:
            self._check(record)
            now = _concurrency.monotonic()
            sent = _Sent(record, callback, now + self._timeout, self._transaction)
            self._sent.append(sent)
            self._bytes += _size(record)
            if not self._log.faults.down:
                self._send(sent, now)
            self._finish(now)

    def _check(self, record: Record) -> None:
        if self._id is not None and not self._log.is_owner(self._id, self):
            self._fail(
                error_codes.FENCED, "this transactional.id is used by another producer"
            )
        if self.fatal is not None:
            raise _make_error(
                error_codes.FATAL, f"Fatal error: {self.fatal[1]}", fatal=True
            )
        if self._id is not None and self._transaction is None:
            raise _make_error(error_codes.STATE, "no transaction is open")
        if size_of(record.payload, record.key, record.headers) > self._max_bytes:
            raise _make_error(error_codes.MESSAGE_TOO_LARGE)
        # librdkafka refuses at once a partition that it knows not to exist.
        if record.topic in self._known_topics and record.partition != UNASSIGNED:
            count = self._log.partitions_of(record.topic, create=False)
            if 0 < count <= record.partition:
                raise _make_error(error_codes.UNKNOWN_PARTITION)
        messages, total = self._limits
        size = _size(record)
        if len(self) >= messages or self._bytes + size > total:
            raise BufferError("Local: Queue full")

    def _send(self, sent: _Sent, now: float) -> None:
        # Never before its predecessor, although round trips may have become shorter.
        self._last_due = max(now + self._log.faults.round_trip, self._last_due)
        sent.due = self._last_due

    def _finish(self, now: float) -> float:
        """Answer the messages that are due, and return when the next one is."""
        while self._sent:
            first = self._sent[0]
            due = math.inf if first.due is None else first.due
            if min(due, first.expires) > now:
                next_time = min(due, first.expires)
                self._start_timer(next_time - now)
                return next_time
            self._sent.popleft()
            self._answer(first, None if due <= now else error_codes.MSG_TIMED_OUT)
        return math.inf

    def _answer(self, sent: _Sent, error_code: int | None) -> None:
        """Queue the delivery report of a message."""
        self._bytes -= _size(sent.record)
        record, code = sent.record, error_code
        if code is None:
            record, code = self._assign_partition(record)
        if code is None:
            code = self._log.faults.message(record)
        if code is not None:
            if sent.transaction is not None and sent.transaction is self._transaction:
                self._failed += 1
            partition = None if record.partition == UNASSIGNED else record.partition
            report = _Report(
                partition, None, -1, _concurrency.monotonic() - sent.started
            )
            self.arrived.add(partial(sent.callback, native_error(code), report))
            return
        offset = self._log.append(record, sent.transaction)
        report = _Report(
            record.partition,
            offset if self._acknowledged else None,
            record.timestamp,
            _concurrency.monotonic() - sent.started,
        )
        self.arrived.add(partial(sent.callback, None, report))

    def _assign_partition(self, record: Record) -> tuple[Record, int | None]:
        """Return the record with its partition, or with the code of an error."""
        count = self._log.partitions_of(record.topic, create=True)
        if not count:
            return record, error_codes.UNKNOWN_TOPIC_OR_PARTITION
        self._known_topics.add(record.topic)
        if record.partition == UNASSIGNED:
            name, function = self._partitioner_name, self._partitioner
            chosen = choose_partition(record.key, count, name, function)
            return record._replace(partition=chosen), None
        return (
            record,
            None if record.partition < count else error_codes.UNKNOWN_PARTITION,
        )

    # --- delayed answers ---------------------------------------------------------

    def on_change(self) -> None:
        """Apply a change of the faults."""
        with self._lock:
            if self._closed:
                return
            now = _concurrency.monotonic()
            if self._log.faults.down:
                self._report_down()
                self._last_due = 0.0
            for sent in self._sent:
                if self._log.faults.down:
                    sent.due = None
                elif sent.due is None:
                    self._send(sent, now)
            self._finish(now)
        self._timer.wake()

    def _report_down(self) -> None:
        for code in (error_codes.TRANSPORT, error_codes.ALL_BROKERS_DOWN):
            self.arrived.add(partial(self._on_error, native_error(code)))

    def _start_timer(self, seconds: float) -> None:
        # The thread runs only while a delayed answer is due.
        if not self._timer_runs and seconds < math.inf:
            self._timer_runs = True
            _concurrency.start_new_thread(self._run_timer, ())

    def _run_timer(self) -> None:
        while True:
            with self._lock:
                next_time = self._finish(_concurrency.monotonic())
                if next_time == math.inf or self._closed:
                    self._timer_runs = False
                    return
            self._timer.wait(next_time - _concurrency.monotonic())

    # --- polling -----------------------------------------------------------------

    def poll(self, seconds: float = 0) -> int:
        """Run the callbacks of waiting events, or wait for one.

        Raises:
            KafkaException: A fatal error has occurred.
        """
        return self.arrived.serve(seconds)

    def flush(self, seconds: float = 0) -> int:
        """Wait until no message is in flight; return how many still are."""
        deadline = _concurrency.Deadline(_limit(seconds))
        while len(self) and (remaining := deadline.remaining()):
            # Another thread may poll the awaited reports.
            self.arrived.serve(min(remaining, _CHECK_INTERVAL))
        return len(self)

    # --- other calls -------------------------------------------------------------

    def list_topics(self, topic: str, seconds: float) -> _Metadata:
        """Return the metadata of a topic; create it if the cluster creates topics.

        Blocking:
            Blocks the thread for a round trip.
        """
        faults = self._log.faults
        _concurrency.ThreadWaiter().wait(min(faults.round_trip, seconds))
        if faults.down or faults.round_trip > seconds:
            raise _make_error(error_codes.TRANSPORT)
        count = self._log.partitions_of(topic, create=True)
        error = None if count else native_error(error_codes.UNKNOWN_TOPIC_OR_PARTITION)
        return _Metadata({topic: _TopicMetadata(error, dict.fromkeys(range(count)))})

    def purge(self) -> None:
        """Drop all messages; each is reported as purged."""
        with self._lock:
            while self._sent:
                sent = self._sent.popleft()
                queued = sent.due is None
                self._answer(
                    sent,
                    error_codes.PURGE_QUEUE if queued else error_codes.PURGE_INFLIGHT,
                )
        self._timer.wake()

    def fail(self, code: int, reason: str) -> None:
        """Cause a fatal error."""
        with self._lock:
            self._fail(code, reason)

    def _fail(self, code: int, reason: str) -> None:
        if self.fatal is None:
            self.fatal = (code, reason)
            self.arrived.add(
                lambda: _raise(_make_error(error_codes.FATAL, reason, fatal=True))
            )

    def close(self) -> None:
        """Close the producer, and drop messages in flight."""
        self._closed = True
        with self._lock:
            self._sent.clear()
        self._timer.wake()
        self.arrived.silence()

    # --- transactions ------------------------------------------------------------

    def init_transactions(self, seconds: float = -1) -> None:
        """Claim the `transactional.id`; its previous owner is fenced."""
        self._call("init_transactions", seconds)
        if self._id is None:
            raise _make_error(error_codes.STATE, "no transactional.id is configured")
        self._log.claim(self._id, self)
        self._initialised = True

    def begin_transaction(self) -> None:
        """Open a transaction."""
        self._call("begin_transaction", 0)
        if not self._initialised or self._transaction is not None:
            raise _make_error(
                error_codes.STATE, "can't begin a transaction in this state"
            )
        self._transaction = Transaction()

    def commit_transaction(self, seconds: float = -1) -> None:
        """Commit, when all messages are reported."""
        transaction = self._open_transaction()
        self._call("commit_transaction", seconds)
        if self.flush(seconds):
            raise _make_error(
                error_codes.TIMED_OUT, "messages are still in flight", retriable=True
            )
        if self._failed:
            self._must_abort = error_codes.INCONSISTENT
            text = f"{self._failed} message(s) failed delivery"
            raise _make_error(error_codes.INCONSISTENT, text, abortable=True)
        self._log.end(transaction, "committed")
        self._transaction = None

    def abort_transaction(self, seconds: float = -1) -> None:
        """Abort, and drop messages in flight."""
        transaction = self._open_transaction()
        self._call("abort_transaction", seconds)
        self.purge()
        self._log.end(transaction, "aborted")
        self._transaction = self._must_abort = None
        self._failed = 0

    def send_offsets_to_transaction(
        self, positions: Sequence[Any], group: object, seconds: float = -1
    ) -> None:
        """Commit a group's offsets with the transaction.

        Args:
            positions: Objects with topic, partition and offset.
            group: The name of the group, or the result of `consumer_group_metadata()`.
            seconds: The timeout.
        """
        transaction = self._open_transaction()
        self._call("send_offsets_to_transaction", seconds)
        for each in positions:
            key = (_group_name(group), each.topic, each.partition)
            transaction.offsets[key] = each.offset

    def _open_transaction(self) -> Transaction:
        transaction = self._transaction
        if transaction is None:
            raise _make_error(error_codes.STATE, "no transaction is open")
        return transaction

    def _call(self, name: str, seconds: float) -> None:
        """Raise the error that a transaction call has to raise, if any."""
        with self._lock:
            if self._initialised and not self._log.is_owner(self._id or "", self):
                self._fail(
                    error_codes.FENCED,
                    "this transactional.id is used by another producer",
                )
            if self.fatal is not None:
                raise _make_error(
                    error_codes.FATAL, f"Fatal error: {self.fatal[1]}", fatal=True
                )
        if self._must_abort is not None and name != "abort_transaction":
            raise _make_error(self._must_abort, abortable=True)
        failure = self._log.faults.call(name)
        if failure is not None:
            if failure.fatal:
                self.fail(failure.code, f"caused by a test, in {name}")
            if failure.abortable:
                self._must_abort = failure.code
            raise _make_error(
                failure.code,
                fatal=failure.fatal,
                retriable=failure.retriable,
                abortable=failure.abortable,
            )
        if self._log.faults.down and name != "begin_transaction":
            _concurrency.ThreadWaiter().wait(_limit(seconds))
            raise _make_error(error_codes.TIMED_OUT, retriable=True)


def _limit(seconds: float) -> float:
    """Convert a timeout of librdkafka, where a negative one never ends."""
    return seconds if seconds >= 0 else _FOREVER


def _group_name(group: object) -> str:
    """Return the name in the group metadata of librdkafka's consumers."""
    found = _GROUP.match(group) if isinstance(group, bytes) else None
    return found[1].decode() if found else str(group)


def _size(record: Record) -> int:
    """Return the size for `queue.buffering.max.kbytes`, which ignores keys."""
    return len(record.payload or b"")


def _make_error(
    code: int,
    text: str | None = None,
    *,
    fatal: bool = False,
    retriable: bool = False,
    abortable: bool = False,
) -> Exception:
    error = native_error(
        code, text, fatal=fatal, retriable=retriable, abortable=abortable
    )
    return KafkaException(error)


def _raise(error: Exception) -> None:
    raise error
