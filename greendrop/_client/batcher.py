"""Batches what the greenlets of one hub send.

With `linger.ms=0` librdkafka sends as soon as it can: a hundred greenlets that
produce and wait would trickle, one message a request. So while something is under
way, sends are batched, and given to librdkafka together: once all that is under way
has been on_reports, or one round trip later (two, if only few wait), at the end of the
hub's tick, when every greenlet that the last reports freed has had its turn. With a few
under way they wait for the end of the tick only, and with nothing a send goes out at
once. Belongs to one hub's thread; knows messages only as items.
"""

from __future__ import annotations

from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gevent.hub import Hub

_Item = TypeVar("_Item")

#: Longest time between two hand-overs while messages wait, in seconds, whatever the
#: round trip: a slow broker must not slow down those whose messages go elsewhere.
_LONGEST_PACE = 0.001
#: Grain of libev's timers is 1 ms; less than that would not be sooner.
_TIMER = 0.001
#: So many messages are handed over inside the call: a loop that never yields must not
#: batcher for ever. Handing over takes 1 us a message.
_MOST = 2_048
#: With so many on their way, those that wait included, gathering gains nothing: each
#: tick hands over. Ten greenlets then make 13.7k/s instead of 11.9k/s (one Apache Kafka
#: beside us, 0.7 ms a round trip); 16 and 22 the same either way, 30 lose by it.
_FEW = 16
#: Weight of one measured round trip in the smoothed one, as in TCP (RFC 6298).
_WEIGHT = 1 / 8


#: Gives items to librdkafka, in order. True when there was no room for the last one
#: that it took from the iterator; those after it are left there.
SendItems: TypeAlias = "Callable[[Iterator[_Item]], bool]"


def flush_into(items: list[_Item], flush: SendItems[_Item]) -> int:
    """Hand over what there is room for, and remove it from the list; tell how many.

    A signal handler may raise anywhere in here. What was not handed over stays in the
    list all the same, and what was does not.
    """
    going = iter(items)
    stuck = False
    try:
        stuck = flush(going)
    finally:
        given = len(items) - length_hint(going) - stuck
        del items[:given]
    return given


def _no_hub() -> Hub | None:
    return None


class Batcher(Generic[_Item]):
    """The list of sends that wait for their batch."""

    def __init__(self, hub: Hub, flush: SendItems[_Item]) -> None:
        """Make an empty one.

        Args:
            hub: Whose greenlets send.
            flush: See `SendItems`. What it has no room for is tried again after the
                next reports.
        """
        self._send_items = flush
        #: Whose greenlets send: the caller may batcher when `current_hub() is hub`.
        #: (A thread's number would not do: a later thread may get the same.)
        self.hub = hub
        self.current_hub = _concurrency.hub_getter()
        self._loop: Any = hub.loop
        #: Waiting items, in order. A sender that appends calls `maybe_flush` as soon as
        #: there are `flush_at`.
        self.items: list[_Item] = []
        self.flush_at = 1
        self._in_flight = 0
        self._scheduled = False
        self._flushing = False
        self._round_trip = 0.0
        self._last = 0.0
        # Repeating, though it is stopped each time it fires: libev starts a one-shot
        # timer that has fired before with what was left of its time, which is nothing.
        self._timer: Any = self._loop.timer(_TIMER, _TIMER)

    def in_own_hub(self) -> bool:
        """Tell whether the caller is in the thread, and the hub, that it belongs to."""
        return self.current_hub() is self.hub

    def maybe_flush(self) -> None:
        """Hand over what was added, or see to it that this is done soon."""
        if self.hub.dead:
            # No tick of it will end. The next send gets another poller, and no batch.
            self.current_hub = _no_hub
            self.flush()
            return
        idle = not self._in_flight and not self._scheduled
        if (idle and len(self.items) == 1) or len(self.items) >= _MOST:
            self.flush()
        elif self._are_few():
            self._schedule()
        else:
            self._arm()

    def on_reports(self, count: int, round_trip: float) -> None:
        """Take note of reports, before the greenlets they free have run.

        Args:
            count: How many, whoever sent them.
            round_trip: Seconds that the last good one took; below 0 if none was good.
        """
        self._in_flight = max(self._in_flight - count, 0)
        if round_trip >= 0:
            self._round_trip += (round_trip - self._round_trip) * _WEIGHT
        if count == 1 and not self._in_flight and not self.items:
            return  # a lone sender: what it sends next goes out at once
        self._schedule()

    def flush(self) -> None:
        """Give all that waits to librdkafka, now."""
        if not self.items or self._flushing:
            return  # a signal handler sends meanwhile; its item is among those going
        try:
            self._flushing = True
            self._last = _concurrency.monotonic()
            self._in_flight += flush_into(self.items, self._send_items)
        finally:
            self._flushing = False
        if self.items:
            self._arm()

    def take(self) -> list[_Item]:
        """Give up what waits: this hub is gone, or its client closes."""
        items, self.items = self.items, []
        return items

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._end_of_tick)

    def _end_of_tick(self) -> None:
        self._scheduled = False
        if self.items and not self._flush_if_due():
            self._arm()

    def _on_timer(self) -> None:
        self.flush_at = 1
        self._timer.stop()
        if self.items and not self._flush_if_due():
            self._arm()

    def _flush_if_due(self) -> bool:
        due = not self._in_flight or self._are_few() or self._has_waited_enough()
        if due:
            self.flush()
        return due

    def _are_few(self) -> bool:
        return self._in_flight + len(self.items) <= _FEW

    def _has_waited_enough(self) -> bool:
        # One round trip after the last hand-over its first messages are back. If these
        # are few, the others come soon: going on without them would split the batch,
        # for good. So the few wait for them, for a second round trip at most.
        waited = _concurrency.monotonic() - self._last
        many = len(self.items) * 2 >= self._in_flight
        round_trips = self._round_trip if many else self._round_trip * 2
        return waited >= min(round_trips, _LONGEST_PACE)

    def _arm(self) -> None:
        # In case no report comes.
        if self.flush_at == 1:
            self.flush_at = _MOST
            self._timer.again(self._on_timer, update=True)
