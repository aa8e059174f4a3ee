"""A Flask extension: a producer from the configuration of the application.

    from greendrop.contrib.flask import Greendrop

    greendrop = Greendrop()

    def create_app():
        app = Flask(__name__)
        app.config["GREENDROP_KAFKA"] = {"bootstrap.servers": "localhost:9092"}
        greendrop.init_app(app)
        return app

In a view: `greendrop.producer.produce_sync(topic="events", payload=b"x")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from flask import current_app

from greendrop.contrib._settings import producer_from
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from flask import Flask
    from typing_extensions import Unpack

    from greendrop.config.types import ProducerSettings
    from greendrop.producer import Producer

__all__ = ["Greendrop"]


class Greendrop:
    """The extension: one producer for each application. It opens no connection.

    With the name "greendrop" it reads these keys of `app.config`:

    | key | |
    |---|---|
    | `GREENDROP_KAFKA` | librdkafka's configuration, a mapping; required |
    | `GREENDROP_SETTINGS` | greendrop's settings (docs/reference/settings.md) |
    | `GREENDROP_PRODUCER` | a producer to use instead of a new one, for tests |

    With another name the keys begin with that name in capitals. Use two extensions for
    an application that sends to two clusters.

    Args:
        app: The application; if omitted, call `init_app` later, for one application or
            several.
        name: The key of the producer in `app.extensions`.
        **settings: greendrop's settings. Those of `GREENDROP_SETTINGS` take precedence,
            name by name.

    Raises:
        ConfigurationInvalidError: As for `init_app`, if `app` is given.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        name: str = "greendrop",
        **settings: Unpack[ProducerSettings],
    ) -> None:
        self._name = name
        self._settings = settings
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> Producer:
        """Make the producer of an application.

        Returns:
            The producer, for subscribing listeners and adding middleware.

        Raises:
            ConfigurationInvalidError: Some keys are invalid; the text names all of
                them.
        """
        producer = app.config.get(self._key("PRODUCER")) or self._make(app)
        app.extensions[self._name] = producer
        return cast("Producer", producer)

    @property
    def producer(self) -> Producer:
        """The producer of the current application.

        Raises:
            RuntimeError: There is no current application, or `init_app` was not called
                for it.
        """
        try:
            return cast("Producer", current_app.extensions[self._name])
        except KeyError:
            text = (
                f"extension {self._name!r} has no producer of this app; call init_app"
            )
            raise RuntimeError(text) from None

    def _make(self, app: Flask) -> Producer:
        kafka, settings = self._key("KAFKA"), self._key("SETTINGS")
        if kafka not in app.config:
            text = "is not in app.config; a mapping with librdkafka's keys"
            raise ConfigurationInvalidError({kafka: text})
        configured = app.config.get(settings, {})
        if isinstance(configured, Mapping):
            configured = {**self._settings, **configured}
        return producer_from(
            app.config[kafka],
            configured,
            kafka_key=kafka,
            settings_key=settings,
        )

    def _key(self, name: str) -> str:
        return f"{self._name.upper()}_{name}"
