"""What makes librdkafka's producers, and what may stand in its place in a test.

Beside `handle`, which calls them, the only one that builds by confluent_kafka. A
stand-in is asked first, when a client is built; sending knows nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import cimpl

from greendrop._librdkafka import bindings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop.oauth import OAuthToken

#: What confluent-kafka raises; who catches it has it translated here.
KafkaException: type[Exception] = cimpl.KafkaException


class MainQueue(Protocol):
    """Where what a producer has to tell arrives; see `bindings.MainQueue`."""

    def signal_on(self, fd: int) -> bool:
        """Have a descriptor written to when the empty queue gets an entry."""
        ...

    def wake(self) -> None:
        """Signal without an entry, and end a poll that is waiting."""
        ...

    def yield_poll(self) -> None:
        """Make the poll that runs this callback return after it."""
        ...

    def release(self) -> None:
        """End the signals."""
        ...


class Backend(Protocol):
    """What makes producers, and reaches what confluent-kafka hides of them.

    librdkafka, or what stands for it in a test. A producer is whatever has the methods
    of `cimpl.Producer` that `KafkaHandle` calls.
    """

    def build(self, kafka: dict[str, Any], logger: object) -> Any:  # noqa: ANN401
        """Make a producer."""
        ...

    def main_queue(self, producer: Any) -> MainQueue | None:  # noqa: ANN401
        """Reach the queue of a producer, if it can be reached."""
        ...

    def fatal_error(self, producer: Any) -> tuple[int, str] | None:  # noqa: ANN401
        """Give code and text of the error that ended a producer."""
        ...

    def trigger_fatal_error(self, producer: Any, code: int, reason: str) -> None:  # noqa: ANN401
        """Make a producer fail for good."""
        ...

    def purge(self, producer: Any) -> None:  # noqa: ANN401
        """Drop all messages of a producer, and wait until that is done."""
        ...

    def set_oauth_token(self, producer: Any, token: OAuthToken) -> int | None:  # noqa: ANN401
        """Give a producer the token to log in with; see `bindings`."""
        ...


class _Librdkafka:
    """The real one."""

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

#: What tests have put before librdkafka: each says whether it takes the producer of a
#: configuration; the last one is asked first. See `_memory_cluster`.
test_backends: list[Callable[[Mapping[str, str]], Backend | None]] = []


def backend_for(kafka: Mapping[str, str]) -> Backend:
    found = (stand_in(kafka) for stand_in in reversed(test_backends))
    return next(filter(None, found), _LIBRDKAFKA)


def native_error(
    code: int,
    text: str | None = None,
    *,
    fatal: bool = False,
    retriable: bool = False,
    abortable: bool = False,
) -> Any:  # noqa: ANN401 - a KafkaError
    """Make an error as librdkafka tells it, for what stands in its place."""
    return cimpl.KafkaError(code, text, fatal, retriable, abortable)
