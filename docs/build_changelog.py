"""Build CHANGELOG.md from the fragments of the releases in docs/changes.

    python docs/build_changelog.py                      # write CHANGELOG.md
    python docs/build_changelog.py 0.2.0 2026-12-01     # release what is in `next`

docs/changes/README.md describes fragments and releases.
"""

from __future__ import annotations

import argparse
import datetime as dt
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
CHANGES = ROOT / "docs" / "changes"
CHANGELOG = ROOT / "CHANGELOG.md"

KINDS = ("added", "changed", "removed", "fixed")

#: Headings below a kind, in this order. A fragment without an area comes last.
AREAS = {
    "sending": "Sending messages",
    "outcomes": "Handles and errors",
    "transactions": "Transactions and recovery",
    "closing": "Connecting, closing and interrupts",
    "forks": "Forks",
    "settings": "Settings and security",
    "events": "Events, logging, metrics and tracing",
    "programs": "Web servers, task queues and asyncio",
    "testing": "Testing",
    "cli": "Command line",
    "project": "Documentation and packaging",
    "": "Other",
}

WRAP = textwrap.TextWrapper(
    width=96,
    initial_indent="- ",
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
)


def area_and_kind(fragment: Path) -> tuple[str, str]:
    """Read them from a fragment's name: AREA.NAME.KIND.md or NAME.KIND.md.

    Raises:
        ValueError: The name has another form.
    """
    *area, _, kind = fragment.stem.split(".") if "." in fragment.stem else ("", "")
    if kind not in KINDS or len(area) > 1 or (area and area[0] not in AREAS):
        message = (
            f"{fragment.name!r} is not AREA.NAME.KIND.md, with an area of"
            f" {', '.join(filter(None, AREAS))} and a kind of {', '.join(KINDS)}"
        )
        raise ValueError(message)
    return "".join(area), kind


def section(folder: Path) -> Iterator[str]:
    """Yield the text of one release: its introduction, then the fragments by kind."""
    yield f"\n## {folder.name} ({(folder / 'date').read_text().strip()})\n"
    introduction = folder / "introduction.md"
    if introduction.exists():
        yield f"\n{introduction.read_text().strip()}\n"
    grouped: dict[tuple[str, str], list[Path]] = {}
    for fragment in sorted(folder.glob("*.md")):
        if fragment != introduction:
            grouped.setdefault(area_and_kind(fragment), []).append(fragment)
    for kind in KINDS:
        if any(kind == each for _, each in grouped):
            yield f"\n### {kind.capitalize()}\n"
        for area, title in AREAS.items():
            if (area, kind) in grouped:
                yield f"\n#### {title}\n\n"
                yield from map(_item, grouped[area, kind])


def _item(fragment: Path) -> str:
    text = " ".join(fragment.read_text().split())
    return f"{WRAP.fill(text)}\n"


def changelog(changes: Path = CHANGES) -> str:
    """Return the text of CHANGELOG.md: all releases, the newest one first."""

    def age(folder: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in folder.name.split("."))

    folders: Iterable[Path] = (each.parent for each in changes.glob("*/date"))
    lines = ["# Changelog\n"]
    for folder in sorted(folders, key=age, reverse=True):
        lines.extend(section(folder))
    return "".join(lines)


def release(version: str, date: str, changes: Path = CHANGES) -> None:
    """Move the fragments of `next` to a release, which may be there already."""
    folder = changes / version
    folder.mkdir(exist_ok=True)
    (folder / "date").write_text(f"{dt.date.fromisoformat(date)}\n")
    for fragment in (changes / "next").glob("*.md"):
        area_and_kind(fragment)
        fragment.rename(folder / fragment.name)


def main() -> None:
    """Make a release if one is named, and write the changelog."""
    parser = argparse.ArgumentParser(description="Build CHANGELOG.md.")
    parser.add_argument("version", nargs="?", help="release the fragments of `next`")
    parser.add_argument("date", nargs="?", help="the day of the release, YYYY-MM-DD")
    arguments = parser.parse_args()
    if arguments.version and not arguments.date:
        parser.error("a release needs a date")
    if arguments.version:
        release(arguments.version, arguments.date)
    CHANGELOG.write_text(changelog())


if __name__ == "__main__":
    main()
