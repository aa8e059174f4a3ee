"""Build docs/changelog.md from the fragments in docs/changes (see its README)."""

import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
KINDS = ("added", "changed", "removed", "fixed")


def age(version: str) -> tuple[int, ...]:
    """Order versions: 0.9.0, 0.10.0, next."""
    if version == "next":
        return (sys.maxsize,)
    return tuple(int(number) for number in version.split("."))


def section(folder: Path) -> Iterator[str]:
    """Give the lines of one version.

    Raises:
        ValueError: A fragment's name does not end in a kind.
    """
    date = folder / "date"
    day = f" ({date.read_text().strip()})" if date.exists() else ""
    yield f"\n## {folder.name}{day}\n"
    by_kind: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for fragment in sorted(folder.glob("*.md")):
        kind = fragment.stem.rpartition(".")[2]
        if kind not in by_kind:
            message = f"{fragment} should end in one of .{{{','.join(KINDS)}}}.md"
            raise ValueError(message)
        by_kind[kind].append(fragment)
    for kind, fragments in by_kind.items():
        if fragments:
            yield f"\n### {kind.capitalize()}\n\n"
        for fragment in fragments:
            yield f"- {fragment.read_text().strip().replace(chr(10), chr(10) + '  ')}\n"


def main() -> None:
    """Write the changelog, newest version first."""
    folders = [path for path in (DOCS / "changes").iterdir() if path.is_dir()]
    folders.sort(key=lambda folder: age(folder.name), reverse=True)
    lines = ["# Changelog\n"]
    for folder in folders:
        lines.extend(section(folder))
    (DOCS / "changelog.md").write_text("".join(lines))


if __name__ == "__main__":
    main()
