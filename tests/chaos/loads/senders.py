"""Tasks that send to their own keys and wait for the reports, as fast as a web worker.

A program, run by `loads`: greenlets in a patched interpreter, or threads::

    python -m tests.chaos.loads.senders '{"mode": "greenlets", ...}'
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.loads.programs import Plan, configuration, leave, run_tasks
from tests.chaos.records import Recorder, Sent

if TYPE_CHECKING:
    from greendrop import DeliveryHandle, ProduceError, Producer

#: Messages that are sent before the first of them is waited for.
_BURSTS = (1, 1, 1, 5, 20)
#: Longest rest, in seconds, after a burst.
_REST = 0.3


class Sender:
    """One task, with a key of its own.

    Args:
        producer: Shared by all tasks.
        plan: The work.
        number: Of the task.
        recorder: Gets the outcomes.
    """

    def __init__(
        self, producer: Producer, plan: Plan, number: int, recorder: Recorder
    ) -> None:
        self._producer = producer
        self._topic = plan.topic
        self._key = f"sender{number:02}"
        self._recorder = recorder
        self._dice = random.Random(f"{plan.seed}-{number}")
        self._seconds = plan.seconds
        self._count = 0

    def run(self) -> None:
        """Send until the time is over."""
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            self._send(self._dice.choice(_BURSTS))
            time.sleep(self._dice.random() * _REST)

    def _send(self, size: int) -> None:
        from greendrop import ProduceError  # noqa: PLC0415 - after the patch

        started = time.monotonic()
        handles: list[tuple[str, DeliveryHandle]] = []
        for _ in range(size):
            payload = f"{self._key}-{self._count}"
            self._count += 1
            try:
                handle = self._producer.produce_async(
                    topic=self._topic, key=self._key, payload=payload
                )
            except ProduceError as error:
                self._fail(payload, error)
            else:
                handles.append((payload, handle))
        for payload, handle in handles:
            try:
                report = handle.wait()
            except ProduceError as error:
                self._fail(payload, error)
            else:
                self._recorder.acknowledged(started)
                self._recorder.record(
                    Sent(payload, "acknowledged", report.partition, report.offset)
                )

    def _fail(self, payload: str, error: ProduceError) -> None:
        self._recorder.error(error)
        unknown = error.message_state == "unknown"
        self._recorder.record(Sent(payload, "unknown" if unknown else "failed"))


def main() -> None:
    """Run the plan in the first argument."""
    plan = Plan.parse(sys.argv[1])
    plan.prepare()
    import greendrop  # noqa: PLC0415 - after the patch

    recorder = Recorder(Path(plan.folder))
    keys = {"enable.idempotence": plan.idempotent, "message.timeout.ms": 60_000}
    keys |= configuration(plan.bootstrap_servers)
    producer = greendrop.Producer(kafka=keys)
    senders = [Sender(producer, plan, each, recorder) for each in range(plan.tasks)]
    run_tasks(plan, [each.run for each in senders], recorder)
    producer.close(timeout=20)
    recorder.close()
    leave()


if __name__ == "__main__":
    main()
