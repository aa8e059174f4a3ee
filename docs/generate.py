"""Write the pages docs/reference/settings.md and events.md, and the names of events.

All of it from the tables in the code.

Run it after a change of a table; a test says when it was forgotten.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greendrop import events
from greendrop.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DOCS = Path(__file__).parent
NAMES = DOCS.parent / "greendrop" / "_event_names.py"
NOTE = "<!-- Made by docs/generate.py; changes here are lost. -->\n"

#: Why greendrop gives a key of librdkafka another default than librdkafka does.
KAFKA_REASONS = {
    "client.id": "Brokers' logs and quotas know clients by it.",
    "linger.ms": "One who waits wants the message sent now. librdkafka's 5 ms would be"
    " added to each call; what greenlets send together greendrop gathers by itself."
    " Set above 0, you get exactly that, and no gathering.",
    "message.timeout.ms": "Below `max_wait_timeout`, so that librdkafka's verdict comes"
    " before the wait is over. With a `transactional.id` never above your"
    " `transaction.timeout.ms`.",
    "socket.nagle.disable": "A small request must not wait until the last one was"
    " acknowledged.",
    "statistics.interval.ms": "Only when somebody has subscribed to"
    " `statistics.emitted` before the first message; otherwise 0.",
    "sticky.partitioning.linger.ms": "Only with a `transactional.id`, and where you"
    " don't set `linger.ms`. librdkafka's own value, which it takes for 0 then: the"
    " messages of a transaction without a key go to one partition, not to all.",
    "transaction.timeout.ms": "Only with a `transactional.id`. librdkafka wants it at"
    " or above `message.timeout.ms`.",
}


def settings_page() -> str:
    """Write the page of settings."""
    rows = (
        (
            f"`{each.name}`",
            f"`{_written(each.default)}`",
            each.unit,
            each.rule,
            each.why,
        )
        for each in settings.SETTINGS
    )
    plain = settings.build_settings({"bootstrap.servers": "host"}, {}).kafka
    with_id = {"bootstrap.servers": "host", "transactional.id": "id"}
    defaults = {**settings.build_settings(with_id, {}).kafka, **plain}
    kafka = (
        (f"`{key}`", f"`{value}`", KAFKA_REASONS[key])
        for key, value in sorted(defaults.items())
        if key not in with_id
    )
    origins = (
        (f"`{each.name}`", f"{each.waterdrop}")
        for each in settings.SETTINGS
        if each.waterdrop
    )
    return f"""# Settings

{NOTE}
Keywords of `Producer` and `setup`. Durations are seconds; a number that looks like
milliseconds is refused. All mistakes are told at once, in `ConfigurationInvalidError`.

{_table(("setting", "default", "unit", "takes", "why"), rows)}
## kafka

The mapping `kafka` is librdkafka's configuration, by its own keys and in its own units.
`bootstrap.servers` is required: HOST:PORT, several of them separated by commas, or a
list of them. IPv6 addresses stand in brackets. greendrop sets these where you don't:

{_table(("key", "value", "why"), kafka)}
Everything else keeps librdkafka's default. Callbacks (`error_cb`, `stats_cb`,
`on_delivery` and so on) are refused, with a word on what to use instead: they would run
inside librdkafka, where a greenlet that waits can end the process.
`delivery.report.only.error` must not be true, because handles would never resolve.

Numbers are plain decimals: librdkafka itself would read `"1e+06"` as 1 and `"100k"` as
100, so these are refused. Settings and keys that have no effect, such as a consumer's
`group.id`, or `transaction.timeout.ms` without a `transactional.id`, are logged once as
the warning `configuration.no_effect`, with the reason.

## Coming from WaterDrop

Its milliseconds are seconds here.

{_table(("setting", "there"), origins)}"""


def listed_events() -> str:
    """Write the page of events."""
    types = ((f"`{name}`", text) for name, text in events.ERROR_TYPES.items())
    return f"""# Events

{NOTE}
`producer.monitor.subscribe(name, function)`, or `subscribe(object)`, whose methods
`on_message_acknowledged(event)` and so on are called, or as a decorator:

    @producer.monitor.subscribe("message.acknowledged")
    def note(event):
        print(event["topic"], event["offset"])

`event["topic"]` reads one value, `event.payload` has all. `time` is in seconds. Nothing
is built for an event that nobody listens to. `monitor.unsubscribe` takes what was
subscribed. A name that does not exist is refused; type checkers know the names, too.

A listener is called in the order of subscription: in the caller's greenlet or thread
for what the table says so, else in the task that serves the producer, after
librdkafka's poll. There it may wait, which delays this producer's other reports, and
nobody else; but it may not wait for a message of the same producer
(`IllegalWaitError`). One that raises hurts nobody: it is logged, and told as
`error.occurred`, once a minute for each event and kind of exception.

No payload has secrets of the configuration. Messages are given as they are.

## Of a producer

`producer.monitor` tells them.

{_table(("event", "when", "payload"), _rows(events.EVENTS))}
## Of the process

`greendrop.monitor` tells these, of all producers and pools. It is how another library
gets at each producer before the first message:

    @greendrop.monitor.subscribe("producer.configured")
    def set_up(event):
        event["producer"].monitor.subscribe(Listener())
        event["producer"].middleware.append(step)

{_table(("event", "when", "payload"), _rows(events.PROCESS_EVENTS))}
## Types of `error.occurred`

`type` says what failed, `error` is the exception.

{_table(("type", "what failed"), types)}
A `produce_sync` whose message is not delivered is told twice: as
`librdkafka.dispatch_error` by the serving task, and as `message.produce_sync` by the
caller.

## Coming from WaterDrop

Names and keys are the same, with these exceptions. `time` and other durations are
seconds. There is no `caller`: whoever subscribes has the producer, and others get
`producer_id`. `producer.reload` has `kafka` instead, to be changed in place. What a
listener raises has the type `listener.error`, whoever runs it, and not
`callbacks.*.error`. There is no poller, and so no `poller.*`; a pool is closed once,
and told of once.
"""


def _rows(table: Mapping[Any, events.EventSpec]) -> Iterable[Sequence[str]]:
    for name, each in table.items():
        yield f"`{name}`", each.when, ", ".join(f"`{key}`" for key in each.payload)


def names() -> str:
    """Write the module with the names of events, for type checkers only."""
    known = dict.fromkeys([*events.EVENTS, *events.PROCESS_EVENTS])
    listed = "".join(f'    "{name}",\n' for name in known)
    return f'''"""The names of events, for type checkers. Made by docs/generate.py."""

from __future__ import annotations

from typing import Literal, TypeAlias

EventName: TypeAlias = Literal[
{listed}]
'''


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """Escape a cell, and turn `docs/x/y.md` of a table in the code into a link."""
    linked = re.sub(
        r"docs/(\w+/([\w-]+))\.md",
        lambda found: f"[{found[2]}](../{found[1]}.md)",
        text,
    )
    return linked.replace("|", "\\|")


def _written(value: object) -> str:
    """Write a default as one would in Python."""
    return f"{value:_}" if type(value) is int else repr(value)


def pages() -> Mapping[Path, str]:
    """Give the text of each generated page."""
    return {
        DOCS / "reference" / "settings.md": settings_page(),
        DOCS / "reference" / "events.md": listed_events(),
        NAMES: names(),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
