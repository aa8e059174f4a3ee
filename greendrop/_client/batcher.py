"""Batching: sends of the greenlets of one hub, collected for one hand-over.

With `linger.ms=0` librdkafka sends a message as soon as it can: a hundred greenlets
that produce and wait would send one message per request. So while messages are in
flight, sends are collected and given to librdkafka together. That happens at the end of
the hub's
tick, when every greenlet that the last reports have freed has run: once all messages in
flight are reported, or after one round trip (two, if only few sends wait). With few
messages in flight the end of the tick is enough, and with none a send goes out at once.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Sized

    from gevent._types import _Callback
    from gevent.hub import Hub

    from greendrop._librdkafka.handle import Wire

#: Maximum seconds between two hand-overs while sends wait, whatever the round trip: a
#: slow broker must not slow down messages to other brokers.
_MAX_PACE = 0.001
#: Seconds of the timer. The grain of libev's timers is 1 ms; less would not be sooner.
_TIMER = 0.001
#: Number of waiting sends that are handed over inside the call, for loops that never
#: yield. A hand-over takes 1 us a message.
_MAX_BATCH = 2_048
#: With so many messages in flight, waiting sends included, batching gains nothing: each
#: tick hands over. Ten greenlets then make 13.7k/s instead of 11.9k/s (one Apache Kafka
#: on the same machine, round trip 0.7 ms); 16 and 22 the same, and 30 lose by it.
_FEW = 16
#: Weight of one measured round trip in the smoothed one, as in TCP (RFC 6298).
_WEIGHT = 1 / 8


class BatchSender(Protocol):
    """Gives batches to librdkafka: the client."""

    def send_batch(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka, in order, and take them out of the queue.

        Messages without space stay in the queue.
        """


def take_all(items: deque[Wire]) -> deque[Wire]:
    """Empty a queue in one step, so that no exception can lose an item."""
    return deque(starmap(items.popleft, repeat((), len(items))))


def _no_hub() -> Hub | None:
    return None


class Batcher:
    """The queue of sends that wait for their batch.

    A signal handler may raise, or send, at the start of each function here. So there is
    no state that has to be undone or kept in step: the number of messages in flight,
    and whether a tick is scheduled, are read where they are known.

    Args:
        hub: The hub of the greenlets that send.
        pending: The handles of messages in flight, waiting sends included.
        sender: Gives batches to librdkafka. Messages without space are sent again after
            the next reports.
    """

    def __init__(self, hub: Hub, pending: Sized, sender: BatchSender) -> None:
        self._pending = pending
        self._sender = sender
        #: The hub. The caller may batch if `current_hub() is hub`. (The number of the
        #: thread would not do: a later thread may get the same one.)
        self.hub = hub
        self.current_hub = _concurrency.hub_getter()
        self._loop = hub.loop
        #: Waiting items, in order. A sender that appends calls `maybe_flush` as soon as
        #: there are `flush_at`.
        self.items: deque[Wire] = deque()
        self.flush_at = 1
        # gevent's callback at the end of this tick; pending until it runs.
        self._tick: _Callback | None = None
        self._round_trip = 0.0
        self._last_flush = 0.0
        # A repeating timer, although it is stopped each time it fires: libev starts a
        # one-shot timer that has fired with the rest of its time, which is nothing.
        self._timer: Any = self._loop.timer(_TIMER, _TIMER)

    def in_own_hub(self) -> bool:
        """Return whether the caller runs in the hub of this batcher."""
        return self.current_hub() is self.hub

    def maybe_flush(self) -> None:
        """Hand the waiting sends over now, or schedule that."""
        if self.hub.dead:
            # Its ticks never end. The next send gets another poller, and no batch.
            self.current_hub = _no_hub
            self.flush()
            return
        waiting = len(self.items)
        idle = waiting >= len(self._pending) and not (self._tick and self._tick.pending)
        if (idle and waiting == 1) or waiting >= _MAX_BATCH:
            self.flush()
        elif self._are_few():
            self._schedule()
        else:
            self._arm()

    def on_reports(self, count: int, round_trip: float) -> None:
        """Handle reports, before the greenlets that wait for them run.

        Args:
            count: Number of reports, of messages from any thread.
            round_trip: Seconds of the last delivered message; below 0 if there was
                none.
        """
        if round_trip >= 0:
            self._round_trip += (round_trip - self._round_trip) * _WEIGHT
        if count == 1 and not self._pending:
            return  # a lone sender, whose next message goes out at once
        self._schedule()

    def flush(self) -> None:
        """Give all waiting sends to librdkafka now."""
        if not self.items:
            return
        self._last_flush = _concurrency.monotonic()
        self._sender.send_batch(self.items)
        if self.items:
            self._arm()

    def resume(self) -> None:
        """Schedule the hand-over, if an exception has prevented that."""
        if self.items and not (self._is_scheduled or self._timer.active):
            self._schedule()

    def take(self) -> deque[Wire]:
        """Remove and return all waiting sends."""
        return take_all(self.items)

    @property
    def _is_scheduled(self) -> bool:
        return self._tick is not None and self._tick.pending

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._tick = self._loop.run_callback(self._end_of_tick)

    def _end_of_tick(self) -> None:
        if self.items and not self._flush_if_due():
            self._arm()

    def _on_timer(self) -> None:
        self.flush_at = 1
        self._timer.stop()
        if self.items and not self._flush_if_due():
            self._arm()

    def _flush_if_due(self) -> bool:
        nothing_in_flight = len(self.items) >= len(self._pending)
        due = nothing_in_flight or self._are_few() or self._has_waited_enough()
        if due:
            self.flush()
        return due

    def _are_few(self) -> bool:
        return len(self._pending) <= _FEW

    def _has_waited_enough(self) -> bool:
        # One round trip after the last hand-over its first messages are reported. If
        # only few greenlets send again, the others will do so soon: a hand-over without
        # them would split the batch for good. So the few wait, for a second round trip
        # at most.
        waited = _concurrency.monotonic() - self._last_flush
        many = len(self.items) * 3 >= len(self._pending)
        round_trips = self._round_trip if many else self._round_trip * 2
        return waited >= min(round_trips, _MAX_PACE)

    def _arm(self) -> None:
        # In case no report comes. The timer first: if an exception comes in between,
        # each send still calls `maybe_flush`.
        if self.flush_at == 1:
            self._timer.again(self._on_timer, update=True)
            self.flush_at = _MAX_BATCH
