"""The core that a `Producer` shares with all of its variants.

It hands messages to a client and applies the rules of sending: the producer's status,
transactions of single messages and batches, waiting for space in a full queue. It also
owns the objects that connect, disconnect, recover and close the producer. The verbs are
in `producer`, and the calls of librdkafka in `client`.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from greendrop import _concurrency, _interception, _wording
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._concurrency.deadline import Deadline
from greendrop._connections.connections import Connections
from greendrop._connections.recovery import Recovery
from greendrop._producer import registry
from greendrop._producer.batches import wait_reports
from greendrop._producer.buffer import Buffer, is_final
from greendrop._producer.disconnect import Disconnect
from greendrop._producer.shutdown import Shutdown
from greendrop._transactions.coordinator import Transactions
from greendrop.delivery import ScopeRegistry, refused_handle, wait_for_each
from greendrop.errors import (
    SENDING_ERRORS,
    ConfigurationInvalidError,
    DeliveryError,
    FlushTimeoutError,
    IllegalWaitError,
    MessagePurgedError,
    ProduceError,
    ProduceManyError,
    ProducerClosedError,
    ProducerNotTransactionalError,
    QueueFullError,
    TransactionAbortedError,
    TransactionError,
    TransactionUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from greendrop._client.client import Client
    from greendrop._connections.client_slots import ClientSlot
    from greendrop._connections.state import Status
    from greendrop._interception import SendMany
    from greendrop._producer.buffer import BufferedMessage, Flush
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle, DeliveryReport
    from greendrop.errors import BrokerError
    from greendrop.events import Monitor
    from greendrop.interceptors import Interceptor
    from greendrop.message import Message

_T = TypeVar("_T")

_NO_BLOCK = contextlib.nullcontext()
#: Seconds after which `flush` sends lingering messages again, if the user has set a
#: `linger.ms`.
_LINGER_INTERVAL = 0.1


class Core:
    """The shared part of a producer. Construction opens nothing.

    Args:
        settings: The producer's settings.
        monitor: Emits events.
        hooks: See the attribute.
    """

    def __init__(
        self, settings: Settings, monitor: Monitor, hooks: set[object]
    ) -> None:
        #: The hooks that have to see each message: middleware, interceptors, open
        #: scopes, and events `message.produced_*` with listeners. Each adds itself.
        #: While there are none, a plain message takes the short path:
        #: `Client.send_plain`.
        self.hooks = hooks
        self.settings = settings
        self.size_limit = settings.size_limit
        self.monitor = monitor
        self.buffer = Buffer()
        self._connections = Connections(settings, monitor, self)
        self._connect = self._connections.connect
        self._recovery = Recovery(self._connections)
        #: The open delivery scopes. Usually there are none, so the hot path only tests
        #: the truth value.
        self.scopes = ScopeRegistry(hooks)
        #: None without a `transactional.id`.
        self.transactions = (
            Transactions(self._connections, self) if settings.transactional else None
        )
        self.disconnect = Disconnect(self._connections, self.buffer, self.transactions)
        self.shutdown = Shutdown(
            self._connections,
            self.buffer,
            self._recovery,
            self.transactions,
            self,
        )
        #: Queues one message, and queues a batch. Interceptors wrap these attributes;
        #: code that sends a message which interceptors have seen calls the methods.
        self.send: Callable[[ClientSlot, Message, str, float], DeliveryHandle]
        self.send = self._send
        self.send_many: SendMany[ClientSlot] = self._send_many
        registry.reserve(self)

    # --- sending -----------------------------------------------------------------

    def _send(
        self,
        slot: ClientSlot,
        message: Message,
        verb: str,
        seconds: float,
        counts: dict[str, int] | None = None,
    ) -> DeliveryHandle:
        """Queue one message; wait for space if the queue is full.

        A transactional producer that has no open transaction makes one for it.

        Args:
            slot: The slot of its topic configuration.
            message: Checked and normalized.
            verb: The public method's name, for `error.occurred`.
            seconds: How long each step of its own transaction may take.
            counts: The numbers of partitions that its batch uses; see `Router.routed`.

        Raises:
            QueueFullError: No space within `wait_timeout_on_queue_full`.
            ProduceError: librdkafka refused the message.
            IllegalWaitError: It has a `partition_key`, the number of partitions is not
                known, and the caller can't wait for it.
            TransactionError: Its own transaction failed; see there.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was queued.

        Blocking:
            As `Producer.produce_async`.
        """
        client = slot.active
        if client is None or not client.mark[0]:  # mark[0] is 0 in a forked child
            if self.transactions is None:
                with self.waits_of(verb):
                    client = self._connect(slot)
            elif (current := self.transactions.current_for_task()) is not None:
                client = current.client
            else:
                with self.waits_of(verb):
                    return self._send_in_transaction(slot, message, verb, seconds)
        routed = message
        if message[5] is not None:  # partition_key; the name takes 1.5 times as long
            with self.waits_of(verb):
                client, routed = self._route(slot, client, message, counts)
        try:
            handle = client.send(routed)
        except QueueFullError as error:
            client.send_lingering()
            if not self.settings.wait_on_queue_full:
                raise
            with self.waits_of(verb):
                handle = self._send_when_space(slot, message, routed, verb, error)
        except ProducerClosedError:
            # Another thread has disconnected the client since, or replaced it.
            if self._connect(slot) is client:
                raise
            return self._send(slot, message, verb, seconds, counts)
        if self.scopes:
            self.scopes.collect((handle,))
        return handle

    def waits_of(self, verb: str) -> AbstractContextManager[object]:
        """Return the block in which a verb waits, if it does.

        In a running asyncio event loop async verbs don't: a wait raises an
        `IllegalWaitError` there.
        """
        if (
            verb.endswith("_async")
            and _concurrency.in_event_loop()
            and not self._connections.state.in_final_flush
        ):
            return _concurrency.NoWaits()
        return _NO_BLOCK

    def _route(
        self,
        slot: ClientSlot,
        client: Client,
        message: Message,
        counts: dict[str, int] | None,
    ) -> tuple[Client, Message]:
        counts = {} if counts is None else counts
        while True:
            routed = client.router.routed(message, counts)
            current = slot.active or self._connect(slot)  # raises if closed meanwhile
            if current is client:
                return client, routed
            # Replaced meanwhile. The new client may know a number that the old one
            # didn't.
            client = current
            if counts.get(message.topic, 0) <= 0:
                counts.pop(message.topic, None)

    def _send_many(
        self,
        slot: ClientSlot,
        messages: Sequence[Message],
        verb: str,
        handles: list[DeliveryHandle] | None = None,
        end: int | None = None,
        *,
        skip_refused: bool = False,
    ) -> list[DeliveryHandle]:
        """Queue a batch, in order; a long one lets other greenlets run.

        Args:
            slot: The slot of their topic configuration.
            messages: Checked and normalized.
            verb: As for `_send`.
            handles: The handles of the first messages, which are queued already. The
                handles of the others are appended, so that an interrupted caller knows
                which messages were queued.
            end: The index of the first message that must not be queued now.
            skip_refused: Report a message that librdkafka refuses for good, give it a
                failed handle, and go on with the messages after it.

        Raises:
            ProduceManyError: A message was not queued, nor were those after it.
        """
        handles = [] if handles is None else handles
        end = len(messages) if end is None else end
        # One number of partitions for each topic, so that equal keys of a batch go to
        # the same partition.
        counts: dict[str, int] = {}
        loop = _concurrency.CooperativeLoop()
        try:
            while len(handles) < end:
                loop.checkpoint()
                part = messages[len(handles) : min(len(handles) + loop.CHUNK, end)]
                count = len(part)
                with self.waits_of(verb):
                    if [each for each in part if each[5] is not None]:  # partition_key
                        part = self._connect(slot).router.routed_many(part, counts)
                    sent = self._connect(slot).send_many(part)
                handles += sent
                if self.scopes:
                    self.scopes.collect(sent)
                if len(sent) < count:
                    # The next message can't be queued at once: wait, or raise why.
                    message = messages[len(handles)]
                    try:
                        handle = self._send(slot, message, verb, 0.0, counts)
                    except DeliveryError as error:
                        if not (skip_refused and is_final(error)):
                            raise
                        handle = self._refuse(message, error)
                    handles.append(handle)
        except ProduceError as error:
            if not (handles or isinstance(error, SENDING_ERRORS)):
                raise
            failed, count = len(handles), len(messages)
            were = "was" if failed + 1 == count else "and those after it were"
            text = f"message {failed} of {count:,} {were} not queued: {error}"
            raise ProduceManyError(
                text, dispatched=handles, failed_index=len(handles)
            ) from error
        finally:
            if slot.client is not None:
                slot.client.flush_batcher()
        return handles

    def _send_in_transaction(
        self, slot: ClientSlot, message: Message, verb: str, seconds: float
    ) -> DeliveryHandle:
        sent: list[DeliveryHandle] = []

        def send() -> None:
            sent.append(self._send(slot, message, verb, seconds))

        try:
            self.in_transaction(send, seconds)
        except TransactionAbortedError:
            first = sent[0].error if sent else None
            # A dropped message was dropped because the transaction failed, so the error
            # of the transaction says more.
            if first is not None and not isinstance(first, MessagePurgedError):
                sent[0].wait(0.0)  # raises it
            raise
        return sent[0]

    def explain(self, error: ProduceError) -> ProduceError:
        """Return the error that a sync verb raises in place of one that it has met.

        In the block of a transaction that has failed as a whole, it names the reason.
        """
        return error if self.transactions is None else self.transactions.explain(error)

    def in_transaction(self, send: Callable[[], _T], seconds: float) -> _T:
        """Send in the caller's transaction, or in a new one; or without transactions.

        Args:
            send: Sends, and returns the result of this method.
            seconds: How long each step of a new transaction may take.

        Raises:
            TransactionError: The new transaction failed; see there.
        """
        if self.transactions is None or self.transactions.current_for_task():
            return send()
        return self.transactions.run_implicit(send, seconds)

    def send_batch(
        self,
        slot: ClientSlot,
        messages: Sequence[Message],
        verb: str,
        seconds: float,
        flush: Flush | None = None,
    ) -> list[DeliveryHandle]:
        """Queue a batch; a transactional producer makes a transaction of it if needed.

        Args:
            slot: The slot of their topic configuration.
            messages: Checked and normalized.
            verb: As for `_send`.
            seconds: How long each step of its own transaction may take.
            flush: The flush that has taken the messages out of the buffer. It sends
                each to the slot of its variant, and puts messages back that will never
                be visible because their transaction failed.

        Raises:
            ProduceManyError: A message was not queued, or the transaction failed.
        """
        sent: list[DeliveryHandle] = []
        send = partial(self._send_batch_into, sent, slot, messages, verb, flush)
        if self.transactions is None:
            return send()
        undo = None if flush is None else flush.undo
        if (current := self.transactions.current_for_task()) is not None:
            try:
                return send()
            except ProduceManyError:
                if undo is not None:
                    current.on_abort.append(undo)
                raise
        try:
            self.transactions.run_implicit(send, seconds, undo)
        except TransactionUnknownError as error:
            text = f"a batch of {_wording.count(len(sent), 'message')}: {error}"
            raise ProduceManyError(text, dispatched=sent, failed_index=0) from error
        except (ProduceManyError, TransactionError) as error:
            failure = _rolled_back(sent, error)
            raise failure from failure.__cause__
        return sent

    def send_flush(self, flush: Flush, batch: list[Message], seconds: float) -> None:
        """Queue what the last flush, that of `close`, has taken out of the buffer.

        Raises:
            ProduceManyError: As `send_batch`.
        """
        self.send_batch(self.main, batch, "produce_many_async", seconds, flush)

    def _send_batch_into(
        self,
        sent: list[DeliveryHandle],
        slot: ClientSlot,
        messages: Sequence[Message],
        verb: str,
        flush: Flush | None,
    ) -> list[DeliveryHandle]:
        """Queue a batch, and add the handles of all queued messages to a list."""
        try:
            if flush is None:
                sent += self.send_many(slot, messages, verb)
            else:
                sent += flush.send(self.send_many, verb)
        except ProduceManyError as error:
            sent += error.dispatched
            raise
        return sent

    def send_batch_and_wait(
        self,
        slot: ClientSlot,
        messages: Sequence[Message],
        seconds: float,
        flush: Flush | None = None,
    ) -> list[DeliveryReport]:
        """Queue a batch, and wait for the messages that were queued.

        Args:
            slot: As for `send_batch`.
            messages: As for `send_batch`.
            seconds: To wait once the batch is queued; see also `send_batch`.
            flush: As for `send_batch`.

        Raises:
            ProduceManyError: Some messages were not queued or not delivered.
        """
        try:
            handles = self.send_batch(
                slot, messages, "produce_many_sync", seconds, flush
            )
        except ProduceManyError as error:
            wait_for_each(list(error.dispatched), seconds)
            raise
        return wait_reports(handles, seconds, self.explain)

    def partition_count(self, slot: ClientSlot, topic: str) -> int:
        """See `Producer.partition_count`."""
        client = self._connect(slot)
        while True:
            count = client.router.count(topic)
            current = slot.active or self._connect(slot)  # raises if closed meanwhile
            if current is client or count > 0:
                return count
            client = current

    def _send_when_space(
        self,
        slot: ClientSlot,
        message: Message,
        routed: Message,
        verb: str,
        full: QueueFullError,
    ) -> DeliveryHandle:
        if self.settings.instrument_on_wait_queue_full:
            kind = f"message.{verb}"
            self._connections.emit_error(kind, full, {"message": message})
        again = False
        deadline = _concurrency.Deadline(self.settings.wait_timeout_on_queue_full)
        deadline = deadline.earlier(self._connections.state.send_deadline)
        while True:
            if not (remaining := deadline.remaining()):
                raise full
            try:
                self._connect(slot).wait_for_space(remaining, again=again)
            except IllegalWaitError:
                if _concurrency.in_event_loop():
                    full.add(
                        "produce_async doesn't wait for space in a running event loop,"
                        " so limit the messages in flight, for example with an"
                        " asyncio.Semaphore"
                    )
                raise full from full.__cause__  # the caller can't wait
            again = True
            try:
                return self._connect(slot).send(routed, waited=True)
            except QueueFullError as error:
                full = error
            except ProducerClosedError:
                continue  # replaced meanwhile; if it was closed, `_connect` raises

    def buffer_messages(self, messages: Iterable[BufferedMessage]) -> None:
        """Keep messages until they are flushed.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was kept.
        """
        self._connections.check_not_forked()
        if not self.buffer.append(messages):
            raise self._connections.closed_error()
        registry.register(self.shutdown)
        if self.status == "closed":  # by another thread, after the append
            registry.unregister(self.shutdown)

    def _refuse(self, message: Message, error: DeliveryError) -> DeliveryHandle:
        """Report a message that librdkafka refused for good, as the poller would.

        Returns:
            A handle that has failed with the error.
        """
        handle = refused_handle(message.topic, message.label, error)
        payload = {
            "topic": message.topic,
            "partition": message.partition,
            "offset": None,
            "label": message.label,
            "delivery_report": None,
        }
        self._connections.emit_error("librdkafka.dispatch_error", error, payload)
        if self.scopes:
            self.scopes.collect((handle,))
        return handle

    def intercept(self, interceptor: Interceptor) -> None:
        """Pass all messages that are sent from now on through an interceptor.

        It wraps `send` and `send_many`, so producers without interceptors pay nothing.
        """
        self.hooks.add("interceptor")
        self.send = _interception.wrap_send(interceptor, self.send)
        self.send_many = _interception.wrap_send_many(interceptor, self.send_many)

    # --- inspecting --------------------------------------------------------------

    @property
    def main(self) -> ClientSlot:
        """The slot of the producer's own topic configuration."""
        return self._connections.main

    @property
    def status(self) -> Status:
        """See `Producer.status`."""
        return self._connections.state.status

    @property
    def is_live(self) -> bool:
        """Whether the producer is not closed and may be used in this process."""
        return self.status != "closed" and not self._connections.inherited

    @property
    def variants(self) -> int:
        """The number of topic configurations beside the producer's own."""
        return len(self._connections.slots) - 1

    @property
    def outstanding(self) -> int:
        """The number of messages that have no delivery report yet."""
        return self._connections.outstanding

    def check_usable(self) -> None:
        """Check that the producer is open and may be used in this process.

        Raises:
            ProducerClosedError: It is closing or closed.
            ProducerUsedInParentProcessError: The parent process has used it.
        """
        self._connections.check_not_forked()
        self.check_open()

    def check_open(self) -> None:
        """Raise `ProducerClosedError` if the producer is closing or closed."""
        if self._connections.state.closing_or_closed:
            raise self._connections.closed_error()

    def require_transactions(self) -> Transactions:
        """Return the object that begins and ends transactions.

        Raises:
            ProducerNotTransactionalError: The producer is not transactional.
        """
        if self.transactions is None:
            text = f"producer {self.settings.id!r} has no transactional.id"
            raise ProducerNotTransactionalError(text)
        return self.transactions

    def slot(self, topic_config: Mapping[str, str]) -> ClientSlot:
        """Return the slot of a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse the configuration, or there are
                too many of them.
            ProducerClosedError: The producer is closing or closed.
        """
        return self._connections.slot(topic_config)

    def check_can_wait(self) -> None:
        """Check that the caller may wait for the delivery of its messages.

        Raises:
            IllegalWaitError: The caller is the hub, or a listener of this producer.
            ProducerUsedInParentProcessError: The parent process has used the producer.
        """
        self._connections.check_not_forked()
        _concurrency.new_waiter()
        for client in self._connections.clients:
            client.poll_loop.new_waiter()

    # --- dropping ----------------------------------------------------------------

    def purge(self) -> None:
        """See `Producer.purge`."""
        self._connections.check_not_forked()
        started = _concurrency.monotonic()
        unsent = self.buffer.clear()
        clients = self._connections.clients
        dropped = [handle for client in clients for handle in client.purge()]
        if self._connections.can_wait():
            for client in clients:
                client.finish_purge(PURGE_TIMEOUT)
            self._wait_reported(dropped, started + PURGE_TIMEOUT)
        payload = {"producer_id": self.settings.id, "messages": unsent}
        time = _concurrency.monotonic() - started
        self.monitor.emit("buffer.purged", {**payload, "time": time})

    @staticmethod
    def _wait_reported(handles: Iterable[DeliveryHandle], deadline: float) -> None:
        for handle in handles:
            remaining = deadline - _concurrency.monotonic()
            if remaining <= 0:
                return
            if not handle.done:
                with contextlib.suppress(ProduceError):
                    handle.wait(remaining)

    def wait_for_sent(self, seconds: float) -> None:
        """Wait for the delivery reports of all messages that were sent before the call.

        Raises:
            FlushTimeoutError: Some messages have no report in time.

        Blocking:
            Lets other greenlets run where the thread has a hub, else blocks the thread.
        """
        deadline = Deadline(seconds)
        for client in self._connections.clients:
            client.flush_batcher()
        handles = self._connections.pending
        # A message reaches a batch, and lingers there, only when its broker is known.
        slice_ = _LINGER_INTERVAL if self.settings.user_sets_linger else seconds
        while True:
            for client in self._connections.clients:
                client.send_lingering()
            late = wait_for_each(handles, min(slice_, deadline.remaining()))
            if late is None:
                return
            if deadline.has_expired:
                break
        count = sum(not handle.done for handle in handles)
        messages = _wording.count(count, "message")
        have = "has" if count == 1 else "have"
        text = (
            f"{messages} sent by producer {self.settings.id!r} {have} no delivery"
            f" report within {_wording.seconds(seconds)}, and may still be delivered"
        )
        reasons = [
            client.poll_loop.last_broker_error() for client in self._connections.clients
        ]
        if reason := next(filter(None, reasons), None):
            text += f"; last broker error: {reason}"
        raise FlushTimeoutError(text, count) from late

    def release_id(self) -> None:
        """Release the `id` for the producer that replaces this one."""
        registry.release_id(self)

    # --- the producer's life -----------------------------------------------------

    def reset(self) -> None:
        """See `Producer.reset`."""
        transactions = self.transactions
        lock_is_inherited = transactions is not None and transactions.inherited
        if not (self._connections.inherited or lock_is_inherited):
            return
        if not self._connections.state.closing_or_closed:
            registry.reserve(self)
        self._connections.reset()
        if transactions is not None:
            transactions.reset()

    def change_settings(self, settings: Settings) -> None:
        """Apply the settings that a listener of `producer.reload` has changed.

        Raises:
            ConfigurationInvalidError: Another producer has the `transactional.id`.
        """
        before, self.settings = self.settings, settings
        try:
            registry.reserve(self)
        except ConfigurationInvalidError:
            self.settings = before
            raise
        self._connections.settings = self.main.settings = settings

    def on_fatal(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Replace a client after a fatal error, if that is allowed.

        Called under the client's `send_lock`, so it takes no other lock.
        """
        if self._connections.state.status not in ("connected", "disconnecting"):
            return False
        if not self._recovery.begins(slot, client, error):
            return False
        client.stop_sending(_leave_to_recovery, has_successor=False)
        client.spawn_in_batcher_hub(self._recovery.run, slot, client, error)
        return True

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""
        if self._connections.inherited:
            return  # the copy of the poller in a forked child
        if self.settings.uses_oauth:
            self._connections.tokens.review()
        if self.settings.idle_disconnect_timeout:
            self.disconnect.check_idle()

    def register(self) -> None:
        """Close the producer when the process exits; until then keep it alive."""
        registry.register(self.shutdown)

    def unregister(self) -> None:
        """Undo `register`, when the producer has nothing to close."""
        registry.unregister(self.shutdown)


def _leave_to_recovery() -> None:
    """Do nothing about a kept message: `Recovery.run` hands on all of them."""


def _rolled_back(
    handles: list[DeliveryHandle], error: ProduceManyError | TransactionError
) -> ProduceManyError:
    """Return the error of a batch whose transaction was rolled back."""
    index, cause = 0, error.__cause__
    if isinstance(error, ProduceManyError):
        index = error.failed_index
    else:
        cause = error
        for position, handle in enumerate(handles):
            reason = handle.error
            if reason is not None and not isinstance(reason, MessagePurgedError):
                index, cause = position, reason
                break
    text = f"nothing of the batch is visible, since message {index} failed: {cause}"
    failure = ProduceManyError(
        text, dispatched=(), rolled_back=handles, failed_index=index
    )
    failure.__cause__ = cause
    return failure
