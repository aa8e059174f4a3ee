"""Batches what the greenlets of one hub send.

With `linger.ms=0` librdkafka sends as soon as it can: a hundred greenlets that
produce and wait would trickle, one message a request. So while something is under
way, sends are gathered, and given to librdkafka together: once all that is under way
has been reported, or one round trip later, at the end of the hub's tick, when every
greenlet that the last reports freed has had its turn. With nothing under way a send
goes out at once. Belongs to one hub's thread; knows messages only as items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from greendrop import _waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.hub import Hub

_Item = TypeVar("_Item")

#: Longest time between two hand-overs while messages wait, in seconds, whatever the
#: round trip: a slow broker must not slow down those whose messages go elsewhere.
_LONGEST_PACE = 0.001
#: Grain of libev's timers is 1 ms; less than that would not be sooner.
_TIMER = 0.001
#: So many messages are handed over inside the call: a loop that never yields must not
#: gather for ever. Handing over takes 1 us a message.
_MOST = 2_048
#: Weight of one measured round trip in the smoothed one, as in TCP (RFC 6298).
_WEIGHT = 1 / 8


class Gatherer(Generic[_Item]):
    """The list of sends that wait for their batch."""

    def __init__(
        self, hub: Hub, hand_over: Callable[[list[_Item]], list[_Item]]
    ) -> None:
        """Make an empty one.

        Args:
            hub: Whose greenlets send.
            hand_over: Gives items to librdkafka, in order. Returns those that it has
                no room for; they are tried again after the next reports.
        """
        self._hand_over = hand_over
        self._loop = hub.loop
        self._items: list[_Item] = []
        self._under_way = 0
        self._scheduled = False
        self._round_trip = 0.0
        self._last = 0.0
        self._timer = hub.loop.timer(_TIMER)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: _Item) -> None:
        """Send an item at once, or with the next batch."""
        items = self._items
        items.append(item)
        if len(items) == 1 and not self._under_way and not self._scheduled:
            self.hand_over()
        elif len(items) >= _MOST:
            self.hand_over()
        elif not self._timer.active:
            # In case no report comes.
            self._timer.start(self._on_timer, update=True)

    def reported(self, count: int, round_trip: float) -> None:
        """Take note of reports, before the greenlets they free have run."""
        self._under_way = max(self._under_way - count, 0)
        self._round_trip += (round_trip - self._round_trip) * _WEIGHT
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._end_of_tick)

    def hand_over(self) -> None:
        """Give all that waits to librdkafka, now."""
        items = self._items
        if not items:
            return
        self._items = []
        self._last = _waiting.monotonic()
        rest = self._hand_over(items)
        self._under_way += len(items) - len(rest)
        if rest:
            self._items = rest + self._items

    def take(self) -> list[_Item]:
        """Give up what waits: this hub is gone, or its client closes."""
        items, self._items = self._items, []
        return items

    def stop(self) -> None:
        """Stop the timer; nothing is handed over by itself any more."""
        self._timer.close()

    def _end_of_tick(self) -> None:
        self._scheduled = False
        if not self._items:
            return
        pace = min(self._round_trip, _LONGEST_PACE)
        if not self._under_way or _waiting.monotonic() - self._last >= pace:
            self.hand_over()

    def _on_timer(self) -> None:
        self.hand_over()
        if self._items:
            self._timer.start(self._on_timer, update=True)
