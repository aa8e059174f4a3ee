"""Backends: the factories of producers, which are librdkafka or test doubles.

A backend is chosen when a client is created; sending does not know about backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import cimpl

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop.oauth import OAuthToken

#: The exception that confluent-kafka raises, for modules above this package.
KafkaException: type[Exception] = cimpl.KafkaException


class MainQueue(Protocol):
    """The queue of a producer's reports and events; see `bindings.MainQueue`."""

    def signal_on(self, fd: int) -> bool:
        """Make the queue write to a descriptor when it gets its first entry."""
        ...

    def wake(self) -> None:
        """Signal the descriptor without an entry, and end a poll that is waiting."""
        ...

    def yield_poll(self) -> None:
        """Make the poll that runs this callback return after the callback."""
        ...

    def release(self) -> None:
        """End the signals and release the queue."""
        ...


class Backend(Protocol):
    """A factory of producers, with the calls that confluent-kafka doesn't offer.

    The backend is librdkafka or a test double. A producer is any object with those
    methods of `cimpl.Producer` that `KafkaHandle` calls.
    """

    def build(self, kafka: dict[str, Any], logger: object) -> Any:  # noqa: ANN401
        """Create a producer."""
        ...

    def main_queue(self, producer: Any) -> MainQueue | None:  # noqa: ANN401
        """Return the main queue of a producer, or None if it can't be reached."""
        ...

    def fatal_error(self, producer: Any) -> tuple[int, str] | None:  # noqa: ANN401
        """Return code and text of a producer's fatal error, or None."""
        ...

    def trigger_fatal_error(self, producer: Any, code: int, reason: str) -> None:  # noqa: ANN401
        """Cause a fatal error of a producer."""
        ...

    def purge(self, producer: Any) -> None:  # noqa: ANN401
        """Drop all messages of a producer, and wait until that is done."""
        ...

    def set_oauth_token(self, producer: Any, token: OAuthToken) -> int | None:  # noqa: ANN401
        """Set the OAuth token of a producer; see `bindings.set_oauth_token`."""
        ...


class _Librdkafka:
    """The backend of production: confluent-kafka's producers."""

    def build(self, kafka: dict[str, Any], logger: Any) -> Any:  # noqa: ANN401
        return bindings.extension_class(cimpl.Producer)(kafka, logger=logger)

    def main_queue(self, producer: Any) -> MainQueue | None:  # noqa: ANN401
        return bindings.MainQueue.of(producer)

    def fatal_error(self, producer: Any) -> tuple[int, str] | None:  # noqa: ANN401
        return bindings.fatal_error(producer)

    def trigger_fatal_error(self, producer: Any, code: int, reason: str) -> None:  # noqa: ANN401
        bindings.trigger_fatal_error(producer, code, reason)

    def purge(self, producer: Any) -> None:  # noqa: ANN401
        bindings.purge(producer)

    def set_oauth_token(self, producer: Any, token: OAuthToken) -> int | None:  # noqa: ANN401
        return bindings.set_oauth_token(producer, token)


_LIBRDKAFKA = _Librdkafka()

#: Functions that return a test double for a configuration, or None. The last function
#: has precedence. See `testing._memory_cluster`.
test_backends: list[Callable[[Mapping[str, str]], Backend | None]] = []


def backend_for(kafka: Mapping[str, str]) -> Backend:
    """Return the backend for a configuration: a test double, or librdkafka."""
    doubles = (test_backend(kafka) for test_backend in reversed(test_backends))
    return next(filter(None, doubles), _LIBRDKAFKA)


def native_error(
    code: int,
    text: str | None = None,
    *,
    fatal: bool = False,
    retriable: bool = False,
    abortable: bool = False,
) -> Any:  # noqa: ANN401 - a KafkaError
    """Create an error as librdkafka would, for a test double."""
    return cimpl.KafkaError(code, text, fatal, retriable, abortable)
