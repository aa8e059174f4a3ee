"""A load whose every message is accounted for.

Greenlets send numbered messages, each with a key of its own, and record the outcome of
each message. Afterwards the outcomes are compared with the records that an independent
client finds in the topic.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent

from greendrop import GreendropError
from tests.tasks import await_true

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from greendrop import DeliveryHandle, DeliveryReport, Producer
    from tests.servers.reading import Record

#: Seconds that a load may continue after `stop`, and that it may stand still while a
#: broker starts. A load that takes longer hangs.
_LONGEST_WAIT = 60.0

#: Seconds that a greenlet rests between two bursts, so that a load of some seconds
#: stays small enough to be read back soon.
_REST = 0.005


class Load:
    """Greenlets that send until they are stopped or the producer is closed.

    Args:
        producer: Sends the messages. Not closed here.
        topic: The topic of the messages.
        senders: The number of greenlets.
        burst: 1 for `produce_sync`; more for that many `produce_async`, whose handles
            are waited for before the next burst.
    """

    def __init__(
        self, producer: Producer, topic: str, *, senders: int = 20, burst: int = 1
    ) -> None:
        self.sent: set[bytes] = set()
        #: Payload -> its delivery report.
        self.acknowledged: dict[bytes, DeliveryReport] = {}
        #: Payload -> the error for a message that failed, or may have.
        self.failed: dict[bytes, GreendropError] = {}
        #: Name of a sender -> the number of its acknowledged messages.
        self.progress: Counter[str] = Counter()
        self._pid = os.getpid()
        self._producer = producer
        self._topic = topic
        self._burst = burst
        self._stopping = False
        self.greenlets = [
            gevent.spawn(self._send, f"sender{number:02}") for number in range(senders)
        ]

    def stop(self) -> None:
        """Stop the senders, and wait until each has stopped: none of them hangs."""
        self._stopping = True
        gevent.joinall(self.greenlets, timeout=_LONGEST_WAIT)
        hanging = sum(not each.dead for each in self.greenlets)
        assert hanging == 0, f"{hanging} senders hang; {self._producer!r}"
        for each in self.greenlets:
            # A sender that failed with any other error raises it here.
            each.get(block=False)

    def await_progress(self, messages: int = 10) -> None:
        """Wait until each sender has a number of further acknowledgements."""
        before = Counter(self.progress)
        await_true(
            lambda: all(
                self.progress[name] >= before[name] + messages for name in self._names()
            ),
            _LONGEST_WAIT,
        )

    def check(self, records: Iterable[Record]) -> None:
        """Compare the recorded outcomes with the records in the topic."""
        stored = list(records)
        values = {record.value for record in stored}
        places = {(record.partition, record.offset): record.value for record in stored}

        assert values <= self.sent
        silent = self.sent - self.acknowledged.keys() - self.failed.keys()
        assert silent == set(), "these have no outcome"
        lost = self.acknowledged.keys() - values
        assert lost == set(), "these were acknowledged, and aren't there"
        misplaced = {
            value: report
            for value, report in self.acknowledged.items()
            if places[report.partition, report.offset] != value
        }
        assert misplaced == {}, "these aren't where their reports say"

    def check_exactly_once_in_order(self, records: Iterable[Record]) -> None:
        """Check that each message is there once, and those of a sender are in order."""
        found = defaultdict(list)
        for record in records:
            found[record.key.decode()].append(int(record.value.split(b"-")[1]))

        assert sorted(found) == self._names()
        for name, numbers in found.items():
            assert numbers == list(range(len(numbers))), f"of {name}"
        assert sum(map(len, found.values())) == len(self.sent)

    def _names(self) -> list[str]:
        return [f"sender{number:02}" for number in range(len(self.greenlets))]

    def _send(self, name: str) -> None:
        number = 0
        while self._going_on():
            payloads = [
                f"{name}-{number + each}".encode() for each in range(self._burst)
            ]
            number += self._burst
            self.sent.update(payloads)
            fields = [
                {"topic": self._topic, "key": name, "payload": payload}
                for payload in payloads
            ]
            if self._burst == 1:
                send = partial(self._producer.produce_sync, **fields[0])
                self._note(name, payloads[0], send)
            else:
                self._send_together(name, fields)
            gevent.sleep(_REST)

    def _going_on(self) -> bool:
        # A forked child has copies of these greenlets.
        here = self._pid == os.getpid()
        return here and not self._stopping and self._producer.status != "closed"

    def _send_together(self, name: str, burst: list[dict[str, Any]]) -> None:
        handles: dict[bytes, DeliveryHandle] = {}
        for fields in burst:
            try:
                handles[fields["payload"]] = self._producer.produce_async(**fields)
            except GreendropError as error:
                self.failed[fields["payload"]] = error
        for payload, handle in handles.items():
            self._note(name, payload, handle.wait)

    def _note(
        self, name: str, payload: bytes, result: Callable[[], DeliveryReport]
    ) -> None:
        try:
            self.acknowledged[payload] = result()
            self.progress[name] += 1
        except GreendropError as error:
            self.failed[payload] = error


def off_hub(function: Callable[..., object], *arguments: object) -> None:
    """Run a blocking function in a thread, and wait cooperatively."""
    outcome: list[BaseException] = []

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while thread.is_alive():
        gevent.sleep(0.005)
    thread.join()
    if outcome:
        raise outcome[0]
