"""What the listeners of metrics have in common about librdkafka's statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def brokers(statistics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give each broker with its name, but not those that only stand for one.

    Such as the bootstrap servers, which are known by their own names later on.
    """
    for broker in statistics.get("brokers", {}).values():
        if broker["nodeid"] >= 0:
            yield broker["nodename"], broker


def value_at(part: Mapping[str, Any], keys: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Follow keys into statistics; None where there is no number."""
    value: Any = part
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


class Increments:
    """How much librdkafka's own counters have grown since they were last told.

    Each client counts from 0, and a producer may have several at once, one after
    another, or both: they are told apart by `name`, which no two of a process share.
    """

    def __init__(self) -> None:
        # By producer, so that they can be forgotten, then by client, place and key.
        self._last: dict[str, dict[object, float]] = {}

    def since_last(
        self, producer_id: str, counter: object, value: float, *, first: float
    ) -> float:
        """Tell how much a counter has grown.

        Args:
            producer_id: Whose client counts.
            counter: Which one it is.
            value: What it says now.
            first: What to tell the first time.
        """
        known = self._last.setdefault(producer_id, {})
        last = known.get(counter)
        known[counter] = value
        return first if last is None else max(value - last, 0)

    def forget(self, producer_id: str) -> None:
        """Forget a producer, whose clients are gone."""
        self._last.pop(producer_id, None)
