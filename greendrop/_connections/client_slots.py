"""One topic configuration of a producer, its settings and its client.

librdkafka keeps the first topic configuration that it sees for each client and topic.
So a variant of the producer with another topic configuration needs another client. This
module checks what a variant may change; `connections` builds and closes the clients.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

from greendrop._librdkafka.check import check_configuration
from greendrop.config.kafka import normalize_kafka
from greendrop.config.settings import check_settings
from greendrop.errors import VariantInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greendrop._client.client import Client
    from greendrop.config.settings import Settings

# librdkafka's topic settings that may differ between variants, by all their names. The
# values are librdkafka's first names: a variant's setting must replace the producer's,
# whichever name the producer uses.
_ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        "acks": "acks",
        "request.required.acks": "acks",
        "request.timeout.ms": "request.timeout.ms",
        "message.timeout.ms": "message.timeout.ms",
        "delivery.timeout.ms": "message.timeout.ms",
        "partitioner": "partitioner",
        "compression.codec": "compression.codec",
        "compression.type": "compression.codec",
        "compression.level": "compression.level",
    }
)


class ClientSlot:
    """The place of the client that has one topic configuration.

    Attributes:
        topic_config: The differences from the producer's own configuration.
        settings: The settings of its client.
        client: The client, if one was built and not closed.
        active: The client while it accepts messages, else None: a cheap check on the
            hot path.
        last_failed: The last client that a fatal error has ended.
        replacements: How often in a row the client was replaced without a delivery.
    """

    __slots__ = (
        "active",
        "client",
        "last_failed",
        "replacements",
        "settings",
        "topic_config",
    )

    def __init__(self, settings: Settings, topic_config: Mapping[str, str]) -> None:
        self.topic_config = topic_config
        self.settings = settings
        self.client: Client | None = None
        self.active: Client | None = None
        self.last_failed: Client | None = None
        self.replacements = 0


def check_wait_timeout(seconds: object) -> float:
    """Return a variant's `max_wait_timeout`, checked like the setting of that name.

    Raises:
        VariantInvalidError: The value is not allowed.
    """
    errors: dict[str, str] = {}
    checked = check_settings({"max_wait_timeout": seconds}, errors)
    if errors:
        raise VariantInvalidError(errors)
    return float(checked["max_wait_timeout"])


def merged_topic_config(
    settings: Settings, before: Mapping[str, str], changes: object
) -> dict[str, str]:
    """Check the changes of a variant, and merge them with those of its origin.

    Args:
        settings: The producer's own settings.
        before: The changes of the producer, or variant, from which it is made.
        changes: The new changes, as the user wrote them.

    Returns:
        All changes, by librdkafka's first name for each key.

    Raises:
        VariantInvalidError: Some keys are not allowed; it names all of them.
    """
    errors: dict[str, str] = {}
    values = normalize_kafka(changes, errors, name="topic_config")
    errors |= {
        f"topic_config.{key}": text
        for key in values
        if (text := _refusal(key, settings)) is not None
    }
    if errors:
        raise VariantInvalidError(errors)
    return {**before, **{_ALLOWED[key]: value for key, value in values.items()}}


def _refusal(key: str, settings: Settings) -> str | None:
    if key not in _ALLOWED:
        near = get_close_matches(key, _ALLOWED, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"a variant can't change this{hint}"
    if _ALLOWED[key] == "acks" and settings.idempotent:
        return "an idempotent or transactional producer always has acks=all"
    if settings.transactional:
        return "a transactional producer has one connection, and this needs another"
    return None


def topic_settings(settings: Settings, topic_config: Mapping[str, str]) -> Settings:
    """Return a producer's settings with another topic configuration.

    Raises:
        VariantInvalidError: librdkafka would refuse it.

    Blocking:
        As `check_configuration`: one to three milliseconds.
    """
    kept = {
        key: value
        for key, value in settings.kafka.items()
        if _ALLOWED.get(key) not in topic_config
    }
    kafka = MappingProxyType({**kept, **topic_config})
    problems = check_configuration(kafka, settings.secret_keys)
    if problems:
        raise VariantInvalidError(
            {f"topic_config.{key}": text for key, text in problems.items()}
        )
    return replace(settings, kafka=kafka)
