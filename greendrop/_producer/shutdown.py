"""Shutdown: a producer sends its buffer, waits for deliveries, and closes its clients.

`close` always ends with a closed producer. It also runs when the process exits (see
`registry`), and when the program drops its last reference to the producer.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _wording
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._concurrency.fair_lock import LockRequest
from greendrop._logging.log import ERROR, Log
from greendrop._producer import registry
from greendrop._producer.buffer import Flush
from greendrop._wording import count_were
from greendrop.errors import (
    GreendropError,
    MessagePurgedError,
    MessagesAbandonedError,
    ProduceError,
    ProducerTransactionalCloseAttemptError,
    TransactionUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop._connections.recovery import Recovery
    from greendrop._producer.buffer import Buffer
    from greendrop._transactions.coordinator import Transactions
    from greendrop.delivery import DeliveryHandle
    from greendrop.message import Message

    _Step = Callable[["_Account"], None]

_log = Log("greendrop")


class ShutdownOwner(Protocol):
    """The core of a producer, as its shutdown needs it."""

    def send_flush(self, flush: Flush, batch: list[Message], seconds: float) -> None:
        """Queue what a flush has taken, in a transaction of its own if needed."""

    def reset(self) -> None:
        """Make the producer usable in a forked child."""


class _Account:
    """The messages that one `close` has to deliver, and those that it could not.

    Args:
        timeout: Seconds that `close` may take.
        in_flight: The number of messages in flight when `close` began.
        force: Whether `close` drops messages without raising an error.

    Attributes:
        task: The task that closes.
        started: When `close` began, by the monotonic clock.
        deadline: When the waits for flush and deliveries end.
        clients: The clients that `close` has found.
        flushes: The last flush of the buffer, and its repetitions.
        failure: The error that kept buffered messages from being queued.
        is_late: Whether messages were dropped at the timeout.
        loss: The error that `close` raises; None if everything was delivered.
    """

    def __init__(self, timeout: float, in_flight: int, *, force: bool) -> None:
        self.timeout = timeout
        self.in_flight = in_flight
        self.force = force
        self.task = _concurrency.current_task()
        self.started = _concurrency.monotonic()
        self.deadline = _concurrency.Deadline(timeout)
        self.clients: Sequence[Client] = ()
        self.flushes: list[Flush] = []
        self.failure: Exception | None = None
        self.is_late = False
        self.loss: MessagesAbandonedError | None = None
        # Handles that `_find_lost` has yet to check; some are there more than once. To
        # keep 100,000 of them in a set takes 10 ms, to copy them into a list 2 ms.
        self._unchecked: list[DeliveryHandle] = []
        self._lost: set[DeliveryHandle] = set()
        # The first error of a lost message that says more than that it was dropped.
        self._reason: Exception | None = None

    def add(self, client: Client) -> None:
        """Account for the messages that a client has not delivered yet."""
        self._unchecked += client.pending

    def sum_up(self, name: str, buffer: Buffer) -> None:
        """Set `loss`, and put undelivered buffered messages back into the buffer.

        Args:
            name: The producer's id.
            buffer: The buffer, in which the program can read the messages.

        Blocking:
            Lets other greenlets run. Can be repeated if it was interrupted.
        """
        cause = None if self.failure is None else self.failure.__cause__
        unknown = isinstance(cause, TransactionUnknownError)
        reasons = [self.failure if cause is None else cause]
        buffered: set[DeliveryHandle] = set()
        for flush in reversed(self.flushes):
            buffered.update(flush.handles, flush.returned)
            reasons.append(flush.return_undelivered(unknown=unknown))
        self._find_lost(buffered)
        reasons.append(self._reason)
        lost = len(self._lost)
        if not (lost or buffer.unsent):
            return
        parts = [f"producer {name!r} is closed"]
        if lost:
            late = (
                f" within {_wording.seconds(self.timeout)} and dropped"
                if self.is_late
                else ""
            )
            parts.append(f"{count_were(lost, 'message')} not delivered{late}")
        if buffer.unsent:
            text = f"{count_were(buffer.unsent, 'buffered message')} not delivered"
            parts.append(f"{text}, and can be read in `buffered`")
        reason = next(filter(_is_informative, reasons), None)
        if reason is not None:
            parts.append(f"the reason: {reason}")
        count = lost + buffer.unsent
        self.loss = MessagesAbandonedError(
            "; ".join(parts), count=count, buffered=buffer.messages()
        )
        self.loss.__cause__ = reason

    def _find_lost(self, buffered: set[DeliveryHandle]) -> None:
        """Find the messages that were not delivered, and forget the others.

        In slices, which also free the handles: 100,000 at once hold the hub for 15 ms.
        Each slice is recorded before it is removed, so an interrupt loses none.

        Args:
            buffered: Handles for which the buffer accounts.

        Blocking:
            Lets other greenlets run.
        """
        loop = _concurrency.CooperativeLoop()
        while self._unchecked:
            # The check of `delivery._delivered`, inlined: a call takes twice as long.
            lost = {
                handle
                for handle in self._unchecked[-loop.CHUNK :]
                if handle._reports is not None or handle._error is not None  # noqa: SLF001
            }
            if lost:
                lost -= buffered
                self._lost |= lost
                if self._reason is None:
                    errors = (handle.error for handle in lost)
                    self._reason = next(filter(_is_informative, errors), None)
            del self._unchecked[-loop.CHUNK :]
            loop.checkpoint()


def _is_informative(reason: BaseException | None) -> bool:
    """Return whether an error says more than that a message was dropped.

    Errors of other classes than ours don't count: their text may quote a message.
    """
    dropped = isinstance(reason, MessagePurgedError)
    return isinstance(reason, GreendropError) and not dropped


class Shutdown:
    """Closes one producer.

    Args:
        connections: The producer's clients.
        buffer: Messages that are sent before the clients close.
        recovery: Stops when the producer closes.
        transactions: `close` waits for the end of an open transaction.
        owner: The core of the producer.
    """

    def __init__(
        self,
        connections: Connections,
        buffer: Buffer,
        recovery: Recovery,
        transactions: Transactions | None,
        owner: ShutdownOwner,
    ) -> None:
        self._connections = connections
        self._buffer = buffer
        self._recovery = recovery
        self._transactions = transactions
        self._owner = owner
        self._running: _Account | None = None

    def close(
        self, timeout: float | None, *, force: bool, at_exit: bool = False
    ) -> None:
        """See `Producer.close`."""
        connections, transactions = self._connections, self._transactions
        if self._closes_without_waiting(timeout, force=force):
            return
        if transactions is not None and transactions.held_by_me and not at_exit:
            text = f"producer {self.name!r} can't be closed inside its own transaction"
            raise ProducerTransactionalCloseAttemptError(text)
        if timeout is None:
            timeout = 0.0 if force else connections.settings.max_wait_timeout
        account = _Account(timeout, connections.outstanding, force=force)
        request = LockRequest(account.task)
        try:
            self._begin(account, request)
            running = self._running
            if running is account:
                self._run(account, self._steps)
            elif running is None or running.task != account.task:
                connections.wait_closed(timeout + PURGE_TIMEOUT)
            # Else the caller is a listener of producer.closing.
        except BaseException as error:
            self._on_interrupt(account, error)
            raise
        finally:
            # If the last steps were interrupted as well, the next `close` starts again.
            if self._running is account:
                self._running = None
            if transactions is not None:
                request.released = True
                transactions.unblock(request)
        if account.loss is not None and not force:
            raise account.loss

    def _closes_without_waiting(self, timeout: float | None, *, force: bool) -> bool:
        """Close here if a parent process has the clients, or let another task close.

        Returns:
            Whether the caller has nothing more to do.
        """
        connections, transactions = self._connections, self._transactions
        if connections.inherited:
            # The clients are the parent's: don't touch them, and emit nothing.
            connections.state.to("closing")
            connections.reset()
            self._buffer.stop()
            return True
        # A task of its own closes where the caller can't wait.
        if (
            (_concurrency.in_hub() and (connections.anything_open or self._buffer))
            or connections.in_listener()
            or (
                transactions is not None
                and transactions.held_by_me
                and transactions.notifying
            )
        ):
            _concurrency.spawn(self._close_and_log, timeout, force=force)
            return True
        return False

    def _begin(self, account: _Account, request: LockRequest) -> None:
        """Accept no more messages; become the running close, if there is none."""
        connections = self._connections
        if self._transactions is not None:
            # Wait for an open transaction; after the timeout, close all the same.
            self._transactions.block(request, account.timeout)
        with connections.state.lock:
            if self._running is None and connections.state.status != "closed":
                self._running = account
                connections.state.to("closing")
                self._buffer.stop()
            connections.deactivate()
            account.clients = connections.clients

    @staticmethod
    def _run(account: _Account, steps: Sequence[_Step]) -> None:
        """Run steps of a close, each also if those before it were interrupted.

        The producer always ends closed, without further waits after an interrupt. The
        last exception of a step is raised afterwards.
        """
        failure: BaseException | None = None
        for step in steps:
            try:
                step(account)
            except BaseException as error:  # noqa: BLE001 - raised below
                failure = error
                account.deadline = _concurrency.Deadline(0)
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # or the traceback would refer to itself

    def _on_interrupt(self, account: _Account, error: BaseException) -> None:
        """Close all the same, when an exception has left `_run` or came before it."""
        if isinstance(error, KeyboardInterrupt):
            messages = _wording.count(account.in_flight, "message")
            text = f"interrupted while closing producer {self.name!r}"
            _wording.add_note(error, f"{text}, with {messages} in flight")
        if self._running is account and self._connections.state.status != "closed":
            # A signal handler has raised between two steps.
            account.deadline = _concurrency.Deadline(0)
            self._run(account, self._last_steps)
        if account.loss is not None:
            text = str(account.loss)
            _log.write(ERROR, "producer.messages_abandoned", error=text)

    @property
    def _steps(self) -> tuple[_Step, ...]:
        return self._announce, self._flush, *self._last_steps

    @property
    def _last_steps(self) -> tuple[_Step, ...]:
        return (
            self._deliver,
            self._deliver,  # closes the clients that an interrupted one has left open
            self._wait_clients_closed,
            self._sum_up,
            self._finish,
        )

    def release(self) -> None:
        """Close in the background: the program has dropped the last `Producer`."""
        connections = self._connections
        if (
            connections.state.status not in ("connected", "disconnecting")
            or connections.inherited
        ):
            # Buffered messages are sent at exit, by the hook.
            if connections.inherited or not len(self._buffer):
                registry.unregister(self)
            return
        # Close before the warning: a filter may make it an error. If no thread can be
        # started, the program is ending, and the exit hook closes the producer.
        _concurrency.start_thread(self._close_and_log, None, force=False)
        warnings.warn(
            f"producer {self.name!r} was never closed; closing it now",
            ResourceWarning,
            stacklevel=2,
        )

    # --- the steps of a close ----------------------------------------------------

    def _announce(self, account: _Account) -> None:
        loop = _concurrency.CooperativeLoop()
        for client in account.clients:
            account.add(client)
        self._connections.tokens.wake()
        self._connections.emit("producer.closing")
        loop.checkpoint()

    def _flush(self, account: _Account) -> None:
        """Send the buffered messages, unless there is no time for that."""
        # No client takes over any more: fail the messages that wait for that.
        self._recovery.stop()
        for client in account.clients:
            client.fail_carried_over(None)
        # A forced close without a timeout has no time to deliver anything.
        if self._buffer and (account.timeout or not account.force):
            self._flush_last(account)

    def _deliver(self, account: _Account) -> None:
        """Wait for the deliveries, drop the rest, and close the clients."""
        for client in self._connections.clients:
            client.stop_taking()
            account.add(client)
            try:
                client.wait_delivered(account.deadline.remaining(), may_poll=False)
            finally:
                try:
                    if client.outstanding > 0:
                        account.add(client)
                        account.is_late = True
                        client.purge_for_good()
                        client.wait_dropped(PURGE_TIMEOUT)
                finally:
                    with self._connections.closing(client):
                        client.close()

    def _wait_clients_closed(self, _account: _Account) -> None:
        self._connections.wait_clients_closed(PURGE_TIMEOUT)

    def _sum_up(self, account: _Account) -> None:
        try:
            account.sum_up(self.name, self._buffer)
        except BaseException:
            # Interrupted: put undelivered messages back all the same.
            account.sum_up(self.name, self._buffer)
            raise

    def _finish(self, account: _Account) -> None:
        self._connections.state.to("closed")
        registry.unregister(self)
        self._connections.wake_end_waiters()
        self._report_unsent(account)
        self._connections.emit("producer.closed", account.started)

    # --- their parts -------------------------------------------------------------

    def _flush_last(self, account: _Account) -> None:
        """Send the buffered messages; `close` waits for their deliveries later."""
        connections = self._connections
        connections.state.send_deadline = account.deadline
        connections.state.final_flush_task = _concurrency.current_task()
        started = _concurrency.monotonic()
        try:
            batch = self._flush_all(account)
        except Exception as error:  # noqa: BLE001 - nothing may stop the teardown
            account.failure = error
            # Other errors may quote a message.
            text = str(error) if isinstance(error, GreendropError) else None
            _log.write(
                ERROR,
                "producer.closes_without_flush",
                producer_id=self.name,
                kind=type(error).__name__,
                error=text,
            )
        else:
            time = _concurrency.monotonic() - started
            payload = {"producer_id": self.name, "messages": batch, "time": time}
            connections.monitor.emit("messages.produced_async", payload)
            connections.monitor.emit("buffer.flushed_async", payload)
        finally:
            connections.state.final_flush_task = None

    def _flush_all(self, account: _Account) -> list[Message]:
        """Flush the buffer, again without refused messages if these made all fail.

        In a transaction one refused message makes all fail. Each round has at least one
        message less than the one before, so the rounds come to an end.
        """
        if (
            self._transactions is not None
            and self._transactions.current_for_task() is not None
        ):
            text = "a transaction is open that will not be committed; nothing was sent"
            raise ProducerTransactionalCloseAttemptError(text)
        failure: ProduceError | None = None
        batch: list[Message] = []
        while self._buffer:
            with Flush(self._buffer) as flush:
                account.flushes.append(flush)
                batch = flush.take()
                try:
                    seconds = account.deadline.remaining()
                    self._owner.send_flush(flush, batch, seconds)
                except ProduceError as error:
                    failure = failure or error
                    if not (flush.is_undone and flush.entries):
                        break
        if failure is not None:
            raise failure from failure.__cause__
        return batch

    def _report_unsent(self, account: _Account) -> None:
        """Emit an error if buffered messages were not delivered."""
        if account.loss is not None and self._buffer.unsent:
            error = account.failure or account.loss
            payload = {"messages": self._buffer.messages()}
            self._connections.emit_error("buffer.flush", error, payload)

    def _close_and_log(self, timeout: float | None, *, force: bool) -> None:
        # No caller is there to catch an error: log the loss, as the handles report it.
        try:
            self.close(timeout, force=force)
        except MessagesAbandonedError as error:
            _log.write(ERROR, "producer.messages_abandoned", error=str(error))

    def discard(self, is_meant: Callable[[Client], bool], *, idle: bool) -> None:
        """Disconnect without delivering anything; see `registry.discard`."""
        connections = self._connections
        with connections.state.lock:
            clients = connections.clients
            if (
                connections.state.closing_or_closed
                or connections.inherited
                or not all(map(is_meant, clients))
            ):
                return
            if not (clients or idle):
                return
            self._buffer.clear()
            registry.unregister(self)
            if not clients:
                return
            connections.state.to("disconnected")
            connections.deactivate()
            connections.detach_all()
            connections.monitor.freeze_statistics(frozen=False)
        started = _concurrency.monotonic()
        for client in clients:
            client.stop_taking()
            client.purge_for_good()
            client.wait_dropped(PURGE_TIMEOUT)
        connections.close_clients(clients)
        connections.emit("producer.disconnected", started)

    # --- at exit -----------------------------------------------------------------

    def reset(self) -> None:
        """See `Producer.reset`."""
        self._owner.reset()

    @property
    def name(self) -> str:
        """The producer's `id`."""
        return self._connections.settings.id

    @property
    def is_ours(self) -> bool:
        """Whether this process may close the producer."""
        return not self._connections.inherited

    @property
    def exit_timeout(self) -> float:
        """Seconds that `close` may take when the interpreter exits."""
        return self._connections.settings.exit_timeout

    def close_at_exit(self, timeout: float, report: Callable[[str], object]) -> None:
        """Close within some seconds, and report a loss in one line."""
        outstanding = self._connections.outstanding
        try:
            self.close(timeout, force=False, at_exit=True)
        except MessagesAbandonedError as error:
            report(str(error))
            return
        except BaseException:
            text = f"closing producer {self.name!r} was interrupted"
            in_flight = _wording.count(outstanding, "message")
            text += f", with {in_flight} in flight when it began"
            if unsent := self._buffer.unsent:
                text += f"; {count_were(unsent, 'buffered message')} not delivered"
            report(text)
            raise
        if unsent := self._buffer.unsent:  # another task has closed it
            text = f"producer {self.name!r} is closed"
            report(f"{text}; {count_were(unsent, 'buffered message')} not delivered")
