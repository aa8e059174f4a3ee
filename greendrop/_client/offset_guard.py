"""The offset guard: notices delivery reports that can't be about their own message.

The messages of a transaction come after those of all transactions before it. A report
that names an offset from before the transaction is about another message: the broker
has taken the message for one that it had stored already, and has stored nothing. The
guard is the second line of defence: `Transactions` gives up each client of which this
is to be expected, before it can happen. See docs/decisions/0023.
"""

from __future__ import annotations


class OffsetGuard:
    """Checks the delivery reports of one transactional producer, client after client.

    A topic that was deleted and created again starts at offset 0, which looks the same.
    So an alarm costs one transaction and one client at most: it forgets all offsets.
    """

    def __init__(self) -> None:
        # The highest offset in each partition: before this transaction, and in it.
        self._before: dict[tuple[str, int], int] = {}
        self._highest: dict[tuple[str, int], int] = {}
        #: What was noticed in this transaction.
        self.alarm: str | None = None

    def begin(self) -> None:
        """Begin a transaction; all reports of the last one are in."""
        self._before.update(self._highest)
        self._highest.clear()
        self.alarm = None

    def check(self, topic: str, partition: int, offset: int | None) -> None:
        """Check the report of a delivered message.

        Called for each message of a transactional producer. Reports of one transaction
        come in any order: a poll that yields between two batches turns them round.

        Args:
            topic: Where the message went.
            partition: Where the message went.
            offset: None or below 0 where the broker has acknowledged without one.
        """
        if offset is None or offset < 0:
            return
        place = topic, partition
        before = self._before.get(place, -1)
        if offset <= before:
            self._raise_alarm(place, offset, before)
        elif offset > self._highest.get(place, -1):
            self._highest[place] = offset

    def _raise_alarm(self, place: tuple[str, int], offset: int, before: int) -> None:
        self._before.clear()
        self._highest.clear()
        if self.alarm is None:
            topic, partition = place
            self.alarm = (
                f"a message to {topic!r} was reported at offset {offset} of partition"
                f" {partition}, where an earlier transaction had been given offset"
                f" {before}: either the brokers took it for an older message and did"
                " not store it, or the topic was deleted and created again"
            )
