"""Which client the transactions of a producer are made by, one after the other.

Has the brokers let each new one begin, and takes it out of use when it can't go on.
What that means for a transaction is for `coordinator` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from collections.abc import Callable

    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop.config.settings import Settings


#: What says that a command has failed. Anything else has interrupted it.
FAILURES = (BrokerError, ProducerClosedError, TimeoutError)


class TransactionalClients:
    """The clients of one transactional producer, of which it has one at a time.

    Args:
        connections: What it has open.
        adopt: Makes changed settings the producer's, or raises
            `ConfigurationInvalidError`.
    """

    def __init__(
        self, connections: Connections, adopt: Callable[[Settings], None]
    ) -> None:
        self._connections = connections
        self._adopt = adopt
        #: Of all clients that follow each other.
        self.offset_guard = OffsetGuard()
        # The one that the brokers have let begin.
        self._ready: Client | None = None
        #: Those of the client.
        self.commands = self._new_calls()
        # How many were replaced in a row, with nothing committed since.
        self._attempts = 0
        self._not_before = 0.0

    def copy(self) -> TransactionalClients:
        """Give what has no client yet, for a forked child."""
        return TransactionalClients(self._connections, self._adopt)

    def _new_calls(self) -> TransactionCalls:
        return TransactionCalls(
            self._connections.settings, self._connections.emit_error
        )

    def acquire(self, deadline: _concurrency.Deadline) -> Client:
        """Give a client that may begin transactions.

        Args:
            deadline: When to give up.

        Raises:
            TransactionAbortedError: The brokers did not let it.
            ProducerClosedError, ProducerUsedInParentProcessError: See there.

        Blocking:
            Lets other greenlets run. After another client was replaced, until its
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
        self.commands = self._new_calls()
        client.poll_loop.dispatcher.offset_guard = self.offset_guard
        try:
            self.commands.run("init", client.kafka_handle.init_transactions, deadline)
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
        native = client.kafka_handle
        if native.fatal_error is not None:
            return False  # the next step says so
        return native.in_transaction or (
            client is not self._ready and native.is_initialized
        )

    def succeed(self) -> None:
        """Take note that something was committed."""
        self._attempts = 0

    def replace(self, client: Client, error: BrokerError) -> None:
        """Let the next transaction have a new client, if that may be.

        Blocking:
            Lets other greenlets run; some milliseconds.
        """
        settings = self._connections.settings
        most = settings.max_attempts_on_transaction_fatal_error
        client.purge()
        client.wait_settled(PURGE_TIMEOUT)
        if (
            self._connections.closing_or_closed
            or not settings.reload_on_transaction_fatal_error
            or not is_reloadable(settings, error)
            or self._attempts >= most
        ):
            return
        began = _concurrency.monotonic()
        self._attempts += 1
        try:
            changed = settings_for_new(
                settings, lambda kafka: self._emit_reload(error, kafka)
            )
            if changed is not settings:
                self._adopt(changed)
        except ConfigurationInvalidError as bad:
            attempt = {"attempt": self._attempts}
            self._connections.emit_error("transaction.reload", bad, attempt)
            return
        self._discard(client)
        now = _concurrency.monotonic()
        self._not_before = now + settings.wait_backoff_on_transaction_fatal_error
        facts = {"producer_id": settings.id, "attempt": self._attempts}
        self._connections.monitor.emit(
            "producer.reloaded", {**facts, "time": now - began}
        )

    def _emit_reload(self, error: BrokerError, kafka: dict[str, str]) -> None:
        facts = {"error": error, "attempt": self._attempts, "kafka": kafka}
        own = {"producer_id": self._connections.settings.id}
        self._connections.monitor.emit("producer.reload", {**own, **facts})

    def _discard(self, client: Client) -> None:
        self._retire(client)
        if self._connections.detach_client(client):
            client.wait_settled(PURGE_TIMEOUT)
            self._connections.close_clients([client])

    def _retire(self, client: Client) -> None:
        self._ready = None
        # Its last reports may come while the next transaction runs.
        client.poll_loop.dispatcher.offset_guard = None
        client.purge_for_good()

    def drop(self, client: Client) -> None:
        """Take a client out of use, in the background: who does it is in a hurry.

        The next transaction has a new one.
        """
        try:
            self._retire(client)
        finally:
            if self._connections.detach_client(client):
                self._connections.close_in_background([client])


def not_begun(error: Exception) -> TransactionAbortedError:
    """Make the error of a transaction that could not begin."""
    text = f"no transaction was begun, and nothing sent: {error}"
    return TransactionAbortedError(text)
