"""One librdkafka producer, and what its serving task does.

The only module that imports confluent_kafka: its errors, callbacks and messages are
turned into ours here and travel no further. Knows no rules of dispatch (who may send,
how long to wait for room): those are in `_core`.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import cimpl

from greendrop import _librdkafka, _waiting
from greendrop._gather import Gatherer
from greendrop._outstanding import Outstanding
from greendrop._serving import HubTask, ThreadTask
from greendrop._settling import Settler
from greendrop._verdicts import Verdicts
from greendrop.delivery import DeliveryHandle, ReportQueue
from greendrop.errors import (
    ConfigurationInvalidError,
    IllegalWaitError,
    ProducerClosedError,
    ProducerUsedInParentProcessError,
    QueueFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.config import Settings
    from greendrop.errors import DeliveryError
    from greendrop.events import Monitor
    from greendrop.message import Message

#: Reports that one poll on a hub serves at most; then the hub has a turn. 500 take
#: 1 to 2 ms with what their waiters cost.
_REPORTS_PER_POLL = 500
#: Seconds between nudges of librdkafka while somebody waits for all deliveries and the
#: user's `linger.ms` holds messages back.
_NUDGE_EVERY = 0.05
#: Seconds that the end of a client may take once nothing is outstanding: it takes one
#: or two milliseconds.
_TEARDOWN = 10.0

_QUEUE_FULL = cimpl.KafkaError._QUEUE_FULL

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
        self._outstanding = Outstanding(settings.queue_limit)
        self._closed = False
        self._purging = False
        self._verdicts = Verdicts(
            fatal_error=lambda: _librdkafka.fatal_error(self._producer),
            name_of=lambda code: cimpl.KafkaError(code).name(),
        )
        self._reports = ReportQueue(self, self._on_limit)
        self._settler = Settler(
            reports=self._reports,
            settings=settings,
            monitor=monitor,
            verdicts=self._verdicts,
            on_settled=self._on_settled,
            pause=self._pause,
        )
        self._settled_elsewhere = 0
        self._poll_ident = 0
        # Lock order: _attaching, _poll_gate, _gate. `_gate` is held around each call
        # that queues messages, `_poll_gate` around each poll, so that closing can keep
        # everybody out: librdkafka's close while another thread is inside is a crash.
        self._attaching = _waiting.RLock()
        self._poll_gate = _waiting.RLock()
        self._gate = _waiting.RLock()
        # Threads without a hub that are serving: the task's, or those that wait.
        self._serving_threads: set[int] = set()
        self._task: HubTask | ThreadTask | None = None
        self._gather: Gatherer[_Item] | None = None
        self._signal = _waiting.Signal()
        try:
            self._producer = self._build()
        except BaseException:
            self._signal.close()
            raise
        self._produce: Any = self._producer.produce
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
            with _waiting.polite_threads():
                return cimpl.Producer(kafka, logger=_LogLines(self._note))
        except cimpl.KafkaException as error:
            reason = self._verdicts.translate(error.args[0])
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
        """Messages that were taken and have no verdict, gathered ones included."""
        return self._outstanding.count

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
        outstanding = self._outstanding
        if outstanding.full if waited else outstanding.full_for_newcomers:
            raise self._queue_full()
        handle = DeliveryHandle(message[0], message[7], self._reports)
        gather = self._gather
        if gather is None or gather.current_hub() is not gather.hub:
            self.attend()
            gather = self._gather
            if gather is None or not gather.is_here():
                self._send_now(message, handle)
                return handle
        outstanding.gathered += 1
        gather.add((message, handle))
        return handle

    def flush_gathered(self) -> None:
        """Hand over what is gathered, when called in the thread that gathers.

        From another thread there is nothing to do: its hub does it within 1 ms.
        """
        gather = self._gather
        if gather is not None and gather.is_here():
            gather.hand_over()

    def _send_now(self, message: Message, handle: DeliveryHandle) -> None:
        topic, payload, key, headers, partition, _, timestamp, _ = message
        with self._gate:
            if self._closed:
                raise ProducerClosedError(self._settings.id)
            self._outstanding.direct += 1
            try:
                self._produce(
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
                self._outstanding.direct -= 1
                self._outstanding.refused = True
                full = self._queue_full()
                raise full from full.__cause__
            except cimpl.KafkaException as error:
                self._outstanding.direct -= 1
                refusal = self._refusal(topic, error)
                raise refusal from refusal.__cause__
            except BaseException:
                self._outstanding.direct -= 1
                raise
        if self._task is not None:
            self._task.guard()

    def _hand_over(self, items: list[_Item]) -> list[_Item]:
        """Give gathered messages to librdkafka, all at one go.

        One that is refused is told on its handle. Returns those without room.
        """
        produce = self._produce
        refused = False
        rest: list[_Item] = []
        with self._gate:
            if self._closed or self._purging:
                self._drop(items)
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
                    if self._outstanding.count <= len(items) - index:
                        # Nothing is in the queue, and still it doesn't fit: waiting
                        # for room would be for ever.
                        handle._fail(self._refusal(topic, self._queue_full()))
                        refused = True
                        continue
                    rest = items[index:]
                    break
                except Exception as error:  # noqa: BLE001 - told on the handle
                    handle._fail(self._refusal(topic, error))
                    refused = True
        if rest:
            self._outstanding.refused = True
        if refused:
            self._signal.set()
        self._task.guard()  # type: ignore[union-attr]  # gathering has a task
        return rest

    def _drop(self, items: list[_Item]) -> None:
        for (topic, *_), handle in items:
            handle._fail(self._verdicts.purged(topic))
        self._signal.set()
        if self._closed:  # the serving task has ended
            _waiting.start(self._settler.settle)

    def _queue_full(self) -> QueueFullError:
        text = (
            f"the queue is full ({self.outstanding} messages outstanding;"
            " queue.buffering.max.messages or .kbytes); this message was not queued"
        )
        full = QueueFullError(text)
        full.__cause__ = self._verdicts.translate(cimpl.KafkaError(_QUEUE_FULL))
        return full

    def wait_for_room(self, seconds: float, *, again: bool) -> None:
        """Wait until a report made room in the queue, or the time is over.

        Blocking:
            Lets other greenlets run. First come, first served. Send at once after it.
        """
        self._outstanding.wait_for_room(self.waiter(), seconds, again=again)

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
                self._task = ThreadTask(
                    self._turn, self._interrupt_poll, self._poll_gate
                )
            else:
                self._task = HubTask(
                    hub, self._signal, self._turn, lambda: self._outstanding.count
                )
                if not self._settings.linger_is_users:
                    self._gather = Gatherer(hub, self._hand_over)
        while orphans:
            orphans = self._hand_over(orphans)
            if orphans:
                self.wait_for_room(_NUDGE_EVERY, again=True)

    def wait(
        self,
        waiter: _waiting.ThreadWaiter | _waiting.GreenletWaiter,
        done: Callable[[], bool],
        seconds: float,
    ) -> None:
        """Wait until woken, done, or the time is over; and serve, if need be.

        Blocking:
            As the waiter does.
        """
        task = self._task
        if isinstance(waiter, _waiting.ThreadWaiter) and isinstance(task, ThreadTask):
            task.lead.wait(waiter, done, seconds)
        elif not waiter.wait(min(seconds, waiter.patience)) and not done():
            self._look_after()

    def _look_after(self) -> None:
        # For one who waits for long. A hub whose thread stands still in a native call
        # serves nobody: a waiting thread then does it itself.
        self.attend()
        task = self._task
        if isinstance(task, HubTask) and _waiting.current_hub() is None:
            self._turn(0)

    def waiter(self) -> _waiting.ThreadWaiter | _waiting.GreenletWaiter:
        """Make a waiter for the caller, who is going to wait for this client.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub
                itself or the serving task (in a listener).
        """
        gather = self._gather
        if gather is None or not gather.is_here():
            self.attend()
        if self.in_serving_task():
            text = (
                "can't wait in a listener of the same producer: the task that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        return _waiting.new_waiter()

    def in_serving_task(self) -> bool:
        """Tell whether the caller is the serving task: a listener."""
        task = self._task
        return (
            task is not None and task.is_current()
        ) or _waiting.get_ident() in self._serving_threads

    def last_broker_error(self) -> str | None:
        """Tell what librdkafka last complained of, since the last good report."""
        return self._verdicts.last_error

    def _note(self, kind: str, content: Any) -> None:  # noqa: ANN401
        # Called inside poll, like a delivery report: append, and that is all.
        self._settler.notices.append((kind, content))
        if not self._reports.limit:
            self._signal.set()

    def _on_limit(self) -> None:
        # Also inside poll, or inside a flush or close that another thread makes.
        if _waiting.get_ident() != self._poll_ident:
            self._signal.set()
        elif len(self._reports) >= _REPORTS_PER_POLL and self._queue is not None:
            # librdkafka keeps the rest, in order, and signals again.
            self._queue.yield_poll()

    def _interrupt_poll(self) -> None:
        with self._gate:
            if self._queue is not None and not self._closed:
                self._queue.wake()

    def _turn(self, seconds: float) -> BaseException | None:
        if self.pid != os.getpid():
            # The copy of the task that a forked child has.
            if self._task is not None:
                self._task.stop()
            return None
        # A signal handler may run inside the poll, a listener after it: neither may
        # wait for this thread. (In a hub the task's greenlet tells that.)
        me = _waiting.get_ident() if _waiting.current_hub() is None else 0
        self._serving_threads.add(me)
        try:
            interrupt = self._poll(seconds)
            try:
                self._settler.settle()
            except BaseException as error:  # noqa: BLE001
                interrupt = error
        finally:
            self._serving_threads.discard(me)
        return interrupt

    def _poll(self, seconds: float) -> BaseException | None:
        if not self._poll_gate.acquire(blocking=seconds > 0):
            # Another thread polls, and tells. A hub must not wait for it; it comes
            # back at once, after a turn for the others.
            self._signal.set()
            return None
        reports = self._reports
        try:
            if not self._closed:
                self._poll_ident = _waiting.get_ident()
                reports.limit = _REPORTS_PER_POLL
                self._producer.poll(seconds)
        except cimpl.KafkaException as error:
            # How a fatal error is told: no error_cb, but an exception.
            self._settler.notices.append(("error", error.args[0]))
        except BaseException as error:  # noqa: BLE001
            # A signal handler raised in here, or ours did, which is a bug; neither
            # may end the serving.
            return error
        finally:
            reports.limit = 0
            self._poll_ident = 0
            self._poll_gate.release()
        return None

    def _on_settled(self, count: int, latency: float) -> None:
        if latency >= 0:
            self._verdicts.all_is_well()
        gather = self._gather
        if gather is not None and not gather.is_here():
            self._settled_elsewhere += count  # told when its own thread is at it
        elif gather is not None:
            gather.reported(count + self._settled_elsewhere, latency)
            self._settled_elsewhere = 0
        self._outstanding.settle(count)

    def _pause(self) -> None:
        if self._task is not None and self._task.is_current():
            self._task.pause()

    def _refusal(self, topic: str, error: Exception) -> DeliveryError:
        if isinstance(error, cimpl.KafkaException):
            error = self._verdicts.translate(error.args[0])
        return self._verdicts.refusal(topic, error)

    # --- ending ------------------------------------------------------------------

    def stop_taking(self) -> None:
        """Send away who waits for room; the owner sees to it that nobody new comes."""
        self._outstanding.send_away()

    def wait_delivered(self, seconds: float) -> bool:
        """Wait until nothing is outstanding; False when the time was over first.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _waiting.monotonic() + seconds
        self.flush_gathered()
        while self._outstanding.count > 0:
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return False
            if self._settings.linger_is_users:
                self._nudge()
            self._outstanding.wait_for_none(self.waiter(), min(left, _NUDGE_EVERY))
            if self._outstanding.count > 0:
                self._look_after()
        return True

    def _nudge(self) -> None:
        # Pushes out what the user's linger.ms holds back; polling alone does not.
        # Holds the hub for at most 1 ms.
        with self._poll_gate:
            if not self._closed:
                try:
                    self._producer.flush(0.001)
                except cimpl.KafkaException as error:
                    self._settler.notices.append(("error", error.args[0]))
                    self._signal.set()

    def purge(self) -> None:
        """Drop all that is not acknowledged; each handle will say so."""
        with self._gate:
            self._purging = True
            if not self._closed:
                self._producer.purge()
        self.flush_gathered()
        self._signal.set()

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
            self._settler.settle()
            _clients.discard(self)

    def _tear_down(self, ended: bool) -> None:  # noqa: FBT001 - one caller
        with self._poll_gate, self._gate:
            if self._closed:
                return
            self._closed = True
        if self._queue is not None:
            self._queue.release()
        try:
            self._producer.close()
        except cimpl.KafkaException as error:
            # A fatal error that nobody had polled yet; closed it is all the same.
            self._settler.notices.append(("error", error.args[0]))
        finally:
            # Last: what comes in while the producer closes still signals. If the
            # task has not ended, its hub is blocked and still watches the descriptor:
            # one that leaks is better than one whose number becomes a stranger's.
            if ended:
                self._signal.close()

    def forget_in_child(self) -> None:
        """Let go of the parent's client in a forked child; call nothing native."""
        if self._gather is not None:
            self._gather.take()  # what was gathered is the parent's to send
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


def _after_fork_in_child() -> None:
    # Only marks. The child's first use raises, or resets.
    for client in list(_clients):
        client.forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
