"""The poll loop of one client: the task that polls librdkafka, and waits for it.

`PollLoop` chooses the poller, replaces it when a better one becomes possible, and gives
callers their waiters. The pollers themselves are in `pollers`; what they do with events
and delivery reports is in `reports`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency
from greendrop._client.batcher import HubBatcher, ThreadBatcher
from greendrop._client.event_loop import warn_if_in_event_loop
from greendrop._client.pollers import GreenletPoller, PollingWaiter, ThreadPoller
from greendrop._client.reports import ReportDispatcher
from greendrop._client.silence import SilenceWatch
from greendrop._librdkafka.handle import KafkaHandle
from greendrop.delivery import ReportQueue
from greendrop.errors import IllegalWaitError, ProducerUsedInParentProcessError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    from gevent.hub import Hub

    from greendrop._client.batcher import Batcher
    from greendrop._client.in_flight import InFlight
    from greendrop._librdkafka.handle import Wire
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle
    from greendrop.events import Monitor

#: While a thread polls, every so many messages are followed by a check whether a hub
#: could do it by now.
_CHECK_EVERY = 16
#: Seconds without progress after which a poller that calls listeners counts as held up.
_STALL = 0.5
#: Seconds between two checks for a stall, while the end of a poller is awaited.
_STALL_CHECK_INTERVAL = 0.05
#: Seconds that starting a polling thread may take.
_START_TIMEOUT = 10.0


class PolledClient(Protocol):
    """The client, as its poll loop needs it."""

    mark: _concurrency.ForkMarker
    in_flight: InFlight

    @property
    def check_interval(self) -> float:
        """Seconds between two calls of `on_interval`; 0 for never."""

    @property
    def may_batch(self) -> bool:
        """Whether sends are batched."""

    def on_interval(self) -> None:
        """Do periodic checks; called by the poller, so it must not wait."""

    def send_batch(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka; those without space stay in the queue."""

    def send_all(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka; wait for space."""

    def resend_failed(self, handle: DeliveryHandle) -> bool:
        """Return whether a message that failed is sent once more."""

    def fail_lost_reports(self) -> None:
        """Fail the messages whose reports may have been lost."""


class PollLoop:
    """Chooses and runs the poller of one client, from the first use on.

    Args:
        settings: The settings of the client.
        monitor: Emits events.
        client: The client.

    Raises:
        ConfigurationInvalidError: librdkafka refused the configuration.
    """

    __slots__ = (
        "_awaits_brokers",
        "_client",
        "_dispatching",
        "_ending",
        "_in_flight",
        "_no_wait_tasks",
        "_polling_threads",
        "_reported_elsewhere",
        "_settings",
        "_silence",
        "_starting",
        "_switching",
        "batcher",
        "dispatcher",
        "kafka_handle",
        "poller",
        "reports",
    )

    def __init__(
        self, settings: Settings, monitor: Monitor, client: PolledClient
    ) -> None:
        self._settings = settings
        self._client = client
        self._in_flight = client.in_flight
        statistics = (
            monitor.listens("statistics.emitted")
            and int(settings.kafka["statistics.interval.ms"]) > 0
        )
        monitor.freeze_statistics(not statistics)
        #: Handles with a report, to be dispatched.
        self.reports = ReportQueue(self, settings.max_wait_timeout)
        #: The librdkafka producer.
        self.kafka_handle = KafkaHandle(settings, self.reports, statistics=statistics)
        #: Calls listeners and resolves handles.
        self.dispatcher = ReportDispatcher(settings, monitor, self)
        # There until a broker has answered, or its silence was logged.
        self._silence: SilenceWatch | None = SilenceWatch(
            settings,
            self.kafka_handle.error_translator,
            self.dispatcher,
        )
        # Reports that another thread than the batcher's has dispatched.
        self._reported_elsewhere = 0
        # Held while the poller is replaced.
        self._switching = _concurrency.new_lock()
        # Held by the native threads that start pollers, and by nothing else.
        self._starting = _concurrency.new_lock()
        # A poller that is started after the last one was stopped would never end.
        self._ending = False
        # Threads without a hub that are polling: the poller's, or waiting threads.
        self._polling_threads: set[int] = set()
        # Calls of `poll_and_dispatch` that are calling listeners.
        self._dispatching: set[object] = set()
        # Other tasks whose listeners must not wait for this client.
        self._no_wait_tasks: set[object] = set()
        # Whether a task is in a block of `awaiting_brokers`.
        self._awaits_brokers = False
        #: The current poller; None before the first use.
        self.poller: GreenletPoller | ThreadPoller | None = None
        #: The batcher of the poller's hub, if a hub polls and sends are batched.
        self.batcher: Batcher | None = None

    # --- choosing the poller -----------------------------------------------------

    def ensure_poller(self) -> None:
        """Keep a poller running, and replace it when a better one becomes possible.

        Raises:
            ProducerUsedInParentProcessError: The client was built before a fork.
        """
        if not self._client.mark[0]:
            text = "this producer was used before the fork; call reset() in the child"
            raise ProducerUsedInParentProcessError(text)
        poller = self.poller
        hub = _concurrency.current_hub() if self.kafka_handle.wakes_poller else None
        if poller is not None and poller.alive and (poller.kind == "fd" or hub is None):
            return
        batcher = self.batcher
        with self._switching:
            if self._ending or poller is not self.poller:
                return  # another thread was faster
            if hub is None:
                # In a thread where no signal handler can raise between the start of a
                # poller and its publication.
                _concurrency.run_apart(
                    _START_TIMEOUT, self._start_thread_poller, poller
                )
            else:
                self._start_greenlet_poller(poller, hub)
        if poller is not None:
            poller.stop()
        if batcher is None or batcher is self.batcher:
            return
        try:
            if batcher.items:
                self._client.send_batch(batcher.items)
        finally:
            # There is no space for the rest yet, or a signal handler raised. The caller
            # has a deadline of its own, so another task waits for space.
            if batcher.items:
                _concurrency.spawn(self._client.send_all, batcher.items)

    def _start_thread_poller(
        self, previous: GreenletPoller | ThreadPoller | None
    ) -> None:
        with self._starting:
            if self._ending or self.poller is not previous:
                return
            batcher = None
            if self._client.may_batch:
                batcher = ThreadBatcher(self._in_flight.pending, self._client)
            poller = ThreadPoller(self, batcher)
            self.batcher, self.poller = batcher, poller
            self._stop_if_ending(poller)

    def _stop_if_ending(self, poller: ThreadPoller) -> None:
        # The caller of `_start_thread_poller` was interrupted, and then closed the
        # client.
        if self._ending:
            poller.stop()

    def _start_greenlet_poller(
        self, previous: GreenletPoller | ThreadPoller | None, hub: Hub
    ) -> None:
        poller = GreenletPoller(
            hub, self, self.kafka_handle.wakeup, self._settings.stall_alarm
        )
        batcher = None
        if self._client.may_batch:
            batcher = HubBatcher(hub, self._in_flight.pending, self._client)
        # A signal handler that waits may have let the hub run this poller, which ended
        # because it was not published. One that sends may have published another one.
        # So publish last, without a call in between.
        if poller.has_ended():
            self._start_greenlet_poller(previous, hub)
        elif self.poller is previous:
            self.batcher, self.poller = batcher, poller

    def current_batcher(self) -> Batcher | None:
        """Return the batcher for sends of the caller, if they are batched.

        Raises:
            ProducerUsedInParentProcessError: The client was built before a fork.
        """
        poller = self.poller
        if not (
            isinstance(poller, ThreadPoller)
            and poller.alive
            and len(self._in_flight.pending) % _CHECK_EVERY
        ):
            # Not each time: a check for a better poller costs as much as sending.
            self.ensure_poller()
        batcher = self.batcher
        return batcher if batcher is not None and batcher.in_own_hub() else None

    def ensure_progress(self) -> None:
        """Keep a poller running while the caller waits for long.

        If the hub's thread is blocked in a native call, its poller does not run: a
        waiting thread then polls itself.
        """
        self.ensure_poller()
        if isinstance(self.poller, GreenletPoller) and (
            _concurrency.current_hub() is None
        ):
            self.poll_and_dispatch(0, _concurrency.get_ident())

    def stop(self, seconds: float) -> bool:
        """Stop the poller for good; return False if it has not ended in time.

        Not to be called by the poller itself.

        Blocking:
            Until the poller has ended, or is held up in a listener. Lets other
            greenlets run.
        """
        with self._switching:
            self._ending = True
            poller = self.poller
            if poller is not None:
                poller.stop()
        if poller is None:
            return True
        deadline = _concurrency.Deadline(seconds)
        stalled = self.watch_for_stall(_STALL)
        while not poller.join(min(deadline.remaining(), _STALL_CHECK_INTERVAL)):
            if deadline.has_expired or (self._dispatching and stalled()):
                return False
        return True

    def close_descriptor_at_end(self) -> None:
        """Let a poller that is held up close the descriptor when it ends.

        librdkafka must not write to the descriptor any more.
        """
        poller = self.poller
        if isinstance(poller, GreenletPoller):
            poller.closes_descriptor = True
            if not poller.has_ended():
                return
        self.kafka_handle.wakeup.close()

    def watch_for_stall(self, seconds: float) -> Callable[[], bool]:
        """Return a function that returns whether the poller makes no progress.

        A listener, or a log handler, may wait for something that the caller holds, such
        as a lock: as long as the caller waits for the poller, neither goes on.

        Args:
            seconds: The time without progress. Call the function repeatedly meanwhile.
        """
        last: object = None
        progress = _concurrency.Deadline(seconds)

        def is_stalled() -> bool:
            nonlocal last, progress
            state = (
                self._in_flight.reported,
                len(self.reports),
                len(self.kafka_handle.client_events),
            )
            if state != last:
                last, progress = state, _concurrency.Deadline(seconds)
            return progress.has_expired

        return is_stalled

    @property
    def is_dispatching(self) -> bool:
        """Whether a task is calling listeners."""
        return bool(self._dispatching)

    # --- waiting for the poller --------------------------------------------------

    def new_waiter(
        self, is_done: Callable[[], bool] | None = None
    ) -> _concurrency.Waiter:
        """Return a waiter for the calling task, which is going to wait for the poller.

        Args:
            is_done: Whether the wait is over. With it a waiting thread polls itself.

        Raises:
            IllegalWaitError: The wait could never end, because the caller is the hub,
                or a listener that the poller is running.
        """
        # The poller first: another thread may replace the batcher at any time, by one
        # of another hub.
        poller, batcher = self.poller, self.batcher
        if (
            isinstance(poller, GreenletPoller)
            and isinstance(batcher, HubBatcher)
            and batcher.current_hub() is batcher.hub
            and not batcher.hub.dead
            and not self._no_wait_tasks
        ):
            # The common case, inlined for speed as in `Client.send`.
            waiter = _concurrency.waiter_in(batcher.hub, poller.shared_timer)
            if waiter.greenlet is not poller.greenlet:
                return waiter
        else:
            self.ensure_poller()
        if self.in_listener():
            text = (
                "can't wait in a listener of the same producer: the poller that would"
                " bring the report is running that listener"
            )
            raise IllegalWaitError(text)
        _concurrency.check_waits_allowed()
        warn_if_in_event_loop()
        poller = self.poller
        if (
            isinstance(poller, ThreadPoller)
            and (is_done or poller.has_no_thread)
            and _concurrency.current_hub() is None
            # uWSGI may stop a thread for good while it polls.
            and not _concurrency.under_uwsgi()
        ):
            return PollingWaiter(poller.followers, is_done)
        return _concurrency.new_waiter()

    def in_listener(self) -> bool:
        """Return whether the caller is a listener, which must not wait."""
        poller = self.poller
        return (
            (poller is not None and poller.is_current())
            or _concurrency.get_ident() in self._polling_threads
            or (
                bool(self._no_wait_tasks)
                and _concurrency.current_task() in self._no_wait_tasks
            )
        )

    @contextlib.contextmanager
    def forbid_waits(self) -> Iterator[None]:
        """Forbid listeners that are called in this block to wait for the client.

        For a task that delivers the awaited messages only after the listeners return.
        """
        task = _concurrency.current_task()
        try:
            self._no_wait_tasks.add(task)
            yield
        finally:
            self._no_wait_tasks.discard(task)

    @contextlib.contextmanager
    def awaiting_brokers(self) -> Iterator[None]:
        """Poll, and watch for silent brokers, while no message is in flight.

        For a task that asks the brokers for something else before its first message.
        """
        try:
            self._awaits_brokers = True
            self.ensure_poller()
            if self.poller is not None:
                self.poller.start_safety_timer()
            yield
        finally:
            self._awaits_brokers = False

    def last_broker_error(self) -> str | None:
        """Return the last error of a broker since the last delivered message."""
        return self.kafka_handle.error_translator.last_error

    def on_callback_error(self, error: BaseException) -> None:
        """Log and emit that a function of `add_done_callback` raised."""
        self.dispatcher.on_callback_error(error)

    # --- polling -----------------------------------------------------------------

    @property
    def interval(self) -> float:
        """Seconds between two calls of `on_interval`; 0 for never."""
        return self._client.check_interval

    def on_interval(self) -> None:
        """Let the client do its periodic checks; called by the poller."""
        self._client.on_interval()

    def interrupt_poll(self) -> None:
        """Let a running poll return early; from any thread."""
        self.kafka_handle.interrupt_poll()

    def count_in_flight(self) -> int:
        """Return the number of messages that the poller has to wait for.

        Another question to the brokers counts as one.
        """
        if not self._client.mark[0]:
            return 0  # in a forked child they are the parent's
        return self._in_flight.count or int(self._awaits_brokers)

    def note_stall(self, seconds: float, stack: str | None) -> None:
        """Emit `hub.stalled` with the next poll; from any thread."""
        self.kafka_handle.note_stall(seconds, stack)

    def poll_once(self) -> None:
        """Poll and call listeners in the calling task, because the poller is held up.

        Listeners can't wait for this client meanwhile, as in the poller.
        """
        with self.forbid_waits():
            in_hub = _concurrency.current_hub() is not None
            interrupt = self.poll_and_dispatch(
                0, 0 if in_hub else _concurrency.get_ident()
            )
        if interrupt is not None:
            raise interrupt

    def poll_and_dispatch(self, seconds: float, thread: int) -> BaseException | None:
        """Poll for up to some seconds, call listeners and resolve handles.

        Args:
            seconds: The timeout of the poll.
            thread: The number of the calling thread; 0 in a hub, where the poller's
                greenlet is known.

        Returns:
            An exception of a signal handler of the program, such as KeyboardInterrupt.
        """
        if not self._client.mark[0]:
            # The copy of the poller in a forked child.
            if self.poller is not None:
                self.poller.stop()
            return None
        call = object()
        try:
            # A signal handler may run inside the poll, and a listener after it: neither
            # may wait for this thread.
            if thread:
                self._polling_threads.add(thread)
            batcher = self.batcher
            if seconds and batcher is not None and batcher.collects_in_polls:
                interrupt = self._collect_and_poll(batcher, seconds)
            else:
                interrupt = self.kafka_handle.poll(seconds)
            try:
                self._dispatching.add(call)
                self.dispatcher.dispatch()
                if self._silence is not None and (
                    self._in_flight.pending or self._awaits_brokers
                ):
                    self._watch_silence(self._silence)
                if self.kafka_handle.interrupted:
                    self._client.fail_lost_reports()
                batcher = self.batcher
                if batcher is not None and batcher.items and batcher.in_own_hub():
                    batcher.resume()
            except BaseException as error:  # noqa: BLE001
                self.kafka_handle.interrupted = True
                interrupt = error
        finally:
            if thread:
                self._polling_threads.discard(thread)
            self._dispatching.discard(call)
        return interrupt

    def _collect_and_poll(
        self, batcher: Batcher, seconds: float
    ) -> BaseException | None:
        """Poll; meanwhile other threads leave their sends with the batcher."""
        # Under the lock, so that no other thread's longer poll delays the hand-over.
        with self.kafka_handle.poll_lock:
            try:
                return self.kafka_handle.poll(batcher.collect(seconds))
            finally:
                # Before the dispatch, in which listeners may wait.
                batcher.flush()

    def _watch_silence(self, silence: SilenceWatch) -> None:
        producer = self.kafka_handle.producer
        if producer is None or silence.is_over(producer):
            self._silence = None

    # --- called for delivery reports ---------------------------------------------

    def on_limit(self) -> None:
        """Handle a full report queue; called inside librdkafka's poll."""
        self.kafka_handle.on_limit()

    @property
    def pending(self) -> set[DeliveryHandle]:
        """Handles without a report."""
        return self._in_flight.pending

    def resend_failed(self, handle: DeliveryHandle) -> bool:
        """Return whether a message that failed is sent once more."""
        return self._client.resend_failed(handle)

    def on_reports(self, count: int, latency: float) -> None:
        """Update batching and backpressure, before the next greenlet runs.

        Args:
            count: Number of reports that were dispatched.
            latency: Seconds of the last delivered message; below 0 if there was none.
        """
        errors = self.kafka_handle.error_translator
        if latency >= 0 and (errors.last_error is not None or not errors.has_delivered):
            errors.clear_last_error()
        batcher = self.batcher
        if batcher is None:
            pass
        elif batcher.current_hub() is batcher.hub:
            batcher.on_reports(count + self._reported_elsewhere, latency)
            self._reported_elsewhere = 0
        else:
            self._reported_elsewhere += count  # passed on in the batcher's thread
        pending = self._in_flight.pending
        self._in_flight.on_reports(count)
        poller = self.poller
        if poller is not None and not pending:
            # Release first, then check again: a thread that sends in between found the
            # loop kept alive, and did not start the timer.
            poller.release()
            if pending:
                poller.start_safety_timer()

    def yield_to_hub(self) -> None:
        """Let other greenlets run, if the caller is the poller of a hub."""
        if isinstance(self.poller, GreenletPoller) and self.poller.is_current():
            _concurrency.yield_to_hub()
