"""The offset guard: detects delivery reports that can't be about their own message.

Within a partition, the messages of a transaction come after those of all transactions
before it. A report with an offset from before the transaction is about another message:
the broker has taken the message for a duplicate of one that it has, and stored nothing.
The guard is the second line of defence. The first one is `Transactions`, which gives up
each client that could send such messages. See docs/decisions/0023.
"""

from __future__ import annotations


class OffsetGuard:
    """Checks the delivery reports of one transactional producer, across its clients.

    A topic that was deleted and created again starts at offset 0, which looks the same.
    So an alarm makes the guard forget all offsets, and costs one transaction and one
    client at most.
    """

    def __init__(self) -> None:
        # The highest offset in each partition: before this transaction, and in it.
        self._before: dict[tuple[str, int], int] = {}
        self._highest: dict[tuple[str, int], int] = {}
        #: Describes the first impossible offset of this transaction; None without one.
        self.alarm: str | None = None

    def begin(self) -> None:
        """Begin a transaction, when all reports of the previous one have arrived."""
        self._before.update(self._highest)
        self._highest.clear()
        self.alarm = None

    def check(self, topic: str, partition: int, offset: int | None) -> None:
        """Check the report of a delivered message.

        The poller calls this for each message of a transactional producer. The reports
        of one transaction may arrive out of order, because a poll that yields between
        two batches of reports can reverse these.

        Args:
            topic: The topic of the message.
            partition: The partition of the message.
            offset: None or below 0 if the broker has acknowledged without an offset.
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
