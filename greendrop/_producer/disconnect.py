"""Closes the connections of a producer that is not needed for a while.

A message that comes meanwhile calls it off, so that nobody who sends ever waits for it,
or fails. Also looks whether a producer has been idle for so long that this may be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency
from greendrop._concurrency.fair_lock import LockRequest
from greendrop._producer.idle import IdleWatch

if TYPE_CHECKING:
    from greendrop._client.client import Client
    from greendrop._connections.connections import Connections
    from greendrop._producer.buffer import Buffer
    from greendrop._transactions.coordinator import Transactions

#: Seconds between two looks whether a message has called off a disconnect.
_LOOK_EVERY = 0.05


class Disconnect:
    """How one producer disconnects.

    Args:
        connections: What it has open.
        buffer: Messages in it keep it connected.
        transactions: One that is open, or about to be, does too.
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
        """Whether `disconnect` would begin now."""
        in_use = self._transactions is not None and self._transactions.in_use
        return not (in_use or self._connections.inherited) and self._is_possible()

    def disconnect(self) -> bool:
        """See `Producer.disconnect`."""
        now = self._connections
        now.check_not_forked()
        if self._transactions is not None and self._transactions.in_use:
            return False
        if not now.can_wait():
            if self._is_possible():
                _concurrency.spawn(self._disconnect_quietly)
                return True
            return False
        if self._transactions is None:
            return self._disconnect()
        # It begins with none open, so none is held up for longer than a moment.
        turn = LockRequest(_concurrency.current_task())
        try:
            return self._transactions.block(turn, 0.0) and self._disconnect()
        finally:
            turn.released = True
            self._transactions.unblock(turn)

    def _disconnect(self) -> bool:
        now = self._connections
        began = _concurrency.monotonic()
        with now.lock:
            if not self._is_possible():
                return False
            me = now.disconnecting = object()
            now.status = "disconnecting"
            for slot in now.slots:
                slot.active = None
        try:
            now.emit("producer.disconnecting")
            self._await_deliveries(me, began + now.settings.max_wait_timeout)
        except BaseException:
            with now.lock:
                if now.disconnecting is me:
                    now.cancel_disconnect()
            raise
        clients = self._detach(me)
        if clients is None:
            return False
        try:
            for client in clients:
                # A signal handler may have sent after that was looked at.
                client.wait_delivered(now.settings.max_wait_timeout)
            now.close_clients(clients)
        finally:
            now.emit("producer.disconnected", began)
        return True

    def look_whether_idle(self) -> None:
        """Disconnect if nothing was sent for long; where nobody may wait."""
        clients = self._connections.clients
        settled = sum(client.reported for client in clients)
        busy = any(client.outstanding for client in clients)
        if self._transactions is not None and self._transactions.in_use:
            busy = True
        if self._idle.is_over(settled, busy=busy) and self._is_possible():
            _concurrency.spawn(self._disconnect_quietly)

    def _is_possible(self) -> bool:
        return (
            self._connections.status == "connected"
            and not self._buffer
            and not any(client.has_waiters for client in self._connections.clients)
        )

    def _await_deliveries(self, me: object, deadline: float) -> None:
        now = self._connections
        for client in now.clients:
            while now.disconnecting is me and client.outstanding > 0:
                left = deadline - _concurrency.monotonic()
                if left <= 0:
                    return
                client.wait_delivered(min(left, _LOOK_EVERY))

    def _detach(self, me: object) -> list[Client] | None:
        """Let go of the clients, so that the next message has a new one built.

        None if a message has called that off, or not all were delivered.
        """
        now = self._connections
        with now.lock:
            if now.disconnecting is not me:
                return None
            now.unregister()
            busy = any(
                client.outstanding or client.has_waiters for client in now.clients
            )
            if busy or self._buffer:
                now.register()
                now.cancel_disconnect()
                return None
            self._idle = IdleWatch(now.settings.idle_disconnect_timeout)
            now.monitor.freeze_statistics(frozen=False)
            clients = now.detach()
            now.disconnecting = None
            if not now.clients:  # else a signal handler has sent again
                now.status = "disconnected"
        return clients

    def _disconnect_quietly(self) -> None:
        # Nobody is there to catch it.
        try:
            self.disconnect()
        except Exception as error:  # noqa: BLE001 - told
            self._connections.emit_error("producer.disconnect.error", error)
