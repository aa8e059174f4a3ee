"""The handle of one librdkafka producer: safe calls, and translation of results.

confluent-kafka's errors, callbacks and messages are translated here and appear nowhere
above this package. Its callbacks fill two queues, delivery reports and client events,
and wake the poller by a file descriptor. This module knows nothing of greenlets,
pollers and senders, which belong to `_client`.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections import deque
from functools import partial
from itertools import repeat, starmap, tee
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import cimpl

from greendrop import _concurrency, _wording
from greendrop._concurrency.wakeup import WakeupFd
from greendrop._frames import concealed
from greendrop._librdkafka.backend import backend_for
from greendrop._librdkafka.bindings import exhaust
from greendrop._librdkafka.errors import ErrorTranslator, native_name
from greendrop.errors import (
    BrokerError,
    ConfigurationInvalidError,
    OAuthTokenError,
    ProducerClosedError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from greendrop.config.settings import Settings
    from greendrop.delivery import ReportQueue
    from greendrop.errors import DeliveryError
    from greendrop.oauth import OAuthToken

#: A message as the arguments of confluent-kafka's `produce`, in its order: topic,
#: payload, key, partition, delivery callback, None, timestamp, headers.
Wire: TypeAlias = "tuple[Any, ...]"

#: Delivery reports that one poll returns at most, so that other greenlets can run.
#: Handling 500 reports takes 1 to 2 ms, including their waiters.
_REPORTS_PER_POLL = 500
#: Seconds that closing waits for long calls to return from librdkafka. Requests for
#: metadata take 2 s at most.
_LONGEST_CALL = 3.0
#: Seconds that aborting an open transaction may take when the client closes.
_LAST_ABORT = 1.0

# Since version 2.16 confluent-kafka's `close` aborts an open transaction, and warns if
# that fails. After a fatal error it always fails.
warnings.filterwarnings(
    "ignore", r"Producer \w+ failed during close", RuntimeWarning, __name__
)

_QUEUE_FULL = cimpl.KafkaError._QUEUE_FULL

# Producers of the parent process, in a forked child. They are never freed: the
# destructor would wait 1 s for each thread that the child doesn't have, or hang.
_inherited: list[object] = []
# Producers that could not be closed, because a call was still inside librdkafka. They
# are never freed either: the destructor would free memory that the call uses.
_leaked: list[object] = []


class KafkaHandle:
    """One librdkafka producer. Locks keep closing apart from calls in other threads.

    Args:
        settings: The settings of the producer.
        statistics: Whether librdkafka emits statistics.
        reports: Receives the delivery reports.

    Raises:
        ConfigurationInvalidError: librdkafka refused the configuration.
    """

    def __init__(
        self, settings: Settings, reports: ReportQueue, *, statistics: bool
    ) -> None:
        self._settings = settings
        self._reports = reports
        #: librdkafka, or a test double of it.
        self.backend = backend_for(settings.kafka)
        #: Errors, statistics and log lines of librdkafka, and stalls: kind and content.
        self.client_events: deque[tuple[str, Any]] = deque()
        #: Translates the errors of this producer.
        self.error_translator = ErrorTranslator(settings, self)
        self.closed = False
        #: Whether a transaction has begun and not ended.
        self.in_transaction = False
        #: Whether `init_transactions` has succeeded.
        self.is_initialized = False
        #: Messages that librdkafka refused, except because of a full queue.
        self.refused = 0
        # Lock order: poll_lock, send_lock.
        #: Held during each poll. Closing takes it, because closing librdkafka while
        #: another thread is inside crashes the process.
        self.poll_lock = _concurrency.new_lock()
        #: Held during each call that queues messages, for the same reason.
        self.send_lock = _concurrency.new_lock()
        #: Whether a signal handler has raised in a poll. A report may be lost then.
        self.interrupted = False
        # The thread that is inside `poll`; 0 if none is.
        self._poll_ident = 0
        # Long calls that are inside librdkafka; added under `send_lock`.
        self._calls: set[object] = set()
        self._call_ended = _concurrency.ThreadWaiter()
        #: Set when a report or a client event has arrived.
        self.wakeup = WakeupFd()
        try:
            self.producer: Any = self._build(statistics=statistics)
        except BaseException:
            self.wakeup.close()
            raise
        self._queue = self.backend.main_queue(self.producer)
        queue = self._queue
        if queue is not None and not queue.signal_on(self.wakeup.write_fd):
            queue.release()
            self._queue = None

    @concealed
    def _build(self, *, statistics: bool) -> Any:  # noqa: ANN401
        kafka: dict[str, object] = dict(self._settings.kafka)
        if self._settings.transactional:
            kafka["transactional.id"] = self._settings.transactional_id
        kafka["error_cb"] = partial(self.enqueue_event, "error")
        if statistics:
            kafka["stats_cb"] = partial(self.enqueue_event, "statistics")
        else:
            kafka["statistics.interval.ms"] = "0"
        try:
            with _concurrency.batch_scheduling():
                return self.backend.build(kafka, _Logger(self))
        except cimpl.KafkaException as error:
            reason = self.error_translator.translate(error.args[0])
            raise ConfigurationInvalidError({"kafka": str(reason)}) from reason
        except (TypeError, ValueError) as error:
            text = self._settings.redact(_wording.reason(error))
            raise ConfigurationInvalidError({"kafka": text}) from None

    @property
    def wakes_poller(self) -> bool:
        """Whether arriving reports and client events set `wakeup`."""
        return self._queue is not None

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a message in librdkafka nor an unhandled report."""
        return not (len(self.producer) or self._reports)

    # --- sending -----------------------------------------------------------------

    def enqueue_all(self, wires: deque[Wire]) -> tuple[Wire, Exception] | None:
        """Give messages to librdkafka, in order, until it refuses one.

        Hold `send_lock`, and check before that the handle is not closed. Each message
        leaves the queue and reaches librdkafka in one step in C, which no signal
        handler can interrupt.

        Args:
            wires: The messages. Those that librdkafka gets, and the refused one, are
                removed.

        Returns:
            The refused message and its error, or None if librdkafka got all messages.
        """
        # `taken` repeats the removed messages. After an error its next one is the
        # message that librdkafka refused.
        going, taken = tee(starmap(wires.popleft, repeat((), len(wires))))
        try:
            exhaust(zip(starmap(self.producer.produce, going), taken, strict=False))
        except IndexError:
            return None  # a signal handler that sends has given the rest to librdkafka
        except Exception as error:
            refused = next(taken, None)
            if refused is None:
                raise  # of a signal handler, after librdkafka got all messages
            return refused, error
        return None

    # --- polling -----------------------------------------------------------------

    def poll(self, seconds: float) -> BaseException | None:
        """Poll librdkafka: fill the queues of reports and client events.

        Args:
            seconds: How long to wait for the first report or event.

        Returns:
            The exception of a signal handler of the program that raised meanwhile.
        """
        ident = _concurrency.get_ident()
        if not seconds and self._poll_ident not in (0, ident):
            # Another thread is polling and will handle the reports. A hub must not wait
            # for that thread: it polls again after other greenlets have run.
            self.wakeup.set()
            return None
        reports = self._reports
        try:
            with self.poll_lock:
                if not self.closed:
                    self._poll_ident = ident
                    reports.limit = _REPORTS_PER_POLL
                    self.producer.poll(seconds)
        except cimpl.KafkaException as error:
            # confluent-kafka raises fatal errors here and does not call error_cb.
            self.client_events.append(("error", error.args[0]))
        except BaseException as error:  # noqa: BLE001
            # A signal handler of the program raised, or a callback of greendrop, which
            # would be a bug. Neither may end the poller.
            self.interrupted = True
            if isinstance(error, SystemError):
                # Up to Python 3.11 confluent-kafka loses an exception without a value,
                # such as that of Ctrl-C, and Python raises SystemError instead.
                return KeyboardInterrupt()
            return error
        finally:
            reports.limit = 0
            self._poll_ident = 0
        return None

    def interrupt_poll(self) -> None:
        """Make a poll in another thread return."""
        with self.send_lock:
            if self._queue is not None and not self.closed:
                self._queue.wake()

    def flush_linger(self) -> None:
        """Send the messages that the user's `linger.ms` delays; polling does not.

        Blocking:
            Blocks the hub for at most 1 ms.
        """
        with self.poll_lock:
            if not self.closed:
                try:
                    self.producer.flush(0.001)
                except cimpl.KafkaException as error:
                    self.client_events.append(("error", error.args[0]))
                    self.wakeup.set()
                except BaseException:
                    self.interrupted = True
                    raise

    def on_limit(self) -> None:
        """Stop the poll when enough reports have arrived. Called in delivery callbacks.

        The callback runs in `poll`, or in a flush or close by another thread.
        """
        if _concurrency.get_ident() != self._poll_ident:
            self.wakeup.set()
        elif len(self._reports) >= _REPORTS_PER_POLL and self._queue is not None:
            # librdkafka keeps the other reports in order, and signals again.
            self._queue.yield_poll()

    def note_stall(self, seconds: float, stack: str | None) -> None:
        """Enqueue the client event of a stalled hub. Called from any thread."""
        self.client_events.append(("stall", (seconds, stack)))
        self.wakeup.set()

    def enqueue_event(self, kind: str, content: Any) -> None:  # noqa: ANN401
        """Enqueue a client event; a callback of librdkafka, so it only appends."""
        self.client_events.append((kind, content))
        if not self._reports.limit:
            self.wakeup.set()

    # --- OAuth -------------------------------------------------------------------

    def set_token(self, token: OAuthToken) -> None:
        """Pass the OAuth token to librdkafka. Does nothing if the handle is closed.

        Raises:
            OAuthTokenError: librdkafka refuses the token.
        """
        with self.send_lock:
            if self.closed:
                return
            code = self.backend.set_oauth_token(self.producer, token)
        if code is None:
            text = "can't set the OAuth token: greendrop can't reach this librdkafka"
            raise OAuthTokenError(text)
        if code:
            text = f"librdkafka refuses the OAuth token ({native_name(code)}, {code})"
            raise OAuthTokenError(text)

    # --- errors ------------------------------------------------------------------

    def broker_error(self, error: BaseException) -> BrokerError | None:
        """Translate an exception of confluent-kafka; None for any other exception."""
        if isinstance(error, cimpl.KafkaException):
            return self.error_translator.translate(error.args[0])
        return None

    def enqueue_error(self, topic: str, error: Exception) -> DeliveryError:
        """Create the error of a message that librdkafka refused, and count it."""
        self.refused += 1
        return self.error_translator.enqueue_error(
            topic, self.broker_error(error) or error
        )

    def queue_full(self, outstanding: int) -> QueueFullError:
        """Create the error of a message for which the queue has no space.

        Args:
            outstanding: Messages in flight.
        """
        text = (
            f"the queue is full ({_wording.count(outstanding, 'message')} outstanding;"
            " queue.buffering.max.messages or .kbytes); this message was not queued"
        )
        full = QueueFullError(text)
        full.__cause__ = self.error_translator.translate(cimpl.KafkaError(_QUEUE_FULL))
        return full

    # --- long calls --------------------------------------------------------------

    def fetch_partition_count(self, topic: str, seconds: float) -> int:
        """Ask a broker for the number of partitions of a topic.

        The broker may create the topic.

        Args:
            topic: The name of the topic.
            seconds: How long to wait for the answer.

        Raises:
            BrokerError: The error of librdkafka or of the broker.
            ProducerClosedError: The handle is closed.

        Blocking:
            Blocks the thread and its hub, so call it on a native thread.
        """
        with self._long_call():
            try:
                metadata = self.producer.list_topics(topic, seconds)
            except cimpl.KafkaException as error:
                raise self.error_translator.translate(error.args[0]) from error
        found = metadata.topics[topic]
        if found.error is not None:
            raise self.error_translator.translate(found.error)
        return len(found.partitions)

    def await_purge(self) -> None:
        """Purge again, and wait until librdkafka's threads have dropped the messages.

        Raises:
            ProducerClosedError: The handle is closed.

        Blocking:
            Blocks the thread and its hub, so call it on a native thread.
        """
        with self._long_call():
            self.backend.purge(self.producer)

    def init_transactions(self, seconds: float) -> None:
        """Initialize transactions, and fence older producers with the same id.

        Call this method and the ones below one at a time, on a native thread. A call
        that times out continues in librdkafka, and only the same call again returns its
        result.

        Args:
            seconds: How long to wait for the brokers.

        Raises:
            BrokerError: The error of librdkafka or of a broker; `_TIMED_OUT` after a
                timeout.
            ProducerClosedError: The handle is closed.

        Blocking:
            Blocks the thread and its hub.
        """
        with self._transaction_call():
            self.producer.init_transactions(seconds)
        self.is_initialized = True

    def begin_transaction(self) -> None:
        """Begin a transaction. librdkafka does this without the brokers.

        Raises:
            BrokerError, ProducerClosedError: As `init_transactions`.

        Blocking:
            Blocks the hub for 0.1 ms.
        """
        self.in_transaction = True  # stays so if a signal handler raises meanwhile
        try:
            self._begin()
        except Exception:
            self.in_transaction = False
            raise

    def transaction_error(self) -> BrokerError | None:
        """Return the error that failed the open transaction, or None.

        librdkafka drops the messages of a failed transaction, and reports the reason
        only to the next call. A second `begin_transaction` is the one call without an
        effect: while a transaction is open librdkafka refuses it, with the reason of
        the failure or because of the state.

        Call this method in the task that has the transaction, so that no other call of
        the transaction runs at the same time.

        Blocking:
            Blocks the hub for 0.1 ms.
        """
        if not self.in_transaction:
            return None
        try:
            self._begin()
        except BrokerError as error:
            return error if error.fatal or error.abortable else None
        except ProducerClosedError:
            return None
        return None

    def send_offsets(
        self,
        seconds: float,
        offsets: Iterable[tuple[str, int, int, str | None]],
        group: object,
    ) -> None:
        """Add a consumer's offsets to the transaction.

        After a timeout the call may be repeated, but need not be.

        Args:
            seconds: As for `init_transactions`.
            offsets: For each partition: topic, partition, offset of the next message,
                and metadata or None.
            group: The result of a consumer's `consumer_group_metadata()`.

        Raises, Blocking:
            As `init_transactions`.
        """
        positions = [
            cimpl.TopicPartition(topic, partition, offset, metadata)
            if metadata is not None
            else cimpl.TopicPartition(topic, partition, offset)
            for topic, partition, offset, metadata in offsets
        ]
        with self._transaction_call():
            self.producer.send_offsets_to_transaction(positions, group, seconds)

    def commit_transaction(self, seconds: float) -> None:
        """Commit the transaction. Wait for the delivery reports of its messages first.

        Raises, Blocking:
            As `init_transactions`.
        """
        with self._transaction_call():
            self.producer.commit_transaction(seconds)
        self.in_transaction = False

    def abort_transaction(self, seconds: float) -> None:
        """Drop all messages of the transaction, and roll it back.

        Raises, Blocking:
            As `init_transactions`.
        """
        with self._transaction_call():
            self.producer.abort_transaction(seconds)
        self.in_transaction = False

    def _begin(self) -> None:
        # Under the lock, as it is short. Unlike a block of `_long_call` that leaves no
        # trace if a signal handler raises at its begin or end.
        with self.send_lock:
            if self.closed:
                raise ProducerClosedError(self._settings.id)
            try:
                self.producer.begin_transaction()
            except cimpl.KafkaException as error:
                raise self.error_translator.translate(error.args[0]) from error

    @contextlib.contextmanager
    def _transaction_call(self) -> Iterator[None]:
        """Make a transaction call in this block; translate its error."""
        with self._long_call():
            try:
                yield
            except cimpl.KafkaException as error:
                raise self.error_translator.translate(error.args[0]) from error
        if self._reports:
            # The call has received delivery reports in this thread. A polling thread
            # would notice them only after its poll.
            self.interrupt_poll()

    def native_fatal_error(self) -> tuple[int, str] | None:
        """Return code and text of the fatal error, or None; hold `send_lock`."""
        return self.backend.fatal_error(self.producer)

    @property
    def fatal_error(self) -> BrokerError | None:
        """The fatal error of the client, or None."""
        with self.send_lock:
            if self.closed:
                return None
            return self.error_translator.fatal()

    @contextlib.contextmanager
    def _long_call(self) -> Iterator[None]:
        """Keep librdkafka open while a long call is inside, without holding a lock.

        Holding `send_lock` for so long would block senders, and the hub with them.
        """
        call = object()
        try:
            with self.send_lock:
                if self.closed:
                    raise ProducerClosedError(self._settings.id)
                self._calls.add(call)
            yield
        finally:
            self._calls.discard(call)
            self._call_ended.wake()

    def _wait_for_calls(self, seconds: float) -> bool:
        """Wait for all long calls to return, and say whether they did in time."""
        deadline = _concurrency.Deadline(seconds)
        while self._calls and not deadline.has_expired:
            self._call_ended.wait(deadline.remaining())
        return not self._calls

    # --- closing -----------------------------------------------------------------

    def purge(self) -> None:
        """Drop all messages; librdkafka reports each of them as purged."""
        with self.send_lock:
            if not self.closed:
                self.producer.purge()
        self.wakeup.set()

    def tear_down(self, *, close_descriptor: bool) -> None:
        """End librdkafka's threads. Only the first call has an effect.

        Args:
            close_descriptor: Whether the poller has stopped watching the descriptor.

        Blocking:
            Blocks the thread for a millisecond or two, for 3 s more if a long call is
            inside, and for 1 s more if a transaction is open.
        """
        with self.poll_lock, self.send_lock:
            if self.closed:
                return
            self.closed = True
        if self._queue is not None:
            self._queue.release()
        try:
            if not self._wait_for_calls(_LONGEST_CALL):
                _leaked.append(self.producer)
            elif self.in_transaction and not self._abort_quickly():
                # `close` would wait without a limit for the abort. The destructor
                # doesn't; the brokers abort the transaction after its timeout.
                self.producer = None
            else:
                self.producer.close()
        except cimpl.KafkaException as error:
            # A fatal error that no poll had returned yet. The producer is closed.
            self.client_events.append(("error", error.args[0]))
        except SystemError:
            # The warning ignored above, in a program that turns warnings into errors.
            # The producer is closed.
            return
        finally:
            # Last, because reports that arrive while the producer closes still write to
            # the descriptor. A poller that has not ended has a blocked hub, which still
            # watches the descriptor. Leaking the descriptor is better than closing it:
            # another file could get its number, and the hub would watch that file.
            if close_descriptor:
                self.wakeup.close()

    def _abort_quickly(self) -> bool:
        """Abort the open transaction, and return whether that succeeded."""
        try:
            self.producer.abort_transaction(_LAST_ABORT)
        except cimpl.KafkaException:
            return False
        return True

    def forget_in_child(self) -> None:
        """Drop the parent's producer in a forked child, without any native call."""
        if self.producer is not None and self.producer not in _inherited:
            _inherited.append(self.producer)
            if not self.closed:
                self.wakeup.renew()


class _Logger:
    """The logger of a producer. Enqueues lines, because it is called inside polls."""

    def __init__(self, handle: KafkaHandle) -> None:
        # Up to confluent-kafka 2.14 the garbage collector does not find the logger of a
        # producer, so a strong reference would keep the handle for good.
        self._handle = weakref.ref(handle)

    def log(self, level: int, template: str, *args: object) -> None:
        handle = self._handle()
        if handle is not None:
            handle.enqueue_event("log", (level, template % args if args else template))
