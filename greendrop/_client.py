"""One librdkafka producer, and what its serving task does.

The only module that imports confluent_kafka: its errors, callbacks and messages are
turned into ours here and travel no further. Knows no rules of dispatch (who may send,
how long to wait for room): those are in `_core`.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import cimpl

from greendrop import _librdkafka, _waiting
from greendrop._gather import Gatherer
from greendrop._serving import HubTask, ThreadTask
from greendrop.delivery import DeliveryHandle, ReportQueue
from greendrop.errors import (
    BrokerError,
    ConfigurationInvalidError,
    DeliveryError,
    IllegalWaitError,
    MessagePurgedError,
    ProducerClosedError,
    ProduceError,
    ProducerUsedInParentProcessError,
    QueueFullError,
)

if TYPE_CHECKING:
    from greendrop.config import Settings
    from greendrop.events import Monitor
    from greendrop.message import Message

#: Reports that one poll on a hub serves at most; then the hub has a turn. 500 take
#: 1 to 2 ms with what their waiters cost.
_REPORTS_PER_POLL = 500
#: Reports between two looks at the clock while listeners are told.
_CLOCK_EVERY = 16
#: Seconds between nudges of librdkafka while somebody waits for all deliveries and the
#: user's `linger.ms` holds messages back.
_NUDGE_EVERY = 0.05
#: Seconds that the end of a client may take once nothing is outstanding: it takes one
#: or two milliseconds.
_TEARDOWN = 10.0

_PURGED = (cimpl.KafkaError._PURGE_QUEUE, cimpl.KafkaError._PURGE_INFLIGHT)  # noqa: SLF001
_FATAL = cimpl.KafkaError._FATAL  # noqa: SLF001
_ALL_DOWN = cimpl.KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001

_log = logging.getLogger("greendrop.librdkafka")

# Clients of this process, for the hook that runs in a forked child.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()
# What a child inherited. Kept for ever: freeing it would wait for threads that the
# child doesn't have (1 s each), or hang.
_inherited: list[object] = []

_Item: TypeAlias = "tuple[Message, DeliveryHandle]"


class Client:
    """A connected librdkafka producer. Used from any number of greenlets and threads.

    Args:
        settings: What it is built from.
        monitor: Who is told what happens.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        self.pid = os.getpid()
        self._settings = settings
        self._monitor = monitor
        # Counted apart, so that the hub's thread needs no lock to count.
        self._gathered = 0
        self._direct = 0
        self._settled = 0
        self._queue_limit = settings.queue_limit
        self._no_room = False
        self._closed = False
        self._purging = False
        self._last_error: str | None = None
        self._reports = ReportQueue(self, self._on_limit)
        self._notices: deque[tuple[str, Any]] = deque()
        self._room: deque[_waiting.Waiter] = deque()
        self._drained: deque[_waiting.Waiter] = deque()
        self._poll_ident = 0
        # Lock order: _attaching, _poll_gate, _gate. `_gate` is held around each call
        # that queues messages, `_poll_gate` around each poll, so that closing can keep
        # everybody out: librdkafka's close while another thread is inside is a crash.
        self._attaching = _waiting.RLock()
        self._poll_gate = _waiting.RLock()
        self._gate = _waiting.RLock()
        self._settling = _waiting.allocate_lock()
        self._task: HubTask | ThreadTask | None = None
        self._gather: Gatherer[_Item] | None = None
        self._signal = _waiting.Signal()
        self._producer = self._build()
        self._queue = _librdkafka.MainQueue.of(self._producer)
        if self._queue and not self._queue.signal_on(self._signal.write_fd):
            self._queue.release()
            self._queue = None
        _clients.add(self)

    def _build(self) -> cimpl.Producer:
        settings = self._settings
        kafka: dict[str, Any] = dict(settings.kafka)
        kafka["error_cb"] = lambda error: self._note("error", error)
        statistics = (
            self._monitor.listens("statistics.emitted")
            and int(kafka["statistics.interval.ms"]) > 0
        )
        if statistics:
            kafka["stats_cb"] = lambda text: self._note("statistics", text)
        else:
            kafka["statistics.interval.ms"] = "0"
        self._monitor.freeze_statistics(not statistics)
        try:
            return cimpl.Producer(kafka, logger=_LogLines(self._note))
        except cimpl.KafkaException as error:
            reason = _broker_error(error.args[0])
            raise ConfigurationInvalidError({"kafka": str(reason)}) from reason
        except (TypeError, ValueError) as error:
            raise ConfigurationInvalidError({"kafka": str(error)}) from error

    # --- sending -----------------------------------------------------------------

    @property
    def polling(self) -> str | None:
        """Which driver serves: "fd", "thread", or None before the first use."""
        return None if self._task is None else self._task.polling

    @property
    def outstanding(self) -> int:
        """Messages that were taken and not settled, gathered ones included."""
        return self._gathered + self._direct - self._settled

    def send(self, message: Message) -> DeliveryHandle:
        """Queue one message in wire form.

        Raises:
            QueueFullError: No room; nothing was queued.
            DeliveryError: librdkafka refused the message; nothing was queued.
            ProducerClosedError: The client is closed; nothing was queued.
        """
        handle = DeliveryHandle(message[0], message[7], self._reports)
        if self._in_serving_hub() or self._attended_in_hub():
            if self._no_room or self.outstanding >= self._queue_limit:
                raise self._queue_full()
            self._gathered += 1
            self._gather.add((message, handle))  # type: ignore[union-attr]
        else:
            self._send_now(message, handle)
        return handle

    def flush_gathered(self) -> None:
        """Hand over what is gathered, when called in the thread that gathers.

        From another thread there is nothing to do: its hub does it within 1 ms.
        """
        if self._gather is not None and self._in_serving_hub():
            self._gather.hand_over()

    def _in_serving_hub(self) -> bool:
        task = self._task
        return (
            self._gather is not None
            and task is not None
            and task.thread_ident == _waiting.get_ident()
            and task.alive
        )

    def _attended_in_hub(self) -> bool:
        self.attend()
        return self._in_serving_hub()

    def _send_now(self, message: Message, handle: DeliveryHandle) -> None:
        topic, payload, key, headers, partition, _, timestamp, _ = message
        with self._gate:
            if self._closed:
                raise ProducerClosedError(self._settings.id)
            self._direct += 1
            try:
                self._producer.produce(
                    topic,
                    payload,
                    key,
                    -1 if partition is None else partition,
                    handle,
                    None,
                    timestamp or 0,
                    headers,
                )
            except BufferError:
                self._direct -= 1
                raise self._queue_full() from None
            except cimpl.KafkaException as error:
                self._direct -= 1
                refusal = self._refusal(topic, error)
                raise refusal from refusal.__cause__
            except BaseException:
                self._direct -= 1
                raise
        task = self._task
        if task is not None and task.thread_ident is not None:
            task.guard()

    def _hand_over(self, items: list[_Item]) -> list[_Item]:
        """Give gathered messages to librdkafka, all at one go.

        One that is refused is told on its handle. Returns those without room.
        """
        produce = self._producer.produce
        refused = False
        rest: list[_Item] = []
        with self._gate:
            if self._closed or self._purging:
                for (topic, *_), handle in items:
                    handle.fail(_purged(topic, None))
                self._signal.set()
                return rest
            for index, (message, handle) in enumerate(items):
                topic, payload, key, headers, partition, _, timestamp, _ = message
                try:
                    produce(
                        topic,
                        payload,
                        key,
                        -1 if partition is None else partition,
                        handle,
                        None,
                        timestamp or 0,
                        headers,
                    )
                except BufferError:
                    rest = items[index:]
                    break
                except Exception as error:  # noqa: BLE001 - told on the handle
                    handle.fail(self._refusal(topic, error))
                    refused = True
        self._no_room = bool(rest)
        if refused:
            self._signal.set()
        self._task.guard()  # type: ignore[union-attr]  # gathering has a task
        return rest

    def _queue_full(self) -> QueueFullError:
        text = (
            f"the queue is full ({self.outstanding} messages outstanding;"
            " queue.buffering.max.messages or .kbytes); this message was not queued"
        )
        return QueueFullError(text)

    def wait_for_room(self, seconds: float) -> None:
        """Wait until a report made room in the queue, or the time is over.

        Blocking:
            Lets other greenlets run. Others may take the room first: try, and wait
            again.
        """
        waiter = self.waiter()
        self._room.append(waiter)
        woken = False
        try:
            if self._no_room or self.outstanding >= self._queue_limit:
                woken = waiter.wait(seconds)
        finally:
            try:
                self._room.remove(waiter)
            except ValueError:
                # It was woken. If it can't use the room (killed, timed out), the next
                # one must hear of it.
                if not woken:
                    self._wake_for_room(1)

    def _wake_for_room(self, count: int) -> None:
        room = self._room
        for _ in range(min(count, len(room))):
            try:
                waiter = room.popleft()
            except IndexError:
                return
            waiter.wake()

    # --- serving -----------------------------------------------------------------

    def attend(self) -> None:
        """See to it that somebody serves this client, as well as can be.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        if self.pid != os.getpid():
            text = "this producer was used before the fork; call reset() in the child"
            raise ProducerUsedInParentProcessError(text)
        task = self._task
        hub = _waiting.current_hub() if self._queue else None
        if task is not None and task.alive and (task.polling == "fd" or hub is None):
            return
        with self._attaching:
            if self._closed or task is not self._task:
                return  # another thread was quicker
            gather, self._gather = self._gather, None
            orphans = gather.take() if gather is not None else []
            if task is not None:
                task.stop()
            if hub is None:
                self._task = ThreadTask(self._turn, self._interrupt_poll)
            else:
                self._task = HubTask(
                    hub, self._signal, self._turn, lambda: self.outstanding
                )
                if not self._settings.linger_is_users:
                    self._gather = Gatherer(hub, self._hand_over)
        while orphans:
            orphans = self._hand_over(orphans)
            if orphans:
                self.wait_for_room(_NUDGE_EVERY)

    def waiter(self) -> _waiting.ThreadWaiter | _waiting.GreenletWaiter:
        """Make a waiter for the caller, who is going to wait for this client.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub
                itself or the serving task (in a listener).
        """
        if not self._in_serving_hub():
            self.attend()
        task = self._task
        if task is not None and task.is_current():
            text = (
                "can't wait in a listener of the same producer: the task that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        return _waiting.new_waiter()

    def in_serving_task(self) -> bool:
        """Tell whether the caller is the serving task: a listener."""
        return self._task is not None and self._task.is_current()

    def last_broker_error(self) -> str | None:
        """Tell what librdkafka last complained of, since the last good report."""
        return self._last_error

    def _note(self, kind: str, content: Any) -> None:  # noqa: ANN401
        # Called inside poll, like a delivery report: append, and that is all.
        self._notices.append((kind, content))
        if not self._reports.limit:
            self._signal.set()

    def _on_limit(self) -> None:
        # Also inside poll, or inside a flush or close that another thread makes.
        if _waiting.get_ident() != self._poll_ident:
            self._signal.set()
            if self._task is not None and self._task.polling == "thread":
                self._interrupt_poll()
        elif len(self._reports) >= _REPORTS_PER_POLL and self._queue is not None:
            # librdkafka keeps the rest, in order, and signals again.
            self._queue.yield_poll()

    def _interrupt_poll(self) -> None:
        if self._queue is not None:
            self._queue.wake()

    def _turn(self, seconds: float) -> BaseException | None:
        interrupt: BaseException | None = None
        if self.pid != os.getpid():
            # The copy of the task that a forked child has.
            if self._task is not None:
                self._task.stop()
            return interrupt
        reports = self._reports
        with self._poll_gate:
            if not self._closed:
                self._poll_ident = _waiting.get_ident()
                # A thread sits in its poll for long: it wants to hear of each report
                # that another thread brought. A hub's poll is over at once.
                reports.limit = 1 if seconds else _REPORTS_PER_POLL
                try:
                    self._producer.poll(seconds)
                except cimpl.KafkaException as error:
                    # How a fatal error is told: no error_cb, but an exception.
                    self._notices.append(("error", error.args[0]))
                except BaseException as error:  # noqa: BLE001
                    # A signal handler raised in here, or ours did, which is a bug;
                    # neither may end the serving.
                    interrupt = error
                finally:
                    reports.limit = 0
                    self._poll_ident = 0
        self._settle()
        return interrupt

    def _settle(self) -> None:
        """Tell what came in: events first, then who waits."""
        while self._reports or self._notices:
            # Two may come here while one driver replaces the other. The one that is
            # at it looks again before it goes.
            if not self._settling.acquire(blocking=False):
                return
            try:
                while self._notices:
                    self._tell_notice(*self._notices.popleft())
                self._settle_reports()
            finally:
                self._settling.release()

    def _settle_reports(self) -> None:
        reports = self._reports
        acknowledged = self._monitor.listens("message.acknowledged")
        turn_ends = _waiting.monotonic() + self._settings.max_serve_time
        count = 0
        latency = -1.0
        try:
            while reports:
                handle = reports.popleft()
                count += 1
                if handle._error is None:
                    latency = handle._latency
                    if not acknowledged:
                        handle.settle()
                        continue
                try:
                    self._tell_report(handle)
                finally:
                    handle.settle()
                if not count % _CLOCK_EVERY and _waiting.monotonic() > turn_ends:
                    self._count_settled(count, latency)
                    count = 0
                    self._give_hub_a_turn()
                    turn_ends = _waiting.monotonic() + self._settings.max_serve_time
        finally:
            self._count_settled(count, latency)

    def _give_hub_a_turn(self) -> None:
        if self._task is not None and self._task.is_current():
            self._task.pause()

    def _count_settled(self, count: int, latency: float) -> None:
        if not count:
            return
        self._settled += count
        self._no_room = False
        if latency >= 0:
            self._last_error = None
        if self._gather is not None and self._in_serving_hub():
            self._gather.reported(count, max(latency, 0.0))
        if self._room:
            self._wake_for_room(count)
        if self._drained and self.outstanding <= 0:
            while self._drained:
                self._drained.popleft().wake()

    def _tell_report(self, handle: DeliveryHandle) -> None:
        error = handle._error
        if error is None:
            report = handle._report()
            self._monitor.emit(
                "message.acknowledged",
                {
                    "producer_id": self._settings.id,
                    "topic": report.topic,
                    "partition": report.partition,
                    "offset": report.offset,
                    "label": report.label,
                    "delivery_report": report,
                },
            )
            return
        if not isinstance(error, DeliveryError):
            error = handle._error = self._verdict(handle.topic, error)
        self._monitor.emit(
            "error.occurred",
            {
                "producer_id": self._settings.id,
                "error": error,
                "type": "librdkafka.dispatch_error",
                "topic": handle.topic,
                "label": handle.label,
                "delivery_report": handle,
            },
        )

    def _tell_notice(self, kind: str, content: Any) -> None:  # noqa: ANN401
        if kind == "log":
            level, line = content
            _log.log(level, "%s", line)
        elif kind == "statistics":
            if self._monitor.listens("statistics.emitted"):
                self._monitor.emit(
                    "statistics.emitted",
                    {
                        "producer_id": self._settings.id,
                        "statistics": json.loads(content),
                    },
                )
        else:
            error = _broker_error(content, self._producer)
            # "All brokers are down" comes after, and hides, the reason why.
            if content.code() != _ALL_DOWN or self._last_error is None:
                self._last_error = str(error)
            self._monitor.emit(
                "error.occurred",
                {
                    "producer_id": self._settings.id,
                    "error": error,
                    "type": "librdkafka.error",
                },
            )

    def _verdict(self, topic: str, error: cimpl.KafkaError) -> DeliveryError:
        cause = _broker_error(error, self._producer)
        if cause.code in _PURGED:
            return _purged(topic, cause)
        text = f"a message to {topic!r} was not delivered: {cause}"
        if self._last_error is not None and self._last_error not in text:
            text += f"; last broker error: {self._last_error}"
        verdict = DeliveryError(text)
        verdict.__cause__ = cause
        return verdict

    def _refusal(self, topic: str, error: Exception) -> DeliveryError:
        cause: Exception = error
        if isinstance(error, cimpl.KafkaException):
            cause = _broker_error(error.args[0], self._producer)
        refusal = DeliveryError(f"a message to {topic!r} was not queued: {cause}")
        refusal.__cause__ = cause
        return refusal

    # --- ending ------------------------------------------------------------------

    def wait_delivered(self, seconds: float) -> bool:
        """Wait until nothing is outstanding; False when the time was over first.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _waiting.monotonic() + seconds
        self.flush_gathered()
        while self.outstanding > 0:
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return False
            waiter = self.waiter()
            self._drained.append(waiter)
            if self._settings.linger_is_users:
                self._nudge()
            if self.outstanding > 0:
                waiter.wait(min(left, _NUDGE_EVERY))
            try:
                self._drained.remove(waiter)
            except ValueError:
                continue  # it was woken
        return True

    def _nudge(self) -> None:
        # Pushes out what the user's linger.ms holds back; polling alone does not.
        # Holds the hub for at most 1 ms.
        with self._poll_gate:
            if not self._closed:
                self._producer.flush(0.001)

    def purge(self) -> None:
        """Drop all that is not acknowledged; each handle will say so."""
        with self._gate:
            self._purging = True
            if not self._closed:
                self._producer.purge()
        self.flush_gathered()
        self._signal.set()

    def resume(self) -> None:
        """Take messages again after a purge."""
        self._purging = False

    def close(self) -> None:
        """End for good: the serving task, the descriptor, librdkafka's threads.

        Drop or await what is outstanding first. Not from the serving task.

        Blocking:
            Lets other greenlets run; a millisecond or two.
        """
        with self._attaching:
            task = self._task
            if task is not None:
                task.stop()
        ended = task is None or task.join(_TEARDOWN)
        try:
            _waiting.run_natively(lambda: self._tear_down(ended), _TEARDOWN)
        finally:
            self._settle()
            _clients.discard(self)

    def _tear_down(self, ended: bool) -> None:  # noqa: FBT001 - one caller
        with self._poll_gate, self._gate:
            if self._closed:
                return
            self._closed = True
        if self._queue is not None:
            self._queue.release()
        if ended:
            # Otherwise a hub that is blocked still watches it. One descriptor that
            # leaks is better than one whose number becomes a stranger's.
            self._signal.close()
        self._producer.close()

    def forget_in_child(self) -> None:
        """Let go of the parent's client, in a forked child; nothing native is called."""
        if self._producer not in _inherited:
            _inherited.append(self._producer)
            if not self._closed:
                self._signal.renew()


class _LogLines:
    """What confluent-kafka takes for a logger: notes lines, since it is in poll."""

    def __init__(self, note: Any) -> None:  # noqa: ANN401
        self._note = note

    def log(self, level: int, form: str, *args: object) -> None:
        self._note("log", (level, form % args if args else form))


def _broker_error(
    error: cimpl.KafkaError, producer: cimpl.Producer | None = None
) -> BrokerError:
    """Turn librdkafka's error into ours."""
    code, name, text = error.code(), error.name(), error.str()
    fatal = error.fatal()
    if code == _FATAL and producer is not None:
        # The generic code hides the real one, which the instance knows.
        real = _librdkafka.fatal_error(producer)
        if real is not None:
            code, text = real
            name, fatal = cimpl.KafkaError(code).name(), True
    return BrokerError(
        f"{text} ({name}, {code})",
        code=code,
        name=name,
        fatal=fatal,
        retriable=error.retriable(),
        abortable=error.txn_requires_abort(),
    )


def _purged(topic: str, cause: BrokerError | None) -> MessagePurgedError:
    where = "in flight, so the broker may have stored it"
    if cause is None or cause.code == _PURGED[0]:
        where = "still queued"
    verdict = MessagePurgedError(f"a message to {topic!r} was dropped, {where}")
    verdict.__cause__ = cause
    return verdict


def _after_fork_in_child() -> None:
    # Only marks. The child's first use raises, or resets.
    for client in list(_clients):
        client.forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
