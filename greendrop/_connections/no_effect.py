"""The warning about settings that change nothing, such as a consumer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop._librdkafka.check import find_consumer_properties
from greendrop._logging.log import WARNING, Log

if TYPE_CHECKING:
    from greendrop.config.settings import Settings

_CONSUMER = "only consumers read it"

# Each warning is logged once in a process: pools and applications that make a producer
# per request have the same settings each time.
_logged: set[tuple[str, tuple[str, ...]]] = set()


def warn_no_effect(settings: Settings) -> None:
    """Log a warning for the settings of a new producer that have no effect."""
    found = list(settings.no_effect)
    names = find_consumer_properties(settings.kafka)
    if names:
        found.append((_CONSUMER, tuple(f"kafka.{name}" for name in names)))
    for each in found:
        if each in _logged:
            continue
        _logged.add(each)
        reason, names = each
        Log("greendrop", producer_id=settings.id).write(
            WARNING, "configuration.no_effect", settings=", ".join(names), reason=reason
        )
