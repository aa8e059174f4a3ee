"""Backends: the factories of producers, which are librdkafka or test doubles.

A backend is chosen when a client is created; sending does not know about backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from confluent_kafka import cimpl

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop.oauth import OAuthToken

#: The class of a backend's producers.
_P = TypeVar("_P")

#: The exception that confluent-kafka raises, for modules above this package.
KafkaException: type[Exception] = cimpl.KafkaException


class MainQueue(Protocol):
    """The queue of a producer's reports and events; see `bindings.MainQueue`."""

    def signal_on(self, fd: int) -> bool:
        """Make the queue write to a descriptor when it gets its first entry."""

    def wake(self) -> None:
        """Signal the descriptor without an entry, and end a poll that is waiting."""

    def yield_poll(self) -> None:
        """Make the poll that runs this callback return after the callback."""

    def release(self) -> None:
        """End the signals and release the queue."""


class Backend(Protocol[_P]):
    """A factory of producers, with the calls that confluent-kafka doesn't offer.

    The backend is librdkafka or a test double. A producer is any object with those
    methods of `cimpl.Producer` that `KafkaHandle` calls.
    """

    def build(self, kafka: dict[str, object], logger: object) -> _P:
        """Create a producer."""

    def main_queue(self, producer: _P) -> MainQueue | None:
        """Return the main queue of a producer, or None if it can't be reached."""

    def fatal_error(self, producer: _P) -> tuple[int, str] | None:
        """Return code and text of a producer's fatal error, or None."""

    def trigger_fatal_error(self, producer: _P, code: int, reason: str) -> None:
        """Cause a fatal error of a producer."""

    def purge(self, producer: _P) -> None:
        """Drop all messages of a producer, and wait until that is done."""

    def set_oauth_token(self, producer: _P, token: OAuthToken) -> int | None:
        """Set the OAuth token of a producer; see `bindings.set_oauth_token`."""


class _Librdkafka:
    """The backend of production: confluent-kafka's producers."""

    def build(self, kafka: dict[str, object], logger: object) -> cimpl.Producer:
        producer: cimpl.Producer
        producer = bindings.extension_class(cimpl.Producer)(kafka, logger=logger)
        return producer

    def main_queue(self, producer: cimpl.Producer) -> MainQueue | None:
        return bindings.MainQueue.of(producer)

    def fatal_error(self, producer: cimpl.Producer) -> tuple[int, str] | None:
        return bindings.fatal_error(producer)

    def trigger_fatal_error(
        self, producer: cimpl.Producer, code: int, reason: str
    ) -> None:
        bindings.trigger_fatal_error(producer, code, reason)

    def purge(self, producer: cimpl.Producer) -> None:
        bindings.purge(producer)

    def set_oauth_token(
        self, producer: cimpl.Producer, token: OAuthToken
    ) -> int | None:
        return bindings.set_oauth_token(producer, token)


_LIBRDKAFKA = _Librdkafka()

#: Functions that return a test double for a configuration, or None. The last function
#: has precedence. See `testing._memory_cluster`.
test_backends: list[Callable[[Mapping[str, str]], Backend[Any] | None]] = []


def backend_for(kafka: Mapping[str, str]) -> Backend[Any]:
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
) -> cimpl.KafkaError:
    """Create an error as librdkafka would, for a test double."""
    return cimpl.KafkaError(code, text, fatal, retriable, abortable)
