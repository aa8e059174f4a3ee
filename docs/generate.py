"""Write the generated pages of the documentation.

docs/reference/settings.md, events.md and the tables of errors.md come from the tables
and classes in the code, and so do the types of events, greendrop/_typed_event.pyi.
docs/reliability.md comes from docs/reliability.py and the results in
docs/reliability.json. Run it after a change of one; a test fails if that was forgotten.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import runpy
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greendrop import errors, events
from greendrop.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

DOCS = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py; changes here are lost. -->\n"

#: Headings of the settings page. A setting that is named nowhere comes under `OTHER`.
SETTING_GROUPS = {
    "Messages and waiting": (
        "id",
        "max_payload_size",
        "max_wait_timeout",
        "wait_on_queue_full",
        "wait_timeout_on_queue_full",
        "instrument_on_wait_queue_full",
        "max_serve_time",
    ),
    "Connecting and closing": (
        "idle_disconnect_timeout",
        "exit_timeout",
        "oauth_token_provider",
    ),
    "Monitoring": ("stall_alarm", "statistics_deltas"),
    "Recovery of idempotent producers": (
        "reload_on_idempotent_fatal_error",
        "wait_backoff_on_idempotent_fatal_error",
        "max_attempts_on_idempotent_fatal_error",
        "non_reloadable_errors",
    ),
    "Transactions": (
        "wait_timeout_on_transaction_abort",
        "wait_backoff_on_transaction_command",
        "max_attempts_on_transaction_command",
        "reload_on_transaction_fatal_error",
        "wait_backoff_on_transaction_fatal_error",
        "max_attempts_on_transaction_fatal_error",
    ),
}

#: Headings of the events page, by the beginning of an event's name.
EVENT_GROUPS = {
    "Sending": ("message.produced", "messages.produced"),
    "Delivery": ("message.acknowledged", "message.purged"),
    "Buffer": ("message.buffered", "messages.buffered", "buffer."),
    "Life of the producer": ("producer.",),
    "Transactions": ("transaction.",),
    "Monitoring": ("statistics.", "hub."),
    "OAuth tokens": ("oauthbearer.",),
    "Errors": ("error.",),
}

OTHER = "Other"

#: Why greendrop gives a key of librdkafka another default than librdkafka does.
KAFKA_REASONS = {
    "client.id": "Brokers identify clients by it in logs and quotas.",
    "linger.ms": "A caller that waits wants its message sent at once; librdkafka's 5 ms"
    " would be added to each call. Messages that several greenlets send at the same"
    " time are batched by greendrop instead. If you set a value above 0, you get"
    " exactly that value and greendrop does not batch.",
    "message.timeout.ms": "Shorter than `max_wait_timeout`, so that librdkafka's final"
    " result arrives before the wait ends. With a `transactional.id` never above your"
    " `transaction.timeout.ms`.",
    "socket.nagle.disable": "A small request must not wait until the previous one was"
    " acknowledged.",
    "statistics.interval.ms": "Only if something has subscribed to"
    " `statistics.emitted` before the first message; otherwise 0.",
    "sticky.partitioning.linger.ms": "Only if you don't set `linger.ms`. librdkafka's"
    " own default, otherwise lowered to 0. Messages without a key go to one partition"
    " for 10 ms, and then to another one at random, so that a batch leaves as one"
    " request instead of one for each partition. The partitions get equal shares of"
    " the time, not of the messages. Greenlets that wait for each report send less"
    " during the 10 ms of a partition whose broker is slow, so its partitions get fewer"
    " messages, and the others more. A partition can get none for some multiple of"
    " 10 ms times the number of partitions: seconds with 50. Set 0 to send each message"
    " to a random partition: the shares are equal within a second, a slow broker slows"
    " down all senders, and there are more requests. See"
    " docs/decisions/0028-sticky-partitions.md.",
    "transaction.timeout.ms": "Only with a `transactional.id`. librdkafka requires it"
    " to be at least `message.timeout.ms`.",
}

#: What to do about an error. Each class of greendrop.errors has a row.
ADVICE = {
    "NotSentError": "see the subclasses",
    "MessageInvalidError": "correct the message",
    "MiddlewareError": "look at the cause; `step` is the name of the step of the"
    " docs/send/middleware.md",
    "QueueFullError": "slow down, or send it again later",
    "OAuthTokenError": "look at the cause; send it again later; see docs/run/oauth.md",
    "ConfigurationInvalidError": "correct the settings; librdkafka's are named as in"
    " `kafka.acks`",
    "ProducerNotConfiguredError": "call `setup`",
    "ProducerClosedError": "send it by another producer, or process; see"
    " docs/run/closing.md",
    "ProducerUsedInParentProcessError": "call `reset()`; see docs/run/forks.md",
    "PoolTimeoutError": "a larger pool, or shorter use; see docs/send/pools.md",
    "PoolClosedError": "create another pool",
    "PoolNotConfiguredError": "call `set_default_pool`",
    "NotDeliveredError": "send it again if a duplicate does no harm",
    "DeliveryError": "look at `error.name`; send it again if a duplicate does no harm",
    "MessagePurgedError": "as above; the text says whether a broker may have stored"
    " the message",
    "OutcomeUnknownError": "do not simply send it again: make consumers tolerate"
    " duplicates first",
    "DeliveryTimeoutError": "wait longer, or as above",
    "FlushTimeoutError": "flush again; `count` is the number of these messages",
    "ReportLostError": "make consumers tolerate duplicates if you send it again",
    "IllegalWaitError": "wait in a greenlet of its own, or use `produce_async`",
    "TransactionError": "see the subclasses, and docs/send/transactions.md",
    "TransactionAbortedError": "run it again",
    "TransactionBusyError": "run it again later; see docs/send/transactions.md",
    "TransactionUnknownError": "do not simply run it again",
    "ProduceManyError": "look at each handle of `dispatched`",
    "VariantInvalidError": "correct the arguments; see docs/send/variants.md",
    "ProducerAlreadyConfiguredError": "call `setup` once",
    "EventNotRegisteredError": "see docs/reference/events.md",
    "StatisticsNotEnabledError": "subscribe earlier; see docs/observe/statistics.md",
    "MessagesAbandonedError": "save the messages in `buffered`; see"
    " docs/run/closing.md",
    "AbortTransaction": "nothing: it does not leave the block of the transaction",
    "ProducerNotTransactionalError": "set `transactional.id`",
    "TransactionRequiredError": "do it in the block of the transaction",
    "TransactionalOffsetInvalidError": "correct the arguments; `errors` names each",
    "ProducerTransactionalCloseAttemptError": "close it after the block",
    "BrokerError": "read `code` and `name`, which `ProduceError` has too",
}


def settings_page() -> str:
    """Write the page of settings."""
    plain = settings.build_settings({"bootstrap.servers": "host"}, {}).kafka
    with_id = {"bootstrap.servers": "host", "transactional.id": "id"}
    defaults = {**settings.build_settings(with_id, {}).kafka, **plain}
    kafka = (
        _section(f"`{key}` = `{value}`", _linked(KAFKA_REASONS[key]))
        for key, value in sorted(defaults.items())
        if key not in with_id
    )
    return f"""# Settings

{NOTE}
These are the keyword arguments of `Producer` and `setup`. Durations are in seconds.
More than a day (86,400) is refused, because it looks like milliseconds. All mistakes
are reported together, by one `ConfigurationInvalidError`.

```python
from greendrop import Producer

producer = Producer(
    kafka={{"bootstrap.servers": "localhost:9092"}},  # librdkafka's keys
    max_wait_timeout=30.0,  # greendrop's settings
)

later = Producer()  # configured later, once
later.setup(kafka={{"bootstrap.servers": "localhost:9092"}}, max_wait_timeout=30.0)
```

{_table(("setting", "default"), _setting_rows())}
{"".join(_setting_sections())}## librdkafka's configuration

The mapping `kafka` is librdkafka's configuration, with [its own
keys](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md) and
units. Everything that is not listed here keeps librdkafka's default.

`bootstrap.servers` is required: `HOST:PORT`, several of them separated by commas, or a
list of them. IPv6 addresses are written in brackets.

Numbers are plain decimals: librdkafka itself would read `"1e+06"` as 1 and `"100k"` as
100, so these are refused. Settings and keys that have no effect, such as a consumer's
`group.id`, or `transaction.timeout.ms` without a `transactional.id`, are logged once as
the warning `configuration.no_effect`, with the reason.

Callbacks (`error_cb`, `stats_cb`, `on_delivery` and so on) are refused, and the error
names the event to subscribe to instead: a callback would run inside librdkafka, where a
greenlet that waits can abort the process. `delivery.report.only.error` must not be
true, because the handles of delivered messages would never be done.

greendrop changes these defaults:

{"".join(kafka)}"""


def _setting_rows() -> Iterator[tuple[str, str]]:
    for each in settings.SETTINGS:
        yield f"[`{each.name}`](#{each.name})", f"`{_written(each.default)}`"


def _setting_sections() -> Iterator[str]:
    known = {each.name: each for each in settings.SETTINGS}
    for title, names in SETTING_GROUPS.items():
        yield f"## {title}\n\n"
        yield from (_setting(known.pop(name)) for name in names)
    if known:
        yield f"## {OTHER}\n\n"
        yield from map(_setting, known.values())


def _setting(each: settings.Setting) -> str:
    unit = "" if each.unit in {"yes or no", "text", "a function"} else f" {each.unit}"
    value = f"Default: `{_written(each.default)}`{unit}. Value: {each.rule}."
    return _section(f"`{each.name}`", _linked(each.why), value)


def listed_events() -> str:
    """Write the page of events."""
    types = (
        _section(f"`{name}`", f"{_sentence(_linked(text))}")
        for name, text in events.ERROR_TYPES.items()
    )
    return f"""# Events

{NOTE}
[Subscribing to events](../observe/events.md) shows how to listen, and where listeners
run. Each event is listed with the keys of its payload and their types, which type
checkers know; `time` is in seconds. Names and keys are those of WaterDrop, except for
[a few](../coming-from/waterdrop.md#events).

{"".join(_event_sections(events.EVENTS))}## Events of the process

`greendrop.monitor` emits these for all producers and pools of the process.

{"".join(map(_event, events.PROCESS_EVENTS.items()))}## Types of `error.occurred`

`type` says what failed, and `error` is the exception. If a `produce_sync` is not
delivered, two events are emitted: the poller emits `librdkafka.dispatch_error`, and the
caller emits `message.produce_sync`.

{"".join(types)}"""


def errors_page() -> str:
    """Write the page of errors: its tables; the rest is written by hand."""
    page = (DOCS / "reference" / "errors.md").read_text()
    rows = [_error_row(each) for each in _below(errors.ProduceError)]
    head = ("error", "`message_state`", "meaning", "what to do")
    page = _with_table(page, "message", _table(head, rows))
    others = _below(errors.GreendropError, leave_out=errors.ProduceError)
    rows = [(name, *texts) for name, _, *texts in map(_error_row, others)]
    return _with_table(page, "others", _table((head[0], *head[2:]), rows))


def _with_table(page: str, name: str, table: str) -> str:
    """Put a table between the two comments that mark its place in a page."""
    place = rf"(<!-- table: {name}; [^\n]*-->\n\n).*?(?=\n<!-- end -->)"
    return re.sub(place, lambda found: found[1] + table, page, flags=re.DOTALL)


def _below(
    cls: type[errors.GreendropError],
    leave_out: type[errors.GreendropError] | None = None,
) -> list[type[errors.GreendropError]]:
    """List the public classes below one, each followed by its own subclasses."""
    classes: list[type[errors.GreendropError]] = []
    for each in vars(errors).values():
        if not inspect.isclass(each) or each is leave_out or each.__name__[0] == "_":
            continue
        if issubclass(each, cls) and _parent(each) is cls:
            classes += [each, *_below(each)]
    return classes


def _parent(cls: type) -> type:
    return next(each for each in cls.__mro__[1:] if each.__name__[0] != "_")


def _error_row(cls: type[errors.GreendropError]) -> tuple[str, ...]:
    summary = " ".join((cls.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
    # These two have the state of each case.
    varies = cls in (errors.IllegalWaitError, errors.ProduceManyError)
    state = getattr(cls, "_message_state", "")
    written = "each has its own" if varies else f'`"{state}"`'
    if issubclass(cls, errors.DeliveryError):
        written += ' or `"unknown"`'
    return f"`{cls.__name__}`", written, summary, _linked(ADVICE[cls.__name__])


def _event_sections(table: Mapping[Any, events.EventSpec]) -> Iterator[str]:
    rest = dict(table)
    for title, starts in EVENT_GROUPS.items():
        yield f"## {title}\n\n"
        for name in [name for name in rest if name.startswith(starts)]:
            yield _event((name, rest.pop(name)))
    if rest:
        yield f"## {OTHER}\n\n"
        yield from map(_event, rest.items())


def _event(row: tuple[Any, events.EventSpec]) -> str:
    name, spec = row
    keys = ", ".join(f"`{key}: {spec.types[key]}`" for key in spec.payload)
    return _section(f"`{name}`", _sentence(_linked(spec.when)), f"Payload: {keys}.")


def _section(title: str, *paragraphs: str) -> str:
    return "\n\n".join((f"### {title}", *paragraphs)) + "\n\n"


def _sentence(text: str) -> str:
    """Begin with a capital letter, unless with code, and end with a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _linked(text: str) -> str:
    """Turn `docs/x/y.md` of a table in the code into a link."""
    return re.sub(
        r"docs/(\w+/([\w-]+))\.md",
        lambda found: f"[{found[2]}](../{found[1]}.md)",
        text,
    )


def _written(value: object) -> str:
    """Write a default as a Python program would."""
    return f"{value:_}" if type(value) is int else repr(value)


#: The modules of the types in payloads. Some import names of those before them.
TYPE_MODULES = (
    "collections.abc",
    "typing",
    "greendrop.errors",
    "greendrop.events",
    "greendrop.message",
    "greendrop.delivery",
    "greendrop.oauth",
    "greendrop._transactions.coordinator",
    "greendrop.transaction",
    "greendrop.producer",
    "greendrop.pool",
)


def typed_event() -> str:
    """Write the stub that gives each key of each event's payload its type."""
    overloads = "".join(_overloads())
    names = {"Any", "Generic", "Literal", "overload", "EventName"}
    names |= set(re.findall(r"\b[A-Z]\w+\b", overloads))
    names -= vars(builtins).keys() | {"TypedEvent"}
    return f"""# The types of the payloads of events: what `event[key]` returns.
# Made by docs/generate.py; changes here are lost.

{"".join(_imports(names))}
from typing_extensions import TypeVar

EventName_co = TypeVar("EventName_co", bound=EventName, covariant=True, default=Any)

class TypedEvent(Generic[EventName_co]):
{overloads}"""


def _overloads() -> Iterator[str]:
    """Write a signature for each key and type, with the names of its events.

    The first type of a key is the one that most events have. Type checkers use it for
    an `Event` that may be any of them.
    """
    named: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, kind in events.PAYLOAD_TYPES.items():
        named[key, kind] = []
    for name, spec in {**events.EVENTS, **events.PROCESS_EVENTS}.items():
        for key, kind in spec.types.items():
            named[key, kind].append(name)
    for (key, kind), names in sorted(named.items(), key=lambda item: item[0][0]):
        literals = ",\n".join(f'            "{name}"' for name in sorted(names))
        yield f"""    @overload
    def __getitem__(
        self: TypedEvent[Literal[
{literals}
        ]],
        key: Literal["{key}"],
    ) -> {kind}: ...
"""


def _imports(names: set[str]) -> Iterator[str]:
    for module in TYPE_MODULES:
        found = sorted(names & vars(importlib.import_module(module)).keys())
        if found:
            yield f"from {module} import {', '.join(found)}\n"
        names = names - set(found)
    if names:
        raise LookupError(f"add the modules of {names} to TYPE_MODULES")


def pages() -> Mapping[Path, str]:
    """Return the text of each generated file."""
    reliability = runpy.run_path(str(DOCS / "reliability.py"))["page"](NOTE)
    return {
        DOCS / "reliability.md": reliability,
        Path(events.__file__).with_name("_typed_event.pyi"): typed_event(),
        DOCS / "reference" / "settings.md": settings_page().rstrip() + "\n",
        DOCS / "reference" / "events.md": listed_events().rstrip() + "\n",
        DOCS / "reference" / "errors.md": errors_page().rstrip() + "\n",
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
