"""In-flight messages of one client, and backpressure.

A message is outstanding from the call that accepts it until its delivery report has
been handled: batched by us, queued by librdkafka, on the wire, or reported and not yet
handled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from greendrop import _concurrency
from greendrop._concurrency.deadline import Deadline
from greendrop._concurrency.wait_queue import FairQueue, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop.delivery import DeliveryHandle

#: Payloads that are too small to be counted take up to one part in so many of the bytes
#: that the queue may hold, if the queue is full of them.
_UNCOUNTED_SHARE = 4


class InFlight:
    """The set of in-flight messages, bounded as librdkafka's queue is.

    Space is granted in the order of waiting. A sender that was just served must not
    take the space that was freed for an earlier waiter, or that waiter could starve.

    Args:
        limit: `queue.buffering.max.messages`.
        max_bytes: `queue.buffering.max.kbytes`, in bytes. Like librdkafka this counts
            payloads only, and none of the small ones: see `uncounted`.
    """

    __slots__ = (
        "_bytes",
        "_bytes_lock",
        "_empty",
        "_full_by_bytes",
        "_limit",
        "_max_bytes",
        "_space",
        "free_slots",
        "pending",
        "reported",
        "uncounted",
    )

    def __init__(self, limit: int, max_bytes: int) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        #: Handles without a report. Senders add, the poller discards; each is one
        #: atomic step.
        self.pending: set[DeliveryHandle] = set()
        #: A sender that has not waited may proceed while `len(pending)` is below this.
        #: `Client.send` reads it, `pending` and `uncounted` directly: a call for each
        #: message would cost 3 % of a send.
        self.free_slots: float = limit
        #: Bytes of a payload up to which it is not counted. By default that is 2.6 kB:
        #: the number of messages limits them first. librdkafka counts them in any case.
        self.uncounted = max_bytes // limit // _UNCOUNTED_SHARE
        #: Delivery reports handled so far.
        self.reported = 0
        # Bytes of the payloads that are counted.
        self._bytes = 0
        self._bytes_lock = _concurrency.new_lock()
        # There was no space, although the number of messages is below the limit: for
        # bytes, which librdkafka limits as well.
        self._full_by_bytes = False
        self._space = FairQueue()
        self._empty = WaitQueue()

    @property
    def count(self) -> int:
        """In-flight messages."""
        return len(self.pending)

    @property
    def full(self) -> bool:
        """Whether there is no space even for a sender that was granted some."""
        count = self.count
        # A message that was refused for its bytes fits once nothing is in flight.
        return count >= self._limit or (self._full_by_bytes and count > 0)

    @property
    def has_waiters(self) -> bool:
        """Whether a sender waits for space, or is about to take it."""
        return self._space.has_waiters or self._space.granted > 0

    def refuses(self, *, waited: bool) -> bool:
        """Return whether a sender has to wait.

        Args:
            waited: It was granted space.
        """
        if waited:
            return self.full
        self._update_free_slots()  # an interrupted sender may have left it as it was
        return self.count >= self.free_slots

    def mark_full(self) -> None:
        """Record that there was no space for bytes, whatever the number of messages."""
        self._full_by_bytes = True
        self._update_free_slots()

    def add_bytes(self, handle: DeliveryHandle, size: int) -> bool:
        """Count a payload until its handle is settled; False if there is no space.

        Args:
            handle: New, and of no other task yet.
            size: The payload's bytes, more than `uncounted`.
        """
        with self._bytes_lock:
            fits = self._bytes + size <= self._max_bytes or not self.pending
            if fits:
                counted: Any = _CountedBytes(self, size)
                handle._waiters = (counted, None)
        if not fits:
            self.mark_full()
        return fits

    def drop(self, handle: DeliveryHandle) -> None:
        """Forget a message that was not accepted after all."""
        self.pending.discard(handle)
        if handle._waiters is not None:  # of no caller, which has no handle
            handle._waiters[0].wake()
            handle._waiters = None

    def _update_free_slots(self) -> None:
        if self._space.has_waiters:
            self.free_slots = -math.inf
        else:
            self.free_slots = (
                1 if self._full_by_bytes else self._limit - self._space.granted
            )

    def on_reports(self, count: int) -> None:
        """Wake as many senders as reports have freed space, in the order of waiting."""
        self.reported += count
        in_flight = len(self.pending)
        if self._space.entries:
            space = self._limit - in_flight - self._space.granted
            self._space.grant(
                min(space, count) if self._full_by_bytes and in_flight else space
            )
            self._update_free_slots()
        if self._full_by_bytes:
            self._full_by_bytes = False
            self._update_free_slots()
        if not in_flight and self._empty.waiters:
            self._empty.notify_all()

    def wait_for_space(
        self,
        waiter: _concurrency.Waiter,
        seconds: float,
        *,
        again: bool,
        on_wait: Callable[[], float] | None = None,
    ) -> None:
        """Wait until the caller may send, or the time is over.

        Args:
            waiter: The caller's.
            seconds: How long.
            again: The caller was granted space, and there was none after all: it waits
                at the front of the queue.
            on_wait: See `FairQueue.wait`.

        Blocking:
            As the waiter does. Send right after it returns, before other code runs.
        """
        # Before it enters: other senders must not overtake it from here on.
        self.free_slots = -math.inf
        try:
            self._space.wait(
                self._has_space,
                waiter,
                Deadline(seconds),
                first=again,
                on_wait=on_wait,
            )
        finally:
            self._update_free_slots()

    def _has_space(self) -> bool:
        return not self.full and self.count + self._space.granted < self._limit

    def wake_all(self) -> None:
        """Wake all waiting senders, because the client accepts no more messages."""
        self._space.grant_all()
        self._update_free_slots()

    def wait_until(
        self,
        condition: Callable[[], bool],
        deadline: Deadline,
        new_waiter: Callable[[], _concurrency.Waiter],
    ) -> bool:
        """Wait until the condition holds; return False if the time was over first.

        The condition is checked when no message is in flight any more, and every
        second. See `WaitQueue.wait_until`.
        """
        return self._empty.wait_until(condition, deadline, new_waiter)


class _CountedBytes:
    """The bytes of one payload, counted from its making until it is woken.

    It waits for the report as a task does, so that messages without it cost nothing. If
    the handle is gone without a report, its bytes are no longer counted either.
    """

    __slots__ = ("_in_flight", "_size")

    def __init__(self, in_flight: InFlight, size: int) -> None:
        self._size = size
        self._in_flight = in_flight
        in_flight._bytes += size

    def wake(self) -> None:
        in_flight = self._in_flight
        with in_flight._bytes_lock:
            in_flight._bytes -= self._size
            self._size = 0

    def __del__(self) -> None:
        if self._size:
            self.wake()
