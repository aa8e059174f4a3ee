"""One producer for each alias in `settings.GREENDROP`, made at first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.module_loading import import_string

from greendrop import _concurrency, _wording
from greendrop._validation import as_message, validate
from greendrop.contrib._settings import producer_from
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from greendrop.config.types import MessageFields, ProducerSettings
    from greendrop.producer import Producer


class _Required(TypedDict):
    KAFKA: Mapping[str, object]


class AliasSettings(_Required, total=False):
    """The type of an alias in `settings.GREENDROP`, for type checkers.

    `GREENDROP: dict[str, AliasSettings] = {...}` reports misspelled settings.
    """

    OPTIONS: ProducerSettings
    PREPARE: str


#: The keys of an alias.
_KEYS = ("KAFKA", "OPTIONS", "PREPARE")

_producers: dict[str, Producer] = {}
# Held while a producer is made, which doesn't switch greenlets.
_making = _concurrency.new_lock()


def get_producer(alias: str = "default") -> Producer:
    """Return the producer of an alias, the same one for the whole process.

    Args:
        alias: A key of `settings.GREENDROP`. Its value has the keys `KAFKA`
            (librdkafka's configuration, required), `OPTIONS` (greendrop's settings, see
            docs/reference/settings.md) and `PREPARE`: the dotted path of a function
            that is called with the new producer to subscribe listeners or add
            middleware. It must not wait.

    Raises:
        django.core.exceptions.ImproperlyConfigured: The settings are invalid, or
            `PREPARE` raised. `manage.py check` reports the same.
    """
    producer = _producers.get(alias)
    if producer is None:
        with _making:
            producer = _producers.get(alias)
            if producer is None:
                producer = _producers.setdefault(alias, _make(alias))
    return producer


def close_producers(timeout: float | None = None, *, force: bool = False) -> None:
    """Close all producers; the next `get_producer` makes a new one.

    For tests, and for programs that end by `os._exit`. Other programs don't need it:
    producers are closed when the interpreter exits.

    Args:
        timeout: As in `Producer.close`, for each of them.
        force: As in `Producer.close`.

    Raises:
        MessagesAbandonedError: Messages of a producer were not delivered in time, and
            were dropped. The first such error is raised, after all are closed.

    Blocking:
        As `Producer.close`.
    """
    with _making:
        closing = list(_producers.values())
        _producers.clear()
    problem: Exception | None = None
    for producer in closing:
        try:
            producer.close(timeout, force=force)
        except Exception as error:  # noqa: BLE001 - raised below
            problem = problem or error
    if problem is not None:
        raise problem


def produce_on_commit(
    *,
    using: str | None = None,
    alias: str = "default",
    **message: Unpack[MessageFields],
) -> None:
    """Send a message when the current database transaction has committed.

    Outside of a transaction the message is sent at once. It is sent by `produce_async`;
    to wait for deliveries, open a scope around the transaction. If the process ends
    between the commit and the sending, the message is lost. To rule that out, store it
    in the same transaction (see the outbox in examples/django).

    Args:
        using: The database, by its alias in `settings.DATABASES`.
        alias: The producer, as for `get_producer`.
        **message: The fields of `Message`.

    Raises:
        MessageInvalidError: Raised at once, so that the transaction rolls back; the
            text names every invalid field. With middleware the message is validated
            when it is sent.
        django.core.exceptions.ImproperlyConfigured: As for `get_producer`.
        ProduceError: An error of `produce_async`. It is raised from the commit, when
            the transaction has been committed already, or from this call where there
            is no transaction.
    """
    producer = get_producer(alias)
    validated = as_message(message)
    core = producer._core  # noqa: SLF001 - for the producer's size limit
    if core is not None and not producer.middleware.steps:
        validate(validated, core.size_limit)

    def send() -> None:
        producer.produce_async(**validated._asdict())

    transaction.on_commit(send, using=using)


def _make(alias: str) -> Producer:
    configured: object = getattr(settings, "GREENDROP", None)
    if not isinstance(configured, Mapping):
        raise ImproperlyConfigured("settings.GREENDROP needs a mapping of aliases")
    if alias not in configured:
        known = ", ".join(map(repr, configured)) or "none"
        text = f"settings.GREENDROP has no {alias!r}; it has: {known}"
        raise ImproperlyConfigured(text)
    return _make_from(f"settings.GREENDROP[{alias!r}]", configured[alias])


def _make_from(where: str, values: Any) -> Producer:  # noqa: ANN401 - a user's
    if not isinstance(values, Mapping) or "KAFKA" not in values:
        text = f"{where} needs KAFKA, a mapping with librdkafka's keys"
        raise ImproperlyConfigured(text)
    if unknown := [key for key in values if key not in _KEYS]:
        text = f"{where} has unknown keys {unknown}; there are {', '.join(_KEYS)}"
        raise ImproperlyConfigured(text)
    where_prepare = f"{where}, PREPARE"
    prepare = _import(where_prepare, values["PREPARE"]) if "PREPARE" in values else None
    try:
        producer = producer_from(
            values["KAFKA"],
            values.get("OPTIONS", {}),
            kafka_key="KAFKA",
            settings_key="OPTIONS",
        )
    except ConfigurationInvalidError as error:
        raise ImproperlyConfigured(f"{where}: {error}") from error
    if prepare is not None:
        try:
            prepare(producer)
        except Exception as error:
            text = f"{where_prepare} raised {type(error).__name__}: {error}"
            raise ImproperlyConfigured(text) from error
    return producer


def _import(where: str, path: object) -> Callable[[Producer], object]:
    if not isinstance(path, str):
        text = f"{where} needs a function's dotted path, not {type(path).__name__}"
        raise ImproperlyConfigured(text)
    try:
        found: object = import_string(path)
    except Exception as error:
        text = f"{where}: {_wording.reason(error)}"
        raise ImproperlyConfigured(text) from error
    if not callable(found):
        raise ImproperlyConfigured(f"{where}: {path!r} is not callable")
    return found
