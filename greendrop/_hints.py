"""Hints for callers that use the names of other clients.

Each row names what confluent-kafka or kafka-python calls something, and what greendrop
calls it. Nothing here runs unless a call or an attribute is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar

_PRODUCE = (
    "use produce_async(topic=..., payload=...), which returns a handle, or"
    " produce_sync(topic=..., payload=...), which waits for the delivery report"
)
_TRANSACTION = "use `with producer.transaction() as transaction:`"

#: Methods and attributes of other producers.
_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "produce": f"{_PRODUCE}; the handle takes the place of on_delivery=",
        "produce_batch": "use produce_many_async or produce_many_sync",
        "send": _PRODUCE,
        "send_and_wait": "use produce_sync(topic=..., payload=...)",
        "send_batch": "use produce_many_async or produce_many_sync",
        "poll": "it is not needed: delivery reports and events arrive by themselves",
        "list_topics": "use partition_count(topic)",
        "partitions_for": "use partition_count(topic)",
        "metrics": "subscribe to the event statistics.emitted",
        "bootstrap_connected": "see status",
        "start": "it is not needed: the first message connects",
        "stop": "use close()",
        "init_transactions": f"it is not needed; {_TRANSACTION}",
        "begin_transaction": _TRANSACTION,
        "commit_transaction": f"{_TRANSACTION}, whose end commits",
        "abort_transaction": f"{_TRANSACTION}, and transaction.abort()",
        "send_offsets_to_transaction": f"{_TRANSACTION}, and"
        " transaction.mark_as_consumed(consumer, message)",
        "set_sasl_credentials": "set sasl.username and sasl.password in `kafka`",
    }
)

_HANDLE = (
    "use the handle that produce_async returns, and its add_done_callback, or subscribe"
    " to message.acknowledged and error.occurred"
)

#: Arguments of the methods that send one message.
_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "value": "use payload",
        "message": "use payload",
        "data": "use payload",
        "on_delivery": _HANDLE,
        "callback": _HANDLE,
        "opaque": "use label",
        "timestamp_ms": "use timestamp",
        "partitioner": "set it in `kafka`, or in the topic_config of a variant",
        "timeout": "use a variant(max_wait_timeout=...), or the timeout of handle.wait",
    }
)

#: Methods of the futures of other clients.
_HANDLE_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "get": "use wait(timeout) or result(timeout), which return the delivery report",
        "add_callback": "use add_done_callback, whose function gets the handle",
        "add_errback": "use add_done_callback, whose function gets the handle",
        "add_both": "use add_done_callback, whose function gets the handle",
        "succeeded": "see report, which is None unless the message was delivered",
        "failed": "see error, which is None unless the message was not delivered",
        "is_done": "see done",
        "value": "see report",
    }
)

_NO_SERIALIZERS = "serialize the payload before, or in producer.middleware"

#: Settings of kafka-python that are not librdkafka's keys with underscores.
_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "key_serializer": _NO_SERIALIZERS,
        "value_serializer": _NO_SERIALIZERS,
        "max_block_ms": "use wait_timeout_on_queue_full, in seconds",
        "buffer_memory": "set queue.buffering.max.kbytes in kafka={...}",
        "sasl_plain_username": "set sasl.username in kafka={...}",
        "sasl_plain_password": "set sasl.password in kafka={...}",
        "ssl_cafile": "set ssl.ca.location in kafka={...}",
        "ssl_certfile": "set ssl.certificate.location in kafka={...}",
        "ssl_keyfile": "set ssl.key.location in kafka={...}",
        "api_version": "it is not needed",
    }
)

#: Settings of theirs that are librdkafka's keys with underscores instead of dots.
_KAFKA_KEYS = frozenset(
    (
        "acks",
        "batch_size",
        "bootstrap_servers",
        "client_id",
        "compression_type",
        "enable_idempotence",
        "linger_ms",
        "max_in_flight_requests_per_connection",
        "metadata_max_age_ms",
        "request_timeout_ms",
        "retries",
        "retry_backoff_ms",
        "sasl_mechanism",
        "security_protocol",
        "transactional_id",
    )
)

_F = TypeVar("_F", bound=Callable[..., Any])

#: The value of a required argument that was not given.
MISSING: Any = object()


class NoFields(TypedDict):
    """The unknown arguments of a verb: type checkers report each of them."""


def attribute_error(owner: object, name: str) -> AttributeError:
    """Make the error of an attribute of a producer that does not exist."""
    return _attribute_error(owner, name, _METHODS)


def handle_attribute_error(owner: object, name: str) -> AttributeError:
    """Make the error of an attribute of a handle that does not exist."""
    return _attribute_error(owner, name, _HANDLE_METHODS)


def _attribute_error(
    owner: object, name: str, hints: Mapping[str, str]
) -> AttributeError:
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in hints:
        text = f"{text}; {hints[name]}"
    return AttributeError(text, name=name, obj=owner)


def setting_hint(name: str) -> str:
    """Say what to use instead of a setting of another client; or ""."""
    if name in _KAFKA_KEYS:
        return f"set {name.replace('_', '.')} in kafka={{...}}"
    return _SETTINGS.get(name, "")


def hinted(verb: _F) -> _F:
    """Let a verb explain wrong calls itself: see `call_error`.

    Documentation doesn't show what the verb accepts only for that. Each required
    argument gets the default `MISSING`, which type checkers don't see.
    """
    signature = inspect.signature(verb)
    named = [
        each
        for each in signature.parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    function: Any = verb
    function.__signature__ = signature.replace(parameters=named)
    required = [
        each.name
        for each in named
        if each.kind is each.KEYWORD_ONLY and each.default is each.empty
    ]
    function.__kwdefaults__ = {
        **dict.fromkeys(required, MISSING),
        **function.__kwdefaults__,
    }
    return verb


def call_error(
    verb: Callable[..., Any],
    positional: Sequence[object],
    unknown: Iterable[str],
    **required: object,
) -> TypeError:
    """Make the error of a verb that was called with the wrong arguments.

    Args:
        verb: The bound method.
        positional: Arguments without a name.
        unknown: Names of arguments that it doesn't have.
        required: Arguments that it needs; `MISSING` if they were not given.
    """
    name = verb.__name__
    fields = list(inspect.signature(verb).parameters)
    mistakes = []
    for argument in unknown:
        hint = argument_hint(argument, fields)
        mistakes.append(f"{argument!r} is no argument{hint and f'; {hint}'}")
    missing = [key for key, value in required.items() if value is MISSING]
    if positional:
        mistakes.append(_positional_hint(name, positional[0], required))
    elif missing and not mistakes:
        names = " and ".join(map(repr, missing))
        kind = "arguments" if len(missing) > 1 else "argument"
        mistakes.append(f"missing the {kind} {names}")
    return TypeError(f"Producer.{name}(): {'; '.join(mistakes)}")


def _positional_hint(verb: str, argument: object, required: Iterable[str]) -> str:
    if hasattr(argument, "_asdict"):
        return f"all arguments are keywords: {verb}(**message._asdict())"
    if isinstance(argument, Mapping):
        return f"all arguments are keywords: {verb}(**message)"
    names = ", ".join(f"{name}=..." for name in required)
    return f"all arguments are keywords: {verb}({names})"


def argument_hint(name: str, fields: Sequence[str]) -> str:
    """Say what to use instead of an unknown argument, or key, of a message; or ""."""
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    near = get_close_matches(name, fields, 1)
    return f"did you mean {near[0]!r}?" if near else ""
