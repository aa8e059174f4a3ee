"""Disconnecting: closing the connections of a producer, on demand or when it is idle.

A message that is sent during a disconnect cancels it, so no sender ever waits for a
disconnect or fails because of one. A producer with an `idle_disconnect_timeout`
disconnects by itself once it has been idle for that long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency
from greendrop._concurrency.fair_lock import LockRequest

if TYPE_CHECKING:
    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop._producer.buffer import Buffer
    from greendrop._transactions.coordinator import Transactions

#: Seconds after which a waiting disconnect checks whether a message has cancelled it.
_CANCEL_CHECK_INTERVAL = 0.05


class IdleWatch:
    """Measures the time since a message was last in flight.

    It costs a message nothing: a timer compares the number of delivery reports now and
    then.

    Args:
        timeout: Seconds without messages after which the producer counts as idle.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._clock = _concurrency.monotonic
        self._reported = -1
        self._since = 0.0

    def is_idle(self, reported: int, *, busy: bool) -> bool:
        """Return True if no message was sent or reported for the timeout.

        The measurement starts again then, so the next True is a timeout away.

        Args:
            reported: The number of delivery reports handled so far.
            busy: Whether messages are in flight.
        """
        now = self._clock()
        if busy or reported != self._reported:
            self._reported = reported
            self._since = now
            return False
        idle = now - self._since >= self._timeout
        if idle:
            self._since = now
        return idle


class Disconnect:
    """Disconnects one producer.

    Args:
        connections: The producer's clients.
        buffer: Buffered messages prevent a disconnect.
        transactions: A transaction that is open or about to begin prevents one, too.
    """

    def __init__(
        self,
        connections: Connections,
        buffer: Buffer,
        transactions: Transactions | None,
    ) -> None:
        self._connections = connections
        self._buffer = buffer
        self._transactions = transactions
        self._idle = IdleWatch(connections.settings.idle_disconnect_timeout)

    def is_possible(self) -> bool:
        """Return whether `run` would begin now."""
        in_use = self._transactions is not None and self._transactions.in_use
        return not (in_use or self._connections.inherited) and self._is_possible()

    def run(self) -> bool:
        """See `Producer.disconnect`."""
        connections = self._connections
        connections.check_not_forked()
        if self._transactions is not None and self._transactions.in_use:
            return False
        if not connections.can_wait():
            if self._is_possible():
                _concurrency.spawn(self._disconnect_and_report)
                return True
            return False
        if self._transactions is None:
            return self._disconnect()
        # No transaction is open, so blocking new ones succeeds at once.
        request = LockRequest(_concurrency.current_task())
        try:
            return self._transactions.block(request, 0.0) and self._disconnect()
        finally:
            request.released = True
            self._transactions.unblock(request)

    def _disconnect(self) -> bool:
        connections, state = self._connections, self._connections.state
        started = _concurrency.monotonic()
        timeout = connections.settings.max_wait_timeout
        with state.lock:
            if not self._is_possible():
                return False
            token = state.begin_disconnect()
            connections.deactivate()
        try:
            connections.emit("producer.disconnecting")
            self._wait_delivered(token, started + timeout)
        except BaseException:
            with state.lock:
                if state.disconnect is token:
                    connections.cancel_disconnect()
            raise
        clients = self._detach(token)
        if clients is None:
            return False
        try:
            for client in clients:
                # A signal handler may have sent after `_detach` checked the clients.
                client.wait_delivered(timeout)
            connections.close_clients(clients)
        finally:
            connections.emit("producer.disconnected", started)
        return True

    def check_idle(self) -> None:
        """Start a disconnect if the producer has been idle for long; never waits."""
        clients = self._connections.clients
        reported = sum(client.reported for client in clients)
        busy = any(client.outstanding for client in clients)
        if self._transactions is not None and self._transactions.in_use:
            busy = True
        if self._idle.is_idle(reported, busy=busy) and self._is_possible():
            _concurrency.spawn(self._disconnect_and_report)

    def _is_possible(self) -> bool:
        return (
            self._connections.state.status == "connected"
            and not self._buffer
            and not any(client.has_waiters for client in self._connections.clients)
        )

    def _wait_delivered(self, token: object, deadline: float) -> None:
        """Wait for deliveries, until the deadline or until a message cancels this."""
        connections = self._connections
        for client in connections.clients:
            while connections.state.disconnect is token and client.outstanding > 0:
                remaining = deadline - _concurrency.monotonic()
                if remaining <= 0:
                    return
                client.wait_delivered(min(remaining, _CANCEL_CHECK_INTERVAL))

    def _detach(self, token: object) -> list[Client] | None:
        """Detach the clients, so that the next message has a new one built.

        Returns:
            The clients to close; None if a message has cancelled the disconnect, or not
            all messages were delivered.
        """
        connections, state = self._connections, self._connections.state
        with state.lock:
            if state.disconnect is not token:
                return None
            connections.owner.unregister()
            busy = any(
                client.outstanding or client.has_waiters
                for client in connections.clients
            )
            if busy or self._buffer:
                connections.owner.register()
                connections.cancel_disconnect()
                return None
            self._idle = IdleWatch(connections.settings.idle_disconnect_timeout)
            connections.monitor.freeze_statistics(frozen=False)
            clients = connections.detach_all()
            # A signal handler may have sent, and had a new client built.
            if connections.clients:
                state.disconnect = None
            else:
                state.to("disconnected")
        return clients

    def _disconnect_and_report(self) -> None:
        # No caller is there to catch an error.
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - emitted
            self._connections.emit_error("producer.disconnect.error", error)
