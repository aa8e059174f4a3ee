"""A producer in a host's worker, the clock of its hub, and its errors.

Only at its end does a worker write them, so a worker that is killed writes none.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.loads.programs import configuration
from tests.tasks import LongestGap

if TYPE_CHECKING:
    from tests.chaos.records import Summary

#: Names of the files with the facts of the workers.
_FACTS = "facts-*.json"


class HostedProducer:
    """A producer at module level, as users write it. Configured by the environment."""

    def __init__(self) -> None:
        from greendrop import Producer  # noqa: PLC0415 - workers patch first

        logging.getLogger("greendrop").setLevel(logging.CRITICAL)
        self.topic = os.environ["TOPIC"]
        keys = configuration(os.environ["SERVERS"])
        self.producer = Producer(kafka={**keys, "enable.idempotence": True})
        self._errors: Counter[str] = Counter()
        self._gap: LongestGap | None = None

    def send(self, *payloads: str) -> None:
        """Send payloads with their keys, and wait for their reports.

        Raises:
            greendrop.ProduceError: One of them was not delivered, as far as is known.
        """
        from greendrop import ProduceError  # noqa: PLC0415

        if self._gap is None:
            self._gap = LongestGap()
            self._gap.__enter__()
        try:
            self.producer.produce_many_sync(
                {"topic": self.topic, "key": each.rpartition("-")[0], "payload": each}
                for each in payloads
            )
        except ProduceError as error:
            self._errors[f"{type(error).__name__} {getattr(error, 'name', '')}"] += 1
            raise

    def report(self) -> None:
        """Write the facts of this worker."""
        facts: dict[str, Any] = {"errors": self._errors, "gap": 0.0}
        if self._gap is not None:
            self._gap.__exit__()
            facts["gap"] = self._gap.seconds
        path = Path(os.environ["FOLDER"], _FACTS.replace("*", uuid.uuid4().hex))
        path.write_text(json.dumps(facts))


def read_facts(folder: Path, summary: Summary) -> None:
    """Add the facts of all workers to a summary."""
    for path in folder.glob(_FACTS):
        facts = json.loads(path.read_text())
        summary.errors.update(facts["errors"])
        summary.gap = max(summary.gap or 0.0, facts["gap"])
