"""One connected client: how messages go to librdkafka, and its end.

They go batched, where there is a hub, or one by one; who serves, and so brings their
reports, is in `attendant`. Knows no rules of dispatch (who may send, how long to wait
for room): those are in `core`. Knows nothing of confluent-kafka: that is in `handle`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from itertools import repeat, starmap, tee
from typing import TYPE_CHECKING, Any, TypeAlias

from greendrop import _concurrency
from greendrop._client.attendant import Attendant
from greendrop._client.batcher import take_all
from greendrop._client.in_flight import InFlight
from greendrop._client.partition_counts import Rerouter, RoutedHandle, Router
from greendrop._client.pollers import Periodic
from greendrop._concurrency.deadline import Deadline
from greendrop._librdkafka.backend import KafkaException
from greendrop._librdkafka.partitioners import partitioner
from greendrop.delivery import DeliveryHandle
from greendrop.errors import ProduceError, ProducerClosedError
from greendrop.message import UNASSIGNED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from greendrop._librdkafka.backend import Backend
    from greendrop._librdkafka.handle import KafkaHandle
    from greendrop.config.settings import Settings
    from greendrop.errors import BrokerError, QueueFullError
    from greendrop.events import Monitor
    from greendrop.message import Message
    from greendrop.oauth import OAuthToken

#: Seconds between nudges of librdkafka while somebody waits for all deliveries and the
#: user's `linger.ms` holds messages back.
_NUDGE_EVERY = 0.05
#: Looks whether a client is idle, in the time after which it is.
_CHECKS_PER_TIMEOUT = 4
#: Seconds between looks whether there should be a new OAuth token.
_TOKEN_CHECK_INTERVAL = 1.0
#: Seconds that the reports of dropped messages may take. They come at once; the time
#: is for a hub that is busy with something else.
PURGE_TIMEOUT = 5.0
#: Seconds without progress after which another task handles such reports.
_DROP_STALL = 0.2
#: Seconds that the end of a client may take once nothing is outstanding: it takes one
#: or two milliseconds.
_TEARDOWN = 10.0
#: librdkafka's own default.
_PARTITIONER = "consistent_random"

# Clients of this process, for the hook that runs in a forked child.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()
# What confluent-kafka's `produce` takes, in its order: topic, payload, key, partition,
# delivery callback, nothing, timestamp, headers.
_Wire: TypeAlias = "tuple[Any, ...]"
# Makes an iterator run, in one call into C.
_exhaust: Callable[[Iterable[object]], None] = deque[object](maxlen=0).extend


class Client:
    """A connected librdkafka producer. Used from any number of greenlets and threads.

    Args:
        settings: What it is built from.
        monitor: Who is told what happens.
        on_fatal: Told of a fatal error by which librdkafka refuses a message, under
            `_send_lock`. True means that another client is going to take over, so the
            message, and all that follow, are kept for it: see `retire`.
        on_interval: Called every so often by the poller; it must not wait.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        on_fatal: Callable[[Client, BrokerError], bool] = lambda *_: False,
        on_interval: Callable[[], None] = lambda: None,
    ) -> None:
        #: `mark[0]` is false in a process forked from the one that built it.
        self.mark = _concurrency.fork_marker()
        self._settings = settings
        self._on_fatal = on_fatal
        self._outstanding = InFlight(settings.queue_limit, settings.queue_bytes)
        # When `send_lingering` may do so again.
        self._next_nudge = 0.0
        # Nothing goes to librdkafka any more: closed, about to be, or retired.
        self._stopped = False
        # What it was given since it retired, for the client that takes over.
        self._carried_over: deque[_Wire] = deque()
        self._on_carried_over: Callable[[], None] | None = None
        # That one is there: who comes here late is sent on to it.
        self._replaced = False
        #: Has it served; who waits for it asks here.
        self.attendant: Attendant[_Wire] = Attendant(
            settings,
            monitor,
            self.mark,
            self._outstanding,
            pulse=Periodic(_check_interval(settings), on_interval),
            send_batch=self._send_batch,
            give_all=self._give_all,
            may_batch=lambda: not (settings.user_sets_linger or self._stopped),
            on_lost=self._fail_lost_reports,
            take_back=self._take_back,
        )
        self._reports = self.attendant.reports
        #: What its transactions are made by.
        self.kafka_handle: KafkaHandle = self.attendant.kafka_handle
        self._send_lock = self.kafka_handle.send_lock
        self._produce: Any = self.kafka_handle.producer.produce
        #: Knows where messages with a `partition_key` go. Made once librdkafka has
        #: taken the partitioner's name.
        self.router = Router(
            partitioner(settings.kafka.get("partitioner", _PARTITIONER)),
            self.kafka_handle.ask_partition_count,
            self.attendant.waiter,
        )
        self._rerouter = Rerouter(
            self.router,
            self._send_again,
            self._on_interrupt,
            enabled=not settings.transactional,
        )
        _clients.add(self)

    # --- sending -----------------------------------------------------------------

    @property
    def polling(self) -> str | None:
        """Which driver serves: "fd", "thread", or None before the first use."""
        task = self.attendant.task
        return None if task is None else task.polling

    @property
    def backend(self) -> Backend:
        """What it is built with: librdkafka, or what stands for it in a test."""
        return self.kafka_handle.backend

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict, batched ones included."""
        return self._outstanding.count

    @property
    def pending(self) -> list[DeliveryHandle]:
        """The handles of these messages."""
        return list(self._outstanding.pending)

    @property
    def reported(self) -> int:
        """How many verdicts it has told."""
        return self._outstanding.reported

    def send(self, message: Message, *, waited: bool = False) -> DeliveryHandle:
        """Queue one message in wire form.

        Args:
            message: Checked.
            waited: The caller has just waited for room, and it is its turn.

        Raises:
            QueueFullError: No room; nothing was queued.
            DeliveryError: librdkafka refused the message; nothing was queued.
            ProducerClosedError: The client is closed; nothing was queued.
        """
        # Spelled out, where calls would read better: each one costs a tenth of all
        # that a message does here.
        now = self._outstanding
        if len(now.pending) >= now.free_slots and now.refuses(waited=waited):
            raise self._queue_full()
        topic, payload, key, headers, partition, partition_key, timestamp, label = (
            message
        )
        handle = (
            DeliveryHandle(topic, label, self._reports)
            if partition_key is None
            else RoutedHandle(message, self._reports)
        )
        if (
            payload
            and len(payload) > now.uncounted
            and not now.add_bytes(handle, len(payload))
        ):
            raise self._queue_full()
        if partition is None:
            partition = UNASSIGNED
        wire = (topic, payload, key, partition, handle, None, timestamp or 0, headers)
        batcher = self.attendant.batcher
        if batcher is None or batcher.current_hub() is not batcher.hub:
            batcher = self.attendant.current_batcher()
            if batcher is None:
                self._send_now(wire)
                return handle
        items = batcher.items
        items.append(wire)
        now.pending.add(handle)
        if len(items) >= batcher.flush_at:
            batcher.maybe_flush()
        return handle

    def send_many(self, messages: Sequence[Message]) -> list[DeliveryHandle]:
        """Queue messages in wire form, in order: as many as can be queued now.

        Fewer handles than messages mean that something is in the way of the next one;
        `send` says what.
        """
        batcher = self.attendant.current_batcher()
        if batcher is None:
            return self._send_each(messages)
        now, reports = self._outstanding, self._reports
        room = now.free_slots - now.count
        if room < len(messages):
            messages = messages[: max(int(room), 0)] if room > 0 else ()
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
        if max(map(len, filter(None, payloads)), default=0) > now.uncounted:
            return self._send_each(messages)  # their bytes count, too
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
        now.pending.update(handles)
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
        """Hand over what is batched, when called in the thread that gathers.

        From another thread there is nothing to do: its hub does it within 1 ms.
        """
        batcher = self.attendant.batcher
        if batcher is not None and batcher.in_own_hub():
            batcher.flush()

    def _send_now(self, wire: _Wire) -> None:
        with self._send_lock:
            if self._stopped:
                self._send_after_stop(wire)
                return
            try:
                self._outstanding.pending.add(wire[4])
                self._produce(*wire)
            except BaseException as error:
                if self._is_replaced_for(error):
                    self._keep(deque((wire,)))
                    return
                if isinstance(error, KafkaException):
                    error = self.kafka_handle.enqueue_error(wire[0], error)
                    if self._rerouter.on_failure(wire[4], error.code):
                        wire[4]._fail(error)
                        self.kafka_handle.signal.set()
                        return
                self._outstanding.drop(wire[4])
                if isinstance(error, BufferError):
                    self._outstanding.mark_full()
                    error = self._queue_full()
                raise error from error.__cause__
        self.attendant.start_safety_timer()

    def _send_batch(self, wires: deque[_Wire]) -> None:
        """Give batched messages to librdkafka, all at one go.

        One that is refused is told on its handle. Those that there is no room for stay
        in the queue.
        """
        try:
            with self._send_lock:
                if not self._stopped:
                    self._give(wires)
                elif self._on_carried_over is None:
                    self._drop(wires)
                else:
                    self._keep(wires)
        except BaseException:
            # A signal handler raised. A message that it left nowhere is looked for.
            self.kafka_handle.interrupted = True
            raise
        finally:
            self.attendant.start_safety_timer()

    def _give(self, wires: deque[_Wire]) -> None:
        # Each message leaves the queue and reaches librdkafka in one step in C, which
        # no signal handler can interrupt. One that librdkafka refuses is the next in
        # the copy.
        going, given = tee(starmap(wires.popleft, repeat((), len(wires))))
        steps = zip(starmap(self._produce, going), given, strict=False)
        while True:
            try:
                _exhaust(steps)
            except IndexError:
                return  # a signal handler that sends has handed over the rest
            except BufferError:
                wire = next(given)
                if self._outstanding.count > len(wires) + 1:
                    wires.appendleft(wire)
                    self._outstanding.mark_full()
                    return
                # Nothing else is in the queue, and still it doesn't fit: waiting for
                # room would be for ever.
                self._refuse(wire, self._queue_full())
            except Exception as error:  # noqa: BLE001 - told on the handle
                wire = next(given)
                if self._is_replaced_for(error):
                    wires.appendleft(wire)
                    self._keep(wires)
                    return
                self._refuse(wire, error)
            else:
                return

    def _refuse(self, wire: _Wire, error: Exception) -> None:
        wire[4]._fail(self.kafka_handle.enqueue_error(wire[0], error))
        self.kafka_handle.signal.set()

    def _take_back(self, handle: DeliveryHandle) -> bool:
        """Return whether a message that failed is going to be sent once more."""
        error: Any = handle._error
        refused = isinstance(error, ProduceError)

        def fail() -> None:
            self.kafka_handle.refused += refused
            handle._error = error
            self._reports.append(handle)
            self.kafka_handle.signal.set()

        code = error.code if refused else error.code()
        if not self._rerouter.on_failure(handle, code):
            return False
        del handle._error  # it has no result any more
        self._rerouter.take(handle, fail)
        self.kafka_handle.refused -= refused
        self._rerouter.start()
        return True

    def _send_again(self, message: Message, handle: DeliveryHandle) -> None:
        if self.mark[0]:  # else this is the copy of the task in a forked child
            self._give_all(deque((_wire(message, handle),)))

    def _on_interrupt(self) -> None:
        self.kafka_handle.interrupted = True
        self.kafka_handle.signal.set()

    def _drop(self, wires: deque[_Wire], why: Exception | None = None) -> None:
        try:
            for wire in take_all(wires):
                if why is None:
                    self.kafka_handle.refused += 1  # librdkafka never hears of it
                    wire[4]._fail(self.kafka_handle.error_translator.purged(wire[0]))
                else:
                    wire[4]._fail(self.kafka_handle.enqueue_error(wire[0], why))
        except BaseException:
            self.kafka_handle.interrupted = True
            raise
        finally:
            self.kafka_handle.signal.set()
        if self.kafka_handle.closed:  # the serving task has ended
            _concurrency.spawn(self.attendant.dispatcher.dispatch)

    def _queue_full(self) -> QueueFullError:
        return self.kafka_handle.queue_full(self.outstanding)

    def wait_for_space(self, seconds: float, *, again: bool) -> None:
        """Wait until a report made room in the queue, or the time is over.

        Blocking:
            Lets other greenlets run. First come, first served. Send at once after it.
        """
        self._outstanding.wait_for_space(
            self.attendant.waiter(),
            seconds,
            again=again,
            on_wait=self.send_lingering if self._settings.user_sets_linger else None,
        )

    def send_lingering(self) -> float:
        """Send what the user's `linger.ms` holds back, because the queue is full of it.

        Returns:
            The seconds after which it may do so again; it does nothing before.

        Blocking:
            Holds the hub for at most 1 ms.
        """
        now = _concurrency.monotonic()
        if self._settings.user_sets_linger and now >= self._next_nudge:
            self._next_nudge = now + _NUDGE_EVERY
            self.kafka_handle.flush_linger()
        return _NUDGE_EVERY

    def set_token(self, token: OAuthToken) -> None:
        """Give it the OAuth token to log in with, in the process that built it.

        Raises:
            OAuthTokenError: librdkafka does not take it.
        """
        if self.mark[0]:
            self.kafka_handle.set_token(token)

    def _give_all(self, wires: deque[_Wire]) -> None:
        while wires:
            self._send_batch(wires)
            if wires:
                self.wait_for_space(_NUDGE_EVERY, again=True)

    def _fail_lost_reports(self) -> None:
        # A signal handler that raises may do so at the very start of a callback, where
        # nothing can catch it, and librdkafka has given the report away; or while a
        # report is being told. Once librdkafka has nothing left, the handles that still
        # wait are those.
        batcher = self.attendant.batcher
        if batcher is not None and (batcher.items or not batcher.in_own_hub()):
            return
        with self._send_lock:
            if (
                self.kafka_handle.closed
                or not self.kafka_handle.empty
                or self._carried_over
                or self._rerouter
            ):
                return
            self.kafka_handle.interrupted = False
            pending = self._outstanding.pending
            for handle in list(pending):
                if handle.done:
                    handle._resolve()
                    pending.discard(handle)
                elif handle._is_filled:
                    self._reports.append(handle)
                else:
                    handle._fail(
                        self.kafka_handle.error_translator.report_lost(handle.topic)
                    )
        self.attendant.dispatcher.dispatch()
        # Nor may waiters have been woken.
        self._outstanding.on_reports(0)

    # --- handing on to another client --------------------------------------------

    @property
    def has_delivered(self) -> bool:
        """Whether any message of this client was delivered."""
        return self.kafka_handle.error_translator.has_delivered

    @property
    def has_waiters(self) -> bool:
        """Whether somebody waits to send with it, or for the client after it."""
        return (
            self._outstanding.has_waiters
            or self.router.has_waiters
            or bool(self._carried_over)
        )

    def stop_sending(
        self, on_carried_over: Callable[[], None], *, followed: bool
    ) -> None:
        """From now on keep what is sent, in order, for a client that takes over.

        Nobody who has got hold of this client before then loses a message, or gets an
        error. Once the other one is there, or this one closed, only what was batched
        is kept; others are told that it is closed, and send again. What they send
        would be overtaken by what they send next.

        Args:
            on_carried_over: Told, under `_send_lock`, of each message that is kept.
            followed: The other one is there.
        """
        with self._send_lock:
            self._on_carried_over = on_carried_over
            self._stopped = True
            self._replaced = self._replaced or followed
            if self._carried_over:
                on_carried_over()

    def take_carried_over(self, if_none: Callable[[], None]) -> deque[_Wire]:
        """Give what was kept up to now; if that is nothing, call a function.

        In between nobody can send by this client, nor can they after that.
        """
        self.flush_batcher()
        with self._send_lock:
            carried_over = take_all(self._carried_over)
            self._outstanding.pending.difference_update(
                each[4] for each in carried_over
            )
            if not carried_over:
                if_none()
                self._replaced = True
        return carried_over

    def resend(self, carried_over: deque[_Wire]) -> None:
        """Send what another client has kept.

        Blocking:
            While the queue is full. Lets other greenlets run.
        """
        handles = [wire[4] for wire in carried_over]
        for handle in handles:
            handle._reports = self._reports
        self._outstanding.pending.update(handles)
        self.attendant.ensure_poller()
        self._give_all(carried_over)

    def fail_carried_over(self, why: Exception | None) -> int:
        """Fail what was kept, as nobody takes over; tell how many these were.

        What follows goes to librdkafka again, which says what it thinks of that.

        Args:
            why: The reason, or None if they are dropped because all is over.
        """
        with self._send_lock:
            count = len(self._carried_over)
            self._on_carried_over = None
            self._stopped = self.kafka_handle.closed
            if count:
                self._drop(self._carried_over, why)
        return count

    def fail(self, carried_over: deque[_Wire], why: Exception) -> None:
        """Tell of messages that were taken from here that nobody can send them."""
        with self._send_lock:
            self._outstanding.pending.update(wire[4] for wire in carried_over)
            self._drop(
                carried_over, None if isinstance(why, ProducerClosedError) else why
            )

    def spawn_in_batcher_hub(self, function: Callable[[], None]) -> None:
        """Run a function by itself, in the thread where messages are batched, if any.

        There nobody can batcher in between two of its steps that don't wait.
        """
        batcher = self.attendant.batcher
        if batcher is None or _concurrency.hub_is_dead(batcher.hub):
            _concurrency.spawn(function)
        else:
            _concurrency.spawn_in_hub(batcher.hub, function)

    def _is_replaced_for(self, error: BaseException) -> bool:
        reason = self.kafka_handle.reason(error)
        return reason is not None and reason.fatal and self._on_fatal(self, reason)

    def _keep(self, wires: deque[_Wire]) -> None:
        self._carried_over += starmap(wires.popleft, repeat((), len(wires)))
        if self._on_carried_over is not None and self._carried_over:
            self._on_carried_over()

    def _send_after_stop(self, wire: _Wire) -> None:
        if self.kafka_handle.closed or self._on_carried_over is None or self._replaced:
            raise ProducerClosedError(self._settings.id)
        self._outstanding.pending.add(wire[4])
        self._keep(deque((wire,)))

    # --- ending ------------------------------------------------------------------

    def stop_taking(self) -> None:
        """Send away who waits to send; the owner sees to it that nobody new comes."""
        self._outstanding.wake_all()
        self.router.stop()

    def wait_delivered(
        self,
        seconds: float,
        give_up: Callable[[], bool] = lambda: False,
        *,
        may_poll: bool = True,
    ) -> bool:
        """Wait until nothing is outstanding; False when the time was over first.

        Args:
            seconds: How long.
            give_up: Ends the wait early when it returns true.
            may_poll: Whether a thread may poll meanwhile. It then calls listeners, and
                waits for longer if one of them does.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _concurrency.monotonic() + seconds
        self.flush_batcher()
        while self._outstanding.count > 0:
            left = deadline - _concurrency.monotonic()
            if left <= 0 or give_up():
                return False
            if self._settings.user_sets_linger:
                self.kafka_handle.flush_linger()
            waiter = self.attendant.waiter(self._is_idle if may_poll else None)
            self._outstanding.wait_for_none(waiter, min(left, _NUDGE_EVERY))
            if self._outstanding.count > 0:
                self.attendant.ensure_progress()
        return True

    def purge(self) -> list[DeliveryHandle]:
        """Drop all that is not acknowledged; each handle will say so.

        What is sent before `finish_purge` returns may be dropped, too.

        Returns:
            The handles, which have no verdict yet.
        """
        with self._send_lock:
            dropped = list(self._outstanding.pending)
            self._drop(self._carried_over)
            self._drop_rerouted()
        self.drop_batched()
        self.purge_queue()
        return dropped

    def _drop_rerouted(self) -> None:
        self._drop(deque(_wire(*each) for each in self._rerouter.drop()))

    def drop_batched(self) -> None:
        """Drop what librdkafka was not given yet."""
        batcher = self.attendant.batcher
        if batcher is None:
            return
        if batcher.in_own_hub() or _concurrency.hub_is_dead(batcher.hub):
            self._drop(batcher.take())
        else:
            _concurrency.call_soon_threadsafe(
                batcher.hub, lambda: self._drop(batcher.take())
            )

    def finish_purge(self, seconds: float) -> None:
        """Wait until librdkafka drops no more.

        Its threads, one for each broker, do that when they come to it. Without this
        wait they would drop what is sent next.

        Blocking:
            Lets other greenlets run.
        """
        with contextlib.suppress(TimeoutError, ProducerClosedError):
            _concurrency.run_in_thread(self.kafka_handle.await_purge, seconds)

    def purge_queue(self) -> None:
        """Drop what librdkafka has; what is batched, or kept, stays."""
        self.kafka_handle.purge()

    def purge_for_good(self) -> None:
        """Drop all that is not acknowledged, and whatever is still to come."""
        with self._send_lock:
            self._stopped = True
            self._on_carried_over = None
            self._drop(self._carried_over)
            self._drop_rerouted()
        self.purge_queue()
        self.flush_batcher()

    def _is_idle(self) -> bool:
        return not self._outstanding.count

    def wait_dropped(self, seconds: float) -> None:
        """Wait for the reports of dropped messages, which come at once.

        If the poller makes no progress, another task handles them. If that one is held
        up in a listener, too, they get their reports when the listener returns.

        Blocking:
            Lets other greenlets run.
        """
        deadline = Deadline(seconds)
        stall = self.attendant.watch_for_stall(_DROP_STALL)
        has_helper = False
        while not self.wait_delivered(
            min(deadline.remaining(), _NUDGE_EVERY), may_poll=False
        ):
            if deadline.has_expired:
                return
            if not stall():
                continue
            if not has_helper:
                has_helper = True
                _concurrency.spawn(self.attendant.serve_once)
                stall = self.attendant.watch_for_stall(_DROP_STALL)
            elif self.attendant.is_dispatching:
                return

    def wait_settled(self, seconds: float) -> None:
        """Wait for the verdicts on all that was not kept for another client.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _concurrency.monotonic() + seconds
        self.flush_batcher()
        while self._outstanding.count > len(self._carried_over):
            left = deadline - _concurrency.monotonic()
            if left <= 0:
                return
            waiter = self.attendant.waiter(
                lambda: self._outstanding.count <= len(self._carried_over)
            )
            self._outstanding.wait_for_none(waiter, min(left, _NUDGE_EVERY))

    def close(self) -> None:
        """End for good: the serving task, the descriptor, librdkafka's threads.

        Drop or await what is outstanding first. Not from the serving task.

        Blocking:
            Lets other greenlets run; a millisecond or two, and up to 2 s more if a
            broker is just being asked for metadata.
        """
        ended = self.attendant.stop(_TEARDOWN)
        try:
            # On a native thread also where there is no hub: no signal handler can
            # interrupt it there. One that doesn't end in time is left to its thread.
            run = _concurrency.run_in_thread
            if _concurrency.current_hub() is None:
                run = _concurrency.run_apart
            with contextlib.suppress(TimeoutError):
                run(lambda: self._tear_down(ended=ended), _TEARDOWN)
                if not ended:
                    self.attendant.close_descriptor_at_end()
        finally:
            self._dispatch_rest(ended=ended)
            _clients.discard(self)

    def _dispatch_rest(self, *, ended: bool) -> None:
        dispatch = self.attendant.dispatcher.dispatch
        if ended:
            dispatch()
        else:
            # Not here: a listener that holds up the poller would hold up this, too.
            _concurrency.spawn(dispatch)

    def _tear_down(self, *, ended: bool) -> None:
        with self._send_lock:
            self._stopped = True
            self._produce = None  # it holds what is torn down
        self.kafka_handle.tear_down(close_descriptor=ended)

    def discard(self) -> None:
        """End a client that nobody has used.

        Blocking:
            Blocks the thread for a millisecond or two.
        """
        self._tear_down(ended=True)
        _clients.discard(self)

    def forget_in_child(self) -> None:
        """Let go of the parent's client in a forked child; call nothing native."""
        if self.attendant.batcher is not None:
            self.attendant.batcher.take()  # what was batched is the parent's to send
        self.kafka_handle.forget_in_child()


def _wire(message: Message, handle: DeliveryHandle) -> _Wire:
    """Return what `produce` takes; `Client.send` has it inline, for speed."""
    topic, payload, key, headers, partition, _, timestamp, _ = message
    if partition is None:
        partition = UNASSIGNED
    return (topic, payload, key, partition, handle, None, timestamp or 0, headers)


def _check_interval(settings: Settings) -> float:
    pulses = [settings.idle_disconnect_timeout / _CHECKS_PER_TIMEOUT]
    if settings.uses_oauth:
        pulses.append(_TOKEN_CHECK_INTERVAL)
    return min(filter(None, pulses), default=0.0)


def _after_fork_in_child() -> None:
    # Only marks. The child's first use raises, or resets.
    for client in list(_clients):
        client.forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
