"""Tells what came in: to the listeners first, then to those who wait.

The second half of a message's journey. librdkafka's callbacks only append to two
queues; after the poll the serving task comes here. Knows the client's queues and the
monitor; what an error of librdkafka means is passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greendrop import _concurrency
from greendrop._librdkafka.log_lines import LogLines
from greendrop._librdkafka.statistics import Statistics
from greendrop.errors import MessagePurgedError, ProduceError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from greendrop._client.offset_guard import OffsetGuard
    from greendrop._librdkafka.errors import ErrorTranslator
    from greendrop.config.settings import Settings
    from greendrop.delivery import DeliveryHandle, ReportQueue
    from greendrop.events import Monitor

#: Reports between two looks at the clock while listeners are told.
_CLOCK_EVERY = 16


class ReportDispatcher:
    """Settles the handles of one client and tells its notices.

    Args:
        reports: Handles that were filled.
        notices: What librdkafka said beside reports: kind and content.
        pending: Handles without a verdict; each is discarded when its verdict is told.
        settings: For the producer's id and `max_serve_time`.
        monitor: Who listens.
        verdicts: What librdkafka's errors mean.
        on_reports: Told how many verdicts were told and the latency of the last good
            one in seconds (below 0 when there was none), before the next greenlet
            runs.
        take_back: Returns whether a message that failed is going to be sent again. Then
            its handle stays pending.
        pause: Gives the hub a turn.
    """

    def __init__(
        self,
        *,
        reports: ReportQueue,
        notices: deque[tuple[str, Any]],
        pending: set[DeliveryHandle],
        settings: Settings,
        monitor: Monitor,
        verdicts: ErrorTranslator,
        on_reports: Callable[[int, float], None],
        take_back: Callable[[DeliveryHandle], bool],
        pause: Callable[[], None],
    ) -> None:
        self._reports = reports
        self._notices = notices
        self._pending = pending
        self._settings = settings
        self._monitor = monitor
        self._error_translator = verdicts
        self._on_reports = on_reports
        self._take_back = take_back
        self._pause = pause
        #: Checks the offsets of a transactional producer's reports.
        self.offset_guard: OffsetGuard | None = None
        self._log_lines = LogLines(settings.id, settings.censored)
        # A loop of its own: a checkpoint may come in the middle of an object.
        turns = _concurrency.CooperativeLoop()
        self._statistics = Statistics(settings.statistics_deltas, turns.checkpoint)

    def has_logged_failure(self) -> bool:
        """Tell whether a line of librdkafka has said why brokers can't be reached."""
        return self._log_lines.has_failure

    def on_callback_error(self, error: BaseException) -> None:
        """Log and report that a function of `add_done_callback` raised."""
        self._monitor.log_callback_error(self._settings.id, error)

    def dispatch(self) -> None:
        """Tell all that came in so far.

        Blocking:
            As long as listeners wait. Never for another task that is settling too, as
            happens while one driver replaces the other.
        """
        while self._reports or self._notices:
            if self._notices:
                self._emit_notice(*self._notices.popleft())
            self._dispatch_reports()

    def _dispatch_reports(self) -> None:
        reports = self._reports
        popleft = reports.popleft
        discard = self._pending.discard
        acknowledged = self._monitor.listens("message.acknowledged")
        guard = self.offset_guard
        turn_ends = _concurrency.monotonic() + self._settings.max_serve_time
        count = 0
        latency = -1.0
        try:
            while reports:
                try:
                    handle = popleft()
                except IndexError:  # another thread settles, too
                    break
                count += 1
                if guard is not None and handle._error is None:
                    guard.check(handle.topic, handle._partition, handle._offset)
                if handle._error is None and not acknowledged:
                    latency = handle._latency
                    handle._reports = None
                    if handle._waiters is not None:
                        handle._resolve()
                    discard(handle)
                    continue
                if handle._error is None:
                    latency = handle._latency
                elif self._take_back(handle):
                    count -= 1
                    continue
                try:
                    self._emit_report(handle)
                finally:
                    handle._resolve()
                    discard(handle)
                if not count % _CLOCK_EVERY and _concurrency.monotonic() > turn_ends:
                    self._on_reports(count, latency)
                    count = 0
                    self._pause()
                    turn_ends = _concurrency.monotonic() + self._settings.max_serve_time
        finally:
            if count:
                self._on_reports(count, latency)

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
            # Where librdkafka has not chosen one, or was not even asked to.
            "partition": _known(getattr(handle, "_partition", None)),
            "offset": None,
            "label": handle.label,
            "delivery_report": None,
        }
        kind = "librdkafka.dispatch_error"
        if self._settings.transactional and isinstance(error, MessagePurgedError):
            facts = {"producer_id": self._settings.id, "error": error, "type": kind}
            self._emit("message.purged", {**facts, **payload})
        else:
            self._emit_error(kind, error, **payload)

    def _emit_notice(self, kind: str, content: Any) -> None:  # noqa: ANN401
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
            statistics = self._statistics.read(content)
            payload = {"producer_id": self._settings.id, "statistics": statistics}
            self._emit("statistics.emitted", payload)

    def _emit_error(self, kind: str, error: Exception, **facts: object) -> None:
        if self._monitor.listens("error.occurred"):
            identity = {"producer_id": self._settings.id}
            payload = {**identity, "error": error, "type": kind, **facts}
            self._emit("error.occurred", payload)

    def _emit(self, name: str, payload: dict[str, Any]) -> None:
        self._monitor.emit(name, payload, swallow=BaseException)


def _known(partition: int | None) -> int | None:
    return None if partition is None or partition < 0 else partition
