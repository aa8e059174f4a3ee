"""The judge: compares what programs have recorded with what the brokers have stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.records import Outcome, Sent

#: Broken promises that are described, one by one.
_DESCRIBED = 6


class Stored(NamedTuple):
    """A message that a reader found."""

    partition: int
    offset: int
    payload: str


@dataclass
class Figures:
    """Counts of messages, if not said otherwise.

    Attributes:
        outcomes: How many have each outcome.
        lost: Acknowledged, and not visible.
        doubled: Visible more than once.
        disordered: Acknowledged, and stored behind a later one of its key.
        visible: Aborted, and visible.
        torn: Groups of which some messages are visible, and some not.
        misplaced: Acknowledged, and not where the report says.
        foreign: Visible, and never sent.
        examples: The first broken promises, in words.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    visible: int = 0
    torn: int = 0
    misplaced: int = 0
    foreign: int = 0
    examples: list[str] = field(default_factory=list)

    def violations(self, *, once: bool) -> dict[str, int]:
        """Return the broken promises, with their counts.

        Args:
            once: Whether messages were promised to be stored once and in order.
        """
        names = ["lost", "visible", "torn", "misplaced", "foreign"]
        if once:
            names += ["doubled", "disordered"]
        return {name: count for name in names if (count := getattr(self, name))}


def judge(sent: Sequence[Sent], stored: Iterable[Stored]) -> Figures:
    """Compare messages that were sent with those that are visible.

    Args:
        sent: Each message once.
        stored: The visible messages, in the order of their offsets in each partition.
    """
    figures = Figures(Counter(each.outcome for each in sent))
    places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for found in stored:
        places[found.payload].append((found.partition, found.offset))
    figures.doubled = sum(len(several) > 1 for several in places.values())
    figures.foreign = len(places.keys() - {each.payload for each in sent})
    for each in sent:
        _judge_message(each, places.get(each.payload, ()), figures)
    figures.torn = _torn(sent, places)
    figures.disordered = _disordered(sent, places)
    return figures


def _judge_message(
    sent: Sent, found: Sequence[tuple[int, int]], figures: Figures
) -> None:
    broken = None
    if sent.outcome == "aborted" and found:
        broken = "visible"
    elif sent.outcome == "acknowledged" and not found:
        broken = "lost"
    elif sent.outcome == "acknowledged" and sent.offset is not None:
        # A broker that answers "duplicate" names no offset.
        known = sent.offset >= 0
        if known and (sent.partition, sent.offset) not in found:
            broken = "misplaced"
    if broken is not None:
        setattr(figures, broken, getattr(figures, broken) + 1)
        if len(figures.examples) < _DESCRIBED:
            figures.examples.append(f"{broken}: {sent}, stored at {list(found)}")


def _torn(sent: Iterable[Sent], places: defaultdict[str, list[tuple[int, int]]]) -> int:
    groups: defaultdict[str, set[bool]] = defaultdict(set)
    for each in sent:
        if each.group:
            groups[each.group].add(each.payload in places)
    return sum(len(visible) > 1 for visible in groups.values())


def _disordered(
    sent: Iterable[Sent], places: defaultdict[str, list[tuple[int, int]]]
) -> int:
    """Count messages whose first place is behind the one of a later message."""
    keys: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for each in sent:
        if each.outcome == "acknowledged" and each.payload in places:
            key, _, number = each.payload.rpartition("-")
            partition, offset = places[each.payload][0]
            keys[key, partition].append((int(number), offset))
    count = 0
    for numbers in keys.values():
        smallest = None
        for _, offset in sorted(numbers, reverse=True):
            if smallest is not None and offset > smallest:
                count += 1
            else:
                smallest = offset
    return count
