"""Replaces the client of an idempotent producer that a fatal error has ended.

librdkafka refuses every message after such an error, for good; only a new client can go
on. This decides whether there may be one, tells the listeners, who may change its
configuration, and waits before it is built. How it takes over is `core`'s business.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from greendrop import _concurrency
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._librdkafka.check import check_configuration
from greendrop._librdkafka.error_codes import kafka_name
from greendrop.config.settings import SETTINGS, build_settings
from greendrop.errors import ConfigurationInvalidError, GreendropError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from greendrop._client.client import Client
    from greendrop._connections.client_slots import ClientSlot
    from greendrop.config.settings import Settings
    from greendrop.errors import BrokerError
    from greendrop.events import Monitor


class Recovery:
    """The rules by which one producer's clients are replaced.

    Args:
        producer_id: For events.
        monitor: Who listens.
        replace: Builds the new client and lets it take over; False if the producer
            closes instead.
    """

    def __init__(
        self,
        producer_id: str,
        monitor: Monitor,
        replace: Callable[[ClientSlot, Client, Settings], bool],
    ) -> None:
        self._producer_id = producer_id
        self._monitor = monitor
        self._replace = replace
        self._stopped = False
        self._stopping = _concurrency.WaitQueue()

    def begins(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Tell whether a client may be replaced, and count that; never waits."""
        settings = slot.settings
        if (
            not settings.reload_on_idempotent_fatal_error
            or not settings.idempotent
            or settings.transactional
            or not is_reloadable(settings, error)
        ):
            return False
        if client is not slot.last_failed and client.has_delivered:
            slot.replacements = 0
        slot.last_failed = client
        if slot.replacements >= settings.max_attempts_on_idempotent_fatal_error:
            return False
        slot.replacements += 1
        return True

    def run(self, slot: ClientSlot, client: Client, error: BrokerError) -> None:
        """Replace a client; in a greenlet or thread of its own.

        What it had in flight fails. If there can be no new one, so does what was sent
        since, and the next message tries again.
        """
        began = _concurrency.monotonic()
        attempt = slot.replacements
        try:
            self._emit_error(client, error, attempt)
            facts: dict[str, object] = {"error": error, "attempt": attempt}
            settings = settings_for_new(
                slot.settings,
                lambda kafka: self._tell(
                    client, "producer.reload", {**facts, "kafka": kafka}
                ),
            )
            client.purge_queue()
            client.wait_settled(PURGE_TIMEOUT)
            backoff = settings.wait_backoff_on_idempotent_fatal_error
            self._stopping.wait_until(
                lambda: self._stopped, _concurrency.Deadline(backoff)
            )
            if not self._stopped and self._replace(slot, client, settings):
                facts = {"attempt": attempt, "time": _concurrency.monotonic() - began}
                self._emit("producer.reloaded", facts)
            else:
                client.fail_carried_over(None)
        except GreendropError as failure:
            self._emit_error(client, failure, attempt)
            client.fail_carried_over(failure)
        except BaseException:
            client.fail_carried_over(error)
            raise

    def stop(self) -> None:
        """End the waits before a new client: the producer closes."""
        self._stopped = True
        self._stopping.notify_all()

    def _emit_error(self, client: Client, error: GreendropError, attempt: int) -> None:
        kind = "librdkafka.idempotent_fatal_error"
        facts = {"error": error, "type": kind, "attempt": attempt}
        self._tell(client, "error.occurred", facts)

    def _tell(self, client: Client, name: str, facts: Mapping[str, object]) -> None:
        # What a listener sends is kept for the new client, which there is afterwards.
        with client.poll_loop.forbid_waits():
            self._emit(name, facts)

    def _emit(self, name: str, facts: Mapping[str, object]) -> None:
        self._monitor.emit(
            name,
            {"producer_id": self._producer_id, **facts},
            swallow=BaseException,
        )


def settings_for_new(
    settings: Settings, tell: Callable[[dict[str, str]], None]
) -> Settings:
    """Let listeners change the configuration of a new client; check what they made.

    Args:
        settings: Those of the old one.
        tell: Gives listeners the configuration, to be changed in place.

    Raises:
        ConfigurationInvalidError: They made a bad one.
    """
    # Listeners may log what they are told.
    kafka = settings.redacted_kafka()
    tell(kafka)
    settings.restore_secrets(kafka)
    if kafka == settings.kafka:
        return settings
    own = {each.name: getattr(settings, each.name) for each in SETTINGS}
    changed = build_settings(MappingProxyType(kafka), own, settings.slot)
    if changed.transactional != settings.transactional:
        text = "a producer can't become transactional, or cease to be, by a reload"
        raise ConfigurationInvalidError({"kafka.transactional.id": text})
    problems = check_configuration(changed.kafka, changed.secret_keys)
    if problems:
        raise ConfigurationInvalidError(
            {f"kafka.{key}": text for key, text in problems.items()}
        )
    return changed


def is_reloadable(settings: Settings, error: BrokerError) -> bool:
    """Tell whether a new client may follow one that an error has ended."""
    return _plain(error.name) not in map(_plain, settings.non_reloadable_errors)


def _plain(name: str) -> str:
    return kafka_name(name.upper().lstrip("_"))
