"""The rules of dispatch: who may send and when.

What a `Producer` and everything made from it share: the way of a message to a client,
the wait for room in a full queue, and whoever has to do with the producer's life. Knows
nothing of librdkafka's calls (`client` does) and nothing of the verbs (`producer`
does).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from greendrop import _concurrency, _wording, interceptors
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._concurrency.deadline import Deadline
from greendrop._connections.connections import Connections
from greendrop._connections.recovery import Recovery
from greendrop._producer import registry
from greendrop._producer.buffer import Buffer, is_final
from greendrop._producer.disconnect import Disconnect
from greendrop._producer.shutdown import Shutdown
from greendrop._transactions.coordinator import Transactions
from greendrop.delivery import refused_handle
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
from greendrop.scope import ScopeRegistry, wait_for_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from greendrop._client.client import Client
    from greendrop._connections.client_slots import ClientSlot
    from greendrop._connections.connections import Status
    from greendrop._producer.buffer import Entry
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.errors import BrokerError
    from greendrop.events import Monitor
    from greendrop.interceptors import Interceptor
    from greendrop.message import Message

_T = TypeVar("_T")

#: Seconds after which `flush` again sends what the user's `linger.ms` holds back.
_LINGER_INTERVAL = 0.1


class Core:
    """The shared part of a producer. Construction opens nothing."""

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        self.settings = settings
        self.size_limit = settings.size_limit
        self.monitor = monitor
        self.buffer = Buffer()
        self._connections = Connections(
            settings,
            monitor,
            self,
        )
        self._connect = self._connections.connect
        self._recovery = Recovery(settings.id, monitor, self._connections.replace)
        #: Who wants to know of what is sent. Mostly nobody: one look tells.
        self.scopes = ScopeRegistry()
        #: None without a `transactional.id`.
        self.transactions = (
            Transactions(self._connections, self.check_can_wait, self._change_settings)
            if settings.transactional
            else None
        )
        self._disconnecting = Disconnect(
            self._connections, self.buffer, self.transactions
        )
        self._shutdown = Shutdown(
            self._connections,
            self.buffer,
            self._recovery,
            transactions=self.transactions,
            send_batch=self.send_batch,
            reset=self.reset,
        )
        registry.claim(self)

    # --- sending -----------------------------------------------------------------

    def dispatch(
        self,
        slot: ClientSlot,
        message: Message,
        verb: str,
        seconds: float,
        counts: dict[str, int] | None = None,
    ) -> DeliveryHandle:
        """Queue one message in wire form, waiting for room if need be.

        Outside of a transaction a transactional producer makes one of it.

        Args:
            slot: Its way.
            message: Checked.
            verb: The public method's name, for `error.occurred`.
            seconds: How long each step of its own transaction may take.
            counts: Numbers of partitions that hold for its batch; see `Router.routed`.

        Raises:
            QueueFullError: No room within `wait_timeout_on_queue_full`.
            ProduceError: librdkafka refused it.
            IllegalWaitError: Where its `partition_key` leads to is not known.
            TransactionError: Its own transaction failed; see there.
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was queued.
        """
        client = slot.active
        if client is None or not client.mark[0]:
            if self.transactions is None:
                client = self._connect(slot)
            elif (current := self.transactions.current_for_task()) is not None:
                client = current.client
            else:
                return self._dispatch_in_transaction(slot, message, verb, seconds)
        routed = message
        if message[5] is not None:
            client, routed = self._routed(slot, client, message, counts)
        try:
            handle = client.send(routed)
        except QueueFullError as error:
            client.send_lingering()
            if not self.settings.wait_on_queue_full:
                raise
            handle = self._send_when_room(slot, message, routed, verb, error)
        except ProducerClosedError:
            # Another thread has disconnected since we looked, or replaced the client.
            if self._connect(slot) is client:
                raise
            return Core.dispatch(self, slot, message, verb, seconds, counts)
        if self.scopes:
            self.scopes.collect((handle,))
        return handle

    def _routed(
        self,
        slot: ClientSlot,
        client: Client,
        message: Message,
        counts: dict[str, int] | None,
    ) -> tuple[Client, Message]:
        counts = {} if counts is None else counts
        while True:
            routed = client.router.routed(message, counts)
            now = slot.active or self._connect(slot)  # closed meanwhile?
            if now is client:
                return client, routed
            # Replaced meanwhile. What the old one didn't know, the new one may.
            client = now
            if counts.get(message[0], 0) <= 0:
                counts.pop(message[0], None)

    def dispatch_many(
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
            slot: Their way.
            messages: In wire form.
            verb: As for `dispatch`.
            handles: Those of the first messages, which are queued already. The others
                are added, so that one who is interrupted knows how far it came.
            end: Index of the first message that is not to be queued now.
            skip_refused: A message that librdkafka refuses for good is reported, gets
                a handle that has failed, and doesn't keep those after it back.

        Raises:
            ProduceManyError: A message was not queued, nor were those after it.
        """
        handles = [] if handles is None else handles
        end = len(messages) if end is None else end
        # One number for each topic, so that equal keys of a batch stay together.
        counts: dict[str, int] = {}
        turns = _concurrency.CooperativeLoop()
        try:
            while len(handles) < end:
                turns.checkpoint()
                part = messages[len(handles) : min(len(handles) + turns.CHUNK, end)]
                wanted = len(part)
                if [each for each in part if each[5] is not None]:
                    part = self._connect(slot).router.routed_many(part, counts)
                sent = self._connect(slot).send_many(part)
                handles += sent
                if self.scopes:
                    self.scopes.collect(sent)
                if len(sent) < wanted:
                    # Something is in the way of the next one: it waits, or says so.
                    # Not `self.dispatch`: interceptors have seen it.
                    one = messages[len(handles)]
                    try:
                        handle = Core.dispatch(self, slot, one, verb, 0.0, counts)
                    except DeliveryError as error:
                        if not (skip_refused and is_final(error)):
                            raise
                        handle = self._refuse(one, error)
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

    def _dispatch_in_transaction(
        self, slot: ClientSlot, message: Message, verb: str, seconds: float
    ) -> DeliveryHandle:
        sent: list[DeliveryHandle] = []

        def send() -> None:
            # Not `self.dispatch`: interceptors have seen it.
            sent.append(Core.dispatch(self, slot, message, verb, seconds))

        try:
            self.in_transaction(send, seconds)
        except TransactionAbortedError:
            first = sent[0].error if sent else None
            # Dropped is what became of it; why is what the transaction says.
            if first is not None and not isinstance(first, MessagePurgedError):
                sent[0].wait(0.0)  # raises it
            raise
        return sent[0]

    def explain(self, error: ProduceError) -> ProduceError:
        """Return the error that a sync verb raises for one that it has met.

        In the block of a transaction that has failed as a whole, it names the reason.
        """
        return error if self.transactions is None else self.transactions.explain(error)

    def in_transaction(self, send: Callable[[], _T], seconds: float) -> _T:
        """Send in a transaction, if the producer makes them: the caller's, or an own.

        Args:
            send: Does it.
            seconds: How long each step of an own one may take.

        Raises:
            TransactionError: The own one failed; see there.
        """
        if self.transactions is None or self.transactions.current_for_task():
            return send()
        return self.transactions.run_implicit(send, seconds)

    def send_batch(
        self,
        send: Callable[[], list[DeliveryHandle]],
        seconds: float,
        undo: Callable[[], object] = lambda: None,
    ) -> list[DeliveryHandle]:
        """Queue a batch, in a transaction of its own if need be.

        Args:
            send: Queues it, as `dispatch_many`.
            seconds: How long each step of an own transaction may take.
            undo: Called if nothing of it will ever be visible, though some was queued:
                its transaction was rolled back, or never begun.

        Raises:
            ProduceManyError: A message was not queued, or the transaction failed.
        """
        if self.transactions is None:
            return send()
        if (current := self.transactions.current_for_task()) is not None:
            try:
                return send()
            except ProduceManyError:
                current.on_abort.append(undo)
                raise
        sent: list[DeliveryHandle] = []

        def send_all() -> None:
            try:
                sent.extend(send())
            except ProduceManyError as error:
                sent.extend(error.dispatched)
                raise

        try:
            self.transactions.run_implicit(send_all, seconds, undo)
        except TransactionUnknownError as error:
            text = f"a batch of {_wording.count(len(sent), 'message')}: {error}"
            raise ProduceManyError(text, dispatched=sent, failed_index=0) from error
        except (ProduceManyError, TransactionError) as error:
            failure = _rolled_back(sent, error)
            raise failure from failure.__cause__
        return sent

    def partition_count(self, slot: ClientSlot, topic: str) -> int:
        """See `Producer.partition_count`."""
        client = self._connect(slot)
        while True:
            count = client.router.count(topic)
            now = slot.active or self._connect(slot)  # closed meanwhile: says so
            if now is client or count > 0:
                return count
            client = now

    def _send_when_room(
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
        deadline = _concurrency.monotonic() + self.settings.wait_timeout_on_queue_full
        deadline = min(deadline, self._connections.send_deadline)
        while True:
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                raise full
            try:
                self._connect(slot).wait_for_space(left, again=again)
            except IllegalWaitError:
                raise full from full.__cause__  # where nobody may wait
            again = True
            try:
                return self._connect(slot).send(routed, waited=True)
            except QueueFullError as error:
                full = error
            except ProducerClosedError:
                continue  # replaced meanwhile; or `_connect` says that all is over

    def buffer_messages(self, entries: Iterable[Entry]) -> None:
        """Keep messages until they are flushed.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: Nothing was kept.
        """
        self._connections.check_not_forked()
        if not self.buffer.append(entries):
            raise self._connections.closed_error()
        self._shutdown.register()
        if self.status == "closed":
            self._shutdown.unregister()  # by another thread, since it was added

    def _refuse(self, message: Message, error: DeliveryError) -> DeliveryHandle:
        """Report that librdkafka refused a message for good, as the poller would.

        Returns:
            A handle that has failed with the error.
        """
        handle = refused_handle(message.topic, message.label, error)
        facts = {
            "topic": message.topic,
            "partition": message.partition,
            "offset": None,
            "label": message.label,
            "delivery_report": None,
        }
        self._connections.emit_error("librdkafka.dispatch_error", error, facts)
        if self.scopes:
            self.scopes.collect((handle,))
        return handle

    def intercept(self, interceptor: Interceptor) -> None:
        """Have all that is sent from now on pass an interceptor, after those before.

        It takes the place of the two methods, so that who has none pays nothing.
        """
        one = interceptors.wrap_send(interceptor, self.dispatch)
        many = interceptors.wrap_send_many(interceptor, self.dispatch_many)
        self.dispatch = one  # type: ignore[method-assign,assignment]
        self.dispatch_many = many  # type: ignore[method-assign]

    # --- looking -----------------------------------------------------------------

    @property
    def main(self) -> ClientSlot:
        """The way of messages that are sent by the producer itself."""
        return self._connections.main

    @property
    def status(self) -> Status:
        """See `Producer.status`."""
        return self._connections.status

    @property
    def live(self) -> bool:
        """Whether it may send, or end, in this process."""
        now = self._connections
        return now.status != "closed" and not now.inherited

    @property
    def variants(self) -> int:
        """How many topic configurations there are beside the producer's own."""
        return len(self._connections.slots) - 1

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict yet."""
        return self._connections.outstanding

    def check_usable(self) -> None:
        """Refuse a use after `close`, or in a child of the process that used it.

        Raises:
            ProducerClosedError, ProducerUsedInParentProcessError: That is so.
        """
        self._connections.check_not_forked()
        self.check_open()

    def check_open(self) -> None:
        """Raise `ProducerClosedError` if it closes, or is closed."""
        if self._connections.closing_or_closed:
            raise self._connections.closed_error()

    def require_transactions(self) -> Transactions:
        """Give what begins and ends transactions.

        Raises:
            ProducerNotTransactionalError: It makes none.
        """
        if self.transactions is None:
            text = f"producer {self.settings.id!r} has no transactional.id"
            raise ProducerNotTransactionalError(text)
        return self.transactions

    def slot(self, topic_config: Mapping[str, str]) -> ClientSlot:
        """Give the way of messages with a topic configuration; see `Producer.variant`.

        Raises:
            VariantInvalidError: librdkafka would refuse it, or there are too many.
            ProducerClosedError: The producer is.
        """
        return self._connections.slot(topic_config)

    def check_can_wait(self) -> None:
        """Refuse a caller who could not wait for what it sends.

        Raises:
            IllegalWaitError: It is the hub itself, or a listener of this producer.
            ProducerUsedInParentProcessError: See there.
        """
        self._connections.check_not_forked()
        _concurrency.new_waiter()
        for client in self._connections.clients:
            client.poll_loop.new_waiter()

    # --- dropping ----------------------------------------------------------------

    def purge(self) -> None:
        """See `Producer.purge`."""
        self._connections.check_not_forked()
        began = _concurrency.monotonic()
        unsent = self.buffer.clear()
        clients = self._connections.clients
        dropped = [handle for client in clients for handle in client.purge()]
        if self._connections.can_wait():
            for client in clients:
                client.finish_purge(PURGE_TIMEOUT)
            self._await_verdicts(dropped, began + PURGE_TIMEOUT)
        facts = {"producer_id": self.settings.id, "messages": unsent}
        time = _concurrency.monotonic() - began
        self.monitor.emit("buffer.purged", {**facts, "time": time})

    @staticmethod
    def _await_verdicts(handles: Iterable[DeliveryHandle], deadline: float) -> None:
        for handle in handles:
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                return
            if not handle.done:
                with contextlib.suppress(ProduceError):
                    handle.wait(left)

    def wait_for_sent(self, seconds: float) -> None:
        """Wait for the outcome of all messages that were sent until now.

        Raises:
            FlushTimeoutError: Some have none in time.

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

    def give_up_id(self) -> None:
        """Let the producer that takes the place of this one have the same `id`."""
        registry.give_up_id(self)

    # --- the producer's life -----------------------------------------------------

    @property
    def disconnectable(self) -> bool:
        """See `Producer.disconnectable`."""
        return self._disconnecting.is_possible()

    def disconnect(self) -> bool:
        """See `Producer.disconnect`."""
        return self._disconnecting.disconnect()

    def close(self, timeout: float | None, *, force: bool) -> None:
        """See `Producer.close`."""
        self._shutdown.close(timeout, force=force)

    def release(self) -> None:
        """Close in the background: the last `Producer` of this core is gone."""
        self._shutdown.release()

    def reset(self) -> None:
        """See `Producer.reset`."""
        transactions = self.transactions
        turn_is_parents = transactions is not None and transactions.inherited
        if not (self._connections.inherited or turn_is_parents):
            return
        if self.status != "closing":
            registry.claim(self)
        self._connections.reset()
        if transactions is not None:
            transactions.reset()

    def _change_settings(self, settings: Settings) -> None:
        """Take what a listener of `producer.reload` made of the settings.

        Raises:
            ConfigurationInvalidError: Another producer has the name, or it has none.
        """
        before, self.settings = self.settings, settings
        try:
            registry.claim(self)
        except ConfigurationInvalidError:
            self.settings = before
            raise
        self._connections.settings = self.main.settings = settings

    def on_fatal(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Replace a client after a fatal error, if that is allowed.

        Called under the client's `send_lock`, so it takes no other lock.
        """
        if self._connections.status not in ("connected", "disconnecting"):
            return False
        if not self._recovery.begins(slot, client, error):
            return False
        client.stop_sending(lambda: None, has_successor=False)
        client.spawn_in_batcher_hub(lambda: self._recovery.run(slot, client, error))
        return True

    def on_interval(self) -> None:
        """Do periodic checks; called by a poller, so it must not wait."""
        if self._connections.inherited:
            return  # the copy of the poller in a forked child
        if self.settings.uses_oauth:
            self._connections.tokens.review()
        if self.settings.idle_disconnect_timeout:
            self._disconnecting.look_whether_idle()

    def register(self) -> None:
        """Let the process close the producer at its exit."""
        self._shutdown.register()

    def unregister(self) -> None:
        """Undo `register`, when the producer has nothing to close."""
        self._shutdown.unregister()


def _rolled_back(
    handles: list[DeliveryHandle], error: ProduceManyError | TransactionError
) -> ProduceManyError:
    """Make the error of a batch whose transaction was rolled back."""
    index, cause = 0, error.__cause__
    if isinstance(error, ProduceManyError):
        index = error.failed_index
    else:
        cause = error
        for at, handle in enumerate(handles):
            why = handle.error
            if why is not None and not isinstance(why, MessagePurgedError):
                index, cause = at, why
                break
    text = f"nothing of the batch is visible, since message {index} failed: {cause}"
    failure = ProduceManyError(
        text, dispatched=(), rolled_back=handles, failed_index=index
    )
    failure.__cause__ = cause
    return failure
