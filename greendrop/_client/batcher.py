"""Batching: sends that are collected and handed over together.

With `linger.ms=0` librdkafka sends a message as soon as it can: a hundred greenlets
that produce and wait would send one message per request. So while messages are in
flight, sends are collected and given to librdkafka together.

`HubBatcher` collects the sends of the greenlets of one hub. It hands over at the end of
the hub's tick, when every greenlet that the last reports have freed has run: once all
messages in flight are reported, or after one round trip (two, if only few sends wait).
With few messages in flight, or with a broker so far away that the hub has time to spare
during a round trip, it hands over at the end of each tick, and with nothing in flight a
send goes out at once.

`ThreadBatcher` collects the sends of threads without a hub, while one of them polls. It
hands over when as many sends wait as were in flight, or when the poll returns.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Protocol

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

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
#: Seconds that the hub works on one message, about, on the machine of
#: docs/benchmarks.md. A round trip that takes longer than the work on all messages in
#: flight leaves the hub time to spare, and collecting would only delay the messages:
#: see docs/decisions/0032.
_HUB_TIME = 10e-6
#: Shortest round trip of a broker that counts as far away, in seconds.
_FAR = 0.001
#: With a broker that is far away, the sends of a tick are handed over in up to so many
#: parts: the broker works on the first part while the hub runs the other greenlets.
_PARTS = 16
#: Threads collect while the nearest broker has this round trip in seconds, or less. A
#: broker that is farther away does not need it, and each send would wait for 1 ms: with
#: a round trip of 1 ms, 64 threads made 22k/s instead of 31k/s.
_NEAR = 0.0005
#: Weight of one measured round trip in the smoothed one, as in TCP (RFC 6298).
_WEIGHT = 1 / 8


class BatchSender(Protocol):
    """Gives batches to librdkafka: the client."""

    def send_batch(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka, in order, and take them out of the queue.

        Messages without space stay in the queue.
        """

    def send_all(self, wires: deque[Wire]) -> None:
        """Give messages to librdkafka; wait for space."""


def take_all(items: deque[Wire]) -> deque[Wire]:
    """Empty a queue in one step, so that no exception can lose an item."""
    return deque(starmap(items.popleft, repeat((), len(items))))


def _no_hub() -> Hub | None:
    return None


class Batcher:
    """The queue of sends that wait for their batch; its subclasses decide when.

    A signal handler may raise, or send, at the start of each function here. So there is
    no state that has to be undone or kept in step: the number of messages in flight,
    and whether a tick is scheduled, are read where they are known.

    Args:
        hub: The hub of the greenlets that send; None for threads without a hub.
        pending: The handles of messages in flight, waiting sends included.
        sender: Gives batches to librdkafka. Messages without space are sent again after
            the next reports.
    """

    def __init__(
        self,
        hub: Hub | None,
        pending: Sized,
        sender: BatchSender,
    ) -> None:
        self._pending = pending
        self._sender = sender
        #: The hub. The caller may batch if `current_hub() is hub`. (The number of the
        #: thread would not do: a later thread may get the same one.)
        self.hub = hub
        #: Returns the hub of the calling thread, or None.
        self.current_hub: Callable[[], object] = _concurrency.current_hub
        #: Waiting items, in order. A sender that appends calls `maybe_flush` as soon as
        #: there are `flush_at`.
        self.items: deque[Wire] = deque()
        self.flush_at = 1
        #: Whether the next poll that waits is to call `collect`.
        self.collects_in_polls = False

    def in_own_hub(self) -> bool:
        """Return whether the caller runs in the hub of this batcher.

        For a batcher of threads: whether the caller's thread has no hub.
        """
        return self.current_hub() is self.hub

    def maybe_flush(self) -> None:
        """Hand the waiting sends over now, or schedule that."""
        self.flush()

    def on_reports(self, count: int, round_trip: float) -> None:
        """Handle reports, before the tasks that wait for them run.

        Args:
            count: Number of reports, of messages from any thread.
            round_trip: Seconds of the last delivered message; below 0 if there was
                none.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Give all waiting sends to librdkafka now."""
        raise NotImplementedError

    def collect(self, seconds: float) -> float:
        """Collect sends until `flush`, during a poll; under the client's `poll_lock`.

        Args:
            seconds: How long the poll may take.

        Returns:
            How long it may take now.
        """
        return seconds

    def resume(self) -> None:
        """Hand over, or schedule that, if an exception has prevented it."""
        self.flush()

    def take(self) -> deque[Wire]:
        """Remove and return all waiting sends."""
        return take_all(self.items)


class HubBatcher(Batcher):
    """Batches the sends of the greenlets of one hub."""

    def __init__(self, hub: Hub, pending: Sized, sender: BatchSender) -> None:
        super().__init__(hub, pending, sender)
        self.hub: Hub = hub
        self.current_hub = _concurrency.hub_getter()
        self._loop = hub.loop
        # gevent's callback at the end of this tick; pending until it runs.
        self._tick: _Callback | None = None
        # Seconds: smoothed, and the shortest one (0 before the first).
        self._round_trip = 0.0
        self._nearest = 0.0
        self._last_flush = 0.0
        # A repeating timer, although it is stopped each time it fires: libev starts a
        # one-shot timer that has fired with the rest of its time, which is nothing.
        self._timer: Any = self._loop.timer(_TIMER, _TIMER)

    def maybe_flush(self) -> None:
        if self.hub.dead:
            # Its ticks never end. The next send gets another poller, and no batch.
            self.current_hub = _no_hub
            self.flush()
            return
        waiting = len(self.items)
        idle = waiting >= len(self._pending) and not (self._tick and self._tick.pending)
        if (idle and waiting == 1) or waiting >= _MAX_BATCH:
            self.flush()
        elif self._collects():
            self._arm()
        elif waiting >= max(_FEW, len(self._pending) // _PARTS):
            self.flush()
        else:
            self._schedule()

    def on_reports(self, count: int, round_trip: float) -> None:
        if round_trip >= 0:
            self._round_trip += (round_trip - self._round_trip) * _WEIGHT
            self._nearest = min(round_trip, self._nearest or round_trip)
        if count == 1 and not self._pending:
            return  # a lone sender, whose next message goes out at once
        self._schedule()

    def flush(self) -> None:
        if not self.items:
            return
        self._last_flush = _concurrency.monotonic()
        self._sender.send_batch(self.items)
        if self.items:
            self._arm()

    def resume(self) -> None:
        if self.items and not (self._is_scheduled or self._timer.active):
            self._schedule()

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
        due = nothing_in_flight or not self._collects() or self._has_waited_enough()
        if due:
            self.flush()
        return due

    def _collects(self) -> bool:
        """Return whether sends wait for those of later ticks."""
        in_flight = len(self._pending)
        return in_flight > _FEW and self._nearest <= max(in_flight * _HUB_TIME, _FAR)

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


class ThreadBatcher(Batcher):
    """Batches the sends of threads without a hub, behind the thread that polls.

    A thread that polls calls `collect` before and `flush` after. In between other
    threads leave their sends here: the poll is as short as a send may wait. Each of
    them appends first and then reads `flush_at`; the polling thread sets `flush_at`
    first and then takes what waits. So one of the two hands over.
    """

    def __init__(self, pending: Sized, sender: BatchSender) -> None:
        super().__init__(None, pending, sender)
        # The shortest round trip in seconds.
        self._nearest = math.inf
        self._has_ended = False

    def on_reports(self, count: int, round_trip: float) -> None:
        if 0 <= round_trip < self._nearest:
            self._nearest = round_trip
        # With one thread that sends and waits in turn there is nothing to collect.
        in_flight = len(self._pending)
        self.collects_in_polls = self._nearest <= _NEAR and count + in_flight > 1

    def flush(self) -> None:
        self.flush_at = 1
        if self.items:
            self._sender.send_batch(self.items)
            if self.items and self._has_ended:
                # There is no space for the rest yet, and no poll follows.
                _concurrency.spawn(self._sender.send_all, self.items)

    def collect(self, seconds: float) -> float:
        # Once for each poll that brings reports. While a broker does not answer, the
        # thread would poll a thousand times a second for nothing.
        self.collects_in_polls = False
        self.flush_at = min(max(len(self._pending), 1), _MAX_BATCH)
        return seconds if self.flush_at == 1 else min(seconds, _MAX_PACE)

    def end(self) -> None:
        """Batch nothing any more, because the poller ends; from any thread."""
        self.current_hub = object
        self._has_ended = True
