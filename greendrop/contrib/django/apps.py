"""The app configuration: registers the system check, and handles changed settings."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed

from greendrop.contrib.django._checks import check_settings
from greendrop.contrib.django._producers import close_producers

__all__: list[str] = []


class GreendropConfig(AppConfig):
    """The app `greendrop.contrib.django`. It has no models."""

    name = "greendrop.contrib.django"
    label = "greendrop"
    verbose_name = "greendrop"

    def ready(self) -> None:
        """Register the check; called by Django when all apps are loaded."""
        checks.register(check_settings)
        setting_changed.connect(_on_setting_changed, dispatch_uid="greendrop")


def _on_setting_changed(*, setting: str, **_: Any) -> None:  # noqa: ANN401 - Django's
    # Tests override settings; producers of the new ones are made at their next use.
    if setting == "GREENDROP":
        close_producers(force=True)
