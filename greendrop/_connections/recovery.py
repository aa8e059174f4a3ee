"""Recovery: replacing the client of an idempotent producer after a fatal error.

After such an error librdkafka refuses all messages of a client for good, and only a new
client can send. `Recovery` decides whether the client is replaced, lets listeners
change the configuration of the new one, and waits for a backoff before that is built.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from greendrop import _concurrency
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._frames import concealed
from greendrop._librdkafka.check import check_configuration
from greendrop._librdkafka.error_codes import kafka_name
from greendrop.config.settings import SETTINGS, build_settings
from greendrop.errors import ConfigurationInvalidError, GreendropError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greendrop._client.client import Client
    from greendrop._connections.client_slots import ClientSlot
    from greendrop._connections.connections import Connections
    from greendrop.config.settings import Settings
    from greendrop.errors import BrokerError
    from greendrop.events import EventName


class Recovery:
    """Replaces clients of one producer.

    Args:
        connections: The clients of the producer.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._stopped = False
        self._stopping = _concurrency.WaitQueue()

    def begins(self, slot: ClientSlot, client: Client, error: BrokerError) -> bool:
        """Return whether a client may be replaced, and count that; never waits."""
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
        """Replace a client; called in a background task.

        Its messages in flight fail. If no new client can be built, so do messages that
        were sent meanwhile, and the next message has another one built.
        """
        started = _concurrency.monotonic()
        attempt = slot.replacements
        try:
            self._emit_error(client, error, attempt)
            # Without secrets, since listeners may log it.
            kafka = slot.settings.redacted_kafka()
            payload = {"error": error, "attempt": attempt, "kafka": kafka}
            self._emit_without_waits(client, "producer.reload", payload)
            settings = settings_for_new(slot.settings, kafka)
            client.purge_queue()
            client.wait_settled(PURGE_TIMEOUT)
            backoff = settings.wait_backoff_on_idempotent_fatal_error
            self._stopping.wait_until(self._is_stopped, _concurrency.Deadline(backoff))
            if not self._stopped and self._connections.replace(slot, client, settings):
                time = _concurrency.monotonic() - started
                self._emit("producer.reloaded", {"attempt": attempt, "time": time})
            else:
                client.fail_carried_over(None)
        except GreendropError as failure:
            self._emit_error(client, failure, attempt)
            client.fail_carried_over(failure)
        except BaseException:
            client.fail_carried_over(error)
            raise

    def stop(self) -> None:
        """End all backoffs, and build no more clients; the producer closes."""
        self._stopped = True
        self._stopping.notify_all()

    def _is_stopped(self) -> bool:
        return self._stopped

    def _emit_error(self, client: Client, error: GreendropError, attempt: int) -> None:
        kind = "librdkafka.idempotent_fatal_error"
        payload = {"error": error, "type": kind, "attempt": attempt}
        self._emit_without_waits(client, "error.occurred", payload)

    def _emit_without_waits(
        self, client: Client, name: EventName, payload: Mapping[str, object]
    ) -> None:
        # Messages that a listener sends here are queued for the new client, which does
        # not exist until the listeners return.
        with client.poll_loop.forbid_waits():
            self._emit(name, payload)

    def _emit(self, name: EventName, payload: Mapping[str, object]) -> None:
        payload = {"producer_id": self._connections.settings.id, **payload}
        self._connections.monitor.emit(name, payload, swallow=BaseException)


@concealed
def settings_for_new(settings: Settings, kafka: dict[str, str]) -> Settings:
    """Return the settings of a new client.

    Args:
        settings: The settings of the old client.
        kafka: Its configuration without secrets, as listeners may have changed it.

    Raises:
        ConfigurationInvalidError: The changed configuration is invalid.
    """
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
    """Return whether a client that failed with this error may be replaced."""
    return _plain(error.name) not in map(_plain, settings.non_reloadable_errors)


def _plain(name: str) -> str:
    return kafka_name(name.upper().lstrip("_"))
