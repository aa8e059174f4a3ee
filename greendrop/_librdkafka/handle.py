"""One producer of confluent-kafka, and how it is called without harm.

confluent-kafka's errors, callbacks and messages are turned into ours here and travel no
further; only `backend`, which builds its producers, imports it as well. What comes in
ends in two queues, reports and notices, and signals a descriptor. Knows nothing of
greenlets, of who serves and of who sends (`client`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from confluent_kafka import cimpl

from greendrop import _concurrency, _wording
from greendrop._concurrency.wakeup import WakeupFd
from greendrop._librdkafka.backend import backend_for
from greendrop._librdkafka.errors import ErrorTranslator
from greendrop.errors import (
    BrokerError,
    ConfigurationInvalidError,
    OAuthTokenError,
    ProducerClosedError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from greendrop.config.settings import Settings
    from greendrop.delivery import ReportQueue
    from greendrop.errors import DeliveryError
    from greendrop.oauth import OAuthToken

#: Reports that one poll on a hub serves at most; then the hub has a turn. 500 take
#: 1 to 2 ms with what their waiters cost.
_REPORTS_PER_POLL = 500
#: Seconds that a call inside librdkafka may take to return when the client closes.
#: Requests for metadata take 2 s at most.
_LONGEST_CALL = 3.0
#: Seconds that ending an open transaction may take when the client closes.
_LAST_ABORT = 1.0

# From version 2.16 on its `close` aborts an open transaction, and warns if it can't: of
# a client that is closed because of a fatal error it never can.
warnings.filterwarnings(
    "ignore", r"Producer \w+ failed during close", RuntimeWarning, __name__
)

_QUEUE_FULL = cimpl.KafkaError._QUEUE_FULL

# What a child inherited. Kept for ever: freeing it would wait for threads that the
# child doesn't have (1 s each), or hang.
_inherited: list[object] = []
# What could not be closed, because a call was still inside. Kept for the same reason.
_leaked: list[object] = []


class KafkaHandle:
    """A librdkafka producer. Each call into it that could meet its end has a gate.

    Args:
        settings: What it is built from.
        statistics: Whether anybody wants them.
        reports: Where delivery reports go.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    def __init__(
        self, settings: Settings, reports: ReportQueue, *, statistics: bool
    ) -> None:
        self._settings = settings
        self._reports = reports
        #: What it is built with.
        self.backend = backend_for(settings.kafka)
        #: What librdkafka said beside reports: kind and content.
        self.client_events: deque[tuple[str, Any]] = deque()
        #: What its errors mean.
        self.error_translator = ErrorTranslator(
            fatal_error=lambda: self.backend.fatal_error(self.producer),
            name_of=lambda code: cimpl.KafkaError(code).name(),
            redact=settings.redact,
        )
        self.closed = False
        # There is a transaction that has not ended.
        self._open = False
        #: Whether it may begin transactions.
        self.is_initialized = False
        #: How many messages librdkafka did not take, beside those it had no room for.
        self.refused = 0
        # Lock order: poll_lock, gate.
        #: Held around each poll, so that closing can keep everybody out: librdkafka's
        #: close while another thread is inside is a crash.
        self.poll_lock = _concurrency.new_lock()
        #: Held around each call that queues messages, for the same reason.
        self.send_lock = _concurrency.new_lock()
        #: A signal handler raised in a poll, and with that maybe a report was lost.
        self.interrupted = False
        self._poll_ident = 0
        # Long calls that are inside librdkafka, counted under `gate`.
        self._calls = 0
        self._call_ended = _concurrency.ThreadWaiter()
        #: Set when anything has come in.
        self.signal = WakeupFd()
        try:
            self.producer: Any = self._build(statistics=statistics)
        except BaseException:
            self.signal.close()
            raise
        self._queue = self.backend.main_queue(self.producer)
        queue = self._queue
        if queue is not None and not queue.signal_on(self.signal.write_fd):
            queue.release()
            self._queue = None

    def _build(self, *, statistics: bool) -> Any:  # noqa: ANN401
        kafka: dict[str, Any] = dict(self._settings.kafka)
        if self._settings.transactional:
            kafka["transactional.id"] = self._settings.transactional_id
        kafka["error_cb"] = lambda error: self._note("error", error)
        if statistics:
            kafka["stats_cb"] = lambda text: self._note("statistics", text)
        else:
            kafka["statistics.interval.ms"] = "0"
        try:
            with _concurrency.batch_scheduling():
                return self.backend.build(kafka, _LogLines(self._note))
        except cimpl.KafkaException as error:
            reason = self.error_translator.translate(error.args[0])
            raise ConfigurationInvalidError({"kafka": str(reason)}) from reason
        except (TypeError, ValueError) as error:
            text = self._settings.redact(_wording.reason(error))
            raise ConfigurationInvalidError({"kafka": text}) from None

    @property
    def signals(self) -> bool:
        """Whether what comes in signals the descriptor."""
        return self._queue is not None

    @property
    def empty(self) -> bool:
        """Whether librdkafka has no message, and nothing came in."""
        return not (len(self.producer) or self._reports)

    # --- what comes in -----------------------------------------------------------

    def poll(self, seconds: float) -> BaseException | None:
        """Have the queues filled, for up to some seconds.

        Returns:
            An exception of the program's own signal handler, if that raised in here.
        """
        me = _concurrency.get_ident()
        if not seconds and self._poll_ident not in (0, me):
            # Another thread polls, and tells. A hub must not wait for it; it comes
            # back at once, after a turn for the others.
            self.signal.set()
            return None
        reports = self._reports
        try:
            with self.poll_lock:
                if not self.closed:
                    self._poll_ident = me
                    reports.limit = _REPORTS_PER_POLL
                    self.producer.poll(seconds)
        except cimpl.KafkaException as error:
            # How a fatal error is told: no error_cb, but an exception.
            self.client_events.append(("error", error.args[0]))
        except BaseException as error:  # noqa: BLE001
            # A signal handler raised in here, or ours did, which is a bug; neither
            # may end the serving.
            self.interrupted = True
            if isinstance(error, SystemError):
                # All that confluent-kafka has to say of it up to Python 3.11: it drops
                # an exception that has no value. Ctrl-C's has none.
                return KeyboardInterrupt()
            return error
        finally:
            reports.limit = 0
            self._poll_ident = 0
        return None

    def interrupt_poll(self) -> None:
        """Have a poll that is going on return."""
        with self.send_lock:
            if self._queue is not None and not self.closed:
                self._queue.wake()

    def flush_linger(self) -> None:
        """Push out what the user's `linger.ms` holds back; polling alone does not.

        Blocking:
            Holds the hub for at most 1 ms.
        """
        with self.poll_lock:
            if not self.closed:
                try:
                    self.producer.flush(0.001)
                except cimpl.KafkaException as error:
                    self.client_events.append(("error", error.args[0]))
                    self.signal.set()
                except BaseException:
                    self.interrupted = True
                    raise

    def on_limit(self) -> None:
        """Take note that there are as many reports as should be, or one more than that.

        Inside poll, or inside a flush or close that another thread makes.
        """
        if _concurrency.get_ident() != self._poll_ident:
            self.signal.set()
        elif len(self._reports) >= _REPORTS_PER_POLL and self._queue is not None:
            # librdkafka keeps the rest, in order, and signals again.
            self._queue.yield_poll()

    def note_stall(self, seconds: float, stack: str | None) -> None:
        """Have the serving task tell that its hub was held; from any thread."""
        self.client_events.append(("stall", (seconds, stack)))
        self.signal.set()

    def _note(self, kind: str, content: Any) -> None:  # noqa: ANN401
        # Called inside poll, like a delivery report: append, and that is all.
        self.client_events.append((kind, content))
        if not self._reports.limit:
            self.signal.set()

    # --- logging in ----------------------------------------------------------------

    def set_token(self, token: OAuthToken) -> None:
        """Give it the token to log in with; nothing if it is closed.

        Raises:
            OAuthTokenError: librdkafka does not take it.
        """
        with self.send_lock:
            if self.closed:
                return
            refused = self.backend.set_oauth_token(self.producer, token)
        if refused is None:
            text = "no OAuth token: this confluent-kafka can't be given one"
            raise OAuthTokenError(text)
        if refused:
            name = cimpl.KafkaError(refused).name()
            text = f"librdkafka does not take the OAuth token ({name}, {refused})"
            raise OAuthTokenError(text)

    # --- what its errors mean ----------------------------------------------------

    def reason(self, error: BaseException) -> BrokerError | None:
        """Tell what librdkafka means by an exception, if it is one of it."""
        if isinstance(error, cimpl.KafkaException):
            return self.error_translator.translate(error.args[0])
        return None

    def enqueue_error(self, topic: str, error: Exception) -> DeliveryError:
        """Make, and count, the error of a message that librdkafka did not take."""
        self.refused += 1
        return self.error_translator.enqueue_error(topic, self.reason(error) or error)

    def queue_full(self, outstanding: int) -> QueueFullError:
        """Make the error of a message that there is no room for."""
        text = (
            f"the queue is full ({_wording.count(outstanding, 'message')} outstanding;"
            " queue.buffering.max.messages or .kbytes); this message was not queued"
        )
        full = QueueFullError(text)
        full.__cause__ = self.error_translator.translate(cimpl.KafkaError(_QUEUE_FULL))
        return full

    # --- long calls --------------------------------------------------------------

    def ask_partition_count(self, topic: str, seconds: float) -> int:
        """Ask a broker how many partitions a topic has; a broker may create it then.

        Raises:
            BrokerError: What librdkafka or the broker said instead.
            ProducerClosedError: The client is closed.

        Blocking:
            Blocks the thread and its hub, so call it on a native thread.
        """
        with self._long_call():
            try:
                metadata = self.producer.list_topics(topic, seconds)
            except cimpl.KafkaException as error:
                raise self.error_translator.translate(error.args[0]) from error
        told = metadata.topics[topic]
        if told.error is not None:
            raise self.error_translator.translate(told.error)
        return len(told.partitions)

    def await_purge(self) -> None:
        """Wait until its threads have dropped what `purge` told them to.

        Raises:
            ProducerClosedError: The client is closed.

        Blocking:
            Blocks the thread and its hub, so call it on a native thread.
        """
        with self._long_call():
            self.backend.purge(self.producer)

    def init_transactions(self, seconds: float) -> None:
        """Have the brokers end what a producer of the same name has left open.

        This and the other commands are called one at a time, and on a native thread.
        One that has run into its time goes on by itself: calling it again, and nothing
        else, gives its result.

        Args:
            seconds: How long it may take.

        Raises:
            BrokerError: What librdkafka or a broker said. `_TIMED_OUT` if the time is
                over.
            ProducerClosedError: The client is closed.

        Blocking:
            Blocks the thread and its hub.
        """
        self._command(lambda: self.producer.init_transactions(seconds))
        self.is_initialized = True

    def begin_transaction(self) -> None:
        """Begin one; no broker is asked.

        Raises:
            BrokerError, ProducerClosedError: As `init_transactions`.

        Blocking:
            Holds the hub for 0.1 ms.
        """
        self._open = True  # also if a signal handler raises meanwhile
        try:
            self._command(self._begin)
        except Exception:
            self._open = False
            raise

    def _begin(self) -> None:
        self.producer.begin_transaction()

    def transaction_error(self) -> BrokerError | None:
        """Return the error that has failed the open transaction, if one has.

        librdkafka drops the messages of a transaction that has failed, and tells the
        reason only to the next command. A second `begin_transaction` is the command
        that changes nothing: it is refused while a transaction is open, with that
        reason or because of the state.

        Call it in the task that has the transaction, where no other command can run.

        Blocking:
            Holds the hub for 0.1 ms.
        """
        if not self._open:
            return None
        try:
            self._command(self._begin)
        except BrokerError as error:
            return error if error.fatal or error.abortable else None
        except ProducerClosedError:
            return None
        return None

    def send_offsets(
        self, offsets: Iterable[tuple[Any, ...]], group: object, seconds: float
    ) -> None:
        """Make what a consumer has read part of the transaction.

        May be called again after it has run into its time, or not.

        Args:
            offsets: Topic, partition, offset of the next message, metadata.
            group: What `consumer_group_metadata` of a consumer gives.
            seconds: As for `init_transactions`.

        Raises, Blocking:
            As `init_transactions`.
        """
        marks = [
            cimpl.TopicPartition(topic, partition, offset, metadata)
            if metadata is not None
            else cimpl.TopicPartition(topic, partition, offset)
            for topic, partition, offset, metadata in offsets
        ]
        self._command(
            lambda: self.producer.send_offsets_to_transaction(marks, group, seconds)
        )

    def commit_transaction(self, seconds: float) -> None:
        """Commit. Await the messages' reports before.

        Raises, Blocking:
            As `init_transactions`.
        """
        self._command(lambda: self.producer.commit_transaction(seconds))
        self._open = False

    def abort_transaction(self, seconds: float) -> None:
        """Drop all messages, and roll back.

        Raises, Blocking:
            As `init_transactions`.
        """
        self._command(lambda: self.producer.abort_transaction(seconds))
        self._open = False

    def _command(self, call: Callable[[], object]) -> None:
        # The call must not be a method of the producer: the traceback of an error keeps
        # the call, and that would keep the producer from its destructor, which ends a
        # client that can't be closed.
        with self._long_call():
            try:
                call()
            except cimpl.KafkaException as error:
                raise self.error_translator.translate(error.args[0]) from error
        if self._reports:
            # It has served them here. A thread that polls would not know for a while.
            self.interrupt_poll()

    @property
    def in_transaction(self) -> bool:
        """Whether there is a transaction that has not ended."""
        return self._open

    @property
    def fatal_error(self) -> BrokerError | None:
        """What has ended the client for good, if anything has."""
        with self.send_lock:
            if self.closed:
                return None
            return self.error_translator.fatal()

    @contextlib.contextmanager
    def _long_call(self) -> Iterator[None]:
        """Keep librdkafka from being closed while a call is in it, without a lock.

        A lock that is held for so long would stop who sends, and the hub with it.
        """
        with self.send_lock:
            if self.closed:
                raise ProducerClosedError(self._settings.id)
            self._calls += 1
        try:
            yield
        finally:
            with self.send_lock:
                self._calls -= 1
            self._call_ended.wake()

    def _calls_end(self, seconds: float) -> bool:
        """Wait until no long call is inside; False if one stays for longer."""
        deadline = _concurrency.monotonic() + seconds
        while self._calls and (left := deadline - _concurrency.monotonic()) > 0:
            self._call_ended.wait(left)
        return not self._calls

    # --- ending ------------------------------------------------------------------

    def purge(self) -> None:
        """Drop all messages; each is reported as purged."""
        with self.send_lock:
            if not self.closed:
                self.producer.purge()
        self.signal.set()

    def tear_down(self, *, close_descriptor: bool) -> None:
        """End librdkafka's threads. Only the first call does anything.

        Args:
            close_descriptor: Nobody watches the descriptor any more.

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
            if not self._calls_end(_LONGEST_CALL):
                _leaked.append(self.producer)
            elif self._open and not self._ends_transaction():
                # Closing would wait for that without a limit. Its destructor doesn't:
                # the brokers end the transaction when its time is over.
                self.producer = None
            else:
                self.producer.close()
        except cimpl.KafkaException as error:
            # A fatal error that nobody had polled yet; closed it is all the same.
            self.client_events.append(("error", error.args[0]))
        except SystemError:
            # That warning, in a program that makes errors of them. The same.
            return
        finally:
            # Last: what comes in while the producer closes still signals. If the
            # task has not ended, its hub is blocked and still watches the descriptor:
            # one that leaks is better than one whose number becomes a stranger's.
            if close_descriptor:
                self.signal.close()

    def _ends_transaction(self) -> bool:
        try:
            self.producer.abort_transaction(_LAST_ABORT)
        except cimpl.KafkaException:
            return False
        return True

    def forget_in_child(self) -> None:
        """Let go of the parent's producer in a forked child; call nothing native."""
        if self.producer is not None and self.producer not in _inherited:
            _inherited.append(self.producer)
            if not self.closed:
                self.signal.renew()


class _LogLines:
    """What confluent-kafka takes for a logger: notes lines, since it is in poll."""

    def __init__(self, note: Any) -> None:  # noqa: ANN401
        self._note = note

    def log(self, level: int, form: str, *args: object) -> None:
        self._note("log", (level, form % args if args else form))
