"""Delivery reports and events of one client: calls listeners, then resolves handles.

librdkafka's callbacks only append to two queues, the report queue and the client
events. After each poll the poller dispatches both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency
from greendrop._librdkafka.log_lines import LogLines
from greendrop._librdkafka.statistics import Statistics, UnreadableStatisticsError
from greendrop.errors import BrokerError, MessagePurgedError, ProduceError

if TYPE_CHECKING:
    from greendrop._client.offset_guard import OffsetGuard
    from greendrop._librdkafka.handle import KafkaHandle
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle, ReportQueue
    from greendrop.events import EventName, Monitor

#: Reports between two readings of the clock while listeners are called.
_CLOCK_EVERY = 16
#: librdkafka's error of a text that it can't read.
_BAD_MESSAGE = (-199, "_BAD_MSG")


class ReportOwner(Protocol):
    """The poll loop, as the dispatcher needs it."""

    reports: ReportQueue
    kafka_handle: KafkaHandle

    @property
    def pending(self) -> set[DeliveryHandle]:
        """Handles without a report."""

    def resend_failed(self, handle: DeliveryHandle) -> bool:
        """Return whether a message that failed is sent once more."""

    def on_reports(self, count: int, latency: float) -> None:
        """Update batching and backpressure, before the next greenlet runs.

        Args:
            count: Number of reports that were dispatched.
            latency: Seconds of the last delivered message; below 0 if there was none.
        """

    def yield_to_hub(self) -> None:
        """Let other greenlets run, if the caller is the poller of a hub."""


class ReportDispatcher:
    """Dispatches the delivery reports and the events of one client.

    Args:
        settings: The settings of the client.
        monitor: Emits events.
        owner: The poll loop.
    """

    def __init__(
        self, settings: Settings, monitor: Monitor, owner: ReportOwner
    ) -> None:
        self._owner = owner
        self._reports = owner.reports
        self._pending = owner.pending
        self._client_events = owner.kafka_handle.client_events
        self._error_translator = owner.kafka_handle.error_translator
        self._settings = settings
        self._monitor = monitor
        #: Checks the offsets in the reports of a transactional producer.
        self.offset_guard: OffsetGuard | None = None
        self._log_lines = LogLines(settings)
        # A loop of its own: a checkpoint may come in the middle of an object.
        loop = _concurrency.CooperativeLoop()
        self._statistics = Statistics(settings.statistics_deltas, loop)

    @property
    def has_logged_failure(self) -> bool:
        """Whether librdkafka has logged why brokers can't be reached."""
        return self._log_lines.has_failure

    def on_callback_error(self, error: BaseException) -> None:
        """Log and report that a function of `add_done_callback` raised."""
        self._monitor.log_callback_error(self._settings.id, error)

    def dispatch(self) -> None:
        """Dispatch all reports and events that have arrived.

        Blocking:
            As long as listeners wait. Never for another task that dispatches too, as
            happens while one poller replaces the other.
        """
        while self._reports or self._client_events:
            if self._client_events:
                self._emit_client_event(*self._client_events.popleft())
            self._dispatch_reports()

    def _dispatch_reports(self) -> None:
        reports = self._reports
        popleft = reports.popleft
        discard = self._pending.discard
        has_listeners = "message.acknowledged" in self._monitor.listeners
        guard = self.offset_guard
        slice_ends = _concurrency.monotonic() + self._settings.max_serve_time
        count = 0
        latency = -1.0
        try:
            while reports:
                try:
                    handle = popleft()
                except IndexError:  # another thread dispatches, too
                    break
                count += 1
                if guard is not None and handle._error is None:
                    guard.check(handle.topic, handle._partition, handle._offset)
                if handle._error is None and not has_listeners:
                    latency = handle._latency
                    handle._reports = None
                    if handle._waiters is not None:
                        handle._resolve()
                    discard(handle)
                    continue
                if handle._error is None:
                    latency = handle._latency
                elif self._owner.resend_failed(handle):
                    count -= 1
                    continue
                try:
                    self._emit_report(handle)
                finally:
                    handle._resolve()
                    discard(handle)
                if not count % _CLOCK_EVERY and _concurrency.monotonic() > slice_ends:
                    self._owner.on_reports(count, latency)
                    count = 0
                    self._owner.yield_to_hub()
                    slice_ends = (
                        _concurrency.monotonic() + self._settings.max_serve_time
                    )
        finally:
            if count:
                self._owner.on_reports(count, latency)

    def _emit_report(self, handle: DeliveryHandle) -> None:
        error = handle._error
        if error is None:
            report = handle._report()
            payload = {
                "producer_id": self._settings.id,
                "topic": report.topic,
                "partition": report.partition,
                "offset": report.offset,
                "label": report.label,
                "delivery_report": report,
            }
            self._emit("message.acknowledged", payload)
            return
        if not isinstance(error, ProduceError):
            error = self._error_translator.delivery_error(
                handle.topic, error, handle._partition
            )
            handle._error = error
        payload = {
            "topic": handle.topic,
            # None if librdkafka has not chosen one, or did not get the message.
            "partition": _known(getattr(handle, "_partition", None)),
            "offset": None,
            "label": handle.label,
            "delivery_report": None,
        }
        error_type = "librdkafka.dispatch_error"
        if self._settings.transactional and isinstance(error, MessagePurgedError):
            base = {
                "producer_id": self._settings.id,
                "error": error,
                "type": error_type,
            }
            self._emit("message.purged", {**base, **payload})
        else:
            self._emit_error(error_type, error, **payload)

    def _emit_client_event(self, kind: str, content: Any) -> None:  # noqa: ANN401
        if kind == "log":
            level, line = content
            self._log_lines.log(level, line)
            self._error_translator.note_log_line(line)
        elif kind == "error":
            error = self._error_translator.client_error(content)
            self._emit_error("librdkafka.error", error)
        elif kind == "stall":
            seconds, stack = content
            payload = {"producer_id": self._settings.id, "seconds": seconds}
            self._emit("hub.stalled", {**payload, "stack": stack})
        elif self._monitor.listens("statistics.emitted"):
            self._emit_statistics(content)

    def _emit_statistics(self, text: str) -> None:
        try:
            statistics = self._statistics.read(text)
        except UnreadableStatisticsError as unreadable:
            error = BrokerError(str(unreadable), *_BAD_MESSAGE)
            self._emit_error("librdkafka.error", error)
            return
        identity = {"producer_id": self._settings.id}
        self._emit("statistics.emitted", {**identity, "statistics": statistics})

    def _emit_error(self, error_type: str, error: Exception, **rest: object) -> None:
        if self._monitor.listens("error.occurred"):
            identity = {"producer_id": self._settings.id}
            payload = {**identity, "error": error, "type": error_type, **rest}
            self._emit("error.occurred", payload)

    def _emit(self, name: EventName, payload: dict[str, object]) -> None:
        self._monitor.emit(name, payload, swallow=BaseException)


def _known(partition: int | None) -> int | None:
    return None if partition is None or partition < 0 else partition
