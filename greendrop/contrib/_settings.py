"""Producers made from a program's configuration, with errors that name its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from greendrop.errors import ConfigurationInvalidError
from greendrop.producer import Producer


def producer_from(
    kafka: Any,  # noqa: ANN401 - a user's, as the next
    settings: Any,  # noqa: ANN401
    *,
    kafka_key: str,
    settings_key: str,
) -> Producer:
    """Make a producer.

    Args:
        kafka: librdkafka's configuration.
        settings: greendrop's own.
        kafka_key: The name of `kafka` in the program's configuration.
        settings_key: The name of `settings` there.

    Raises:
        ConfigurationInvalidError: Some keys are invalid; the text names all of them.
    """
    errors = {}
    if not isinstance(kafka, Mapping):
        errors[kafka_key] = f"needs a mapping, not {type(kafka).__name__}"
    if not isinstance(settings, Mapping):
        errors[settings_key] = f"needs a mapping, not {type(settings).__name__}"
    elif "kafka" in settings:
        errors[f"{settings_key}.kafka"] = f"librdkafka's keys go into {kafka_key}"
    elif invalid := [key for key in settings if not isinstance(key, str)]:
        errors[settings_key] = f"{invalid} are not names of settings"
    if errors:
        raise ConfigurationInvalidError(errors)
    return Producer(kafka=kafka, **settings)
