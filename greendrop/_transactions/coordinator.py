"""The transactions of one producer: one after the other, each with one end.

Who may begin, what an error means for the transaction, and what is told. The first
error is the one that is seen, and nothing is rolled back twice. Knows nothing of
librdkafka's calls (`handle`), of how they are tried (`calls`), of what becomes of
a client (`clients`), nor of the verbs.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from greendrop import _concurrency
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
    ProduceError,
    TransactionAbortedError,
    TransactionBusyError,
    TransactionRequiredError,
    TransactionUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.scope import ScopeRegistry

_T = TypeVar("_T")

#: How a transaction ended.
Outcome = Literal["committed", "aborted", "unknown"]

#: Seconds for which Ctrl-C, a `gevent.Timeout` or the end of a greenlet is held up
#: while its transaction is rolled back. If that takes longer the brokers have to do it.
_GRACE = 2.0
#: Seconds between nudges of librdkafka while one message is waited for and the user's
#: `linger.ms` holds it back.
_NUDGE_EVERY = 0.05


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
        self.first = _FirstHandle(self.task)
        self.refused_before = client.kafka_handle.refused
        self.failed_before = client.kafka_handle.error_translator.failed
        self.on_abort: list[Callable[[], object]] = []
        self.abort_reason: BaseException | None = None
        self.ending = False
        self.is_over = False
        self.outcome: Outcome | None = None


class _FirstHandle:
    """Remembers the first message of a transaction; collects it as a scope does."""

    def __init__(self, task: object) -> None:
        self._task = task
        self._scopes: ScopeRegistry | None = None
        self.handle: DeliveryHandle | None = None

    def watch(self, scopes: ScopeRegistry) -> None:
        """Look out for it, among what the task sends."""
        self._scopes = scopes
        scopes.enter(self._task, self)

    def add(self, handles: Iterable[DeliveryHandle]) -> None:
        """Take it, and look no further."""
        self.handle = next(iter(handles), None)
        if self.handle is not None:
            self.leave()

    def leave(self) -> None:
        """Look out no more."""
        if self._scopes is not None:
            self._scopes.leave(self._task, self)


class Transactions:
    """Begins and ends the transactions of one producer.

    Args:
        connections: What it has open.
        scopes: Who wants to know what is sent.
        check_can_wait: Raises where nobody may wait.
        adopt: Makes changed settings the producer's, or raises
            `ConfigurationInvalidError`.
    """

    def __init__(
        self,
        connections: Connections,
        scopes: ScopeRegistry,
        check_can_wait: Callable[[], None],
        adopt: Callable[[Settings], None],
    ) -> None:
        self._connections = connections
        self._scopes = scopes
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
        return self._lock.request is not None

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
        if not now.client.mark[0]:
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
            return self._lock.acquire(turn, seconds)
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
                self._lock.release(turn)
        return current

    def _deadline(self, seconds: float) -> float:
        # Whatever the caller wants, closing has one for all steps of its last flush.
        return min(_concurrency.monotonic() + seconds, self._connections.send_deadline)

    def _await_turn(self, turn: LockRequest, seconds: float) -> None:
        try:
            if self._lock.acquire(turn, seconds):
                return
            text = f"that of another task did not end within {seconds:g} s"
        except DeadlockError:
            text = "the task that has a transaction waits for this one to end"
        except OwnerInParentError as error:
            raise self._connections.inherited_error() from error
        raise TransactionBusyError(
            f"no transaction was begun, and nothing sent: {text} (greendrop runs the"
            " transactions of one producer one after the other)"
        )

    def _begin(
        self, seconds: float, turn: LockRequest | None, deadline: float
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
        current = self._current = OpenTransaction(seconds, client, turn, began)
        try:
            if self._connections.settings.wait_timeout_on_transaction_abort:
                current.first.watch(self._scopes)
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
        deadline = _concurrency.monotonic() + current.seconds
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
        except BaseException as error:
            self.end(current, error)
            raise
        self.end(current, None)
        return result

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
        if not current.client.mark[0]:
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
            self._finish(current)

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
        current.first.leave()
        try:
            if current.outcome == "aborted":
                while current.on_abort:
                    current.on_abort.pop()()
            facts = {"outcome": current.outcome}
            self._tell("transaction.finished", current.began, facts)
        finally:
            current.is_over = True
            self._current = None
            if current.turn is not None:
                self._lock.release(current.turn)

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

    @staticmethod
    def _await_reports(current: OpenTransaction, deadline: float) -> None:
        client = current.client
        if client.wait_delivered(max(deadline - _concurrency.monotonic(), 0.0)):
            if refused := client.kafka_handle.refused - current.refused_before:
                # The brokers know nothing of these, and would commit the others.
                raise TransactionAbortedError(
                    f"not committed: {refused} of its messages were refused or"
                    " dropped; their handles, or what the call raised, say why"
                )
            return
        text = (
            f"{client.outstanding} messages had no verdict within {current.seconds:g} s"
        )
        if reason := client.attendant.last_broker_error():
            text += f"; last broker error: {reason}"
        late = DeliveryTimeoutError(text)
        raise TransactionAbortedError(f"not committed: {text}") from late

    def _fail_commit(self, current: OpenTransaction, error: Exception) -> None:
        """Find out what a failed commit means, and raise that."""
        refuted = (
            current.client.kafka_handle.error_translator.failed > current.failed_before
        )
        if isinstance(error, BrokerError) and error.abortable:
            if self._abort(current, error) is None:
                raise TransactionAbortedError(f"not committed: {error}") from error
            # It was too late for that: the commit may have come before.
            current.outcome = "unknown"
        elif isinstance(error, BrokerError):
            self._clients.replace(current.client, error)
            if refuted:
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
            if not interrupted and not _is_from_broker(why):
                self._await_first(current)
            client.drop_batched()
            deadline = self._deadline(seconds)
            self._clients.commands.run("abort", native.abort_transaction, deadline)
            client.wait_settled(PURGE_TIMEOUT)
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

    def _await_first(self, current: OpenTransaction) -> None:
        """Work around librdkafka issue 4849; see docs/decisions/0020."""
        settings = self._connections.settings
        seconds = settings.wait_timeout_on_transaction_abort
        first, client = current.first.handle, current.client
        if not seconds or first is None or first.done:
            return
        client.flush_batcher()
        deadline = self._deadline(min(seconds, current.seconds))
        while not first.done and (left := deadline - _concurrency.monotonic()) > 0:
            if settings.user_sets_linger:
                client.kafka_handle.flush_linger()
                left = min(left, _NUDGE_EVERY)
            with contextlib.suppress(ProduceError):
                first.wait(left)

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


def _is_from_broker(error: BaseException) -> bool:
    return isinstance(error, BrokerError) or isinstance(error.__cause__, BrokerError)
