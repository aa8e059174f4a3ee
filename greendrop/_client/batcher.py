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

from collections import deque
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from greendrop import _concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

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


#: Gives items to librdkafka, in order, and takes them out of the queue. Leaves those
#: there that there is no room for.
SendItems: TypeAlias = "Callable[[deque[_Item]], object]"


def take_all(items: deque[_Item]) -> deque[_Item]:
    """Empty a queue, in one step, so that no exception can lose an item in between."""
    return deque(starmap(items.popleft, repeat((), len(items))))


def _no_hub() -> Hub | None:
    return None


class Batcher(Generic[_Item]):
    """The queue of sends that wait for their batch.

    A signal handler may raise, or send, at the start of each function here. So there is
    no state that has to be undone or kept in step: what is under way, and whether
    something is scheduled, is looked up where it is known.
    """

    def __init__(self, hub: Hub, outstanding: Sized, flush: SendItems[_Item]) -> None:
        """Make an empty one.

        Args:
            hub: Whose greenlets send.
            outstanding: What is under way, the items that wait here included.
            flush: See `SendItems`. What it has no room for is tried again after the
                next reports.
        """
        self._outstanding = outstanding
        self._send_items = flush
        #: Whose greenlets send: the caller may batch when `current_hub() is hub`.
        #: (A thread's number would not do: a later thread may get the same.)
        self.hub = hub
        self.current_hub = _concurrency.hub_getter()
        self._loop: Any = hub.loop
        #: Waiting items, in order. A sender that appends calls `maybe_flush` as soon as
        #: there are `flush_at`.
        self.items: deque[_Item] = deque()
        self.flush_at = 1
        # gevent's callback at the end of this tick; it is pending until it begins.
        self._tick: Any = None
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
        waiting = len(self.items)
        idle = waiting >= len(self._outstanding) and not self._is_scheduled
        if (idle and waiting == 1) or waiting >= _MOST:
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
        if round_trip >= 0:
            self._round_trip += (round_trip - self._round_trip) * _WEIGHT
        if count == 1 and not self._outstanding:
            return  # a lone sender: what it sends next goes out at once
        self._schedule()

    def flush(self) -> None:
        """Give all that waits to librdkafka, now."""
        if not self.items:
            return
        self._last = _concurrency.monotonic()
        self._send_items(self.items)
        if self.items:
            self._arm()

    def resume(self) -> None:
        """Schedule the hand-over of what waits, if an exception has prevented that."""
        if self.items and not (self._is_scheduled or self._timer.active):
            self._schedule()

    def take(self) -> deque[_Item]:
        """Give up what waits: this hub is gone, or its client closes."""
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
        nothing_under_way = len(self.items) >= len(self._outstanding)
        due = nothing_under_way or self._are_few() or self._has_waited_enough()
        if due:
            self.flush()
        return due

    def _are_few(self) -> bool:
        return len(self._outstanding) <= _FEW

    def _has_waited_enough(self) -> bool:
        # One round trip after the last hand-over its first messages are back. If these
        # are few, the others come soon: going on without them would split the batch,
        # for good. So the few wait for them, for a second round trip at most.
        waited = _concurrency.monotonic() - self._last
        many = len(self.items) * 3 >= len(self._outstanding)
        round_trips = self._round_trip if many else self._round_trip * 2
        return waited >= min(round_trips, _LONGEST_PACE)

    def _arm(self) -> None:
        # In case no report comes. The timer first: with it running, and each send
        # reviewed all the same, nothing is wrong.
        if self.flush_at == 1:
            self._timer.again(self._on_timer, update=True)
            self.flush_at = _MOST
