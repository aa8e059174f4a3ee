"""The end of a producer: what is buffered is sent, what is sent is awaited.

It always ends closed. Also when the interpreter exits, and when nobody refers to the
producer any more.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency, _wording
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._concurrency.fair_lock import LockRequest
from greendrop._logging.log import ERROR, Log
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


_log = Log("greendrop")

# Producers that are connected, or have messages buffered. Held so that nobody collects
# one whose messages are on their way, and closed when the interpreter exits.
_in_use: set[Shutdown] = set()
# Whether it was seen to it that this process closes them when it ends.
_expected: _concurrency.ForkMarker | None = None


class SendBatch(Protocol):
    """Queues a batch, in a transaction if need be; see `Core.send_batch`."""

    def __call__(
        self,
        send: Callable[[], list[DeliveryHandle]],
        seconds: float,
        undo: Callable[[], object],
        /,
    ) -> list[DeliveryHandle]: ...


class _Account:
    """What one `close` has to deliver, and what became of it.

    Args:
        timeout: Seconds that it may take.

    Attributes:
        flushes: The last flush of the buffer, and its repetitions.
        failure: Why not all that was buffered was handed over.
        is_late: Messages were dropped, since the time was over.
        loss: What `close` raises; None if everything was delivered.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.flushes: list[Flush] = []
        self.failure: Exception | None = None
        self.is_late = False
        self.loss: MessagesAbandonedError | None = None
        self._handles: set[DeliveryHandle] = set()

    def add(self, client: Client) -> None:
        """Account for the messages that a client has not delivered yet."""
        self._handles.update(client.pending)

    def sum_up(self, name: str, buffer: Buffer) -> None:
        """Sum up the loss; put buffered messages that were not delivered back.

        Args:
            name: The producer's id.
            buffer: Where the program can read them.
        """
        cause = None if self.failure is None else self.failure.__cause__
        unknown = isinstance(cause, TransactionUnknownError)
        reasons = [self.failure if cause is None else cause]
        for flush in reversed(self.flushes):
            self._handles.difference_update(flush.handles, flush.returned)
            reasons.append(flush.return_undelivered(unknown=unknown))
        lost = [handle for handle in self._handles if handle.report is None]
        reasons += [handle.error for handle in lost]
        if not (lost or buffer.unsent):
            return
        parts = [f"producer {name!r} is closed"]
        if lost:
            late = (
                f" within {_wording.seconds(self.timeout)} and dropped"
                if self.is_late
                else ""
            )
            parts.append(f"{count_were(len(lost), 'message')} not delivered{late}")
        if buffer.unsent:
            text = f"{count_were(buffer.unsent, 'buffered message')} not delivered"
            parts.append(f"{text}, and can be read in `buffered`")
        reason = next(filter(_is_telling, reasons), None)
        if reason is not None:
            parts.append(f"the reason: {reason}")
        count = len(lost) + buffer.unsent
        self.loss = MessagesAbandonedError(
            "; ".join(parts), count=count, buffered=buffer.messages()
        )
        self.loss.__cause__ = reason


def _is_telling(reason: BaseException | None) -> bool:
    """Whether an error says more than that a message was dropped.

    The text of others than ours may quote a message.
    """
    dropped = isinstance(reason, MessagePurgedError)
    return isinstance(reason, GreendropError) and not dropped


class Shutdown:
    """How one producer closes.

    Args:
        connections: What it has open.
        buffer: What it has not sent yet.
        recovery: Ends with it.
        transactions: Close waits for one that is open.
        send_batch: Sends what is buffered; see `Core.send_batch`.
        reset: See `Producer.reset`.
    """

    def __init__(
        self,
        connections: Connections,
        buffer: Buffer,
        recovery: Recovery,
        *,
        transactions: Transactions | None,
        send_batch: SendBatch,
        reset: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._buffer = buffer
        self._recovery = recovery
        self._transactions = transactions
        self._send_batch = send_batch
        #: See `Producer.reset`.
        self.reset = reset
        self._closer: object = None

    def register(self) -> None:
        """See to it that this is not collected, and is closed at exit."""
        _in_use.add(self)
        if _expected is None or not _expected.same_process:
            _expect_end()

    def unregister(self) -> None:
        """There is nothing to lose any more."""
        _in_use.discard(self)

    def close(
        self, timeout: float | None, *, force: bool, at_exit: bool = False
    ) -> None:
        """See `Producer.close`."""
        now = self._connections
        if now.inherited:
            # Nothing of the parent's is touched, not even told about.
            now.status = "closing"
            now.reset()
            self._buffer.shut()
            return
        in_hub = _concurrency.in_hub() and bool(now.anything_open or self._buffer)
        if in_hub or now.in_serving_task():
            _concurrency.spawn(lambda: self._close_and_log(timeout, force=force))
            return
        if timeout is None:
            timeout = 0.0 if force else now.settings.max_wait_timeout
        if self._transactions is None:
            self._close_noted(timeout, _concurrency.monotonic(), force=force)
            return
        if self._transactions.held_by_me and self._transactions.notifying:
            _concurrency.spawn(lambda: self._close_and_log(timeout, force=force))
            return
        if self._transactions.held_by_me and not at_exit:
            text = f"producer {self.name!r} can't be closed inside its own transaction"
            raise ProducerTransactionalCloseAttemptError(text)
        began = _concurrency.monotonic()
        turn = LockRequest(_concurrency.current_task())
        try:
            # One that is open ends first. If it takes too long it ends with this.
            self._transactions.block(turn, timeout)
            self._close_noted(timeout, began, force=force)
        finally:
            turn.released = True
            self._transactions.unblock(turn)

    def _close_noted(self, timeout: float, began: float, *, force: bool) -> None:
        in_flight = self._connections.outstanding
        try:
            self._close(timeout, began, force=force)
        except KeyboardInterrupt as interrupt:
            messages = _wording.count(in_flight, "message")
            text = f"interrupted while closing producer {self.name!r}"
            _wording.add_note(interrupt, f"{text}, with {messages} in flight")
            raise

    def _close(self, timeout: float, began: float, *, force: bool) -> None:
        now = self._connections
        me = _concurrency.current_task()
        account = _Account(timeout)
        first = False
        try:
            with now.lock:
                first = self._closer is None and now.status != "closed"
                if first:
                    self._closer = me
                    now.status = "closing"
                    self._buffer.shut()
                now.disconnecting = None
                for slot in now.slots:
                    slot.active = None
                clients = now.clients
            if first:
                self._close_now(account, clients, began, force=force)
            elif self._closer != me:  # else a listener of closing
                now.wait_closed(timeout + PURGE_TIMEOUT)
        except BaseException as error:
            if first:
                self._finish(account, began, error)
            raise
        finally:
            # If `_finish` was interrupted as well, the next `close` begins anew.
            if first:
                self._closer = None

    def _finish(self, account: _Account, began: float, error: BaseException) -> None:
        """End closed in spite of an exception, and log what that doesn't report."""
        if self._connections.status != "closed":
            # A signal handler has raised before `_close_clients`, or at its end.
            self._end_all(account, began, began)
        if account.loss is not None and account.loss is not error:
            _log.write(ERROR, "producer.messages_abandoned", error=str(account.loss))

    def _close_now(
        self,
        account: _Account,
        clients: Sequence[Client],
        began: float,
        *,
        force: bool,
    ) -> None:
        now = self._connections
        for client in clients:
            account.add(client)
        now.tokens.wake()
        try:
            now.emit("producer.closing")
        finally:
            # Also when a listener was interrupted: it always ends closed.
            self._close_clients(account, clients, began, force=force)
        if account.loss is not None and not force:
            raise account.loss

    def release(self) -> None:
        """Close in the background: the last `Producer` is gone."""
        now = self._connections
        if now.status not in ("connected", "disconnecting") or now.inherited:
            self.unregister()
            return
        # Closed first: a warning may have been made an error. Where no thread is to be
        # had, the program is ending, which closes it as well.
        _concurrency.start_thread(lambda: self._close_and_log(None, force=False))
        warnings.warn(
            f"producer {self.name!r} was never closed; closing it now",
            ResourceWarning,
            stacklevel=2,
        )

    def _close_clients(
        self,
        account: _Account,
        clients: Sequence[Client],
        began: float,
        *,
        force: bool,
    ) -> None:
        deadline = began + account.timeout
        try:
            # Nobody takes over any more: what waits for that would wait for ever.
            self._recovery.stop()
            for client in clients:
                client.fail_carried_over(None)
            # A forced close without time has none to deliver anything either.
            if self._buffer and (account.timeout or not force):
                self._flush_last(account, deadline)
        except BaseException:
            deadline = began  # interrupted: wait no longer
            raise
        finally:
            self._end_all(account, deadline, began)

    def _flush_last(self, account: _Account, deadline: float) -> None:
        """Send what is buffered; `close` itself waits for the deliveries."""
        now = self._connections
        now.send_deadline = deadline
        now.final_flush_task = _concurrency.current_task()
        began = _concurrency.monotonic()
        try:
            batch = self._flush_all(account, deadline)
        except Exception as error:  # noqa: BLE001 - nothing stops the teardown
            account.failure = error
            told = isinstance(error, GreendropError)  # others may quote a message
            _log.write(
                ERROR,
                "producer.closes_without_flush",
                producer_id=self.name,
                kind=type(error).__name__,
                error=str(error) if told else None,
            )
        else:
            time = _concurrency.monotonic() - began
            facts = {"producer_id": self.name, "messages": batch, "time": time}
            now.monitor.emit("messages.produced_async", facts)
            now.monitor.emit("buffer.flushed_async", facts)
        finally:
            now.final_flush_task = None

    def _flush_all(self, account: _Account, deadline: float) -> list[Message]:
        """Flush; once more without the refused messages if these made all fail.

        That is so in a transaction. Each round has at least one message less than the
        one before, so the rounds come to an end.
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
                    self._send_batch(
                        partial(flush.dispatch, "produce_many_async"),
                        max(deadline - _concurrency.monotonic(), 0.0),
                        flush.undo,
                    )
                except ProduceError as error:
                    failure = failure or error
                    if not (flush.is_undone and flush.entries):
                        break
        if failure is not None:
            raise failure from failure.__cause__
        return batch

    def _end_all(self, account: _Account, deadline: float, began: float) -> None:
        now = self._connections
        try:
            for client in now.clients:
                self._end(account, client, deadline)
        finally:
            # Also when a wait was cut short: it always ends closed.
            try:
                for client in now.clients:
                    self._end(account, client, began)
                now.wait_clients_closed(PURGE_TIMEOUT)
            finally:
                try:
                    account.sum_up(self.name, self._buffer)
                except BaseException:
                    # Interrupted: put back what was not delivered all the same.
                    account.sum_up(self.name, self._buffer)
                    raise
                finally:
                    now.status = "closed"
                    self.unregister()
                    now.wake_end_waiters()
                    self._report_unsent(account)
                    now.emit("producer.closed", began)

    def _report_unsent(self, account: _Account) -> None:
        """Emit that buffered messages were not delivered, if there are any."""
        if account.loss is not None and self._buffer.unsent:
            error = account.failure or account.loss
            facts = {"messages": self._buffer.messages()}
            self._connections.emit_error("buffer.flush", error, facts)

    def _end(self, account: _Account, client: Client, deadline: float) -> None:
        """Await deliveries, drop the rest, tear down."""
        client.stop_taking()
        account.add(client)
        try:
            left = max(deadline - _concurrency.monotonic(), 0.0)
            client.wait_delivered(left, may_poll=False)
        finally:
            try:
                if client.outstanding > 0:
                    account.add(client)
                    account.is_late = True
                    client.purge_for_good()
                    client.wait_dropped(PURGE_TIMEOUT)
            finally:
                self._connections.close_clients([client])

    def _close_and_log(self, timeout: float | None, *, force: bool) -> None:
        # Nobody is there to catch it: the handles and the log have to tell.
        try:
            self.close(timeout, force=force)
        except MessagesAbandonedError as error:
            _log.write(ERROR, "producer.messages_abandoned", error=str(error))

    def abandon(self, is_meant: Callable[[Client], bool], *, idle: bool) -> None:
        """See the function of that name."""
        now = self._connections
        with now.lock:
            clients = now.clients
            if (
                now.closing_or_closed
                or now.inherited
                or not all(map(is_meant, clients))
            ):
                return
            if not (clients or idle):
                return
            self._buffer.clear()
            self.unregister()
            if not clients:
                return
            now.disconnecting = None
            now.status = "disconnected"
            for slot in now.slots:
                slot.active = None
            now.detach()
            now.monitor.freeze_statistics(frozen=False)
        began = _concurrency.monotonic()
        for client in clients:
            client.stop_taking()
            client.purge_for_good()
            client.wait_dropped(PURGE_TIMEOUT)
        now.close_clients(clients)
        now.emit("producer.disconnected", began)

    # --- at exit -----------------------------------------------------------------

    @property
    def name(self) -> str:
        """The producer's `id`."""
        return self._connections.settings.id

    @property
    def is_ours(self) -> bool:
        """Whether this process may close it."""
        return not self._connections.inherited

    @property
    def exit_timeout(self) -> float:
        """Seconds that closing may take when the interpreter exits."""
        return self._connections.settings.exit_timeout

    def close_before(self, deadline: float, tell: Callable[[str], object]) -> None:
        """Close within a time limit, and tell in one line what was not delivered."""
        under_way = self._connections.outstanding
        try:
            left = max(deadline - _concurrency.monotonic(), 0.0)
            self.close(left, force=False, at_exit=True)
        except MessagesAbandonedError as error:
            tell(str(error))
            return
        except BaseException:
            text = f"closing producer {self.name!r} was interrupted"
            in_flight = _wording.count(under_way, "message")
            text += f", with {in_flight} in flight when it began"
            if unsent := self._buffer.unsent:
                text += f"; {count_were(unsent, 'buffered message')} not delivered"
            tell(text)
            raise
        if unsent := self._buffer.unsent:  # another task has closed it
            text = f"producer {self.name!r} is closed"
            tell(f"{text}; {count_were(unsent, 'buffered message')} not delivered")


def close_in_use(tell: Callable[[str], object], longest: float = math.inf) -> None:
    """Close what this process has in use, for a host that ends it.

    Args:
        tell: Called with a sentence for each loss.
        longest: Seconds for all producers together; never more than the longest
            `exit_timeout` among them.

    Blocking:
        Until all is delivered, or the time is over. Lets other greenlets run.
    """
    ours = [each for each in _in_use if each.is_ours]
    if not ours:
        return
    seconds = min(longest, max(each.exit_timeout for each in ours))
    deadline = _concurrency.monotonic() + seconds
    interrupt = None
    for number, each in enumerate(ours):
        # None may use up the time of those that come after it.
        now = _concurrency.monotonic()
        share = max(deadline - now, 0.0) / (len(ours) - number)
        try:
            each.close_before(now + share, tell)
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt, deadline = error, now  # nobody waits any longer
    if interrupt is not None:
        raise interrupt


def reset_inherited() -> None:
    """Reset the producers that this process's parent used before the fork."""
    for each in [each for each in _in_use if not each.is_ours]:
        each.reset()


def _expect_end() -> None:
    global _expected  # noqa: PLW0603 - once in each process
    _expected = _concurrency.fork_marker()
    _concurrency.register_multiprocessing_exit(_close_at_exit)


def abandon(is_meant: Callable[[Client], bool], *, idle: bool) -> None:
    """Disconnect producers at once, and drop what they have not delivered or sent.

    For the end of a test: they may be used again, and connect anew then.

    Args:
        is_meant: Whether a client goes to what ends. Producers of which all clients do
            are disconnected.
        idle: Whether what is buffered in producers without a client is dropped, too.

    Blocking:
        Until what was dropped is told of. Lets other greenlets run.
    """
    for each in list(_in_use):
        each.abandon(is_meant, idle=idle)


def _close_at_exit() -> None:
    """Close what this process left open, within a bounded time in all."""
    # Logging may be shut down, and is silent by default. This must be seen.
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # it ends anyway
        close_in_use(lambda loss: sys.stderr.write(f"greendrop: {loss}\n"))


atexit.register(_close_at_exit)
