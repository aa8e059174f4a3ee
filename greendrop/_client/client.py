"""The client: one connected librdkafka producer.

It gives messages to librdkafka, in batches where there is a hub; keeps messages for a
client that takes over; and closes librdkafka's producer. The rules of dispatch (who may
send, and how long to wait for space) are in `_producer.core`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency
from greendrop._client.batcher import take_all
from greendrop._client.in_flight import InFlight
from greendrop._client.partition_counts import Rerouter, RoutedHandle, Router
from greendrop._client.poll_loop import PollLoop
from greendrop._librdkafka.backend import KafkaException
from greendrop._librdkafka.partitioners import partitioner
from greendrop._validation import UNASSIGNED, known_topics
from greendrop.delivery import DeliveryHandle
from greendrop.errors import ProduceError, ProducerClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greendrop._librdkafka.backend import Backend
    from greendrop._librdkafka.handle import KafkaHandle, Wire
    from greendrop.config.settings import Settings
    from greendrop.errors import BrokerError, QueueFullError
    from greendrop.events import Monitor
    from greendrop.message import Message
    from greendrop.oauth import OAuthToken

#: Seconds between two flushes of librdkafka's lingering messages, during a wait for all
#: deliveries while the user's `linger.ms` holds messages back.
_FLUSH_INTERVAL = 0.05
#: Checks for an idle client within `idle_disconnect_timeout`.
_CHECKS_PER_TIMEOUT = 4
#: Seconds between two checks for a new OAuth token.
_TOKEN_CHECK_INTERVAL = 1.0
#: Seconds that the reports of dropped messages may take. They come at once; the time is
#: for a hub that is busy with something else.
PURGE_TIMEOUT = 5.0
#: Seconds without progress after which another task handles such reports.
_DROP_STALL = 0.2
#: Seconds that closing librdkafka may take when nothing is in flight: it takes one or
#: two milliseconds.
_TEARDOWN = 10.0
#: librdkafka's own default.
_PARTITIONER = "consistent_random"
_new_handle = DeliveryHandle.__new__
# Positions of the topic and the handle in a `Wire`.
_TOPIC, _HANDLE = 0, 4

# Clients of this process, for the hook that runs in a forked child.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class ClientOwner(Protocol):
    """The connections of a producer, as a client needs them."""

    def on_fatal(self, client: Client, error: BrokerError) -> bool:
        """Handle a fatal error by which librdkafka refused a message.

        Called under the client's `send_lock`.

        Returns:
            Whether another client is going to take over. Then this message, and all
            that follow, are kept for it: see `Client.stop_sending`.
        """

    def on_interval(self) -> None:
        """Do periodic checks; called by the poller, so it must not wait."""


class Client:
    """A connected librdkafka producer. Used from any number of greenlets and threads.

    Args:
        settings: The settings to build it from.
        monitor: Emits events.
        owner: The connections that it belongs to.

    Raises:
        ConfigurationInvalidError: librdkafka refused the configuration.
    """

    def __init__(
        self, settings: Settings, monitor: Monitor, owner: ClientOwner
    ) -> None:
        #: `mark[0]` is false in a process forked from the one that built the client.
        self.mark = _concurrency.fork_marker()
        self._settings = settings
        self._owner = owner
        #: Messages in flight, and backpressure.
        self.in_flight = InFlight(settings.queue_limit, settings.queue_bytes)
        # When `send_lingering` may flush again.
        self._next_flush = 0.0
        # librdkafka gets no more messages: the client is closed, about to be, or
        # replaced.
        self._stopped = False
        # Messages sent since then, for the client that takes over.
        self._carried_over: deque[Wire] = deque()
        self._on_carried_over: Callable[[], None] | None = None
        # The successor is connected: later senders get ProducerClosedError, and send to
        # the successor.
        self._replaced = False
        #: Runs the poller, and creates waiters for callers.
        self.poll_loop = PollLoop(settings, monitor, self)
        self._reports = self.poll_loop.reports
        #: The librdkafka producer.
        self.kafka_handle: KafkaHandle = self.poll_loop.kafka_handle
        self._send_lock = self.kafka_handle.send_lock
        # Bytes of payload and key of a plain message. Its size needs no other check.
        self._plain_size = min(
            self.in_flight.uncounted, settings.size_limit.without_overhead
        )
        self._produce: Any = self.kafka_handle.producer.produce
        #: Chooses the partitions of messages with a `partition_key`. Made after
        #: librdkafka has accepted the name of the partitioner.
        self.router = Router(
            partitioner(settings.kafka.get("partitioner", _PARTITIONER)),
            self.kafka_handle,
            self.poll_loop,
        )
        self._rerouter = Rerouter(self.router, self, enabled=not settings.transactional)
        _clients.add(self)

    # --- sending -----------------------------------------------------------------

    @property
    def polling(self) -> str | None:
        """The kind of poller: "fd", "thread", or None before the first use."""
        poller = self.poll_loop.poller
        return None if poller is None else poller.kind

    @property
    def backend(self) -> Backend[Any]:
        """The backend: librdkafka, or a test double."""
        return self.kafka_handle.backend

    @property
    def check_interval(self) -> float:
        """Seconds between two calls of `on_interval`; 0 for never."""
        intervals = [self._settings.idle_disconnect_timeout / _CHECKS_PER_TIMEOUT]
        if self._settings.uses_oauth:
            intervals.append(_TOKEN_CHECK_INTERVAL)
        return min(filter(None, intervals), default=0.0)

    @property
    def may_batch(self) -> bool:
        """Whether sends are batched: not with a `linger.ms` of the user."""
        return not (self._settings.user_sets_linger or self._stopped)

    def on_interval(self) -> None:
        """Let the owner do its periodic checks; called by the poller."""
        self._owner.on_interval()

    @property
    def outstanding(self) -> int:
        """Number of messages in flight."""
        return self.in_flight.count

    @property
    def pending(self) -> list[DeliveryHandle]:
        """The handles of these messages."""
        return list(self.in_flight.pending)

    @property
    def reported(self) -> int:
        """Number of delivery reports that were handled."""
        return self.in_flight.reported

    def send_plain(
        self, topic: object, payload: object, key: object, label: object
    ) -> DeliveryHandle | None:
        """Queue a message that needs neither validation nor a wait; else return None.

        The short path of the most common message: small, bytes, to a known topic, sent
        in the hub that polls, or in a thread without one. Any other message takes the
        way through `send`.
        """
        # Inlined, like `send`: the short path costs half the calls of the other one.
        in_flight = self.in_flight
        batcher = self.poll_loop.batcher
        if (
            type(payload) is not bytes
            or type(topic) is not str
            or topic not in known_topics
            or (
                len(payload) > self._plain_size
                if key is None
                else type(key) is not bytes
                or not key
                or len(payload) + len(key) > self._plain_size
            )
            or batcher is None
            or batcher.current_hub() is not batcher.hub
            or len(in_flight.pending) >= in_flight.free_slots
            or not self.mark[0]
        ):
            return None
        # As `DeliveryHandle.__init__`: calling the class takes a third longer.
        handle = _new_handle(DeliveryHandle)
        handle.topic, handle.label = topic, label
        reports = self._reports
        handle._reports, handle._waiters = reports, None
        items = batcher.items
        items.append((topic, payload, key, UNASSIGNED, handle, None, 0, None))
        in_flight.pending.add(handle)
        if handle._reports is not reports:  # as in `send`
            in_flight.pending.discard(handle)
        if len(items) >= batcher.flush_at:
            batcher.maybe_flush()
        return handle

    def send(self, message: Message, *, waited: bool = False) -> DeliveryHandle:
        """Queue one normalized message.

        Args:
            message: A validated message.
            waited: The caller has just waited for space, and was granted some.

        Raises:
            QueueFullError: There is no space; nothing was queued.
            DeliveryError: librdkafka refused the message; nothing was queued.
            ProducerClosedError: The client is closed; nothing was queued.
        """
        # Inlined where calls would read better: each call costs a tenth of all that is
        # done for a message here.
        in_flight = self.in_flight
        if len(in_flight.pending) >= in_flight.free_slots and in_flight.refuses(
            waited=waited
        ):
            raise self._queue_full()
        topic, payload, key, headers, partition, partition_key, timestamp, label = (
            message
        )
        reports = self._reports
        handle = (
            DeliveryHandle(topic, label, reports)
            if partition_key is None
            else RoutedHandle(message, reports)
        )
        if (
            payload
            and len(payload) > in_flight.uncounted
            and not in_flight.add_bytes(handle, len(payload))
        ):
            raise self._queue_full()
        if partition is None:
            partition = UNASSIGNED
        wire = (topic, payload, key, partition, handle, None, timestamp or 0, headers)
        batcher = self.poll_loop.batcher
        if batcher is None or batcher.current_hub() is not batcher.hub:
            batcher = self.poll_loop.current_batcher()
            if batcher is None:
                self._send_now(wire)
                return handle
        items = batcher.items
        items.append(wire)
        in_flight.pending.add(handle)
        # Another thread, or a signal handler that waits, may have handed the message
        # over before it was counted, and handled its report: then no report comes that
        # would end the count. Or a successor has taken it over, which counts it too.
        if handle._reports is not reports:
            in_flight.pending.discard(handle)
        if len(items) >= batcher.flush_at:
            batcher.maybe_flush()
        return handle

    def send_many(self, messages: Sequence[Message]) -> list[DeliveryHandle]:
        """Queue normalized messages, in order: as many as can be queued now.

        Returns:
            The handles. If there are fewer handles than messages, `send` says why the
            next message can't be queued.
        """
        batcher = self.poll_loop.current_batcher()
        if batcher is None:
            return self._send_each(messages)
        in_flight, reports = self.in_flight, self._reports
        space = in_flight.free_slots - in_flight.count
        if space < len(messages):
            messages = messages[: max(int(space), 0)] if space > 0 else ()
        if not messages:
            return []
        (
            topics,
            payloads,
            keys,
            headers,
            partitions,
            partition_keys,
            timestamps,
            labels,
        ) = zip(*messages, strict=True)
        if max(map(len, filter(None, payloads)), default=0) > in_flight.uncounted:
            return self._send_each(messages)  # counts their bytes
        if any(partition_keys):
            handles = [
                DeliveryHandle(message.topic, message.label, reports)
                if message.partition_key is None
                else RoutedHandle(message, reports)
                for message in messages
            ]
        else:
            handles = list(map(DeliveryHandle, topics, labels, repeat(reports)))
        batcher.items += zip(
            topics,
            payloads,
            keys,
            [UNASSIGNED if each is None else each for each in partitions],
            handles,
            repeat(None),
            [each or 0 for each in timestamps],
            headers,
            strict=False,
        )
        in_flight.pending.update(handles)
        in_flight.pending.difference_update(  # as in `send`
            [each for each in handles if each._reports is not reports]
        )
        if len(batcher.items) >= batcher.flush_at:
            batcher.maybe_flush()
        return handles

    def _send_each(self, messages: Sequence[Message]) -> list[DeliveryHandle]:
        handles: list[DeliveryHandle] = []
        for message in messages:
            try:
                handles.append(self.send(message))
            except ProduceError:
                break
        return handles

    def flush_batcher(self) -> None:
        """Hand over the waiting sends, if the caller runs in the batcher's thread.

        From another thread there is nothing to do: the hub does it within 1 ms.
        """
        batcher = self.poll_loop.batcher
        if batcher is not None and batcher.in_own_hub():
            batcher.flush()

    def _send_now(self, wire: Wire) -> None:
        with self._send_lock:
            if self._stopped:
                self._send_after_stop(wire)
                return
            try:
                self.in_flight.pending.add(wire[_HANDLE])
                self._produce(*wire)
            except (KafkaException, BufferError) as error:
                if self._is_replaced_for(error):
                    self._carry_over(deque((wire,)))
                    return
                refusal: Exception = error
                if isinstance(error, KafkaException):
                    failure = self.kafka_handle.enqueue_error(wire[_TOPIC], error)
                    if self._rerouter.on_failure(wire[_HANDLE], failure.code):
                        wire[_HANDLE]._fail(failure)
                        self.kafka_handle.wakeup.set()
                        return
                    refusal = failure
                self.in_flight.drop(wire[_HANDLE])
                if isinstance(error, BufferError):
                    self.in_flight.mark_full()
                    refusal = self._queue_full()
                raise refusal from refusal.__cause__
            except BaseException:
                # A signal handler raised, and librdkafka may have the message: a
                # transaction must not end as if it had not. The report settles that, or
                # `fail_lost_reports` does.
                self.kafka_handle.interrupted = True
                self.kafka_handle.wakeup.set()
                raise
        self._keep_polling()

    def _keep_polling(self) -> None:
        """Make sure that messages just given to librdkafka are polled for."""
        poller = self.poll_loop.poller
        if poller is not None and not poller.keeps_loop_alive:
            poller.start_safety_timer()

    def send_batch(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka, in order, and take them out of the queue.

        The handle of a message that librdkafka refuses gets the error. Messages without
        space stay in the queue.
        """
        try:
            with self._send_lock:
                if not self._stopped:
                    while refused := self.kafka_handle.enqueue_all(wires):
                        if not self._on_refused(*refused, wires):
                            break
                elif self._on_carried_over is None:
                    self._drop(wires)
                else:
                    self._carry_over(wires)
        except BaseException:
            # A signal handler raised. A message that is in no queue now is searched
            # for.
            self.kafka_handle.interrupted = True
            raise
        finally:
            poller = self.poll_loop.poller  # as in `_keep_polling`
            if poller is not None and not poller.keeps_loop_alive:
                poller.start_safety_timer()

    def _on_refused(self, wire: Wire, error: Exception, wires: deque[Wire]) -> bool:
        """Handle a message that librdkafka refused; return whether to go on.

        Args:
            wire: The refused message.
            error: The exception of confluent-kafka.
            wires: The messages behind it.
        """
        if isinstance(error, BufferError):
            if self.in_flight.count > len(wires) + 1:
                wires.appendleft(wire)
                self.in_flight.mark_full()
                return False
            # librdkafka's queue is empty, and still has no space for this message.
            # Waiting would never end.
            error = self._queue_full()
        elif self._is_replaced_for(error):
            wires.appendleft(wire)
            self._carry_over(wires)
            return False
        self._refuse(wire, error)
        return True

    def _refuse(self, wire: Wire, error: Exception) -> None:
        wire[_HANDLE]._fail(self.kafka_handle.enqueue_error(wire[_TOPIC], error))
        self.kafka_handle.wakeup.set()

    def resend_failed(self, handle: DeliveryHandle) -> bool:
        """Return whether a message that failed is sent once more."""
        error: Any = handle._error
        refused = isinstance(error, ProduceError)

        def fail() -> None:
            self.kafka_handle.refused += refused
            handle._error = error
            self._reports.append(handle)
            self.kafka_handle.wakeup.set()

        code = error.code if refused else error.code()
        if not self._rerouter.on_failure(handle, code):
            return False
        del handle._error  # the result is open again
        self._rerouter.take(handle, fail)
        self.kafka_handle.refused -= refused
        self._rerouter.start()
        return True

    def send_again(self, message: Message, handle: DeliveryHandle) -> None:
        """Send a message that the rerouter has given another partition. May wait."""
        if self.mark[0]:  # not in the copy of the task in a forked child
            self.send_all(deque((_wire(message, handle),)))

    def on_interrupt(self) -> None:
        """Search for a message that an interrupted task may have lost."""
        self.kafka_handle.interrupted = True
        self.kafka_handle.wakeup.set()

    def _drop(self, wires: deque[Wire], why: Exception | None = None) -> None:
        try:
            for wire in take_all(wires):
                if why is None:
                    self.kafka_handle.refused += 1  # librdkafka never gets it
                    wire[_HANDLE]._fail(
                        self.kafka_handle.error_translator.purged(wire[_TOPIC])
                    )
                else:
                    wire[_HANDLE]._fail(
                        self.kafka_handle.enqueue_error(wire[_TOPIC], why)
                    )
        except BaseException:
            self.kafka_handle.interrupted = True
            raise
        finally:
            self.kafka_handle.wakeup.set()
        if self.kafka_handle.closed:  # the poller has ended
            _concurrency.spawn(self.poll_loop.dispatcher.dispatch)

    def _queue_full(self) -> QueueFullError:
        return self.kafka_handle.queue_full(self.outstanding)

    def wait_for_space(self, seconds: float, *, again: bool) -> None:
        """Wait until a report has freed space in the queue, or the time is over.

        Blocking:
            Lets other greenlets run. Space is granted in the order of waiting. Send
            right after it returns.
        """
        self.in_flight.wait_for_space(
            self.poll_loop.new_waiter(),
            seconds,
            again=again,
            on_wait=self.send_lingering if self._settings.user_sets_linger else None,
        )

    def send_lingering(self) -> float:
        """Send the messages that the user's `linger.ms` holds back in a full queue.

        Returns:
            The seconds after which it may be called again; it does nothing before.

        Blocking:
            Holds the hub for at most 1 ms.
        """
        now = _concurrency.monotonic()
        if self._settings.user_sets_linger and now >= self._next_flush:
            self._next_flush = now + _FLUSH_INTERVAL
            self.kafka_handle.flush_linger()
        return _FLUSH_INTERVAL

    def set_token(self, token: OAuthToken) -> None:
        """Set the OAuth token to log in with, in the process that built the client.

        Raises:
            OAuthTokenError: librdkafka refused the token.
        """
        if self.mark[0]:
            self.kafka_handle.set_token(token)

    def send_all(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka; wait for space.

        Blocking:
            While the queue is full. Lets other greenlets run.
        """
        while wires:
            self.send_batch(wires)
            if wires:
                self.wait_for_space(_FLUSH_INTERVAL, again=True)

    def fail_lost_reports(self) -> None:
        """Fail the messages whose reports an exception may have lost."""
        # A signal handler may raise at the very start of a callback, where nothing can
        # catch it and librdkafka has handed out the report; or while a report is being
        # dispatched. Once librdkafka has no messages left, these are the handles that
        # still have no report.
        batcher = self.poll_loop.batcher
        if batcher is not None and batcher.hub is not None and not batcher.in_own_hub():
            return
        with self._send_lock:
            native = self.kafka_handle
            # The handles first, then the places where their messages may be. In the
            # opposite order another thread could send in between.
            pending = self.in_flight.pending
            handles = list(pending)
            batched = batcher is not None and batcher.items
            empty = native.closed or native.is_empty
            if batched or not empty or self._carried_over or self._rerouter:
                return
            native.interrupted = False
            for handle in handles:
                if handle.done:
                    handle._resolve()
                    pending.discard(handle)
                elif handle._is_filled:
                    self._reports.append(handle)
                else:
                    handle._fail(native.error_translator.report_lost(handle.topic))
        self.poll_loop.dispatcher.dispatch()
        # Senders may not have been woken, either.
        self.in_flight.on_reports(0)

    # --- handing over to another client ------------------------------------------

    @property
    def has_delivered(self) -> bool:
        """Whether any message of this client was delivered."""
        return self.kafka_handle.error_translator.has_delivered

    @property
    def has_waiters(self) -> bool:
        """Whether a task waits to send with this client, or with its successor."""
        return (
            self.in_flight.has_waiters
            or self.router.has_waiters
            or bool(self._carried_over)
        )

    def stop_sending(
        self, on_carried_over: Callable[[], None], *, has_successor: bool
    ) -> None:
        """Keep all further messages, in order, for a client that takes over.

        Tasks that already have a reference to this client lose no message and get no
        error. Once the successor is connected, or this client is closed, only batched
        messages are kept; other senders get ProducerClosedError and send to the
        successor. Otherwise later messages of theirs could overtake this one.

        Args:
            on_carried_over: Called for each message that is kept, under `send_lock`.
            has_successor: The successor is connected.
        """
        with self._send_lock:
            self._on_carried_over = on_carried_over
            self._stopped = True
            self._replaced = self._replaced or has_successor
            if self._carried_over:
                on_carried_over()

    def take_carried_over(
        self, if_none: Callable[[], None] | None = None
    ) -> deque[Wire]:
        """Return the kept messages; if there are none, call a function.

        No other task can send with this client in between, nor afterwards.
        """
        self.flush_batcher()
        with self._send_lock:
            carried_over = take_all(self._carried_over)
            if not carried_over:
                if if_none is not None:
                    if_none()
                self._replaced = True
        return carried_over

    def resend(self, carried_over: deque[Wire], previous: Client) -> None:
        """Send the messages that another client has kept.

        Args:
            carried_over: The messages.
            previous: The client that has kept them.

        Blocking:
            While the queue is full. Lets other greenlets run.
        """
        handles = [wire[_HANDLE] for wire in carried_over]
        self.in_flight.pending.update(handles)
        # The queue first, then the count. A sender in another thread does the opposite:
        # it may count a message only now, and then sees that it has another queue.
        for handle in handles:
            handle._reports = self._reports
        previous.in_flight.pending.difference_update(handles)
        self.poll_loop.ensure_poller()
        self.send_all(carried_over)

    def fail_carried_over(self, why: Exception | None) -> int:
        """Fail the kept messages, because no client takes over; return their number.

        Later messages go to librdkafka again, which refuses them.

        Args:
            why: The reason; None if the producer is being closed.
        """
        with self._send_lock:
            count = len(self._carried_over)
            self._on_carried_over = None
            self._stopped = self.kafka_handle.closed
            if count:
                self._drop(self._carried_over, why)
        return count

    def fail_messages(self, carried_over: deque[Wire], why: Exception) -> None:
        """Fail messages that were taken from this client and can't be sent."""
        with self._send_lock:
            self._drop(
                carried_over, None if isinstance(why, ProducerClosedError) else why
            )

    def keep_again(self, carried_over: deque[Wire]) -> None:
        """Keep messages that were taken from this client and were not sent."""
        with self._send_lock:
            self.in_flight.pending.update(wire[_HANDLE] for wire in carried_over)
            self._carried_over.extendleft(reversed(carried_over))

    def spawn_in_batcher_hub(
        self, function: Callable[..., None], *args: object
    ) -> None:
        """Run a function in a task of its own, in the batcher's hub if there is one.

        There no other task can send between two steps of the function that don't wait.
        """
        batcher = self.poll_loop.batcher
        hub = None if batcher is None else batcher.hub
        current = _concurrency.current_hub()
        if hub is None or hub is current or _concurrency.hub_is_dead(hub):
            _concurrency.spawn(function, *args)
        else:
            _concurrency.spawn_in_hub(hub, function, *args)

    def _is_replaced_for(self, error: BaseException) -> bool:
        reason = self.kafka_handle.broker_error(error)
        return (
            reason is not None and reason.fatal and self._owner.on_fatal(self, reason)
        )

    def _carry_over(self, wires: deque[Wire]) -> None:
        self._carried_over += starmap(wires.popleft, repeat((), len(wires)))
        if self._on_carried_over is not None and self._carried_over:
            self._on_carried_over()

    def _send_after_stop(self, wire: Wire) -> None:
        if self.kafka_handle.closed or self._on_carried_over is None or self._replaced:
            raise ProducerClosedError(self._settings.id)
        self.in_flight.pending.add(wire[_HANDLE])
        self._carry_over(deque((wire,)))

    # --- closing -----------------------------------------------------------------

    def stop_taking(self) -> None:
        """Wake all waiting senders, because the client accepts no more messages."""
        self.in_flight.wake_all()
        self.router.stop()

    def wait_delivered(
        self,
        seconds: float,
        give_up: Callable[[], bool] | None = None,
        *,
        may_poll: bool = True,
    ) -> bool:
        """Wait until nothing is in flight; return False if the time was over first.

        Args:
            seconds: The timeout.
            give_up: Ends the wait early when it returns true.
            may_poll: Whether a waiting thread may poll. It then calls listeners, and
                may wait for longer if a listener waits.

        Blocking:
            Lets other greenlets run.
        """

        def new_waiter() -> _concurrency.Waiter:
            return self.poll_loop.new_waiter(self._is_idle if may_poll else None)

        deadline = _concurrency.Deadline(seconds)
        self.flush_batcher()
        while self.in_flight.count > 0:
            if deadline.has_expired or (give_up is not None and give_up()):
                return False
            if self._settings.user_sets_linger:
                self.kafka_handle.flush_linger()
            if not self.in_flight.wait_until(
                self._is_idle,
                _concurrency.Deadline(_FLUSH_INTERVAL).earlier(deadline),
                new_waiter,
            ):
                self.poll_loop.ensure_progress()
        return True

    def purge(self) -> list[DeliveryHandle]:
        """Drop all messages in flight; their handles get MessagePurgedError.

        Messages that are sent before `finish_purge` returns may be dropped, too.

        Returns:
            The handles, which have no report yet.
        """
        with self._send_lock:
            dropped = list(self.in_flight.pending)
            self._drop(self._carried_over)
            self._drop_rerouted()
        self.drop_batched()
        self.purge_queue()
        return dropped

    def _drop_rerouted(self) -> None:
        self._drop(deque(_wire(*each) for each in self._rerouter.drop()))

    def drop_batched(self) -> None:
        """Drop the sends that wait in the batcher."""
        batcher = self.poll_loop.batcher
        if batcher is None:
            return
        wires: deque[Wire] = deque()
        # At once, also from another thread than the batcher's. Scheduled in its hub the
        # drop could come after the next hand-over, whose messages would survive. The
        # hub may be handing over meanwhile: each message is taken by one of the two.
        with contextlib.suppress(IndexError):
            wires.extend(starmap(batcher.items.popleft, repeat(())))
        self._drop(wires)

    def finish_purge(self, seconds: float) -> None:
        """Wait until librdkafka has finished dropping messages.

        Its threads, one for each broker, drop messages when they get to it. Without
        this wait they would also drop the next messages.

        Blocking:
            Lets other greenlets run.
        """
        with contextlib.suppress(TimeoutError, ProducerClosedError):
            _concurrency.run_in_thread(seconds, self.kafka_handle.await_purge)

    def purge_queue(self) -> None:
        """Drop the messages that librdkafka has; batched and kept ones stay."""
        self.kafka_handle.purge()

    def purge_for_good(self) -> None:
        """Drop all messages in flight, and all further ones."""
        with self._send_lock:
            self._stopped = True
            self._on_carried_over = None
            self._drop(self._carried_over)
            self._drop_rerouted()
        self.purge_queue()
        self.flush_batcher()

    def _is_idle(self) -> bool:
        return not self.in_flight.count

    def wait_dropped(self, seconds: float) -> None:
        """Wait for the reports of dropped messages, which come at once.

        If the poller makes no progress, another task handles the reports. If a listener
        holds that one up, too, the reports are handled when the listener returns.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _concurrency.Deadline(seconds)
        stalled = self.poll_loop.watch_for_stall(_DROP_STALL)
        has_helper = False
        while not self.wait_delivered(
            min(deadline.remaining(), _FLUSH_INTERVAL), may_poll=False
        ):
            if deadline.has_expired:
                return
            if not stalled():
                continue
            if not has_helper:
                has_helper = True
                _concurrency.spawn(self.poll_loop.poll_once)
                stalled = self.poll_loop.watch_for_stall(_DROP_STALL)
            elif self.poll_loop.is_dispatching:
                return

    def wait_settled(self, seconds: float) -> None:
        """Wait for the reports of all messages but those kept for another client.

        Blocking:
            Lets other greenlets run.
        """

        def is_settled() -> bool:
            return self.in_flight.count <= len(self._carried_over)

        def new_waiter() -> _concurrency.Waiter:
            return self.poll_loop.new_waiter(is_settled)

        deadline = _concurrency.Deadline(seconds)
        self.flush_batcher()
        while not (is_settled() or deadline.has_expired):
            self.in_flight.wait_until(
                is_settled,
                _concurrency.Deadline(_FLUSH_INTERVAL).earlier(deadline),
                new_waiter,
            )

    def close(self) -> None:
        """Close the poller, the descriptor and librdkafka's producer.

        Drop or await messages in flight first. Not to be called by the poller.

        Blocking:
            Lets other greenlets run; a millisecond or two, and up to 2 s more if a
            broker is just being asked for metadata.
        """
        ended = self.poll_loop.stop(_TEARDOWN)
        self._stop_enqueuing()
        try:
            # On a native thread also where there is no hub: no signal handler can
            # interrupt it there. If it does not end in time, the thread goes on.
            run = _concurrency.run_in_thread
            if _concurrency.current_hub() is None:
                run = _concurrency.run_apart
            tear_down = self.kafka_handle.tear_down
            with contextlib.suppress(TimeoutError):
                run(_TEARDOWN, tear_down, close_descriptor=ended)
                if not ended:
                    self.poll_loop.close_descriptor_at_end()
        finally:
            self._dispatch_rest(ended=ended)
            if self.kafka_handle.interrupted:
                self.fail_lost_reports()
            _clients.discard(self)

    def _dispatch_rest(self, *, ended: bool) -> None:
        dispatch = self.poll_loop.dispatcher.dispatch
        if ended:
            dispatch()
        else:
            # In another task: a listener that holds up the poller would also hold up
            # this one.
            _concurrency.spawn(dispatch)

    def _stop_enqueuing(self) -> None:
        with self._send_lock:
            self._stopped = True
            self._produce = None  # a reference to the producer

    def discard(self) -> None:
        """Close a client that was never used.

        Blocking:
            Blocks the thread for a millisecond or two.
        """
        self._stop_enqueuing()
        self.kafka_handle.tear_down(close_descriptor=True)
        _clients.discard(self)

    def forget_in_child(self) -> None:
        """Abandon the parent's client in a forked child, without calling librdkafka."""
        if self.poll_loop.batcher is not None:
            self.poll_loop.batcher.take()  # the parent sends these
        self.kafka_handle.forget_in_child()


def _wire(message: Message, handle: DeliveryHandle) -> Wire:
    """Return the arguments of `produce`; `Client.send` inlines this for speed."""
    topic, payload, key, headers, partition, _, timestamp, _ = message
    if partition is None:
        partition = UNASSIGNED
    return (topic, payload, key, partition, handle, None, timestamp or 0, headers)


def _after_fork_in_child() -> None:
    # Only marks the clients. The first use in the child raises, or resets.
    for client in list(_clients):
        client.forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
