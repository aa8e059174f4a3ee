"""Results of long runs, for docs/reliability.md.

docs/reliability.json holds the last long run of each check, and docs/reliability.py
makes the page of it. Each figure is a number or a text under the heading of a column::

    {
        "chaos": {
            "command": "make chaos",
            "note": "",
            "versions": {"greendrop": "0.1.0", "Python": "3.11.7"},
            "cases": [
                {
                    "name": "threads",
                    "date": "2026-12-01",
                    "seed": 7,
                    "seconds": 600,
                    "figures": {"acknowledged": 1200, "lost": 0},
                    "passed": true
                }
            ]
        }
    }
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

KEPT = Path(__file__).parent.parent / "docs" / "reliability.json"

Figures: TypeAlias = "dict[str, int | float | str]"


def _today() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


@dataclass
class Case:
    """The figures of one part of a check: a load, a scenario, an environment.

    Attributes:
        name: Of the part, as the page shows it.
        seconds: How long it ran.
        seed: Repeats it; None if nothing was random.
        figures: By the heading of their column. Durations are in the unit that the
            heading names.
        passed: Whether all promises were kept.
        date: The day, in UTC.
    """

    name: str
    seconds: float
    figures: Figures
    passed: bool
    seed: int | None = None
    date: str = field(default_factory=_today)


def versions(**more: str) -> dict[str, str]:
    """Return the versions of greendrop, Python and the libraries below greendrop.

    Args:
        **more: Further versions, such as the broker's.
    """
    import confluent_kafka  # noqa: PLC0415 - a program may have to patch first

    return {
        "greendrop": version("greendrop"),
        "Python": platform.python_version(),
        "confluent-kafka": version("confluent-kafka"),
        "librdkafka": str(confluent_kafka.libversion()[0]),
        "gevent": version("gevent"),
        "greenlet": version("greenlet"),
        **more,
    }


def keep(
    check: str,
    command: str,
    cases: list[Case],
    of: dict[str, str],
    *,
    note: str = "",
    path: Path = KEPT,
) -> None:
    """Put the cases of a check into a file of results.

    They replace cases of the same name. Cases of other versions are removed.

    Args:
        check: "chaos", "soak", "endurance", "hostile-input" or "matrix".
        command: Repeats the runs; each case has its own seed and duration.
        cases: The results.
        of: The versions that were tested.
        note: A sentence about the runs, for the page.
        path: The file.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    before = results.get(check, {})
    kept = {each["name"]: each for each in before.get("cases", [])}
    if before.get("versions") != of:
        kept = {}
    kept |= {each.name: asdict(each) for each in cases}
    result = {
        "command": command,
        "note": note,
        "versions": of,
        "cases": list(kept.values()),
    }
    path.write_text(json.dumps({**results, check: result}, indent=2) + "\n")
