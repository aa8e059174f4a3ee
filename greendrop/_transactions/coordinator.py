"""The transactions of one producer: one after the other, each with one end.

Who may begin, what an error means for the transaction, and what is told. The first
error is the one that is seen, and nothing is rolled back twice. Knows nothing of
librdkafka's calls (`handle`), of how they are tried (`calls`), of what becomes of
a client (`clients`), nor of the verbs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

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
    from greendrop.config.settings import Settings

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)

#: How a transaction ended.
Outcome = Literal["committed", "aborted", "unknown"]

#: Seconds for which Ctrl-C, a `gevent.Timeout` or the end of a greenlet is held up
#: while its transaction is rolled back. If that takes longer the brokers have to do it.
_GRACE = 2.0


class Offset(NamedTuple):
    """How far a partition was read."""

    topic: str
    partition: int
    #: Of the next message.
    offset: int
    metadata: str | None


class OpenTransaction:
    """A transaction that was begun and has not ended, or how it did.

    Attributes:
        seconds: How long each of its commands, and the wait for its reports, may take.
        client: By which its messages go.
        turn: Its use of the lock; None if that was there before.
        on_abort: Called, the last one first, once it was rolled back.
        doomed: Why it is going to be rolled back whatever comes, if it is.
        ending: Its block was left.
        is_over: It has ended, and that was told.
        outcome: None until it has ended.
    """

    def __init__(
        self, seconds: float, client: Client, turn: LockRequest | None, began: float
    ) -> None:
        self.seconds = seconds
        self.client = client
        self.turn = turn
        self.began = began
        self.task = _concurrency.current_task()
        verdicts = client.kafka_handle.error_translator
        verdicts.first_failure = None
        self._refused_before = client.kafka_handle.refused
        self._failed_before = verdicts.failed
        self._purged_before = verdicts.purged_by_librdkafka
        self.on_abort: list[Callable[[], object]] = []
        self.abort_reason: BaseException | None = None
        self.ending = False
        self.is_over = False
        self.outcome: Outcome | None = None

    @property
    def failed(self) -> int:
        """How many of its messages librdkafka took and did not deliver."""
        return self.client.kafka_handle.error_translator.failed - self._failed_before

    @property
    def refused(self) -> int:
        """How many of its messages librdkafka was never given, or did not take."""
        return self.client.kafka_handle.refused - self._refused_before

    @property
    def may_have_stored_purged_messages(self) -> bool:
        """Whether the brokers may have a message that librdkafka counts as not sent."""
        verdicts = self.client.kafka_handle.error_translator
        purged = verdicts.purged_by_librdkafka - self._purged_before
        return purged > 0 or self.client.outstanding > 0

    def has_failed(self) -> bool:
        """Whether any of its messages has failed, so that it can't be committed."""
        return self.failed > 0 or self.refused > 0

    def reason(self) -> Exception | None:
        """Return what its first failed message failed by, or None.

        librdkafka drops all messages of a transaction that has failed as a whole. Then
        it is the error of the transaction, and not that of the message.
        """
        first = self.client.kafka_handle.error_translator.first_failure
        if first is None or isinstance(first, MessagePurgedError):
            return self.client.kafka_handle.transaction_error() or first
        return first


class Transactions:
    """Begins and ends the transactions of one producer.

    Args:
        connections: What it has open.
        check_can_wait: Raises where nobody may wait.
        adopt: Makes changed settings the producer's, or raises
            `ConfigurationInvalidError`.
    """

    def __init__(
        self,
        connections: Connections,
        check_can_wait: Callable[[], None],
        adopt: Callable[[Settings], None],
    ) -> None:
        self._connections = connections
        self._check_can_wait = check_can_wait
        self._lock = FairLock()
        self._current: OpenTransaction | None = None
        #: Whether listeners are just told of one.
        self.notifying = False
        self._clients = TransactionalClients(connections, adopt)

    # --- whose turn it is --------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether anybody has a transaction, or is about to have one."""
        return self._lock.holder is not None

    @property
    def held_by_me(self) -> bool:
        """Whether the caller has one, be it about to begin or to end."""
        return self._lock.held_by_me

    @property
    def inherited(self) -> bool:
        """Whether it is the parent's turn, in a forked child."""
        return self._lock.inherited

    def current_for_task(self) -> OpenTransaction | None:
        """Give the caller's own transaction, if it has one that is open.

        Raises:
            IllegalWaitError: It is just being ended: the caller is a listener.
            ProducerUsedInParentProcessError: It is the parent's.
        """
        now = self._current
        if now is None or not _concurrency.is_current(now.task):
            return None
        if not now.client.mark.same_process:
            self._connections.check_not_forked()
        if now.ending:
            text = (
                "can't send in a listener that is told how a transaction ends: it has"
                " not ended yet; nothing was sent"
            )
            raise IllegalWaitError(text)
        return now

    def block(self, turn: LockRequest, seconds: float) -> bool:
        """Let no transaction begin until `admit`; False if one didn't end in time.

        Blocking:
            Lets other greenlets run.
        """
        try:
            return self._lock.acquire(turn, _concurrency.Deadline(seconds))
        except (DeadlockError, OwnerInParentError):
            return False

    def unblock(self, turn: LockRequest) -> None:
        """Let transactions begin again; however `exclude` went."""
        self._lock.release(turn)

    def reset(self) -> None:
        """Forget the parent's transactions, in a forked child."""
        self._lock = FairLock()
        self._current = None
        self._clients = self._clients.copy()

    # --- begin -------------------------------------------------------------------

    def begin(self, seconds: float) -> OpenTransaction:
        """Wait for the caller's turn, and begin.

        Args:
            seconds: How long that may take, and later each other command.

        Raises:
            TransactionBusyError: Another task's transaction did not end in time.
            TransactionAbortedError: The brokers or librdkafka did not let it begin.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.
            IllegalWaitError: The caller can't wait.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread.
        """
        now = self._connections
        now.check_not_forked()
        if now.closing_or_closed and not now.is_final_flush_task:
            raise now.closed_error()
        try:
            self._check_can_wait()
        except IllegalWaitError as error:
            raise IllegalWaitError(f"{error}; nothing was sent") from error
        if self._lock.held_by_me and not now.is_final_flush_task:
            text = "can't begin a transaction in a listener that is told of another one"
            raise IllegalWaitError(f"{text}; nothing was sent")
        deadline = self._deadline(seconds)
        turn = (
            None if self._lock.held_by_me else LockRequest(_concurrency.current_task())
        )
        current = None
        try:
            if turn is not None:
                self._await_turn(turn, seconds)
            current = self._begin(seconds, turn, deadline)
        finally:
            if current is None and turn is not None:
                turn.released = True
                self._lock.release(turn)
        return current

    def _deadline(self, seconds: float) -> _concurrency.Deadline:
        # Whatever the caller wants, closing has one for all steps of its last flush.
        deadline = _concurrency.Deadline(seconds)
        return deadline.earlier(self._connections.send_deadline)

    def _await_turn(self, turn: LockRequest, seconds: float) -> None:
        try:
            if self._lock.acquire(turn, _concurrency.Deadline(seconds)):
                return
            within = _wording.seconds(seconds)
            text = f"that of another task did not end within {within}"
        except DeadlockError:
            text = "the signal handler that sends has interrupted this task's wait"
        except OwnerInParentError as error:
            raise self._connections.inherited_error() from error
        raise TransactionBusyError(
            f"no transaction was begun, and nothing sent: {text} (greendrop runs the"
            " transactions of one producer one after the other)"
        )

    def _begin(
        self, seconds: float, turn: LockRequest | None, deadline: _concurrency.Deadline
    ) -> OpenTransaction:
        began = _concurrency.monotonic()
        client = self._clients.acquire(deadline)
        native = client.kafka_handle
        try:
            if native.fatal_error is not None:
                raise native.fatal_error
            self._clients.commands.begin(native.begin_transaction)
        except BrokerError as error:
            self._clients.replace(client, error)
            raise not_begun(error) from error
        self._clients.offset_guard.begin()
        current = self._current = OpenTransaction(seconds, client, turn, began)
        try:
            self._tell("transaction.started", began)
        except BaseException as error:
            self.end(current, error)
            raise
        return current

    # --- in between --------------------------------------------------------------

    def send_offsets(
        self, current: OpenTransaction, offsets: Sequence[Offset], group: object
    ) -> None:
        """Make what was read part of a transaction.

        Raises:
            TransactionRequiredError: It is not open, or not the caller's.
            TransactionAbortedError: It failed, and so will the transaction.

        Blocking:
            Lets other greenlets run.
        """
        if self.current_for_task() is not current:
            text = "messages are marked as consumed inside of their own transaction"
            raise TransactionRequiredError(text)
        self._connections.check_not_forked()
        native = current.client.kafka_handle
        deadline = _concurrency.Deadline(current.seconds)
        try:
            self._clients.commands.run(
                "store_offset",
                lambda seconds: native.send_offsets(offsets, group, seconds),
                deadline,
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
        undo: Callable[[], object] = lambda: None,
    ) -> _T:
        """Send in a transaction of its own.

        Args:
            send: Does it.
            seconds: How long each step may take.
            undo: Called if it was rolled back, or never begun.

        Raises:
            What `send`, `begin` and `end` raise.
        """
        try:
            current = self.begin(seconds)
        except BaseException:
            undo()
            raise
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
        """Return the error that tells the caller why its message was dropped.

        librdkafka drops all messages of a transaction that has failed. In the block of
        that transaction the reason is its error, and not the drop.

        Args:
            error: What the caller has met.
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
        explained = MessagePurgedError(text)
        explained.__cause__ = reason
        return explained

    # --- end ---------------------------------------------------------------------

    def end(self, current: OpenTransaction, error: BaseException | None) -> bool:
        """Commit, or roll back because of an error; then it is the next one's turn.

        Args:
            current: What `begin` gave.
            error: What the transaction's block was left by. The caller raises it
                again.

        Returns:
            Whether that was an `AbortTransaction`, and all is done.

        Raises:
            TransactionAbortedError: It was rolled back, and not because of `error`.
            TransactionUnknownError: The commit failed, and may have happened.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the
            thread. When interrupted it ends at once; the outcome says how.
        """
        if not current.client.mark.same_process:
            self._connections.check_not_forked()
            return False
        current.ending = True
        try:
            why = current.abort_reason if error is None else error
            if why is None:
                self._commit(current)
                return False
            failure = self._abort(current, why)
            if error is None or isinstance(error, AbortTransaction):
                self._raise_outcome(why, failure)
            return isinstance(error, AbortTransaction)
        finally:
            try:
                self._finish(current)
            finally:
                # Whatever a signal handler has prevented, the next one may begin.
                current.is_over = True
                if self._current is current:
                    self._current = None
                if current.turn is not None:
                    current.turn.released = True
                    self._lock.release(current.turn)

    def abandon(self, current: OpenTransaction) -> None:
        """Let the brokers roll back a transaction that was not ended; never waits."""
        if not current.client.mark[0] or current.is_over:
            return
        current.ending = current.is_over = True
        current.outcome = current.outcome or "aborted"
        if self._current is current:
            self._current = None
        if current.turn is not None:
            current.turn.released = True
            self._lock.release(current.turn)
        self._clients.drop(current.client)
        while current.on_abort:
            current.on_abort.pop()()

    @staticmethod
    def _raise_outcome(why: BaseException, failure: Exception | None) -> None:
        """Raise, unless the program wanted it so and it went well."""
        if not isinstance(why, AbortTransaction):
            text = f"not committed: what is part of it has failed: {why}"
            raise TransactionAbortedError(text) from why
        if failure is not None:
            text = (
                f"rolling back failed: {failure}; nothing was committed, and brokers"
                " roll back when the next one begins or transaction.timeout.ms is over"
            )
            raise TransactionAbortedError(text) from failure

    def _finish(self, current: OpenTransaction) -> None:
        if current.outcome is None:  # an exception in between two steps
            current.outcome = "aborted"
            self._clients.drop(current.client)
        if current.outcome == "aborted":
            while current.on_abort:
                current.on_abort.pop()()
        facts = {"outcome": current.outcome}
        self._tell("transaction.finished", current.began, facts)

    def _commit(self, current: OpenTransaction) -> None:
        began = _concurrency.monotonic()
        deadline = self._deadline(current.seconds)
        native = current.client.kafka_handle
        try:
            self._await_reports(current, deadline)
        except BaseException as error:
            self._abort(current, error)
            raise
        if native.closed:
            current.outcome = "aborted"
            raise TransactionAbortedError(
                "not committed: the producer was closed before"
            )
        # From here on it may be committed, whatever happens to us.
        current.outcome = "unknown"
        try:
            self._clients.commands.run("commit", native.commit_transaction, deadline)
        except FAILURES as error:
            self._fail_commit(current, error)
        except BaseException:
            self._clients.drop(current.client)
            raise
        current.outcome = "committed"
        self._clients.succeed()
        self._tell("transaction.committed", began)

    def _await_reports(
        self, current: OpenTransaction, deadline: _concurrency.Deadline
    ) -> None:
        """Wait until each message of a transaction is known to be stored.

        Raises:
            TransactionAbortedError: One failed, or has no report in time. Without this
                librdkafka would commit the others: it knows nothing of those that it
                did not take, and believes a report that is about another message.
        """
        client = current.client
        left = deadline.remaining()
        delivered = client.wait_delivered(left, give_up=current.has_failed)
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
        """Find out what a failed commit means, and raise that."""
        if isinstance(error, BrokerError) and error.abortable:
            if self._abort(current, error) is None:
                raise TransactionAbortedError(f"not committed: {error}") from error
            # It was too late for that: the commit may have come before.
            current.outcome = "unknown"
        elif isinstance(error, BrokerError):
            self._clients.replace(current.client, error)
            if current.failed:
                # librdkafka has not asked for the commit, as a message had failed.
                current.outcome = "aborted"
                raise TransactionAbortedError(f"not committed: {error}") from error
        else:
            self._clients.drop(current.client)
        text = f"the commit failed, and may have happened all the same: {error}"
        raise TransactionUnknownError(text) from error

    def _abort(self, current: OpenTransaction, why: BaseException) -> Exception | None:
        """Roll back, once; give what went wrong with that.

        Whatever that is, nothing was committed.
        """
        current.outcome = "aborted"
        client, native = current.client, current.client.kafka_handle
        if ended := native.fatal_error:
            self._clients.replace(client, ended)
            return ended
        began = _concurrency.monotonic()
        interrupted = not isinstance(why, Exception)
        seconds = min(current.seconds, _GRACE) if interrupted else current.seconds
        try:
            if not interrupted and not _has_timed_out(why):
                self._await_reports_before_abort(current)
            client.drop_batched()
            deadline = self._deadline(seconds)
            self._clients.commands.run("abort", native.abort_transaction, deadline)
            client.wait_settled(PURGE_TIMEOUT)
            self._give_up_if_unsafe(current)
        except FAILURES as error:
            if interrupted or not isinstance(error, BrokerError):
                self._clients.drop(client)
            else:
                self._clients.replace(client, error)
            return error
        except BaseException:
            self._clients.drop(client)
            raise
        self._tell("transaction.aborted", began)
        return None

    def _give_up_if_unsafe(self, current: OpenTransaction) -> None:
        """Let the next transaction have a new client, and so a new epoch, if need be.

        After an abort librdkafka gives the next messages the sequence numbers of those
        that it has dropped. Brokers that have stored any of these take the next ones
        for duplicates.
        """
        if current.may_have_stored_purged_messages or self._clients.offset_guard.alarm:
            self._clients.drop(current.client)

    def _await_reports_before_abort(self, current: OpenTransaction) -> None:
        """Have the brokers answer for all messages, so that librdkafka drops none.

        See docs/decisions/0020 and 0023. After the limit the client is given up.
        """
        limit = self._connections.settings.wait_timeout_on_transaction_abort
        if limit:
            deadline = self._deadline(min(limit, current.seconds))
            left = deadline.remaining()
            current.client.wait_delivered(left)

    # --- telling -----------------------------------------------------------------

    def _tell(
        self,
        name: str,
        began: float | None,
        facts: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        time = {} if began is None else {"time": _concurrency.monotonic() - began}
        own = {"producer_id": self._connections.settings.id}
        self.notifying = True
        try:
            self._connections.monitor.emit(name, {**own, **facts, **time})
        finally:
            self.notifying = False


def _has_timed_out(why: BaseException) -> bool:
    """Return whether reports were waited for already, in vain."""
    return isinstance(why, DeliveryTimeoutError) or isinstance(
        why.__cause__, DeliveryTimeoutError
    )
