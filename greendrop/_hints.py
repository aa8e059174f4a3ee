"""Hints for callers that use the names of other clients.

Each row names what confluent-kafka or kafka-python calls something, and what greendrop
calls it. Nothing here runs unless a call or an attribute is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

from greendrop.message import Message

#: The default of required arguments, so that a verb can say which one is missing.
REQUIRED: Any = object()

_TRANSACTION = "use `with producer.transaction() as transaction:`"

#: Methods and attributes of other producers.
_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "produce": "use produce_async(topic=..., payload=...), which returns a handle,"
        " or produce_sync(topic=..., payload=...), which waits for the delivery report",
        "produce_batch": "use produce_many_async or produce_many_sync",
        "send": "use produce_async(topic=..., payload=...), which returns a handle, or"
        " produce_sync(topic=..., payload=...), which waits for the delivery report",
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
        "value": "use payload=",
        "message": "use payload=",
        "data": "use payload=",
        "on_delivery": _HANDLE,
        "callback": _HANDLE,
        "opaque": "use label=",
        "timestamp_ms": "use timestamp=",
        "partitioner": "set it in `kafka`, or in the topic_config of a variant",
        "timeout": "use a variant(max_wait_timeout=...), or the timeout of handle.wait",
    }
)

_F = TypeVar("_F", bound=Callable[..., Any])


def attribute_error(owner: object, name: str) -> AttributeError:
    """Make the error of an attribute that does not exist."""
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in _METHODS:
        text = f"{text}; {_METHODS[name]}"
    return AttributeError(text, name=name, obj=owner)


def hinted(verb: _F) -> _F:
    """Have a verb itself raise the `call_error` of a wrong call.

    The verb accepts any arguments, and its required ones become `REQUIRED` if they are
    missing. Documentation and type checkers still see which arguments it takes.
    """
    function: Any = verb
    signature = inspect.signature(verb)
    named = [
        each
        for each in signature.parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    required = [each.name for each in named[1:] if each.default is each.empty]
    function.__signature__ = signature.replace(parameters=named)
    defaults = dict.fromkeys(required, REQUIRED)
    function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **defaults}
    return verb


def call_error(
    verb: str,
    positional: Iterable[object],
    unknown: Iterable[str],
    required: Mapping[str, object],
) -> TypeError:
    """Make the error of a verb that was called with the wrong arguments.

    Args:
        verb: Its name.
        positional: Arguments without a name.
        unknown: Names of arguments that it doesn't have.
        required: The arguments that it needs; those that are missing are `REQUIRED`.
    """
    missing = [name for name, value in required.items() if value is REQUIRED]
    mistakes = [f"{name!r} is no argument; {_hint_of(name)}" for name in unknown]
    for argument in positional:
        mistakes.append(_positional_hint(verb, argument, required))
        missing = []
        break
    if missing and not mistakes:
        names = ", ".join(map(repr, missing))
        mistakes.append(f"missing {names}")
    return TypeError(f"Producer.{verb}(): {'; '.join(mistakes)}")


def _hint_of(name: str) -> str:
    if name in _ARGUMENTS:
        return _ARGUMENTS[name]
    near = get_close_matches(name, Message._fields, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(Message._fields)}"


def _positional_hint(verb: str, argument: object, required: Iterable[str]) -> str:
    if isinstance(argument, Message):
        return f"pass the fields of a Message: {verb}(**message._asdict())"
    if isinstance(argument, Mapping):
        return f"pass the fields of a mapping: {verb}(**message)"
    if isinstance(argument, (list, tuple)):
        many = "buffer_many" if verb == "buffer" else verb.replace("_", "_many_")
        return f"several messages are sent by {many}(messages)"
    fields = ", ".join(f"{name}=..." for name in required)
    return f"all arguments are keywords: {verb}({fields})"
