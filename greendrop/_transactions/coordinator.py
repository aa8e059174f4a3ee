"""The coordinator of one producer's transactions, which run one after the other.

`Transactions` decides which task may begin, what an error means for the transaction,
and which events are emitted. The caller gets the first error of a transaction, and
nothing is rolled back twice. Other modules make librdkafka's calls (`handle`), retry
these (`calls`), and replace clients (`clients`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from greendrop import _concurrency, _wording
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._concurrency.fair_lock import (
    DeadlockError,
    FairLock,
    LockRequest,
    OwnerInParentError,
)
from greendrop._transactions.clients import (
    FAILURES,
    SettingsOwner,
    TransactionalClients,
    not_begun,
)
from greendrop.errors import (
    AbortTransaction,
    BrokerError,
    DeliveryTimeoutError,
    IllegalWaitError,
    MessagePurgedError,
    TransactionAbortedError,
    TransactionBusyError,
    TransactionRequiredError,
    TransactionUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop.events import EventName

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)

#: How a transaction ended.
Outcome = Literal["committed", "aborted", "unknown"]

#: Seconds by which a rollback may delay Ctrl-C, a `gevent.Timeout` or the end of a
#: greenlet. If the rollback takes longer it is left to the brokers.
_GRACE = 2.0


class Offset(NamedTuple):
    """The position of a consumer in a partition."""

    topic: str
    partition: int
    #: The offset of the next message.
    offset: int
    metadata: str | None


class OpenTransaction:
    """The state of a transaction that was begun.

    Attributes:
        seconds: The time limit of each call, and of the wait for the reports.
        client: The client that sends the messages of the transaction.
        request: The hold of the lock that ends with the transaction. None if the task
            held the lock before.
        started: The monotonic time at which the transaction was begun.
        task: The greenlet or thread that has begun the transaction.
        on_abort: Called in reverse order after a rollback.
        abort_reason: The error because of which the transaction will be rolled back
            at the end of its block; None if there is no such error yet.
        ending: Whether the block was left.
        is_over: Whether the transaction has ended and the events were emitted.
        outcome: None until the transaction starts to end.
    """

    def __init__(
        self,
        seconds: float,
        client: Client,
        request: LockRequest | None,
        started: float,
    ) -> None:
        self.seconds = seconds
        self.client = client
        self.request = request
        self.started = started
        self.task = _concurrency.current_task()
        translator = client.kafka_handle.error_translator
        translator.first_failure = None
        self._refused_before = client.kafka_handle.refused
        self._failed_before = translator.failed
        self._purged_before = translator.purged_by_librdkafka
        self.on_abort: list[Callable[[], object]] = []
        self.abort_reason: BaseException | None = None
        self.ending = False
        self.is_over = False
        self.outcome: Outcome | None = None

    @property
    def failed(self) -> int:
        """Number of messages that librdkafka accepted and did not deliver."""
        return self.client.kafka_handle.error_translator.failed - self._failed_before

    @property
    def refused(self) -> int:
        """Number of messages that librdkafka refused or never received."""
        return self.client.kafka_handle.refused - self._refused_before

    @property
    def may_have_stored_purged_messages(self) -> bool:
        """Whether the brokers may have a message that librdkafka counts as not sent."""
        translator = self.client.kafka_handle.error_translator
        purged = translator.purged_by_librdkafka - self._purged_before
        return purged > 0 or self.client.outstanding > 0

    def has_failed(self) -> bool:
        """Return whether a message has failed, which rules out a commit."""
        return self.failed > 0 or self.refused > 0

    def reason(self) -> Exception | None:
        """Return the error of the first message that failed, or None.

        librdkafka drops all messages of a transaction that has failed as a whole. In
        that case the error of the transaction is returned, not that of the message.
        """
        first = self.client.kafka_handle.error_translator.first_failure
        if first is None or isinstance(first, MessagePurgedError):
            return self.client.kafka_handle.transaction_error() or first
        return first


class TransactionsOwner(SettingsOwner, Protocol):
    """The core of a producer, as its transactions need it."""

    def check_can_wait(self) -> None:
        """Raise `IllegalWaitError` if the caller can't wait."""


class Transactions:
    """Begins and ends the transactions of one producer.

    Args:
        connections: The connections of the producer.
        owner: The core of the producer.
    """

    def __init__(self, connections: Connections, owner: TransactionsOwner) -> None:
        self._connections = connections
        self._owner = owner
        self._lock = FairLock()
        self._current: OpenTransaction | None = None
        #: Whether listeners of an event about a transaction are running.
        self.notifying = False
        self._clients = TransactionalClients(connections, owner)

    # --- the lock ----------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether a task has a transaction, or is about to begin one."""
        return self._lock.holder is not None

    @property
    def held_by_me(self) -> bool:
        """Whether the caller has a transaction, or is about to begin or end one."""
        return self._lock.held_by_me

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child, and a task of the parent holds the lock."""
        return self._lock.inherited

    def current_for_task(self) -> OpenTransaction | None:
        """Return the open transaction of the caller, or None.

        Raises:
            IllegalWaitError: The transaction is ending, so the caller is a listener.
            ProducerUsedInParentProcessError: The transaction is that of the parent
                process.
        """
        current = self._current
        if current is None or not _concurrency.is_current(current.task):
            return None
        if not current.client.mark.same_process:
            self._connections.check_not_forked()
        if current.ending:
            text = (
                "can't send in a listener of an event about the end of a transaction:"
                " the transaction has not ended yet; nothing was sent"
            )
            raise IllegalWaitError(text)
        return current

    def block(self, request: LockRequest, seconds: float) -> bool:
        """Keep transactions from beginning until `unblock`.

        Returns:
            False if a transaction that was open did not end in time.

        Blocking:
            Lets other greenlets run.
        """
        try:
            return self._lock.acquire(request, _concurrency.Deadline(seconds))
        except (DeadlockError, OwnerInParentError):
            return False

    def unblock(self, request: LockRequest) -> None:
        """Let transactions begin again, whatever `block` has returned or raised."""
        self._lock.release(request)

    def reset(self) -> None:
        """Forget the parent's transactions, in a forked child."""
        self._lock = FairLock()
        self._current = None
        self._clients = self._clients.copy()

    # --- begin -------------------------------------------------------------------

    def begin(self, seconds: float) -> OpenTransaction:
        """Wait for the transactions of other tasks, and begin one.

        Args:
            seconds: The time limit of that, and of each later step of the transaction.

        Raises:
            TransactionBusyError: Another task's transaction did not end in time.
            TransactionAbortedError: The brokers or librdkafka refused to begin it.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            IllegalWaitError: The caller can't wait.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        connections = self._connections
        connections.check_not_forked()
        if connections.state.refuses_caller:
            raise connections.closed_error()
        try:
            self._owner.check_can_wait()
        except IllegalWaitError as error:
            raise IllegalWaitError(f"{error}; nothing was sent") from error
        if self._lock.held_by_me and not connections.state.in_final_flush:
            raise IllegalWaitError(
                "can't begin a transaction in a listener of an event about another"
                " transaction; nothing was sent"
            )
        deadline = self._deadline(seconds)
        request = (
            None if self._lock.held_by_me else LockRequest(_concurrency.current_task())
        )
        current = None
        try:
            if request is not None:
                self._acquire_lock(request, seconds)
            current = self._begin(seconds, request, deadline)
        finally:
            if current is None and request is not None:
                request.released = True
                self._lock.release(request)
        return current

    def _deadline(self, seconds: float) -> _concurrency.Deadline:
        # All steps of the last flush in `close` share a deadline, which may be earlier.
        deadline = _concurrency.Deadline(seconds)
        return deadline.earlier(self._connections.state.send_deadline)

    def _acquire_lock(self, request: LockRequest, seconds: float) -> None:
        try:
            if self._lock.acquire(request, _concurrency.Deadline(seconds)):
                return
            within = _wording.seconds(seconds)
            text = f"the transaction of another task did not end within {within}"
        except DeadlockError:
            text = "this signal handler interrupted the task's wait for a transaction"
        except OwnerInParentError as error:
            raise self._connections.inherited_error() from error
        raise TransactionBusyError(
            f"no transaction was begun, and nothing sent: {text} (greendrop runs the"
            " transactions of one producer one after the other)"
        )

    def _begin(
        self,
        seconds: float,
        request: LockRequest | None,
        deadline: _concurrency.Deadline,
    ) -> OpenTransaction:
        started = _concurrency.monotonic()
        client = self._clients.acquire(deadline)
        handle = client.kafka_handle
        try:
            if handle.fatal_error is not None:
                raise handle.fatal_error
            self._clients.calls.begin(handle.begin_transaction)
        except BrokerError as error:
            self._clients.replace(client, error)
            raise not_begun(error) from error
        self._clients.offset_guard.begin()
        current = self._current = OpenTransaction(seconds, client, request, started)
        try:
            self._emit("transaction.started", started)
        except BaseException as error:
            self.end(current, error)
            raise
        return current

    # --- inside of a transaction -------------------------------------------------

    def send_offsets(
        self, current: OpenTransaction, offsets: Sequence[Offset], group: object
    ) -> None:
        """Add the offsets of a consumer to a transaction.

        Raises:
            TransactionRequiredError: The transaction is not open, or not that of the
                caller.
            TransactionAbortedError: The call failed, so the transaction will be rolled
                back.

        Blocking:
            Lets other greenlets run.
        """
        if self.current_for_task() is not current:
            raise TransactionRequiredError(
                "messages can only be marked as consumed in an open transaction of the"
                " same task"
            )
        self._connections.check_not_forked()
        handle = current.client.kafka_handle
        deadline = _concurrency.Deadline(current.seconds)
        try:
            self._clients.calls.run(
                "store_offset", handle.send_offsets, deadline, offsets, group
            )
        except FAILURES as error:
            text = f"messages could not be marked as consumed: {error}"
            failure = TransactionAbortedError(text)
            failure.__cause__ = error
            current.abort_reason = current.abort_reason or failure
            raise failure from error

    def run_implicit(
        self,
        send: Callable[[], _T],
        seconds: float,
        undo: Callable[[], object] | None = None,
    ) -> _T:
        """Begin a transaction, send in it, and end it.

        Args:
            send: Sends the messages.
            seconds: The time limit of each step.
            undo: Called if the transaction was rolled back or could not begin.

        Raises:
            BaseException: The errors of `send`, `begin` and `end`.
        """
        try:
            current = self.begin(seconds)
        except BaseException:
            if undo is not None:
                undo()
            raise
        if undo is not None:
            current.on_abort.append(undo)
        try:
            result = send()
            self.end(current, None)
        except BaseException as error:
            if not current.is_over:
                self.end(current, error)
            raise
        return result

    def explain(self, error: _E) -> _E | MessagePurgedError:
        """Return an error that says why the caller's message was dropped.

        librdkafka drops all messages of a transaction that has failed. In the block of
        that transaction, the error of the transaction is added as the cause.

        Args:
            error: The error of the caller's send. Any other error than the drop of a
                message is returned as it is.
        """
        current = self._current
        if (
            not isinstance(error, MessagePurgedError)
            or current is None
            or current.ending
            or not _concurrency.is_current(current.task)
        ):
            return error
        reason = current.client.kafka_handle.transaction_error()
        if reason is None:
            return error
        text = f"{error}, as its transaction has failed: {reason}"
        explained = MessagePurgedError(text, error.message_state)
        explained.__cause__ = reason
        return explained

    # --- end ---------------------------------------------------------------------

    def end(self, current: OpenTransaction, error: BaseException | None) -> bool:
        """Commit, or roll back because of an error; then let the next one begin.

        Args:
            current: The result of `begin`.
            error: The exception that left the block of the transaction, or None. The
                caller raises it again.

        Returns:
            Whether the exception was an `AbortTransaction`, which ends here.

        Raises:
            TransactionAbortedError: The transaction was rolled back, and not because
                of `error`.
            TransactionUnknownError: The commit failed, and may have happened.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread. An interrupt ends the transaction at once; `outcome` says how.
        """
        if not current.client.mark.same_process:
            self._connections.check_not_forked()
            return False
        current.ending = True
        try:
            reason = current.abort_reason if error is None else error
            if reason is None:
                self._commit(current)
                return False
            failure = self._abort(current, reason)
            if error is None or isinstance(error, AbortTransaction):
                self._raise_outcome(reason, failure)
            return isinstance(error, AbortTransaction)
        finally:
            try:
                self._finish(current)
            finally:
                # A signal handler may have raised in any step above. The next
                # transaction may begin all the same.
                current.is_over = True
                if self._current is current:
                    self._current = None
                if current.request is not None:
                    current.request.released = True
                    self._lock.release(current.request)

    def abandon(self, current: OpenTransaction) -> None:
        """Leave the rollback of a transaction to the brokers, without waiting."""
        if not current.client.mark.same_process or current.is_over:
            return
        current.ending = current.is_over = True
        current.outcome = current.outcome or "aborted"
        if self._current is current:
            self._current = None
        if current.request is not None:
            current.request.released = True
            self._lock.release(current.request)
        self._clients.drop(current.client)
        while current.on_abort:
            current.on_abort.pop()()

    @staticmethod
    def _raise_outcome(reason: BaseException, failure: Exception | None) -> None:
        """Raise, unless the program asked for the rollback and that succeeded."""
        if not isinstance(reason, AbortTransaction):
            text = f"not committed: a part of the transaction failed: {reason}"
            raise TransactionAbortedError(text) from reason
        if failure is not None:
            text = (
                f"the rollback failed: {failure}; nothing was committed, and the"
                " brokers roll back when the next transaction begins or"
                " transaction.timeout.ms is over"
            )
            raise TransactionAbortedError(text) from failure

    def _finish(self, current: OpenTransaction) -> None:
        if current.outcome is None:  # a signal handler has raised between two steps
            current.outcome = "aborted"
            self._clients.drop(current.client)
        if current.outcome == "aborted":
            while current.on_abort:
                current.on_abort.pop()()
        payload = {"outcome": current.outcome}
        self._emit("transaction.finished", current.started, payload)

    def _commit(self, current: OpenTransaction) -> None:
        started = _concurrency.monotonic()
        deadline = self._deadline(current.seconds)
        handle = current.client.kafka_handle
        try:
            self._await_reports(current, deadline)
        except BaseException as error:
            self._abort(current, error)
            raise
        if handle.closed:
            current.outcome = "aborted"
            raise TransactionAbortedError(
                "not committed: the producer was closed before"
            )
        # From here on the brokers may commit, whatever happens in this process.
        current.outcome = "unknown"
        try:
            self._clients.calls.run("commit", handle.commit_transaction, deadline)
        except FAILURES as error:
            self._fail_commit(current, error)
        except BaseException:
            self._clients.drop(current.client)
            raise
        current.outcome = "committed"
        self._clients.on_commit()
        self._emit("transaction.committed", started)

    def _await_reports(
        self, current: OpenTransaction, deadline: _concurrency.Deadline
    ) -> None:
        """Wait until the brokers have stored each message of a transaction.

        Without this check librdkafka could commit a part of the messages. It does not
        know the messages that it refused, and it believes a report that is about
        another message.

        Raises:
            TransactionAbortedError: A message failed, or has no report in time.
        """
        client = current.client
        remaining = deadline.remaining()
        delivered = client.wait_delivered(remaining, give_up=current.has_failed)
        if count := current.failed + current.refused:
            failure = current.reason()
            more = f"{count} of its messages failed; the first: " if count > 1 else ""
            raise TransactionAbortedError(
                f"not committed: {more}{failure}"
            ) from failure
        if alarm := self._clients.offset_guard.alarm:
            raise TransactionAbortedError(f"not committed: {alarm}")
        if delivered:
            return
        text = (
            f"no delivery report for {_wording.count(client.outstanding, 'message')}"
            f" within {_wording.seconds(current.seconds)}"
        )
        if reason := client.poll_loop.last_broker_error():
            text += f"; last broker error: {reason}"
        late = DeliveryTimeoutError(text)
        raise TransactionAbortedError(f"not committed: {text}") from late

    def _fail_commit(self, current: OpenTransaction, error: Exception) -> None:
        """Raise the error that a failed commit means for the transaction."""
        if isinstance(error, BrokerError) and error.abortable:
            if self._abort(current, error) is None:
                raise TransactionAbortedError(f"not committed: {error}") from error
            # The rollback failed, too: the brokers may have committed before it.
            current.outcome = "unknown"
        elif isinstance(error, BrokerError):
            self._clients.replace(current.client, error)
            if current.failed:
                # A message had failed, so librdkafka has not asked the brokers to
                # commit.
                current.outcome = "aborted"
                raise TransactionAbortedError(f"not committed: {error}") from error
        else:
            self._clients.drop(current.client)
        text = f"the commit failed, and may have happened all the same: {error}"
        raise TransactionUnknownError(text) from error

    def _abort(
        self, current: OpenTransaction, reason: BaseException
    ) -> Exception | None:
        """Roll back, and return the error of the rollback, or None.

        Nothing was committed, even if the rollback failed.
        """
        current.outcome = "aborted"
        client, handle = current.client, current.client.kafka_handle
        if fatal := handle.fatal_error:
            self._clients.replace(client, fatal)
            return fatal
        started = _concurrency.monotonic()
        interrupted = not isinstance(reason, Exception)
        seconds = min(current.seconds, _GRACE) if interrupted else current.seconds
        try:
            if not interrupted and not _has_timed_out(reason):
                self._await_reports_before_abort(current)
            client.drop_batched()
            deadline = self._deadline(seconds)
            self._clients.calls.run("abort", handle.abort_transaction, deadline)
            client.wait_settled(PURGE_TIMEOUT)
            self._drop_client_if_unsafe(current)
        except FAILURES as error:
            if interrupted or not isinstance(error, BrokerError):
                self._clients.drop(client)
            else:
                self._clients.replace(client, error)
            return error
        except BaseException:
            self._clients.drop(client)
            raise
        self._emit("transaction.aborted", started)
        return None

    def _drop_client_if_unsafe(self, current: OpenTransaction) -> None:
        """Drop a client whose next messages the brokers could take for duplicates.

        After an abort librdkafka reuses the sequence numbers of the messages that it
        has dropped. If a broker has stored one of these messages, it takes a later one
        with the same number for a duplicate, and does not store that. A new client gets
        a new epoch.
        """
        if current.may_have_stored_purged_messages or self._clients.offset_guard.alarm:
            self._clients.drop(current.client)

    def _await_reports_before_abort(self, current: OpenTransaction) -> None:
        """Wait for the reports of all messages, so that librdkafka need not drop any.

        See docs/decisions/0020 and 0023. If the reports take longer than the limit, the
        client is dropped after the abort.
        """
        limit = self._connections.settings.wait_timeout_on_transaction_abort
        if limit:
            deadline = self._deadline(min(limit, current.seconds))
            current.client.wait_delivered(deadline.remaining())

    # --- events ------------------------------------------------------------------

    def emit_consumed(
        self, message: object, metadata: str | None, started: float
    ) -> None:
        """Emit that a message was marked as consumed."""
        payload = {
            "producer_id": self._connections.settings.id,
            "message": message,
            "offset_metadata": metadata,
            "time": _concurrency.monotonic() - started,
        }
        self._connections.monitor.emit("transaction.marked_as_consumed", payload)

    def _emit(
        self,
        name: EventName,
        started: float,
        extra: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        payload = {
            "producer_id": self._connections.settings.id,
            **extra,
            "time": _concurrency.monotonic() - started,
        }
        self.notifying = True
        try:
            self._connections.monitor.emit(name, payload)
        finally:
            self.notifying = False


def _has_timed_out(reason: BaseException) -> bool:
    """Return whether a wait for the reports has already timed out."""
    return isinstance(reason, DeliveryTimeoutError) or isinstance(
        reason.__cause__, DeliveryTimeoutError
    )
