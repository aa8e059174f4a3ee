"""Events: the tables of all events, and the monitors that emit them.

The tables are the single source of the names of events, of `docs/reference/events.md`,
and of the methods that a listener object may have. A monitor calls its listeners one
after the other, in the order of subscription. A listener that raises can't disturb the
operation that emitted the event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from greendrop import _concurrency
from greendrop._logging.log import ERROR, Log
from greendrop._logging.rate_limit import RateLimiter
from greendrop._typed_event import EventName_co, TypedEvent
from greendrop.errors import EventNotRegisteredError, StatisticsNotEnabledError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EVENTS",
    "Event",
    "EventName",
    "EventSpec",
    "Listener",
    "Monitor",
    "monitor",
]

_log = Log("greendrop")

#: The names of all events, in the order of the tables below; a test compares them.
EventName: TypeAlias = Literal[
    "producer.connected",
    "producer.disconnecting",
    "producer.disconnected",
    "producer.reload",
    "producer.reloaded",
    "buffer.purged",
    "producer.closing",
    "producer.closed",
    "message.produced_async",
    "message.produced_sync",
    "messages.produced_async",
    "messages.produced_sync",
    "message.buffered",
    "messages.buffered",
    "buffer.flushed_async",
    "buffer.flushed_sync",
    "message.acknowledged",
    "message.purged",
    "transaction.started",
    "transaction.marked_as_consumed",
    "transaction.committed",
    "transaction.aborted",
    "transaction.finished",
    "oauthbearer.token_refresh",
    "statistics.emitted",
    "hub.stalled",
    "error.occurred",
    "producer.created",
    "producer.configured",
    "connection_pool.created",
    "connection_pool.setup",
    "connection_pool.reload",
    "connection_pool.reloaded",
    "connection_pool.shutdown",
]


#: The types of the values in payloads, by key, as Python writes them. An event that
#: has another type for a key says so in its row.
PAYLOAD_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "attempt": "int",
        "bearer": "OAuthBearer",
        "buffer": "tuple[Message, ...]",
        "config": "Mapping[str, object]",
        "delivery_report": "DeliveryReport",
        "dispatched": "tuple[DeliveryHandle, ...]",
        "error": "BaseException",
        "event": "str",
        "kafka": "dict[str, str]",
        "label": "Any",
        "left_out": "int",
        "message": "Message",
        "messages": "Sequence[Message]",
        "offset": "int | None",
        "offset_metadata": "str | None",
        "outcome": "Outcome",
        "partition": "int",
        "pool": "ProducerPool",
        "producer": "Producer",
        "producer_id": "str",
        "retry": "bool",
        "seconds": "float",
        "size": "int",
        "stack": "str | None",
        "statistics": "Mapping[str, Any]",
        "time": "float",
        "timeout": "float",
        "topic": "str",
        "type": "str",
    }
)


@dataclass(frozen=True, slots=True)
class EventSpec:
    """One row of a table of events: when the event is emitted, and its payload.

    Attributes:
        when: When the event is emitted.
        payload: The keys that are always in the payload.
        optional: The keys that are in the payload only for some values of `type`.
        own_types: The types of keys that differ from those of other events.
    """

    when: str
    payload: tuple[str, ...]
    optional: tuple[str, ...] = ()
    own_types: Mapping[str, str] = field(default_factory=dict)

    @property
    def types(self) -> Mapping[str, str]:
        """The type of each key, as Python writes it."""
        keys = (*self.payload, *self.optional)
        return {key: self.own_types.get(key, PAYLOAD_TYPES[key]) for key in keys}


#: The events of a producer, emitted by its `monitor`. `time` is in seconds; `error` is
#: an exception from `greendrop.errors`, with its cause.
EVENTS: Mapping[EventName, EventSpec] = MappingProxyType(
    {
        "producer.connected": EventSpec(
            when="a client was created; again after every reconnect",
            payload=("producer_id",),
        ),
        "producer.disconnecting": EventSpec(
            when="disconnecting has begun; a message that is sent meanwhile cancels it",
            payload=("producer_id",),
        ),
        "producer.disconnected": EventSpec(
            when="disconnecting is complete; the next message reconnects",
            payload=("producer_id", "time"),
        ),
        "producer.reload": EventSpec(
            when="a client is about to be replaced after a fatal error. `kafka` is the"
            " configuration of the new client, and a listener may change it in place."
            " A secret is shown as `[hidden]` and keeps its value unless a listener"
            " replaces it",
            payload=("producer_id", "error", "attempt", "kafka"),
            own_types={"error": "BrokerError"},
        ),
        "producer.reloaded": EventSpec(
            when="a new client has replaced one that had a fatal error. For a"
            " transactional producer: the next transaction creates the new client",
            payload=("producer_id", "attempt", "time"),
        ),
        "buffer.purged": EventSpec(
            when="`purge` has dropped all messages; `messages` are those that were in"
            " the buffer",
            payload=("producer_id", "messages", "time"),
        ),
        "producer.closing": EventSpec(
            when="`close` has begun; no message is accepted any more",
            payload=("producer_id",),
        ),
        "producer.closed": EventSpec(
            when="`close` is complete; nothing is left open",
            payload=("producer_id", "time"),
        ),
        "message.produced_async": EventSpec(
            when="one message was queued; emitted in the caller",
            payload=("producer_id", "message", "time"),
        ),
        "message.produced_sync": EventSpec(
            when="one message was queued and acknowledged; emitted in the caller",
            payload=("producer_id", "message", "time"),
        ),
        "messages.produced_async": EventSpec(
            when="a batch was queued; emitted in the caller",
            payload=("producer_id", "messages", "time"),
        ),
        "messages.produced_sync": EventSpec(
            when="a batch was queued and acknowledged; emitted in the caller",
            payload=("producer_id", "messages", "time"),
        ),
        "message.buffered": EventSpec(
            when="one message was buffered; `buffer` has all buffered messages."
            " Emitted in the caller",
            payload=("producer_id", "message", "buffer", "time"),
        ),
        "messages.buffered": EventSpec(
            when="several messages were buffered; `buffer` has all buffered messages."
            " Emitted in the caller",
            payload=("producer_id", "messages", "buffer", "time"),
        ),
        "buffer.flushed_async": EventSpec(
            when="the whole buffer was queued, even if it was empty; `close` emits"
            " this event too",
            payload=("producer_id", "messages", "time"),
        ),
        "buffer.flushed_sync": EventSpec(
            when="the whole buffer was queued and acknowledged, even if it was empty",
            payload=("producer_id", "messages", "time"),
        ),
        "message.acknowledged": EventSpec(
            when="the broker has acknowledged the message, as `acks` demands; emitted"
            " before its handle is done",
            payload=(
                "producer_id",
                "topic",
                "partition",
                "offset",
                "label",
                "delivery_report",
            ),
        ),
        "message.purged": EventSpec(
            when="a message of a transactional producer was dropped by a rollback or"
            " by `purge`, which is not an error there; emitted before its handle is"
            " done",
            payload=(
                "producer_id",
                "topic",
                "partition",
                "offset",
                "label",
                "delivery_report",
                "error",
                "type",
            ),
            own_types={
                "partition": "int | None",
                "delivery_report": "None",
                "error": "MessagePurgedError",
            },
        ),
        "transaction.started": EventSpec(
            when="a transaction has started",
            payload=("producer_id", "time"),
        ),
        "transaction.marked_as_consumed": EventSpec(
            when="the offset of `message` was added to the transaction; emitted in the"
            " caller",
            payload=("producer_id", "message", "offset_metadata", "time"),
            own_types={"message": "ConsumedMessage"},
        ),
        "transaction.committed": EventSpec(
            when="a transaction was committed",
            payload=("producer_id", "time"),
        ),
        "transaction.aborted": EventSpec(
            when="a transaction was rolled back",
            payload=("producer_id", "time"),
        ),
        "transaction.finished": EventSpec(
            when='a transaction has ended: `outcome` is "committed", "aborted" or'
            ' "unknown", and `time` covers the whole transaction',
            payload=("producer_id", "outcome", "time"),
        ),
        "oauthbearer.token_refresh": EventSpec(
            when="a token is needed, and the producer has no `oauth_token_provider`: a"
            " listener answers by calling `bearer.set_token` or `bearer.set_failure`."
            " Emitted on a native thread of its own; see docs/run/oauth.md",
            payload=("producer_id", "bearer"),
        ),
        "statistics.emitted": EventSpec(
            when="librdkafka has emitted its statistics, every"
            " `statistics.interval.ms`; see docs/observe/statistics.md",
            payload=("producer_id", "statistics"),
        ),
        "hub.stalled": EventSpec(
            when="the hub was blocked for `seconds` while messages were in flight (see"
            " the setting `stall_alarm`); `stack` is the stack at that time, or None;"
            " see docs/observe/stalls.md",
            payload=("producer_id", "seconds", "stack"),
        ),
        "error.occurred": EventSpec(
            when="something failed; `type` says what, `error` is the exception",
            payload=("producer_id", "error", "type"),
            optional=(
                "message",
                "messages",
                "dispatched",
                "topic",
                "partition",
                "offset",
                "label",
                "delivery_report",
                "attempt",
                "retry",
                "event",
                "left_out",
            ),
            own_types={
                "partition": "int | None",
                "delivery_report": "None",
            },
        ),
    }
)


#: The events of the process, emitted by `greendrop.monitor`.
PROCESS_EVENTS: Mapping[EventName, EventSpec] = MappingProxyType(
    {
        "producer.created": EventSpec(
            when="a `Producer` was constructed; it has no settings yet, and so no id",
            payload=("producer", "producer_id"),
            own_types={"producer_id": "None"},
        ),
        "producer.configured": EventSpec(
            when="a producer has been configured and has opened nothing yet: the"
            " moment to subscribe listeners or to add middleware. `config` has its"
            " settings by name, without secrets",
            payload=("producer", "producer_id", "config"),
        ),
        "producer.closed": EventSpec(
            when="a producer was closed; the producer's own monitor emits this event"
            " too",
            payload=("producer_id", "time"),
        ),
        "connection_pool.created": EventSpec(
            when="a `ProducerPool` was constructed; `timeout` is in seconds",
            payload=("pool", "size", "timeout"),
        ),
        "connection_pool.setup": EventSpec(
            when="a pool became the default pool, by `set_default_pool`",
            payload=("pool", "size", "timeout"),
        ),
        "connection_pool.reload": EventSpec(
            when="a pool is about to replace its producers",
            payload=("pool",),
        ),
        "connection_pool.reloaded": EventSpec(
            when="a pool has retired its producers and will create new ones",
            payload=("pool",),
        ),
        "connection_pool.shutdown": EventSpec(
            when="a pool was closed; emitted once",
            payload=("pool",),
        ),
    }
)


#: The values of `type` in `error.occurred`.
ERROR_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "message.produce_sync": "a `produce_sync` failed, or its message waits for"
        " space in the queue (then `error` is a `QueueFullError`)",
        "message.produce_async": "the same for a `produce_async`",
        "message.produce_many_sync": "a message of a batch waits for space in the"
        " queue",
        "message.produce_many_async": "the same",
        "messages.produce_many_sync": "a `produce_many_sync` failed; the payload also"
        " has `messages` and `dispatched`",
        "messages.produce_many_async": "a `produce_many_async` failed; the payload"
        " also has `messages` and `dispatched`",
        "buffer.flush": "`close` did not deliver every buffered message; those messages"
        " stay readable in `buffered`, also after `close(force=True)`",
        "librdkafka.dispatch_error": "one message was not delivered; the payload also"
        " has `topic`, `partition` (None if none was assigned), `label`, and `offset`"
        " and `delivery_report`, which are None",
        "librdkafka.error": "librdkafka reports a problem: a broker is down, or"
        " authentication fails. Usually it recovers by itself; see `error.fatal`",
        "librdkafka.idempotent_fatal_error": "an idempotent producer had a fatal"
        " error, and its client is about to be replaced; the payload also has"
        " `attempt`. Or the replacement failed, and `error` says why",
        "transaction.init": "the brokers refused to initialize a transactional"
        " producer; the payload also has `retry` (whether it will be tried again) and"
        " `attempt`",
        "transaction.begin": "a transaction could not be begun; the payload also has"
        " `retry` and `attempt`",
        "transaction.store_offset": "marking messages as consumed failed; the payload"
        " also has `retry` and `attempt`",
        "transaction.commit": "a commit failed; the payload also has `retry` and"
        " `attempt`",
        "transaction.abort": "an abort failed; the payload also has `retry` and"
        " `attempt`",
        "transaction.reload": "the configuration that listeners of `producer.reload`"
        " left is invalid, so no new client was created",
        "oauthbearer.token_refresh": "no OAuth token could be obtained: `error` is an"
        " `OAuthTokenError`. While clients are connected, greendrop tries again after"
        " 10 s. Emitted on the thread of the refresh",
        "producer.disconnect.error": "disconnecting an idle producer failed",
        "listener.error": "a listener or a function of `add_done_callback` raised;"
        " the payload also has `event`, the name"
        " of the event that the listener was called for, and `left_out`, the number of"
        " similar errors that were not reported: each combination of event and"
        " exception type is reported once a minute",
    }
)


class Event(TypedEvent[EventName_co]):
    """One event, as listeners receive it: a name, and a payload of named values.

    `event["topic"]` reads one value, and raises `KeyError` for an unknown name.

    Type checkers know the payload of each event: those of
    `Event[Literal["message.acknowledged"]]`, for one. A plain `Event` may be any of
    them.

    Attributes:
        name: The event's name.
        payload: Its values by their names.
    """

    __slots__ = ("name", "payload")

    def __init__(self, name: EventName, payload: Mapping[str, Any]) -> None:
        self.name: str = name
        self.payload = payload

    def __repr__(self) -> str:
        return f"<Event {self.name} {', '.join(self.payload)}>"


Listener = Callable[[Event], object]
_L = TypeVar("_L", bound=Listener)
_N = TypeVar("_N", bound=EventName)
_O = TypeVar("_O")
_R = TypeVar("_R")


_ERRORS: Literal["error.occurred"] = "error.occurred"
# Events that a verb emits for each message.
_PER_MESSAGE = frozenset({"message.produced_sync", "message.produced_async"})


class Monitor:
    """The listeners of one producer, or of the process.

    Listeners may be added and removed at any time and from any thread. An event that is
    being emitted reaches the listeners that were there when it began.

    Args:
        events: The table of the events that it emits.
        hooks: Holds the names of the events that need to see each message, while they
            have listeners: see `Core.hooks`.
    """

    def __init__(
        self,
        events: Mapping[EventName, EventSpec] = EVENTS,
        hooks: set[object] | None = None,
    ) -> None:
        #: The table of the events that it emits.
        self.events = events
        self._hooks: set[object] = set() if hooks is None else hooks
        #: Listeners by event. Copied on write, so readers never see half a change. Only
        #: events with listeners are in it: `name in monitor.listeners` is the cheapest
        #: check on the hot path.
        self.listeners: Mapping[str, tuple[tuple[object, Listener], ...]] = {}
        self._lock = _concurrency.new_lock()
        self._statistics_frozen = False
        self._failures = RateLimiter()
        # Running listeners of `error.occurred`, by task.
        self._error_listeners_running: set[tuple[object, int]] = set()

    def listens(self, name: str) -> bool:
        """Return whether an event has listeners; check before building a payload."""
        return name in self.listeners

    @overload
    def subscribe(
        self, target: _N, listener: Callable[[Event[_N]], _R]
    ) -> Callable[[Event[_N]], _R]: ...
    @overload
    def subscribe(
        self, target: _N
    ) -> Callable[[Callable[[Event[_N]], _R]], Callable[[Event[_N]], _R]]: ...
    @overload
    def subscribe(self, target: _O) -> _O: ...

    def subscribe(self, target: object, listener: Listener | None = None) -> object:
        """Subscribe a function to one event, or an object to every event it handles.

        Three forms: `subscribe("message.acknowledged", fn)`, the decorator
        `@subscribe("message.acknowledged")`, and `subscribe(listener)`, whose methods
        `on_message_acknowledged(event)` and so on are called.

        Raises:
            EventNotRegisteredError: This monitor has no event of that name.
            TypeError: The listener can't be called, or is a class with such methods.
            StatisticsNotEnabledError: The client was built without statistics. After
                `disconnect` it may be tried again.
        """
        if isinstance(target, str):
            self._check_name(target)
            if listener is None:
                return partial(self._add_function, target)
            return self._add_function(target, listener)
        if isinstance(target, type):
            text = f"{target.__name__} is a class; subscribe an object of it"
            raise TypeError(text)
        methods = {
            name: method
            for name in self.events
            if callable(method := getattr(target, "on_" + name.replace(".", "_"), None))
        }
        if not methods:
            text = f"{target!r} has no method for any event (on_message_acknowledged)"
            raise EventNotRegisteredError(text)
        return self._add(methods, target)

    def unsubscribe(self, listener: object) -> None:
        """Remove a function or object from all events; unknown ones are ignored."""
        with self._lock:
            self.listeners = {
                name: kept
                for name, pairs in self.listeners.items()
                if (kept := tuple(pair for pair in pairs if pair[0] != listener))
            }
            self._hooks.difference_update(_PER_MESSAGE.difference(self.listeners))

    def emit(
        self,
        name: EventName,
        payload: Mapping[str, Any],
        swallow: type[BaseException] = Exception,
    ) -> None:
        """Emit an event: call its listeners.

        An exception of a listener is logged and emitted as `error.occurred` with type
        `listener.error`, once a minute for each event and class of exception. The other
        listeners are called all the same.

        Args:
            name: A key of the table.
            payload: The values that the table lists for it.
            swallow: Exceptions of listeners that are swallowed. In the caller's
                greenlet these are not `gevent.Timeout` and `GreenletExit`, which are
                meant for the caller. In the poller nothing is meant for anything else.
        """
        listeners = self.listeners.get(name)
        if not listeners:
            return
        event = Event(name, payload)
        for _, listener in listeners:
            try:
                if name == _ERRORS:
                    self._call_error_listener(event, listener)
                else:
                    listener(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except swallow as error:
                self._log_failure(name, payload, error, swallow)

    def _call_error_listener(self, event: Event, listener: Listener) -> None:
        # A listener of error.occurred that causes another error is not called again for
        # that one: it could recurse without end.
        running = (_concurrency.current_task(), id(listener))
        if running not in self._error_listeners_running:
            self._error_listeners_running.add(running)
            try:
                listener(event)
            finally:
                self._error_listeners_running.discard(running)

    def _log_failure(
        self,
        name: str,
        payload: Mapping[str, Any],
        error: BaseException,
        swallow: type[BaseException],
    ) -> None:
        error_type = payload.get("type")
        suppressed = self._failures.suppressed((name, error_type, type(error)))
        if suppressed is None:
            return
        more = {"left_out": suppressed} if suppressed else {}
        producer_id = payload.get("producer_id")
        _log.write(
            ERROR,
            "listener.error",
            exc_info=error,
            producer_id=producer_id,
            listener_of=name,
            **more,
        )
        if error_type == "listener.error":
            return  # a listener of failing listeners failed; the log has it
        payload = {"producer_id": producer_id, "error": error, "type": "listener.error"}
        payload = {**payload, "event": name, **more}
        self.emit(_ERRORS, payload, swallow)

    def log_callback_error(self, producer_id: str, error: BaseException) -> None:
        """Log and emit the exception of a function of `add_done_callback`.

        As for a listener; `event` is then "add_done_callback".
        """
        payload = {"producer_id": producer_id}
        self._log_failure("add_done_callback", payload, error, BaseException)

    def freeze_statistics(self, frozen: bool) -> None:  # noqa: FBT001 - one flag
        """Refuse, or allow again, subscriptions to statistics.

        They are refused while the client was built without statistics.
        """
        self._statistics_frozen = frozen

    def _add_function(self, name: str, listener: _L) -> _L:
        _check_callable(listener)
        return self._add({name: listener}, listener)

    def _add(self, added: Mapping[Any, Listener], owner: _O) -> _O:
        if self._statistics_frozen and "statistics.emitted" in added:
            text = (
                "statistics are off: they had no listener when the client was built, or"
                " statistics.interval.ms is 0; subscribe before the first message"
            )
            raise StatisticsNotEnabledError(text)
        with self._lock:
            listeners = dict(self.listeners)
            self._hooks.update(_PER_MESSAGE.intersection(added))
            for name, listener in added.items():
                listeners[name] = (*listeners.get(name, ()), (owner, listener))
            self.listeners = listeners
        return owner

    def _check_name(self, name: str) -> None:
        if name in self.events:
            return
        near = get_close_matches(name, self.events, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if name in EVENTS:
            hint = "; subscribe to it at producer.monitor"
        elif name in PROCESS_EVENTS:
            hint = "; subscribe to it at greendrop.monitor"
        raise EventNotRegisteredError(f"no event {name!r}{hint}")


def _check_callable(listener: object) -> None:
    if not callable(listener):
        kind = type(listener).__name__
        raise TypeError(f"a listener needs to be callable, not {kind}")


#: Emits the events of all producers and pools of this process. Other libraries use it
#: to add listeners and middleware to each producer when it is configured.
monitor = Monitor(PROCESS_EVENTS)
