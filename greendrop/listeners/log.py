"""Log lines about what a producer does, with structlog.

    producer.monitor.subscribe(LogListener())

A line is an event's name and facts as keywords. Without a configured structlog the
lines go to `logging`, where nothing is shown until the program says so.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from greendrop._librdkafka.log_lines import is_hang_up
from greendrop._logging.log import DEBUG, ERROR, INFO, WARNING, Log
from greendrop._logging.rate_limit import RateLimiter
from greendrop.errors import GreendropError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greendrop.events import Event
    from greendrop.message import Message

#: Messages of a batch that are written at debug level.
_SHOWN = 10


class LogListener:
    """Writes a line for each event of the table in docs/observe/logging.md.

    One may listen to any number of producers. Override a method `on_...` to write
    something else, or nothing.

    Args:
        logger: A logger of structlog. By default `structlog.get_logger("greendrop")`
            where structlog is configured, else `logging.getLogger("greendrop")`; that
            is decided for each line, since programs configure when they like.
        log_messages: Write the messages, too, in lines of their own at debug level:
            topic, partition, key, payload and the names of headers.
        limit: Characters of a key and of a payload that are written then.

    Raises:
        TypeError: That is no logger of structlog.
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
                f"needs a logger of structlog, not {type(logger).__name__}; lines go to"
                " logging.getLogger('greendrop') where structlog is not configured"
            )
            raise TypeError(text)
        self._logger = logger
        self._log_messages = log_messages
        self._limit = limit
        self._repeats = RateLimiter()
        # By the producer's id, which is bound.
        self._logs: dict[str | None, Log] = {}

    def write(self, level: int, event: Event, **facts: Any) -> None:  # noqa: ANN401
        """Write a line about an event: facts, and how long it took if it tells."""
        producer_id = event.payload.get("producer_id")
        log = self._logs.get(producer_id)
        if log is None:
            log = Log("greendrop", self._logger, producer_id=producer_id)
            self._logs[producer_id] = log
        if "time" in event.payload:
            facts["duration"] = round(event["time"], 6)
        log.write(level, event.name, **facts)

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
        """One message waits for a flush."""
        topic = event["message"].topic
        self.write(INFO, event, topic=topic, buffered=len(event["buffer"]))
        self._write_messages(event, [event["message"]])

    def on_messages_buffered(self, event: Event) -> None:
        """Several messages wait for a flush."""
        messages = event["messages"]
        self.write(INFO, event, messages=len(messages), buffered=len(event["buffer"]))
        self._write_messages(event, messages)

    def on_buffer_flushed_sync(self, event: Event) -> None:
        """What was buffered was delivered."""
        self.write(INFO, event, messages=len(event["messages"]))
        self._write_messages(event, event["messages"])

    #: What was buffered was queued.
    on_buffer_flushed_async = on_buffer_flushed_sync

    # --- the producer's life -----------------------------------------------------

    def on_buffer_purged(self, event: Event) -> None:
        """Something happened of which there is no more to say than how long it took."""
        self.write(INFO, event)

    on_producer_closing = on_buffer_purged
    on_producer_disconnecting = on_buffer_purged
    on_producer_disconnected = on_buffer_purged
    on_transaction_started = on_buffer_purged
    on_transaction_committed = on_buffer_purged
    on_transaction_aborted = on_buffer_purged

    def on_producer_closed(self, event: Event) -> None:
        """A producer is closed; nothing more comes of it."""
        self.write(INFO, event)
        self._logs.pop(event.payload.get("producer_id"), None)

    def on_producer_reloaded(self, event: Event) -> None:
        """A new client has taken over."""
        self.write(INFO, event, attempt=event["attempt"])

    def on_transaction_finished(self, event: Event) -> None:
        """A transaction has ended, in one way or another."""
        self.write(INFO, event, **_given(event, "outcome"))

    def on_transaction_marked_as_consumed(self, event: Event) -> None:
        """What was read of a partition goes with a transaction."""
        message = event["message"]
        place = {"partition": message.partition(), "offset": message.offset()}
        self.write(INFO, event, topic=message.topic(), **place)

    # --- what went wrong ---------------------------------------------------------

    def on_hub_stalled(self, event: Event) -> None:
        """Something held the hub."""
        facts = {"duration": round(event["seconds"], 6), "stack": event["stack"]}
        self.write(WARNING, event, **facts)

    def on_error_occurred(self, event: Event) -> None:
        """Something failed.

        What listeners raise is left out: it is logged wherever that happens. What goes
        on by itself (a broker is down, the queue is full) is written once a minute.
        That a broker hung up is no error: they do when nobody uses a connection.
        """
        kind, error = event["type"], event["error"]
        if kind == "listener.error":
            return
        facts: dict[str, Any] = {"type": kind, **_about(error)}
        if kind == "librdkafka.error" or isinstance(error, QueueFullError):
            producer_id, text = event.payload.get("producer_id"), facts.get("error", "")
            repeated = (producer_id, kind, facts.get("code"), is_hang_up(text))
            left_out = self._repeats.left_out(repeated)
            if left_out is None:
                return
            if left_out:
                facts["left_out"] = left_out
        facts |= _given(event, "topic", "partition", "attempt", "retry")
        if "message" in event.payload:
            facts["topic"] = event["message"].topic
        for key in ("messages", "dispatched"):
            if key in event.payload:
                facts[key] = len(event[key])
        hung_up = kind == "librdkafka.error" and is_hang_up(str(error))
        self.write(INFO if hung_up else ERROR, event, **facts)

    # --- at debug level ----------------------------------------------------------

    def _write_messages(self, event: Event, messages: Sequence[Message]) -> None:
        if not (self._log_messages and messages):
            return
        shown = [self._shown(message) for message in islice(messages, _SHOWN)]
        more = len(messages) - len(shown)
        facts = {"more": more} if more else {}
        self.write(DEBUG, event, contents=shown, **facts)

    def _shown(self, message: Message) -> dict[str, object]:
        shown: dict[str, object] = {"topic": message.topic}
        if message.partition is not None:
            shown["partition"] = message.partition
        if message.key is not None:
            shown["key"] = self._cut(message.key)
        shown["payload"] = self._cut(message.payload)
        if message.headers:
            # Their values are credentials as often as not.
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
        left = len(value) - len(start)
        return f"{text}... ({left} more)" if left else text


def _given(event: Event, *keys: str) -> dict[str, object]:
    """Give those of the facts that an event has."""
    return {key: value for key in keys if (value := event.payload.get(key)) is not None}


def _about(error: BaseException) -> dict[str, object]:
    """Tell an error without what others may have written into it."""
    facts: dict[str, object] = {"kind": type(error).__name__}
    if isinstance(error, GreendropError):
        facts["error"] = str(error)
        if code := getattr(error, "name", None):
            facts["code"] = code
        if getattr(error, "fatal", False):
            facts["fatal"] = True
    return facts
