"""A listener that logs the events of a producer, with structlog.

    producer.monitor.subscribe(LogListener())

Each line is the name of an event with keywords. In programs that have not configured
structlog the lines go to `logging`, which shows none below warnings by default.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from greendrop._librdkafka.log_lines import is_hang_up
from greendrop._logging.log import DEBUG, ERROR, INFO, WARNING, Log
from greendrop._logging.rate_limit import RateLimiter
from greendrop.errors import GreendropError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greendrop.events import Event
    from greendrop.message import Message

__all__ = ["LogListener"]

#: Messages of a batch that are logged at debug level.
_SHOWN = 10


class LogListener:
    """Logs a line for each event in the table of docs/observe/logging.md.

    One object may be subscribed to any number of producers. Override a method `on_...`
    to log something else, or nothing.

    Args:
        logger: A structlog logger. By default `structlog.get_logger("greendrop")` if
            structlog is configured, else `logging.getLogger("greendrop")`; this is
            decided for each line, since programs may configure structlog at any time.
        log_messages: Also log the messages, in separate lines at debug level: topic,
            partition, key, payload and the names of headers.
        limit: Maximum characters of a key and of a payload in these lines.

    Raises:
        TypeError: `logger` is not a structlog logger.
    """

    def __init__(
        self,
        logger: Any = None,  # noqa: ANN401 - structlog's own loggers are of many types
        *,
        log_messages: bool = False,
        limit: int = 100,
    ) -> None:
        if logger is not None and not hasattr(logger, "bind"):
            text = (
                f"logger needs to be a structlog logger, not {type(logger).__name__};"
                " without structlog lines go to logging.getLogger('greendrop')"
            )
            raise TypeError(text)
        self._logger = logger
        self._log_messages = log_messages
        self._limit = limit
        self._rate_limiter = RateLimiter()
        # By producer id, which is bound to the logger.
        self._logs: dict[str | None, Log] = {}

    def write(self, level: int, event: Event, **values: Any) -> None:  # noqa: ANN401
        """Log a line about an event: values, and the duration if the event has one."""
        producer_id = event.payload.get("producer_id")
        log = self._logs.get(producer_id)
        if log is None:
            log = Log("greendrop", self._logger, producer_id=producer_id)
            self._logs[producer_id] = log
        if "time" in event.payload:
            values["duration"] = round(event["time"], 6)
        log.write(level, event.name, **values)

    # --- messages ----------------------------------------------------------------

    def on_message_produced_sync(self, event: Event) -> None:
        """One message was delivered."""
        self.write(INFO, event, topic=event["message"].topic)
        self._write_messages(event, [event["message"]])

    #: One message was queued.
    on_message_produced_async = on_message_produced_sync

    def on_messages_produced_sync(self, event: Event) -> None:
        """A batch was delivered."""
        messages = event["messages"]
        topics = len({message.topic for message in messages})
        self.write(INFO, event, messages=len(messages), topics=topics)
        self._write_messages(event, messages)

    #: A batch was queued.
    on_messages_produced_async = on_messages_produced_sync

    def on_message_buffered(self, event: Event) -> None:
        """One message was buffered."""
        topic = event["message"].topic
        self.write(INFO, event, topic=topic, buffered=len(event["buffer"]))
        self._write_messages(event, [event["message"]])

    def on_messages_buffered(self, event: Event) -> None:
        """Several messages were buffered."""
        messages = event["messages"]
        self.write(INFO, event, messages=len(messages), buffered=len(event["buffer"]))
        self._write_messages(event, messages)

    def on_buffer_flushed_sync(self, event: Event) -> None:
        """The buffer was delivered."""
        self.write(INFO, event, messages=len(event["messages"]))
        self._write_messages(event, event["messages"])

    #: The buffer was queued.
    on_buffer_flushed_async = on_buffer_flushed_sync

    # --- producers and transactions ----------------------------------------------

    def on_buffer_purged(self, event: Event) -> None:
        """Log an event that has no other values than its duration."""
        self.write(INFO, event)

    on_producer_closing = on_buffer_purged
    on_producer_disconnecting = on_buffer_purged
    on_producer_disconnected = on_buffer_purged
    on_transaction_started = on_buffer_purged
    on_transaction_committed = on_buffer_purged
    on_transaction_aborted = on_buffer_purged

    def on_producer_closed(self, event: Event) -> None:
        """A producer was closed; it emits no more events."""
        self.write(INFO, event)
        self._logs.pop(event.payload.get("producer_id"), None)

    def on_producer_reloaded(self, event: Event) -> None:
        """A new client has replaced one that failed."""
        self.write(INFO, event, attempt=event["attempt"])

    def on_transaction_finished(self, event: Event) -> None:
        """A transaction was committed, aborted, or its outcome is unknown."""
        self.write(INFO, event, **_present(event, "outcome"))

    def on_transaction_marked_as_consumed(
        self, event: Event[Literal["transaction.marked_as_consumed"]]
    ) -> None:
        """An offset was added to a transaction."""
        message = event["message"]
        position = {"partition": message.partition(), "offset": message.offset()}
        self.write(INFO, event, topic=message.topic(), **position)

    # --- errors ------------------------------------------------------------------

    def on_hub_stalled(self, event: Event) -> None:
        """The hub was blocked."""
        values = {"duration": round(event["seconds"], 6), "stack": event["stack"]}
        self.write(WARNING, event, **values)

    def on_error_occurred(self, event: Event) -> None:
        """Something failed.

        Exceptions of listeners are not logged here, since the monitor logs them. Errors
        that repeat by themselves (a broker is down, the queue is full) are logged once
        a minute. A connection that a broker closed is logged at info level: brokers
        close idle connections.
        """
        error_type, error = event["type"], event["error"]
        if error_type == "listener.error":
            return
        values: dict[str, Any] = {"type": error_type, **_describe(error)}
        if error_type == "librdkafka.error" or isinstance(error, QueueFullError):
            producer_id, text = (
                event.payload.get("producer_id"),
                values.get("error", ""),
            )
            kind = (producer_id, error_type, values.get("code"), is_hang_up(text))
            suppressed = self._rate_limiter.suppressed(kind)
            if suppressed is None:
                return
            if suppressed:
                values["left_out"] = suppressed
        values |= _present(event, "topic", "partition", "attempt", "retry")
        if "message" in event.payload:
            values["topic"] = event["message"].topic
        for key in ("messages", "dispatched"):
            if key in event.payload:
                values[key] = len(event[key])
        hung_up = error_type == "librdkafka.error" and is_hang_up(str(error))
        self.write(INFO if hung_up else ERROR, event, **values)

    # --- messages at debug level -------------------------------------------------

    def _write_messages(self, event: Event, messages: Sequence[Message]) -> None:
        if not (self._log_messages and messages):
            return
        shown = [self._shown(message) for message in islice(messages, _SHOWN)]
        more = len(messages) - len(shown)
        rest = {"more": more} if more else {}
        self.write(DEBUG, event, contents=shown, **rest)

    def _shown(self, message: Message) -> dict[str, object]:
        shown: dict[str, object] = {"topic": message.topic}
        if message.partition is not None:
            shown["partition"] = message.partition
        if message.key is not None:
            shown["key"] = self._cut(message.key)
        shown["payload"] = self._cut(message.payload)
        if message.headers:
            # Without their values, which are often credentials.
            pairs: Any = message.headers
            pairs = (
                pairs.keys() if hasattr(pairs, "keys") else [key for key, _ in pairs]
            )
            shown["headers"] = list(pairs)
        return shown

    def _cut(self, value: bytes | str | None) -> str | None:
        if value is None:
            return None
        start = value[: self._limit]
        text = start if isinstance(start, str) else start.decode(errors="replace")
        rest = len(value) - len(start)
        return f"{text}... ({rest} more)" if rest else text


def _present(event: Event, *keys: str) -> dict[str, object]:
    """Return those of the values that an event has."""
    return {key: value for key in keys if (value := event.payload.get(key)) is not None}


def _describe(error: BaseException) -> dict[str, object]:
    """Describe an error, without texts from outside of greendrop."""
    values: dict[str, object] = {"kind": type(error).__name__}
    if isinstance(error, GreendropError):
        values["error"] = str(error)
        if code := getattr(error, "name", None):
            values["code"] = code
        if getattr(error, "fatal", False):
            values["fatal"] = True
    return values
