"""The clients of a transactional producer: one at a time.

`TransactionalClients` initializes each new client at the brokers, and takes a client
out of use that can't make further transactions. `coordinator` decides what that means
for the open transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency
from greendrop._client.client import PURGE_TIMEOUT
from greendrop._client.offset_guard import OffsetGuard
from greendrop._connections.recovery import is_reloadable, settings_for_new
from greendrop._transactions.calls import TransactionCalls
from greendrop.errors import (
    BrokerError,
    ConfigurationInvalidError,
    ProducerClosedError,
    TransactionAbortedError,
)

if TYPE_CHECKING:
    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop.config.settings import Settings


#: Errors of a failed call. Any other exception has interrupted the call.
FAILURES = (BrokerError, ProducerClosedError, TimeoutError)


class SettingsOwner(Protocol):
    """The core of a producer, as the replacement of its clients needs it."""

    def change_settings(self, settings: Settings) -> None:
        """Apply settings that a listener of `producer.reload` has changed.

        Raises:
            ConfigurationInvalidError: Another producer has the `transactional.id`.
        """


class TransactionalClients:
    """Acquires and replaces the clients of one transactional producer.

    Args:
        connections: The connections of the producer.
        owner: The core of the producer.
    """

    def __init__(self, connections: Connections, owner: SettingsOwner) -> None:
        self._connections = connections
        self._owner = owner
        #: Shared by all clients of the producer, one after the other.
        self.offset_guard = OffsetGuard()
        # The client that was initialized and may begin transactions.
        self._ready: Client | None = None
        #: The calls of the current client.
        self.calls = TransactionCalls(connections)
        # Number of clients that were replaced since the last commit.
        self._attempts = 0
        # The monotonic time before which no new client may begin.
        self._not_before = 0.0

    def copy(self) -> TransactionalClients:
        """Return an object without a client, for a forked child."""
        return TransactionalClients(self._connections, self._owner)

    def acquire(self, deadline: _concurrency.Deadline) -> Client:
        """Return a client that may begin transactions.

        Args:
            deadline: When to give up.

        Raises:
            TransactionAbortedError: The brokers did not initialize the client.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.

        Blocking:
            Lets other greenlets run. After a client was replaced, also waits until the
            backoff is over.
        """
        pause = min(self._not_before, deadline.at) - _concurrency.monotonic()
        if pause > 0:
            _concurrency.new_waiter().wait(pause)
        client = self._connections.connect(self._connections.main)
        if self._is_left_over(client):
            self.drop(client)
            client = self._connections.connect(self._connections.main)
        if client is self._ready:
            return client
        self.calls = TransactionCalls(self._connections)
        client.poll_loop.dispatcher.offset_guard = self.offset_guard
        try:
            with client.poll_loop.awaiting_brokers():
                self.calls.run("init", client.kafka_handle.init_transactions, deadline)
        except FAILURES as error:
            if isinstance(error, BrokerError) and error.fatal:
                self.replace(client, error)
            else:
                self._discard(client)
            raise not_begun(error) from error
        except BaseException:
            self.drop(client)
            raise
        self._ready = client
        return client

    def _is_left_over(self, client: Client) -> bool:
        """Return whether a signal handler raised between two steps with a client."""
        handle = client.kafka_handle
        left_over = handle.in_transaction or (
            client is not self._ready and handle.is_initialized
        )
        # After a fatal error the next step raises that error.
        return left_over and handle.fatal_error is None

    def on_commit(self) -> None:
        """Reset the number of replaced clients, after a commit."""
        self._attempts = 0

    def replace(self, client: Client, error: BrokerError) -> None:
        """Replace a client after an error, if the settings and the error allow it.

        The next transaction connects the new client.

        Blocking:
            Lets other greenlets run; some milliseconds.
        """
        settings = self._connections.settings
        limit = settings.max_attempts_on_transaction_fatal_error
        client.purge()
        client.wait_settled(PURGE_TIMEOUT)
        if (
            self._connections.state.closing_or_closed
            or not settings.reload_on_transaction_fatal_error
            or not is_reloadable(settings, error)
            or self._attempts >= limit
        ):
            return
        started = _concurrency.monotonic()
        self._attempts += 1
        try:
            # Without secrets, since listeners may log it.
            kafka = settings.redacted_kafka()
            self._emit_reload(error, kafka)
            changed = settings_for_new(settings, kafka)
            if changed is not settings:
                self._owner.change_settings(changed)
        except ConfigurationInvalidError as invalid:
            attempt = {"attempt": self._attempts}
            self._connections.emit_error("transaction.reload", invalid, attempt)
            return
        self._discard(client)
        now = _concurrency.monotonic()
        self._not_before = now + settings.wait_backoff_on_transaction_fatal_error
        payload = {"producer_id": settings.id, "attempt": self._attempts}
        self._connections.monitor.emit(
            "producer.reloaded", {**payload, "time": now - started}
        )

    def _emit_reload(self, error: BrokerError, kafka: dict[str, str]) -> None:
        payload = {
            "producer_id": self._connections.settings.id,
            "error": error,
            "attempt": self._attempts,
            "kafka": kafka,
        }
        self._connections.monitor.emit("producer.reload", payload)

    def _discard(self, client: Client) -> None:
        self._retire(client)
        if self._connections.detach_client(client):
            client.wait_settled(PURGE_TIMEOUT)
            self._connections.close_clients([client])

    def _retire(self, client: Client) -> None:
        self._ready = None
        # The last reports of the client may arrive during the next transaction.
        client.poll_loop.dispatcher.offset_guard = None
        client.purge_for_good()

    def drop(self, client: Client) -> None:
        """Take a client out of use, and close it in the background.

        The next transaction connects a new client.
        """
        try:
            self._retire(client)
        finally:
            if self._connections.detach_client(client):
                self._connections.close_in_background([client])


def not_begun(error: Exception) -> TransactionAbortedError:
    """Return the error of a transaction that could not begin."""
    text = f"no transaction was begun, and nothing sent: {error}"
    return TransactionAbortedError(text)
