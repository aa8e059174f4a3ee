"""A system check of the settings, run by `manage.py check` and most other commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's
from django.core.exceptions import ImproperlyConfigured

from greendrop.contrib.django._producers import get_producer


def check_settings(**_: Any) -> list[CheckMessage]:  # noqa: ANN401 - Django's arguments
    """Make each producer, which opens nothing, and report those that can't be made."""
    configured: object = getattr(settings, "GREENDROP", None)
    if not isinstance(configured, Mapping):
        text = "settings.GREENDROP needs a mapping of aliases."
        hint = 'GREENDROP = {"default": {"KAFKA": {"bootstrap.servers": "..."}}}'
        return [Error(text, hint=hint, id="greendrop.E001")]
    found: list[CheckMessage] = []
    for alias in configured:
        try:
            get_producer(alias)
        except ImproperlyConfigured as error:
            found.append(Error(f"{error}.", id="greendrop.E002"))
    if "default" not in configured:
        text = "settings.GREENDROP has no 'default', which get_producer() uses."
        found.append(Warning(text, id="greendrop.W001"))
    return found
