"""One producer for each alias in `settings.GREENDROP`, made when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.module_loading import import_string

from greendrop import _concurrency, _wording
from greendrop.contrib._settings import producer_from
from greendrop.errors import ConfigurationInvalidError
from greendrop.message import as_message, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.producer import Producer

#: What the settings of an alias may have.
KEYS = ("KAFKA", "OPTIONS", "PREPARE")

_producers: dict[str, Producer] = {}
# Held while one is made, which doesn't switch greenlets.
_making = _concurrency.new_lock()


def get_producer(alias: str = "default") -> Producer:
    """Give the producer of an alias: the same one to all that ask in this process.

    Args:
        alias: A key of `settings.GREENDROP`. Its value may have `KAFKA` (librdkafka's
            configuration, required), `OPTIONS` (greendrop's settings, see
            docs/reference/settings.md) and `PREPARE`: the dotted path of a function
            that is called with the new producer, to subscribe listeners or to add
            middleware, and does not wait.

    Raises:
        django.core.exceptions.ImproperlyConfigured: The settings are wrong, or
            `PREPARE` raised; the system check `manage.py check` tells the same.
    """
    producer = _producers.get(alias)
    if producer is None:
        with _making:
            producer = _producers.get(alias)
            if producer is None:
                producer = _producers.setdefault(alias, _made(alias))
    return producer


def close_producers(timeout: float | None = None, *, force: bool = False) -> None:
    """Close all producers; who asks for one afterwards gets a new one.

    For tests, and for programs that end by `os._exit`. Others need not: producers are
    closed when the interpreter exits.

    Args:
        timeout: As in `Producer.close`, for each of them.
        force: As in `Producer.close`.

    Raises:
        MessagesAbandonedError: Some messages of the first such producer were not
            delivered in time, and were dropped. All are closed all the same.

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
        except Exception as error:  # noqa: BLE001 - raised below, when all are closed
            problem = problem or error
    if problem is not None:
        raise problem


def produce_on_commit(
    *,
    using: str | None = None,
    alias: str = "default",
    **message: Any,  # noqa: ANN401 - checked as those of `produce_async`
) -> None:
    """Send a message once the current transaction has committed; if it does.

    Outside of a transaction it is sent at once. Nobody waits for it (`produce_async`):
    to do that, put a scope around the transaction. What happens between the commit and
    the sending, such as the process's end, loses the message; where that may not be,
    store it in the same transaction (examples/django, the outbox).

    Args:
        using: The database, by its alias in `settings.DATABASES`.
        alias: The producer, as for `get_producer`.
        **message: The fields of `Message`.

    Raises:
        MessageInvalidError: Now, so that the transaction rolls back; names every bad
            field. A message that goes through middleware is checked when it is sent.
        django.core.exceptions.ImproperlyConfigured: As `get_producer`.
        ProduceError: What `produce_async` raises comes out of the commit, or of this
            call where there is no transaction. The transaction is committed by then.
    """
    producer = get_producer(alias)
    made = as_message(message)
    core = producer._core  # noqa: SLF001 - knows the producer's limit
    if core is not None and not producer.middleware.steps:
        checked(made, core.size_limit)

    def send() -> None:
        producer.produce_async(**made._asdict())

    transaction.on_commit(send, using=using)


def _made(alias: str) -> Producer:
    configured: object = getattr(settings, "GREENDROP", None)
    if not isinstance(configured, Mapping):
        raise ImproperlyConfigured("settings.GREENDROP needs a mapping of aliases")
    if alias not in configured:
        known = ", ".join(map(repr, configured)) or "none"
        text = f"settings.GREENDROP has no {alias!r}; it has: {known}"
        raise ImproperlyConfigured(text)
    return _configured(f"settings.GREENDROP[{alias!r}]", configured[alias])


def _configured(where: str, one: Any) -> Producer:  # noqa: ANN401 - a user's
    if not isinstance(one, Mapping) or "KAFKA" not in one:
        text = f"{where} needs KAFKA, a mapping with librdkafka's keys"
        raise ImproperlyConfigured(text)
    if unknown := [key for key in one if key not in KEYS]:
        text = f"{where} has unknown keys {unknown}; there are {', '.join(KEYS)}"
        raise ImproperlyConfigured(text)
    where_prepare = f"{where}, PREPARE"
    prepare = _imported(where_prepare, one["PREPARE"]) if "PREPARE" in one else None
    try:
        producer = producer_from(
            one["KAFKA"],
            one.get("OPTIONS", {}),
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


def _imported(where: str, path: object) -> Callable[[Producer], object]:
    if not isinstance(path, str):
        text = f"{where} needs a function's dotted path, not {type(path).__name__}"
        raise ImproperlyConfigured(text)
    try:
        found: object = import_string(path)
    except Exception as error:
        text = f"{where}: {_wording.reason(error)}"
        raise ImproperlyConfigured(text) from error
    if not callable(found):
        raise ImproperlyConfigured(f"{where}: {path!r} can't be called")
    return found
