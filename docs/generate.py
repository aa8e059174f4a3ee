"""Write docs/settings.md and docs/events.md, from the tables in the code.

Run it after a change of a table; a test says when it was forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from greendrop import config, events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DOCS = Path(__file__).parent
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
    "transaction.timeout.ms": "Only with a `transactional.id`. librdkafka wants it at"
    " or above `message.timeout.ms`.",
}


def settings() -> str:
    """Write the page of settings."""
    rows = (
        (
            f"`{each.name}`",
            f"`{_written(each.default)}`",
            each.unit,
            each.rule,
            each.why,
        )
        for each in config.SETTINGS
    )
    plain = config.build_settings({"bootstrap.servers": "host"}, {}).kafka
    with_id = {"bootstrap.servers": "host", "transactional.id": "id"}
    defaults = {**config.build_settings(with_id, {}).kafka, **plain}
    kafka = (
        (f"`{key}`", f"`{value}`", KAFKA_REASONS[key])
        for key, value in sorted(defaults.items())
        if key not in with_id
    )
    origins = (
        (f"`{each.name}`", f"{each.waterdrop}")
        for each in config.SETTINGS
        if each.waterdrop
    )
    return f"""# Settings

{NOTE}
Keywords of `Producer` and `setup`. Durations are seconds; a number that looks like
milliseconds is refused. All mistakes are told at once, in `ConfigurationInvalidError`.

{_table(("setting", "default", "unit", "takes", "why"), rows)}
## kafka

The mapping `kafka` is librdkafka's configuration, by its own keys and in its own units.
`bootstrap.servers` is required. greendrop sets these where you don't:

{_table(("key", "value", "why"), kafka)}
Everything else keeps librdkafka's default. Callbacks (`error_cb`, `stats_cb`,
`on_delivery` and so on) are refused, with a word on what to use instead: they would run
inside librdkafka, where a greenlet that waits can end the process.
`delivery.report.only.error` must not be true, because handles would never resolve.

## Coming from WaterDrop

Its milliseconds are seconds here.

{_table(("setting", "there"), origins)}"""


def listed_events() -> str:
    """Write the page of events."""
    rows = (
        (
            f"`{name}`",
            each.when,
            ", ".join(f"`{key}`" for key in each.payload),
        )
        for name, each in events.EVENTS.items()
    )
    types = ((f"`{name}`", text) for name, text in events.ERROR_TYPES.items())
    return f"""# Events

{NOTE}
`producer.monitor.subscribe(name, function)`, or `subscribe(object)`, whose methods
`on_message_acknowledged(event)` and so on are called. `event["topic"]` reads one value.
`time` is in seconds. Nothing is built for an event that nobody listens to.

{_table(("event", "when", "payload"), rows)}
## Types of `error.occurred`

`type` says what failed, `error` is the exception.

{_table(("type", "what failed"), types)}
A `produce_sync` whose message is not delivered is told twice: as
`librdkafka.dispatch_error` by the serving task, and as `message.produce_sync` by the
caller.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


def _written(value: object) -> str:
    """Write a default as one would in Python."""
    return f"{value:_}" if type(value) is int else repr(value)


def pages() -> Mapping[Path, str]:
    """Give the text of each generated page."""
    return {DOCS / "settings.md": settings(), DOCS / "events.md": listed_events()}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
