"""The offset guard: notices delivery reports that can't be about their own message.

The offsets that a producer is given in one partition only grow. A report that names an
offset at or below an earlier one is about another message: the broker has taken the
message for one that it had stored before, and has stored nothing. The guard is the
second line of defence: `Transactions` gives up each client of which this is to be
expected, before it can happen. See docs/decisions/0023.
"""

from __future__ import annotations


class OffsetGuard:
    """Checks the delivery reports of one transactional producer, client after client.

    A topic that was deleted and created again starts at offset 0, which looks the same.
    So an alarm costs one transaction and one client at most: it forgets all offsets.
    """

    def __init__(self) -> None:
        self._highest: dict[tuple[str, int], int] = {}
        #: What was noticed since this was last set to None.
        self.alarm: str | None = None

    def check(self, topic: str, partition: int, offset: int | None) -> None:
        """Check the report of a delivered message.

        Called for each message of a transactional producer: 0.2 us. Reports come in the
        order of their offsets; any other order would be a false alarm.

        Args:
            topic: Where the message went.
            partition: Where the message went.
            offset: None or below 0 where the broker has acknowledged without one.
        """
        if offset is None or offset < 0:
            return
        place = topic, partition
        highest = self._highest.get(place, -1)
        if offset > highest:
            self._highest[place] = offset
            return
        self._highest.clear()
        if self.alarm is None:
            self.alarm = (
                f"a message to {topic!r} was reported at offset {offset} of partition"
                f" {partition}, where this producer had been given offset {highest}"
                " before: either the brokers took it for an older message and did not"
                " store it, or the topic was deleted and created again"
            )
