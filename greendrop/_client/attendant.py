"""Has one librdkafka producer served, for as long as it lives.

Which task does that, a hub's or a thread, what that does at each turn, where messages
are batched meanwhile, and how one waits for it. Knows the tasks (`pollers`), the
producer (`handle`) and who tells what came (`reports`). How messages get to
librdkafka is passed in: `client` knows that.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

from greendrop import _concurrency
from greendrop._client.batcher import Batcher
from greendrop._client.event_loop import warn_if_in_event_loop
from greendrop._client.pollers import GreenletPoller, PollingWaiter, ThreadPoller
from greendrop._client.reports import ReportDispatcher
from greendrop._client.silence import SilenceWatch
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.watchdog import Alarm
from greendrop._librdkafka.handle import KafkaHandle
from greendrop.delivery import ReportQueue
from greendrop.errors import IllegalWaitError, ProducerUsedInParentProcessError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    from gevent.hub import Hub

    from greendrop._client.batcher import SendItems
    from greendrop._client.in_flight import InFlight
    from greendrop._client.pollers import Periodic
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.events import Monitor

_Wire = TypeVar("_Wire")

#: One in so many messages that a thread task serves has a look whether there is a hub
#: by now that could.
_ATTEND_EVERY = 16
#: Seconds without progress after which a poller that calls listeners counts as held up.
_STALL = 0.5
#: Seconds between two checks whether it is, while its end is waited for.
_STALL_CHECK_INTERVAL = 0.05
#: Seconds that starting a thread that polls may take.
_ATTACHING = 10.0


class Attendant(Generic[_Wire]):
    """Sees to it that somebody serves, from the first use on, as well as can be.

    Args:
        settings: What the producer is built from.
        monitor: Who is told what happens.
        mark: `mark[0]` is false in a process forked from the one that built it.
        outstanding: Counts; told of each verdict.
        pulse: What the serving task does beside.
        send_batch: Gives batched messages to librdkafka.
        give_all: Does so when their current_batcher is no more; may wait.
        may_batch: Whether messages may be batched, from the next attachment on.
        on_lost: Told after a turn in which reports may have been lost.
        take_back: Returns whether a message that failed is going to be sent again.

    Raises:
        ConfigurationInvalidError: librdkafka refused its configuration.
    """

    __slots__ = (
        "_attaching",
        "_dispatching",
        "_ending",
        "_give_all",
        "_mark",
        "_may_batch",
        "_no_wait_tasks",
        "_on_lost",
        "_outstanding",
        "_periodic",
        "_reported_elsewhere",
        "_send_batch",
        "_serving_threads",
        "_settings",
        "_silence",
        "_starting",
        "batcher",
        "dispatcher",
        "kafka_handle",
        "reports",
        "task",
    )

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor,
        mark: _concurrency.ForkMarker,
        outstanding: InFlight,
        *,
        pulse: Periodic,
        send_batch: SendItems[_Wire],
        give_all: Callable[[deque[_Wire]], None],
        may_batch: Callable[[], bool],
        on_lost: Callable[[], None],
        take_back: Callable[[DeliveryHandle], bool],
    ) -> None:
        self._settings = settings
        self._mark = mark
        self._outstanding = outstanding
        self._periodic = pulse
        self._send_batch = send_batch
        self._give_all = give_all
        self._may_batch = may_batch
        self._on_lost = on_lost
        statistics = (
            monitor.listens("statistics.emitted")
            and int(settings.kafka["statistics.interval.ms"]) > 0
        )
        monitor.freeze_statistics(not statistics)
        #: Handles that were filled and are not settled yet.
        self.reports = ReportQueue(self, self._on_limit, settings.max_wait_timeout)
        #: What is served.
        self.kafka_handle = KafkaHandle(settings, self.reports, statistics=statistics)
        #: Tells what came.
        self.dispatcher = ReportDispatcher(
            reports=self.reports,
            notices=self.kafka_handle.client_events,
            pending=outstanding.pending,
            settings=settings,
            monitor=monitor,
            verdicts=self.kafka_handle.error_translator,
            on_reports=self._on_reports,
            take_back=take_back,
            pause=self._pause,
        )
        #: There until a broker has answered, or its silence was reported.
        self._silence: SilenceWatch | None = SilenceWatch(
            settings,
            self.kafka_handle.error_translator,
            self.dispatcher.has_logged_failure,
        )
        self._reported_elsewhere = 0
        self._attaching = _concurrency.new_lock()
        # Held by the native threads that start pollers, and by nothing else.
        self._starting = _concurrency.new_lock()
        # No new task: one that starts after the last was stopped would go on for ever.
        self._ending = False
        # Threads without a hub that are serving: the task's, or those that wait.
        self._serving_threads: set[int] = set()
        # Turns that are calling listeners.
        self._dispatching: set[object] = set()
        # Other tasks whose listeners must not wait for it.
        self._no_wait_tasks: set[object] = set()
        #: Who serves; None before the first use.
        self.task: GreenletPoller | ThreadPoller | None = None
        #: Where a hub's messages are batched, if a hub serves.
        self.batcher: Batcher[_Wire] | None = None

    # --- who serves --------------------------------------------------------------

    def ensure_poller(self) -> None:
        """See to it that somebody serves, as well as can be.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        if not self._mark[0]:
            text = "this producer was used before the fork; call reset() in the child"
            raise ProducerUsedInParentProcessError(text)
        task = self.task
        hub = _concurrency.current_hub() if self.kafka_handle.signals else None
        if task is not None and task.alive and (task.polling == "fd" or hub is None):
            return
        batcher = self.batcher
        with self._attaching:
            if self._ending or task is not self.task:
                return  # another thread was quicker
            if hub is None:
                # Where no signal handler can leave a thread behind that nobody knows.
                _concurrency.run_apart(lambda: self._attach_thread(task), _ATTACHING)
            else:
                self._attach_greenlet(task, hub)
        if task is not None:
            task.stop()
        if batcher is None or batcher is self.batcher:
            return
        try:
            if batcher.items:
                self._send_batch(batcher.items)
        finally:
            # There is no space for the rest yet, or a signal handler raised. The caller
            # has a deadline of its own, so another task waits for the space.
            if batcher.items:
                _concurrency.spawn(lambda: self._give_all(batcher.items))

    def _attach_thread(self, before: GreenletPoller | ThreadPoller | None) -> None:
        with self._starting:
            if self._ending or self.task is not before:
                return
            task = ThreadPoller(
                self._turn, self.kafka_handle.interrupt_poll, self._periodic
            )
            self.batcher, self.task = None, task
            self._stop_if_ending(task)

    def _stop_if_ending(self, task: ThreadPoller) -> None:
        # The caller of `_attach_thread` was interrupted, and then closed the client.
        if self._ending:
            task.stop()

    def _attach_greenlet(
        self, before: GreenletPoller | ThreadPoller | None, hub: Hub
    ) -> None:
        task = GreenletPoller(
            hub,
            self.kafka_handle.signal,
            self._turn,
            self._count_outstanding,
            pulse=self._periodic,
            alarm=Alarm(self._settings.stall_alarm, self.kafka_handle.note_stall),
            # Of one that a signal handler has kept from being published, and of one
            # whose successor is there, nobody knows.
            is_wanted=lambda poller: self.task is poller,
        )
        batcher = None
        if self._may_batch():
            batcher = Batcher(hub, self._outstanding.pending, self._send_batch)
        # Published last, without a call in between. A signal handler that sends may
        # have published one meanwhile.
        if self.task is before:
            self.batcher, self.task = batcher, task

    def current_batcher(self) -> Batcher[_Wire] | None:
        """Give that of the caller's hub, if messages are batched there.

        Raises:
            ProducerUsedInParentProcessError: It was built before a fork.
        """
        task = self.task
        if (
            isinstance(task, ThreadPoller)
            and task.alive
            and len(self._outstanding.pending) % _ATTEND_EVERY
        ):
            return None  # looking for a better one takes as long as sending
        self.ensure_poller()
        batcher = self.batcher
        return batcher if batcher is not None and batcher.in_own_hub() else None

    def start_safety_timer(self) -> None:
        """Have what librdkafka was just given looked after."""
        if self.task is not None:
            self.task.start_safety_timer()

    def ensure_progress(self) -> None:
        """See to it that somebody serves; for one who waits for long.

        A hub whose thread stands still in a native call serves nobody: a waiting thread
        then does it itself.
        """
        self.ensure_poller()
        task = self.task
        if isinstance(task, GreenletPoller) and _concurrency.current_hub() is None:
            self._turn(0)

    def stop(self, seconds: float) -> bool:
        """End the task, not from within, and have no other; False if it goes on.

        Blocking:
            Until it has ended, or is held up in a listener. Lets other greenlets run.
        """
        with self._attaching:
            self._ending = True
            task = self.task
            if task is not None:
                task.stop()
        if task is None:
            return True
        deadline = Deadline(seconds)
        stall = self.watch_for_stall(_STALL)
        while not task.join(min(deadline.remaining(), _STALL_CHECK_INTERVAL)):
            if deadline.has_expired or (self._dispatching and stall()):
                return False
        return True

    def close_descriptor_at_end(self) -> None:
        """Have the poller, which is held up, close the descriptor when it ends.

        librdkafka must not know the descriptor any more.
        """
        task, close = self.task, self.kafka_handle.signal.close
        if isinstance(task, GreenletPoller):
            task.on_end = close
            if not task.has_ended:
                return
        close()

    def watch_for_stall(self, seconds: float) -> Callable[[], bool]:
        """Return a function that says whether the poller makes no progress.

        A listener, or a log handler, may wait for something that the caller has, such
        as a lock: as long as the caller waits for the poller, neither goes on.

        Args:
            seconds: How long without progress is a stall. Call the function repeatedly
                meanwhile.
        """
        last: object = None
        progress = Deadline(seconds)

        def is_stalled() -> bool:
            nonlocal last, progress
            handle = self.kafka_handle
            now = (
                self._outstanding.reported,
                len(self.reports),
                len(handle.client_events),
            )
            if now != last:
                last, progress = now, Deadline(seconds)
            return progress.has_expired

        return is_stalled

    @property
    def is_dispatching(self) -> bool:
        """Whether a task is calling listeners."""
        return bool(self._dispatching)

    def serve_once(self) -> None:
        """Poll and call listeners in the calling task, because the poller does not.

        Listeners can't wait for this producer meanwhile, as in the poller.
        """
        with self.forbid_waits():
            interrupt = self._turn(0)
        if interrupt is not None:
            raise interrupt

    # --- waiting for it ----------------------------------------------------------

    def waiter(self, done: Callable[[], bool] | None = None) -> _concurrency.Waiter:
        """Make a waiter for the caller, who is going to wait for what is served.

        Args:
            done: Whether that is there what it waits for. A thread then polls for it.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub
                itself or the serving task (in a listener).
        """
        # The task first: of what is looked at later another thread may have made a new
        # one, and that current_batcher is not of our hub.
        task, batcher = self.task, self.batcher
        if (
            isinstance(task, GreenletPoller)
            and batcher is not None
            and batcher.current_hub() is batcher.hub
            and not batcher.hub.dead
            and not self._no_wait_tasks
        ):
            # The common case, spelled out for speed as in `Client.send`.
            waiter = _concurrency.waiter_in(batcher.hub, task.shared_timer)
            if waiter.greenlet is not task.greenlet:
                return waiter
        else:
            self.ensure_poller()
        if self.in_serving_task():
            text = (
                "can't wait in a listener of the same producer: the task that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        warn_if_in_event_loop()
        task = self.task
        if (
            isinstance(task, ThreadPoller)
            and (done or task.threadless)
            and _concurrency.current_hub() is None
            # Stopped while it polls, it would keep all others from polling.
            and not _concurrency.under_uwsgi()
        ):
            return PollingWaiter(task.lead, done)
        return _concurrency.new_waiter()

    def in_serving_task(self) -> bool:
        """Tell whether the caller is a listener that must not wait for it."""
        task = self.task
        return (
            (task is not None and task.is_current())
            or _concurrency.get_ident() in self._serving_threads
            or (
                bool(self._no_wait_tasks)
                and _concurrency.current_task() in self._no_wait_tasks
            )
        )

    @contextlib.contextmanager
    def forbid_waits(self) -> Iterator[None]:
        """Treat what the caller tells listeners as what the serving task tells.

        For one who does afterwards what these would wait for.
        """
        me = _concurrency.current_task()
        try:
            self._no_wait_tasks.add(me)
            yield
        finally:
            self._no_wait_tasks.discard(me)

    def last_broker_error(self) -> str | None:
        """Tell what librdkafka last complained of, since the last good report."""
        return self.kafka_handle.error_translator.last_error

    def on_callback_error(self, error: BaseException) -> None:
        """Log and report that a function of `add_done_callback` raised."""
        self.dispatcher.on_callback_error(error)

    # --- one turn ----------------------------------------------------------------

    def _turn(self, seconds: float) -> BaseException | None:
        if not self._mark[0]:
            # The copy of the task that a forked child has.
            if self.task is not None:
                self.task.stop()
            return None
        # A signal handler may run inside the poll, a listener after it: neither may
        # wait for this thread. (In a hub the task's greenlet tells that.)
        me = _concurrency.get_ident() if _concurrency.current_hub() is None else 0
        call = object()
        try:
            self._serving_threads.add(me)
            interrupt = self.kafka_handle.poll(seconds)
            try:
                self._dispatching.add(call)
                self.dispatcher.dispatch()
                if self._silence is not None and self._outstanding.count > 0:
                    self._watch_silence(self._silence)
                if self.kafka_handle.interrupted:
                    self._on_lost()
                if (batcher := self.batcher) is not None and batcher.in_own_hub():
                    batcher.resume()
            except BaseException as error:  # noqa: BLE001
                self.kafka_handle.interrupted = True
                interrupt = error
        finally:
            self._serving_threads.discard(me)
            self._dispatching.discard(call)
        return interrupt

    def _watch_silence(self, silence: SilenceWatch) -> None:
        producer = self.kafka_handle.producer
        if producer is None or silence.is_over(producer):
            self._silence = None

    def _count_outstanding(self) -> int:
        # What a forked child has inherited is the parent's to look after.
        return self._outstanding.count if self._mark[0] else 0

    def _on_limit(self) -> None:
        self.kafka_handle.on_limit()

    def _on_reports(self, count: int, latency: float) -> None:
        if latency >= 0:
            self.kafka_handle.error_translator.clear_last_error()
        batcher = self.batcher
        if batcher is not None and not batcher.in_own_hub():
            self._reported_elsewhere += count  # told when its own thread is at it
        elif batcher is not None:
            batcher.on_reports(count + self._reported_elsewhere, latency)
            self._reported_elsewhere = 0
        self._outstanding.on_reports(count)
        if self.task is not None and not self._outstanding.pending:
            self.task.release()

    def _pause(self) -> None:
        if self.task is not None and self.task.is_current():
            self.task.pause()
