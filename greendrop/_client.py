"""One connected client: who sends by it, who serves it, and its end.

Messages go to librdkafka gathered, where there is a hub, or one by one; a serving task
brings their reports. Knows no rules of dispatch (who may send, how long to wait for
room): those are in `_core`. Knows nothing of confluent-kafka: that is in `_native`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from itertools import repeat
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from greendrop import _process, _waiting
from greendrop._engine import KafkaException
from greendrop._gather import Gatherer, give
from greendrop._native import Native
from greendrop._outstanding import Outstanding
from greendrop._partitioners import partitioner
from greendrop._routing import Router
from greendrop._serving import HubTask, LeadWaiter, Pulse, ThreadTask
from greendrop._settling import Settler
from greendrop._stalls import Alarm
from greendrop.delivery import DeliveryHandle, ReportQueue
from greendrop.errors import (
    IllegalWaitError,
    ProduceError,
    ProducerClosedError,
    ProducerUsedInParentProcessError,
)
from greendrop.message import UNASSIGNED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from greendrop._engine import Engine
    from greendrop.config import Settings
    from greendrop.errors import BrokerError, QueueFullError
    from greendrop.events import Monitor
    from greendrop.message import Message
    from greendrop.oauth import OAuthToken

#: One in so many messages that a thread task serves has a look whether there is a hub
#: by now that could.
_ATTEND_EVERY = 16
#: Seconds between nudges of librdkafka while somebody waits for all deliveries and the
#: user's `linger.ms` holds messages back.
_NUDGE_EVERY = 0.05
#: Looks whether a client is idle, in the time after which it is.
_PULSES = 4
#: Seconds between looks whether there should be a new OAuth token.
_TOKEN_PULSE = 1.0
#: Seconds that the reports of dropped messages may take. They come at once; the time
#: is for a hub that is busy with something else.
PURGE_TIMEOUT = 5.0
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


class _Owner(NamedTuple):
    """What a client calls of whoever built it."""

    on_fatal: Callable[[Client, BrokerError], bool]
    pulse: Pulse


class Client:
    """A connected librdkafka producer. Used from any number of greenlets and threads.

    Args:
        settings: What it is built from.
        monitor: Who is told what happens.
        on_fatal: Told of a fatal error by which librdkafka refuses a message, under
            `_gate`. True means that another client is going to take over, so the
            message, and all that follow, are kept for it: see `retire`.
        on_pulse: Called every so often by the serving task, in which nobody may wait.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    # Not more than 29 attributes: with more of them CPython looks each up in a
    # dictionary, which makes sending 4 % slower.

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        on_fatal: Callable[[Client, BrokerError], bool] = lambda *_: False,
        on_pulse: Callable[[], None] = lambda: None,
    ) -> None:
        #: `mark[0]` is false in a process forked from the one that built it.
        self.mark = _process.mark()
        self._settings = settings
        self._outstanding = Outstanding(settings.queue_limit)
        # No new serving task: one that starts after the last was stopped would go on
        # for ever.
        self._ending = False
        # Nothing goes to librdkafka any more: closed, about to be, or retired.
        self._shut = False
        self._owner = _Owner(on_fatal, Pulse(_seconds_of_pulse(settings), on_pulse))
        # What it was given since it retired, for the client that takes over.
        self._strays: list[_Wire] = []
        self._on_strays: Callable[[], None] | None = None
        # That one is there: who comes here late is sent on to it.
        self._followed = False
        self._reports = ReportQueue(self, self._on_limit)
        statistics = (
            monitor.listens("statistics.emitted")
            and int(settings.kafka["statistics.interval.ms"]) > 0
        )
        monitor.freeze_statistics(not statistics)
        self._native = Native(settings, self._reports, statistics=statistics)
        self._settler = Settler(
            reports=self._reports,
            notices=self._native.notices,
            pending=self._outstanding.pending,
            settings=settings,
            monitor=monitor,
            verdicts=self._native.verdicts,
            on_settled=self._on_settled,
            pause=self._pause,
        )
        self._settled_elsewhere = 0
        # Lock order: _attaching, the native poll_gate, its gate.
        self._attaching = _waiting.RLock()
        self._gate = self._native.gate
        self._produce: Any = self._native.producer.produce
        # Threads without a hub that are serving: the task's, or those that wait.
        self._serving_threads: set[int] = set()
        self._task: HubTask | ThreadTask | None = None
        self._gather: Gatherer[_Wire] | None = None
        #: Knows where messages with a `partition_key` go. Made once librdkafka has
        #: taken the partitioner's name.
        self.router = Router(
            partitioner(settings.kafka.get("partitioner", _PARTITIONER)),
            self._native.ask_partition_count,
            self.waiter,
        )
        _clients.add(self)

    # --- sending -----------------------------------------------------------------

    @property
    def native(self) -> Native:
        """What its transactions are made by."""
        return self._native

    @property
    def polling(self) -> str | None:
        """Which driver serves: "fd", "thread", or None before the first use."""
        return None if self._task is None else self._task.polling

    @property
    def engine(self) -> Engine:
        """What it is built with: librdkafka, or what stands for it in a test."""
        return self._native.engine

    @property
    def outstanding(self) -> int:
        """Messages that were taken and have no verdict, gathered ones included."""
        return self._outstanding.count

    @property
    def settled(self) -> int:
        """How many verdicts it has told."""
        return self._outstanding.settled

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
        if len(now.pending) >= now.places and (now.full or not waited):
            raise self._queue_full()
        topic, payload, key, headers, partition, _, timestamp, label = message
        handle = DeliveryHandle(topic, label, self._reports)
        if partition is None:
            partition = UNASSIGNED
        wire = (topic, payload, key, partition, handle, None, timestamp or 0, headers)
        gather = self._gather
        if gather is None or gather.current_hub() is not gather.hub:
            gather = self._gatherer()
            if gather is None:
                self._send_now(wire)
                return handle
        items = gather.items
        items.append(wire)
        now.pending.add(handle)
        if len(items) >= gather.enough:
            gather.review()
        return handle

    def send_many(self, messages: Sequence[Message]) -> list[DeliveryHandle]:
        """Queue messages in wire form, in order: as many as can be queued now.

        Fewer handles than messages mean that something is in the way of the next one;
        `send` says what.
        """
        gather = self._gatherer()
        if gather is None:
            return self._send_each(messages)
        now, reports = self._outstanding, self._reports
        room = now.places - now.count
        if room < len(messages):
            messages = messages[: max(int(room), 0)] if room > 0 else ()
        if not messages:
            return []
        topics, payloads, keys, headers, partitions, _, timestamps, labels = zip(
            *messages, strict=True
        )
        handles = list(map(DeliveryHandle, topics, labels, repeat(reports)))
        gather.items += zip(
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
        if len(gather.items) >= gather.enough:
            gather.review()
        return handles

    def _send_each(self, messages: Sequence[Message]) -> list[DeliveryHandle]:
        handles: list[DeliveryHandle] = []
        for message in messages:
            try:
                handles.append(self.send(message))
            except (ProduceError, ProducerClosedError):
                break
        return handles

    def _gatherer(self) -> Gatherer[_Wire] | None:
        task = self._task
        if (
            isinstance(task, ThreadTask)
            and task.alive
            and len(self._outstanding.pending) % _ATTEND_EVERY
        ):
            return None  # looking for a better one takes as long as sending
        self.attend()
        gather = self._gather
        return gather if gather is not None and gather.is_here() else None

    def flush_gathered(self) -> None:
        """Hand over what is gathered, when called in the thread that gathers.

        From another thread there is nothing to do: its hub does it within 1 ms.
        """
        gather = self._gather
        if gather is not None and gather.is_here():
            gather.hand_over()

    def _send_now(self, wire: _Wire) -> None:
        with self._gate:
            if self._shut:
                self._send_late(wire)
                return
            try:
                self._outstanding.pending.add(wire[4])
                self._produce(*wire)
            except BaseException as error:
                if self._is_replaced_for(error):
                    self._keep((wire,))
                    return
                self._outstanding.pending.discard(wire[4])
                if isinstance(error, BufferError):
                    self._outstanding.refuse()
                    error = self._queue_full()
                elif isinstance(error, KafkaException):
                    error = self._native.refusal(wire[0], error)
                raise error from error.__cause__
        if self._task is not None:
            self._task.guard()

    def _hand_over(self, going: Iterator[_Wire]) -> bool:
        """Give gathered messages to librdkafka, all at one go.

        One that is refused is told on its handle. True if there was no room for the
        last one that was taken; see `_gather.HandOver`.
        """
        produce = self._produce
        with self._gate:
            if self._shut:
                if self._on_strays is None:
                    self._drop(going)
                else:
                    self._keep(going)
                return False
            stuck = False
            while not stuck:
                try:
                    for wire in going:
                        produce(*wire)
                    break
                except BufferError:
                    stuck = self._outstanding.count > length_hint(going) + 1
                    if not stuck:
                        # Nothing else is in the queue, and still it doesn't fit:
                        # waiting for room would be for ever.
                        self._refuse(wire, self._queue_full())
                except Exception as error:  # noqa: BLE001 - told on the handle
                    if self._is_replaced_for(error):
                        self._keep((wire, *going))
                        break
                    self._refuse(wire, error)
        if stuck:
            self._outstanding.refuse()
        self._task.guard()  # type: ignore[union-attr]  # gathering has a task
        return stuck

    def _refuse(self, wire: _Wire, error: Exception) -> None:
        wire[4]._fail(self._native.refusal(wire[0], error))
        self._native.signal.set()

    def _drop(self, wires: Iterable[_Wire], why: Exception | None = None) -> None:
        for wire in wires:
            if why is None:
                wire[4]._fail(self._native.verdicts.purged(wire[0]))
            else:
                wire[4]._fail(self._native.refusal(wire[0], why))
        self._native.signal.set()
        if self._native.closed:  # the serving task has ended
            _waiting.start(self._settler.settle)

    def _queue_full(self) -> QueueFullError:
        return self._native.queue_full(self.outstanding)

    def wait_for_room(self, seconds: float, *, again: bool) -> None:
        """Wait until a report made room in the queue, or the time is over.

        Blocking:
            Lets other greenlets run. First come, first served. Send at once after it.
        """
        self._outstanding.wait_for_room(self.waiter(), seconds, again=again)

    def set_token(self, token: OAuthToken) -> None:
        """Give it the OAuth token to log in with, in the process that built it.

        Raises:
            OAuthTokenError: librdkafka does not take it.
        """
        if self.mark[0]:
            self._native.set_token(token)

    # --- serving -----------------------------------------------------------------

    def attend(self) -> None:
        """See to it that somebody serves this client, as well as can be.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        if not self.mark[0]:
            text = "this producer was used before the fork; call reset() in the child"
            raise ProducerUsedInParentProcessError(text)
        task = self._task
        hub = _waiting.current_hub() if self._native.signals else None
        if task is not None and task.alive and (task.polling == "fd" or hub is None):
            return
        with self._attaching:
            if self._ending or task is not self._task:
                return  # another thread was quicker
            gather, self._gather = self._gather, None
            orphans = gather.take() if gather is not None else []
            if task is not None:
                task.stop()
            if hub is None:
                self._task = ThreadTask(
                    self._turn, self._native.interrupt_poll, self._owner.pulse
                )
            else:
                self._task = HubTask(
                    hub,
                    self._native.signal,
                    self._turn,
                    lambda: self._outstanding.count,
                    pulse=self._owner.pulse,
                    alarm=Alarm(self._settings.stall_alarm, self._native.note_stall),
                )
                if not (self._settings.linger_is_users or self._shut):
                    self._gather = Gatherer(hub, self._hand_over)
        self._give_all(orphans)

    def _give_all(self, wires: list[_Wire]) -> None:
        while wires:
            give(wires, self._hand_over)
            if wires:
                self.wait_for_room(_NUDGE_EVERY, again=True)

    def look_after(self) -> None:
        """See to it that somebody serves; for one who waits for long.

        A hub whose thread stands still in a native call serves nobody: a waiting thread
        then does it itself.
        """
        self.attend()
        task = self._task
        if isinstance(task, HubTask) and _waiting.current_hub() is None:
            self._turn(0)

    def waiter(self, done: Callable[[], bool] | None = None) -> _waiting.Waiter:
        """Make a waiter for the caller, who is going to wait for this client.

        Args:
            done: Whether that is there what it waits for. A thread then polls for it.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub
                itself or the serving task (in a listener).
        """
        # The task first: of what is looked at later another thread may have made a new
        # one, and that gatherer is not of our hub.
        task, gather = self._task, self._gather
        if (
            isinstance(task, HubTask)
            and gather is not None
            and gather.current_hub() is gather.hub
        ):
            # The common case, spelled out for speed as in `send`.
            waiter = _waiting.waiter_in(gather.hub, task.room)
            if waiter.greenlet is not task.greenlet:
                return waiter
        else:
            self.attend()
        if self.in_serving_task():
            text = (
                "can't wait in a listener of the same producer: the task that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        task = self._task
        if (
            isinstance(task, ThreadTask)
            and (done or task.threadless)
            and _waiting.current_hub() is None
            # Stopped while it polls, it would keep all others from polling.
            and not _process.signals_may_stop_threads()
        ):
            return LeadWaiter(task.lead, done)
        return _waiting.new_waiter()

    def in_serving_task(self) -> bool:
        """Tell whether the caller is the serving task: a listener."""
        task = self._task
        return (
            task is not None and task.is_current()
        ) or _waiting.get_ident() in self._serving_threads

    def last_broker_error(self) -> str | None:
        """Tell what librdkafka last complained of, since the last good report."""
        return self._native.verdicts.last_error

    def _on_limit(self) -> None:
        self._native.on_limit()

    def _turn(self, seconds: float) -> BaseException | None:
        if not self.mark[0]:
            # The copy of the task that a forked child has.
            if self._task is not None:
                self._task.stop()
            return None
        # A signal handler may run inside the poll, a listener after it: neither may
        # wait for this thread. (In a hub the task's greenlet tells that.)
        me = _waiting.get_ident() if _waiting.current_hub() is None else 0
        self._serving_threads.add(me)
        try:
            interrupt = self._native.poll(seconds)
            try:
                self._settler.settle()
                if self._native.interrupted:
                    self._tell_lost_reports()
            except BaseException as error:  # noqa: BLE001
                self._native.interrupted = True
                interrupt = error
        finally:
            self._serving_threads.discard(me)
        return interrupt

    def _tell_lost_reports(self) -> None:
        # An exception of a signal handler may come up at the very start of a callback,
        # where nothing can catch it, and librdkafka has given the report away. Once it
        # has nothing left, the handles that still wait are those.
        gather = self._gather
        if gather is not None and (gather.items or not gather.is_here()):
            return
        with self._gate:
            if self._native.closed or not self._native.empty or self._strays:
                return
            self._native.interrupted = False
            pending = self._outstanding.pending
            for handle in list(pending):
                if handle.done:
                    pending.discard(handle)
                else:
                    handle._fail(self._native.verdicts.report_lost(handle.topic))
        self._settler.settle()

    def _on_settled(self, count: int, latency: float) -> None:
        if latency >= 0:
            self._native.verdicts.all_is_well()
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

    # --- handing on to another client --------------------------------------------

    @property
    def has_delivered(self) -> bool:
        """Whether any message of this client was delivered."""
        return self._native.verdicts.has_delivered

    @property
    def awaited(self) -> bool:
        """Whether somebody waits to send with it, or for the client after it."""
        return self._outstanding.awaited or self.router.awaited or bool(self._strays)

    def retire(self, on_strays: Callable[[], None], *, followed: bool) -> None:
        """From now on keep what is sent, in order, for a client that takes over.

        Nobody who has got hold of this client before then loses a message, or gets an
        error. Once the other one is there, or this one closed, only what was gathered
        is kept; others are told that it is closed, and send again. What they send
        would be overtaken by what they send next.

        Args:
            on_strays: Told, under `_gate`, of each message that is kept.
            followed: The other one is there.
        """
        with self._gate:
            self._on_strays = on_strays
            self._shut = True
            self._followed = self._followed or followed
            if self._strays:
                on_strays()

    def take_strays(self, if_none: Callable[[], None]) -> list[_Wire]:
        """Give what was kept up to now; if that is nothing, call a function.

        In between nobody can send by this client, nor can they after that.
        """
        self.flush_gathered()
        with self._gate:
            strays, self._strays = self._strays, []
            self._outstanding.pending.difference_update(each[4] for each in strays)
            if not strays:
                if_none()
                self._followed = True
        return strays

    def adopt(self, strays: list[_Wire]) -> None:
        """Send what another client has kept.

        Blocking:
            While the queue is full. Lets other greenlets run.
        """
        handles = [wire[4] for wire in strays]
        for handle in handles:
            handle._reports = self._reports
        self._outstanding.pending.update(handles)
        self.attend()
        self._give_all(strays)

    def give_up(self, why: Exception | None) -> int:
        """Fail what was kept, as nobody takes over; tell how many these were.

        What follows goes to librdkafka again, which says what it thinks of that.

        Args:
            why: The reason, or None if they are dropped because all is over.
        """
        with self._gate:
            strays, self._strays = self._strays, []
            self._on_strays = None
            self._shut = self._native.closed
            if strays:
                self._drop(strays, why)
        return len(strays)

    def fail(self, strays: list[_Wire], why: Exception) -> None:
        """Tell of messages that were taken from here that nobody can send them."""
        with self._gate:
            self._outstanding.pending.update(wire[4] for wire in strays)
            self._drop(strays, None if isinstance(why, ProducerClosedError) else why)

    def run_aside(self, function: Callable[[], None]) -> None:
        """Run a function by itself, in the thread where messages are gathered, if any.

        There nobody can gather in between two of its steps that don't wait.
        """
        gather = self._gather
        if gather is None or _waiting.hub_is_gone(gather.hub):
            _waiting.start(function)
        else:
            _waiting.start_in(gather.hub, function)

    def _is_replaced_for(self, error: BaseException) -> bool:
        reason = self._native.reason(error)
        return (
            reason is not None and reason.fatal and self._owner.on_fatal(self, reason)
        )

    def _keep(self, wires: Iterable[_Wire]) -> None:
        self._strays += wires
        if self._on_strays is not None and self._strays:
            self._on_strays()

    def _send_late(self, wire: _Wire) -> None:
        if self._native.closed or self._on_strays is None or self._followed:
            raise ProducerClosedError(self._settings.id)
        self._outstanding.pending.add(wire[4])
        self._keep((wire,))

    # --- ending ------------------------------------------------------------------

    def stop_taking(self) -> None:
        """Send away who waits to send; the owner sees to it that nobody new comes."""
        self._outstanding.send_away()
        self.router.stop()

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
                self._native.nudge()
            waiter = self.waiter(lambda: self._outstanding.count <= 0)
            self._outstanding.wait_for_none(waiter, min(left, _NUDGE_EVERY))
            if self._outstanding.count > 0:
                self.look_after()
        return True

    def purge(self) -> list[DeliveryHandle]:
        """Drop all that is not acknowledged; each handle will say so.

        What is sent before `finish_purge` returns may be dropped, too.

        Returns:
            The handles, which have no verdict yet.
        """
        with self._gate:
            dropped = list(self._outstanding.pending)
            strays, self._strays = self._strays, []
            self._drop(strays)
        self.drop_gathered()
        self.purge_queue()
        return dropped

    def drop_gathered(self) -> None:
        """Drop what librdkafka was not given yet."""
        gather = self._gather
        if gather is not None and gather.is_here():
            self._drop(gather.take())
        elif gather is not None:
            _waiting.call_in_hub(gather.hub, lambda: self._drop(gather.take()))

    def finish_purge(self, seconds: float) -> None:
        """Wait until librdkafka drops no more.

        Its threads, one for each broker, do that when they come to it. Without this
        wait they would drop what is sent next.

        Blocking:
            Lets other greenlets run.
        """
        with contextlib.suppress(TimeoutError, ProducerClosedError):
            _waiting.run_natively(self._native.await_purge, seconds)

    def purge_queue(self) -> None:
        """Drop what librdkafka has; what is gathered, or kept, stays."""
        self._native.purge()

    def purge_for_good(self) -> None:
        """Drop all that is not acknowledged, and whatever is still to come."""
        with self._gate:
            self._shut = True
            self._on_strays = None
            self._drop(self._strays)
            self._strays = []
        self.purge_queue()
        self.flush_gathered()

    def wait_settled(self, seconds: float) -> None:
        """Wait for the verdicts on all that was not kept for another client.

        Blocking:
            Lets other greenlets run.
        """
        deadline = _waiting.monotonic() + seconds
        self.flush_gathered()
        while self._outstanding.count > len(self._strays):
            left = deadline - _waiting.monotonic()
            if left <= 0:
                return
            waiter = self.waiter(lambda: self._outstanding.count <= len(self._strays))
            self._outstanding.wait_for_none(waiter, min(left, _NUDGE_EVERY))

    def close(self) -> None:
        """End for good: the serving task, the descriptor, librdkafka's threads.

        Drop or await what is outstanding first. Not from the serving task.

        Blocking:
            Lets other greenlets run; a millisecond or two, and up to 2 s more if a
            broker is just being asked for metadata.
        """
        with self._attaching:
            self._ending = True
            task = self._task
            if task is not None:
                task.stop()
        ended = task is None or task.join(_TEARDOWN)
        try:
            # One that doesn't end in time is left to its thread.
            with contextlib.suppress(TimeoutError):
                _waiting.run_natively(lambda: self._tear_down(ended=ended), _TEARDOWN)
        finally:
            self._settler.settle()
            _clients.discard(self)

    def _tear_down(self, *, ended: bool) -> None:
        with self._gate:
            self._shut = True
            self._produce = None  # it holds what is torn down
        self._native.tear_down(unwatched=ended)

    def discard(self) -> None:
        """End a client that nobody has used.

        Blocking:
            Blocks the thread for a millisecond or two.
        """
        self._tear_down(ended=True)
        _clients.discard(self)

    def forget_in_child(self) -> None:
        """Let go of the parent's client in a forked child; call nothing native."""
        if self._gather is not None:
            self._gather.take()  # what was gathered is the parent's to send
        self._native.forget_in_child()


def _seconds_of_pulse(settings: Settings) -> float:
    pulses = [settings.idle_disconnect_timeout / _PULSES]
    if settings.wants_tokens:
        pulses.append(_TOKEN_PULSE)
    return min(filter(None, pulses), default=0.0)


def _after_fork_in_child() -> None:
    # Only marks. The child's first use raises, or resets.
    for client in list(_clients):
        client.forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
