"""Access to librdkafka's statistics, for the listeners that make metrics of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The statistics, or an object in them.
Part: TypeAlias = Mapping[str, Any]


def brokers(statistics: Part) -> Iterator[tuple[str, Part]]:
    """Yield each broker with its name.

    Without the bootstrap servers: their brokers are in the list under their own names.
    """
    for broker in statistics.get("brokers", {}).values():
        if broker["nodeid"] >= 0:
            yield broker["nodename"], broker


def value_at(part: Part, keys: tuple[str, ...]) -> float | None:
    """Return the number at a path of keys, or None if there is none."""
    value: object = part
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value


class Increments:
    """The growth of librdkafka's counters since their last value.

    Each client counts from 0, and a producer may have several clients, at once or one
    after another. Their `name` is unique in the process, and part of each counter.
    """

    def __init__(self) -> None:
        # By producer, so that it can be forgotten, then by counter.
        self._last: dict[str, dict[object, float]] = {}

    def since_last(
        self, producer_id: str, counter: object, value: float, *, first: float
    ) -> float:
        """Return the growth of a counter.

        Args:
            producer_id: The producer of the client.
            counter: Identifies the counter.
            value: Its value now.
            first: Returned for the first value of a counter.
        """
        known = self._last.setdefault(producer_id, {})
        last = known.get(counter)
        known[counter] = value
        return first if last is None else max(value - last, 0)

    def forget(self, producer_id: str) -> None:
        """Forget the counters of a producer that has no clients any more."""
        self._last.pop(producer_id, None)
