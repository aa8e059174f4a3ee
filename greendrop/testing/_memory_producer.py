"""A producer whose brokers live in memory: what stands for librdkafka's in a test.

It has the methods of `cimpl.Producer` that `handle` calls, and behaves as librdkafka
does where a program can tell: order, limits of the queue, partitions, timeouts,
reports inside `poll`, transactions, fencing. What is stored, and what goes wrong, is in
`_memory_log`.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop import _concurrency
from greendrop._librdkafka.backend import KafkaException, native_error
from greendrop._librdkafka.partitioners import partitioner
from greendrop.message import UNASSIGNED, size_of
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

# Error numbers of Kafka and of librdkafka (rdkafka.h).
_UNKNOWN_TOPIC = 3
_TOO_LARGE = 10
_FATAL = -150
_PURGE_INFLIGHT = -151
_PURGE_QUEUE = -152
_FENCED = -144
_INCONSISTENT = -149
_STATE = -172
_TIMED_OUT = -185
_ALL_BROKERS_DOWN = -187
_UNKNOWN_PARTITION = -190
_MSG_TIMED_OUT = -192
_TRANSPORT = -195

# librdkafka's own defaults.
_MOST_BYTES = 1_000_000
_QUEUE_MESSAGES = 100_000
_QUEUE_KILOBYTES = 1_048_576
_MESSAGE_TIMEOUT = 300_000

#: Seconds: longer than any test.
_FOREVER = 86_400.0

#: Seconds between two looks whether another thread has served what one waits for.
_LOOK_EVERY = 0.01

# What `consumer_group_metadata()` gives: generation, name, and more.
_GROUP = re.compile(rb"CGMDv\d:.{4}([^\0]*)\0", re.DOTALL)


class _Sent:
    """A message on its way.

    Attributes:
        due: When a broker answers; None while no broker has it.
        expires: When it times out.
    """

    __slots__ = ("began", "callback", "due", "expires", "record", "transaction")

    def __init__(
        self,
        record: Record,
        callback: Callable[[Any, Any], object],
        expires: float,
        transaction: Transaction | None,
    ) -> None:
        self.record = record
        self.callback = callback
        self.began = _concurrency.monotonic()
        self.expires = expires
        self.due: float | None = None
        self.transaction = transaction


class _Told(NamedTuple):
    """What a delivery callback is given for a message."""

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
    """What brokers say of a topic."""

    error: Any
    partitions: Mapping[int, object]


class _Metadata(NamedTuple):
    """What brokers say of their topics."""

    topics: Mapping[str, _TopicMetadata]


class MemoryProducer:
    """Sends to brokers in memory. Used as librdkafka's: from any thread.

    Args:
        kafka: librdkafka's configuration, with callbacks.
        log: The brokers.
    """

    def __init__(self, kafka: Mapping[str, Any], log: MemoryLog) -> None:
        self._log = log
        self._on_error: Callable[[Any], object] = kafka.get("error_cb", lambda _: None)
        self._partitioner_name: str = kafka.get("partitioner", "consistent_random")
        self._partitioner = partitioner(self._partitioner_name)
        self._most_bytes = int(kafka.get("message.max.bytes", _MOST_BYTES))
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
        # Messages of the transaction that were not delivered.
        self._failed = 0
        #: Code and text of the error that ended it.
        self.fatal: tuple[int, str] | None = None
        self._closed = False
        # Held for a moment; then the log's.
        self._lock = _concurrency.new_lock()
        # In the order of sending, in which they are also answered and time out.
        self._sent: deque[_Sent] = deque()
        self._bytes = 0
        self._last_due = 0.0
        # Topics of which the brokers have said how many partitions there are.
        self._known_topics: set[str] = set()
        #: What has come in and was not polled.
        self.arrived = EventQueue()
        self._clock_runs = False
        self._clock = _concurrency.ThreadWaiter()
        if log.faults.down:
            self._complain()

    def __len__(self) -> int:
        return len(self._sent) + len(self.arrived)

    # --- sending -----------------------------------------------------------------

    def produce(  # noqa: PLR0917 - as confluent-kafka has it
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        callback: Callable[[Any, Any], object],
        _: None = None,
        timestamp: int = 0,
        headers: Sequence[tuple[str, HeaderValue]] | None = None,
    ) -> None:
        """Queue a message.

        Raises:
            BufferError: No room.
            KafkaException: It is refused.
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
        if self._id is not None and not self._log.owns(self._id, self):
            self._fail(_FENCED, "this transactional.id is used by another producer")
        if self.fatal is not None:
            raise _raised(_FATAL, f"Fatal error: {self.fatal[1]}", fatal=True)
        if self._id is not None and self._transaction is None:
            raise _raised(_STATE, "no transaction is open")
        if size_of(record.payload, record.key, record.headers) > self._most_bytes:
            raise _raised(_TOO_LARGE)
        # librdkafka refuses at once what it knows to have no place.
        if record.topic in self._known_topics and record.partition != UNASSIGNED:
            count = self._log.partitions_of(record.topic, create=False)
            if record.partition >= count:
                raise _raised(_UNKNOWN_PARTITION)
        messages, total = self._limits
        size = _size(record)
        if len(self) >= messages or self._bytes + size > total:
            raise BufferError("Local: Queue full")

    def _send(self, sent: _Sent, now: float) -> None:
        # Never before the one before it, although round trips may have become shorter.
        self._last_due = max(now + self._log.faults.round_trip, self._last_due)
        sent.due = self._last_due

    def _finish(self, now: float) -> float:
        """Answer what is due by now; give the time of what is next."""
        while self._sent:
            first = self._sent[0]
            due = math.inf if first.due is None else first.due
            if min(due, first.expires) > now:
                next_time = min(due, first.expires)
                self._start_clock(next_time - now)
                return next_time
            self._sent.popleft()
            self._answer(first, None if due <= now else _MSG_TIMED_OUT)
        return math.inf

    def _answer(self, sent: _Sent, failed: int | None) -> None:
        """Put the report on a message into the queue."""
        self._bytes -= _size(sent.record)
        record, code = sent.record, failed
        if code is None:
            record, code = self._placed(record)
        if code is None:
            code = self._log.faults.message(record)
        if code is not None:
            if sent.transaction is not None and sent.transaction is self._transaction:
                self._failed += 1
            placed = None if record.partition == UNASSIGNED else record.partition
            told = _Told(placed, None, -1, _concurrency.monotonic() - sent.began)
            self.arrived.add(partial(sent.callback, native_error(code), told))
            return
        offset = self._log.append(record, sent.transaction)
        told = _Told(
            record.partition,
            offset if self._acknowledged else None,
            record.timestamp,
            _concurrency.monotonic() - sent.began,
        )
        self.arrived.add(partial(sent.callback, None, told))

    def _placed(self, record: Record) -> tuple[Record, int | None]:
        """Give a record its partition, or the code of the error why it has none."""
        count = self._log.partitions_of(record.topic, create=True)
        if not count:
            return record, _UNKNOWN_TOPIC
        self._known_topics.add(record.topic)
        if record.partition == UNASSIGNED:
            name, function = self._partitioner_name, self._partitioner
            chosen = choose_partition(record.key, count, name, function)
            return record._replace(partition=chosen), None
        return record, None if record.partition < count else _UNKNOWN_PARTITION

    # --- time --------------------------------------------------------------------

    def look(self) -> None:
        """Take note that the brokers behave differently now."""
        with self._lock:
            if self._closed:
                return
            now = _concurrency.monotonic()
            if self._log.faults.down:
                self._complain()
                self._last_due = 0.0
            for sent in self._sent:
                if self._log.faults.down:
                    sent.due = None
                elif sent.due is None:
                    self._send(sent, now)
            self._finish(now)
        self._clock.wake()

    def _complain(self) -> None:
        for code in (_TRANSPORT, _ALL_BROKERS_DOWN):
            self.arrived.add(partial(self._on_error, native_error(code)))

    def _start_clock(self, seconds: float) -> None:
        # Only while something is to happen later: who needs no delays has no thread.
        if not self._clock_runs and seconds < math.inf:
            self._clock_runs = True
            _concurrency.start_new_thread(self._run_clock, ())

    def _run_clock(self) -> None:
        while True:
            with self._lock:
                next_time = self._finish(_concurrency.monotonic())
                if next_time == math.inf or self._closed:
                    self._clock_runs = False
                    return
            self._clock.wait(next_time - _concurrency.monotonic())

    # --- what comes in -----------------------------------------------------------

    def poll(self, seconds: float = 0) -> int:
        """Call back for what has come in, for up to some seconds if nothing has.

        Raises:
            KafkaException: A fatal error has occurred.
        """
        return self.arrived.serve(seconds)

    def flush(self, seconds: float = 0) -> int:
        """Wait until nothing is on its way; tell how many messages still are."""
        deadline = _concurrency.monotonic() + _limit(seconds)
        while len(self) and (left := deadline - _concurrency.monotonic()) > 0:
            # Another thread may serve what we wait for.
            self.arrived.serve(min(left, _LOOK_EVERY))
        return len(self)

    # --- other calls -------------------------------------------------------------

    def list_topics(self, topic: str, seconds: float) -> _Metadata:
        """Tell of a topic, which is created where the cluster does that.

        Blocking:
            Blocks the thread for a round trip.
        """
        faults = self._log.faults
        _concurrency.ThreadWaiter().wait(min(faults.round_trip, seconds))
        if faults.down or faults.round_trip > seconds:
            raise _raised(_TRANSPORT)
        count = self._log.partitions_of(topic, create=True)
        error = None if count else native_error(_UNKNOWN_TOPIC)
        return _Metadata({topic: _TopicMetadata(error, dict.fromkeys(range(count)))})

    def purge(self) -> None:
        """Drop all messages; each is reported as purged."""
        with self._lock:
            while self._sent:
                sent = self._sent.popleft()
                queued = sent.due is None
                self._answer(sent, _PURGE_QUEUE if queued else _PURGE_INFLIGHT)
        self._clock.wake()

    def fail(self, code: int, reason: str) -> None:
        """Fail for good."""
        with self._lock:
            self._fail(code, reason)

    def _fail(self, code: int, reason: str) -> None:
        if self.fatal is None:
            self.fatal = (code, reason)
            self.arrived.add(lambda: _raise(_raised(_FATAL, reason, fatal=True)))

    def close(self) -> None:
        """End; what is still on its way is dropped."""
        self._closed = True
        with self._lock:
            self._sent.clear()
        self._clock.wake()
        self.arrived.silence()

    # --- transactions ------------------------------------------------------------

    def init_transactions(self, seconds: float = -1) -> None:
        """Take the `transactional.id` over; who had it is fenced."""
        self._call("init_transactions", seconds)
        if self._id is None:
            raise _raised(_STATE, "no transactional.id is configured")
        self._log.own(self._id, self)
        self._initialised = True

    def begin_transaction(self) -> None:
        """Open a transaction."""
        self._call("begin_transaction", 0)
        if not self._initialised or self._transaction is not None:
            raise _raised(_STATE, "not the time to begin a transaction")
        self._transaction = Transaction()

    def commit_transaction(self, seconds: float = -1) -> None:
        """Commit, once all messages have their verdict."""
        transaction = self._ongoing()
        self._call("commit_transaction", seconds)
        if self.flush(seconds):
            raise _raised(_TIMED_OUT, "messages are still on their way", retriable=True)
        if self._failed:
            self._must_abort = _INCONSISTENT
            text = f"{self._failed} message(s) failed delivery"
            raise _raised(_INCONSISTENT, text, abortable=True)
        self._log.end(transaction, "committed")
        self._transaction = None

    def abort_transaction(self, seconds: float = -1) -> None:
        """Abort; what is still on its way is dropped."""
        transaction = self._ongoing()
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
            group: Its name, or what `consumer_group_metadata()` gave.
            seconds: As long as it may take.
        """
        transaction = self._ongoing()
        self._call("send_offsets_to_transaction", seconds)
        for each in positions:
            place = (_group_name(group), each.topic, each.partition)
            transaction.offsets[place] = each.offset

    def _ongoing(self) -> Transaction:
        transaction = self._transaction
        if transaction is None:
            raise _raised(_STATE, "no transaction is open")
        return transaction

    def _call(self, name: str, seconds: float) -> None:
        """Do what every call of a transactional producer may meet."""
        with self._lock:
            if self._initialised and not self._log.owns(self._id or "", self):
                self._fail(_FENCED, "this transactional.id is used by another producer")
            if self.fatal is not None:
                raise _raised(_FATAL, f"Fatal error: {self.fatal[1]}", fatal=True)
        if self._must_abort is not None and name != "abort_transaction":
            raise _raised(self._must_abort, abortable=True)
        failure = self._log.faults.call(name)
        if failure is not None:
            if failure.fatal:
                self.fail(failure.code, f"ordered by a test, in {name}")
            if failure.abortable:
                self._must_abort = failure.code
            raise _raised(
                failure.code,
                fatal=failure.fatal,
                retriable=failure.retriable,
                abortable=failure.abortable,
            )
        if self._log.faults.down and name != "begin_transaction":
            _concurrency.ThreadWaiter().wait(_limit(seconds))
            raise _raised(_TIMED_OUT, retriable=True)


def _limit(seconds: float) -> float:
    """Read a timeout as librdkafka does: what is negative never ends."""
    return seconds if seconds >= 0 else _FOREVER


def _group_name(group: object) -> str:
    """Read the group's name from what librdkafka's consumers give."""
    found = _GROUP.match(group) if isinstance(group, bytes) else None
    return found[1].decode() if found else str(group)


def _size(record: Record) -> int:
    """Return what librdkafka counts of `queue.buffering.max.kbytes`: no key."""
    return len(record.payload or b"")


def _raised(
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
