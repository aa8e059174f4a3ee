"""The state of one producer: its status, and what a disconnect or `close` has begun."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Mapping

Status = Literal[
    "initial",
    "configured",
    "connected",
    "disconnecting",
    "disconnected",
    "closing",
    "closed",
]

# The statuses that may follow each status. A producer without a core is "initial". The
# failure of a transactional client leads back to "configured": the next use connects.
_TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        "configured": frozenset(
            ("configured", "connected", "disconnected", "closing"),
        ),
        "connected": frozenset(
            ("connected", "disconnecting", "disconnected", "configured", "closing"),
        ),
        "disconnecting": frozenset(
            ("connected", "disconnected", "configured", "closing"),
        ),
        "disconnected": frozenset(
            ("disconnected", "configured", "connected", "closing"),
        ),
        "closing": frozenset(("closing", "closed")),
        "closed": frozenset(("closed",)),
    }
)


class State:
    """The state of one producer. All changes are made under its lock.

    Attributes:
        lock: Held while the state and the clients change. A signal handler may run, and
            change them, inside a block of its own thread.
        status: One of the keys of the table.
        disconnect: Identifies the disconnect that waits for deliveries; None without
            one, and once it was cancelled.
        final_flush_task: The task in which `close` sends the buffered messages. All
            other senders are refused meanwhile.
        send_deadline: When all senders stop waiting; set by `close`.
    """

    def __init__(self) -> None:
        self.lock = _concurrency.new_lock()
        self.status: Status = "configured"
        self.disconnect: object | None = None
        self.final_flush_task: object = None
        self.send_deadline = _concurrency.Deadline(math.inf)

    def to(self, status: Status) -> None:
        """Change the status, and cancel a disconnect.

        Nothing is changed if the table has no such transition: then another task or a
        signal handler has closed the producer meanwhile.
        """
        if status in _TRANSITIONS[self.status]:
            self.status = status
            self.disconnect = None

    def begin_disconnect(self) -> object:
        """Become "disconnecting"; return the object that identifies the disconnect."""
        self.to("disconnecting")
        self.disconnect = object()
        return self.disconnect

    @property
    def closing_or_closed(self) -> bool:
        """Whether the producer is closing or closed."""
        return self.status in ("closing", "closed")

    @property
    def in_final_flush(self) -> bool:
        """Whether the caller is the task in which `close` sends buffered messages."""
        return self.final_flush_task == _concurrency.current_task()

    @property
    def refuses_caller(self) -> bool:
        """Whether the caller may not send, since the producer is closing or closed."""
        return self.closing_or_closed and not self.in_final_flush

    def reset(self) -> None:
        """Start again in a forked child. A producer that was closed stays closed."""
        # A thread of the parent may have held the lock at the moment of the fork.
        self.lock = _concurrency.new_lock()
        self.disconnect = None
        self.status = "closed" if self.closing_or_closed else "configured"
