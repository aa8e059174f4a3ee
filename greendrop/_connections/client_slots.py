"""One topic configuration of a producer: its settings, and the client that has them.

librdkafka keeps the first topic configuration that it sees for each client and topic.
So whoever wants another one, a variant of the producer, needs another client. Knows
what a variant may change; who builds and closes the clients is `core`.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

from greendrop._librdkafka.check import check_configuration
from greendrop.config.settings import normalize_kafka, own_settings
from greendrop.errors import VariantInvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greendrop._client.client import Client
    from greendrop.config.settings import Settings

# Keys of librdkafka that hold for a topic, and may differ between variants, by all
# their names: a variant's must replace the producer's, whichever name that has.
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
    """The way of the messages that share one topic configuration.

    Attributes:
        topic_config: What differs from the producer's own configuration.
        settings: What its client is built from.
        client: The client, if one was built and not closed.
        open: The client while messages are taken: one look tells that all is well.
        failed: The last client that a fatal error has ended.
        attempts: How often in a row it was replaced, with nothing delivered since.
    """

    __slots__ = ("active", "attempts", "client", "failed", "settings", "topic_config")

    def __init__(self, settings: Settings, topic_config: Mapping[str, str]) -> None:
        self.topic_config = topic_config
        self.settings = settings
        self.client: Client | None = None
        self.active: Client | None = None
        self.failed: Client | None = None
        self.attempts = 0


def checked_wait(seconds: object) -> float:
    """Give a variant's `max_wait_timeout`.

    Raises:
        VariantInvalidError: The setting of that name would be refused, too.
    """
    errors: dict[str, str] = {}
    checked = own_settings({"max_wait_timeout": seconds}, errors)
    if errors:
        raise VariantInvalidError(errors)
    return float(checked["max_wait_timeout"])


def merged_topic_config(
    settings: Settings, before: Mapping[str, str], changes: object
) -> dict[str, str]:
    """Check what a variant wants to change, and add it to what one before it changed.

    Args:
        settings: The producer's own.
        before: What the producer, or variant, that it is made from changes.
        changes: As the user wrote it.

    Returns:
        The changes in all, by librdkafka's first name for each key.

    Raises:
        VariantInvalidError: Names every bad key.
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
        return "an idempotent or transactional producer needs acks=all"
    if settings.transactional:
        return "a transactional producer has one connection, and this needs another"
    return None


def topic_settings(settings: Settings, topic_config: Mapping[str, str]) -> Settings:
    """Give a producer's settings with another topic configuration.

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
