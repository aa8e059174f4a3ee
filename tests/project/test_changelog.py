"""CHANGELOG.md, and the fragments that it is built from."""

import runpy
from pathlib import Path

import pytest

import greendrop

ROOT = Path(__file__).parents[2]
CHANGES = ROOT / "docs" / "changes"

build = runpy.run_path(str(ROOT / "docs" / "build_changelog.py"))


@pytest.fixture
def changes(tmp_path) -> Path:
    """A folder of changes with one fragment that is not released."""
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "sending.first.added.md").write_text("Sends\nmessages.\n")
    return tmp_path


def test_changelog_is_current():
    """CHANGELOG.md has all releases; if not, run python docs/build_changelog.py."""
    assert build["changelog"]() == (ROOT / "CHANGELOG.md").read_text()


def test_the_version_has_a_dated_release():
    """The newest release of CHANGELOG.md is greendrop's version."""
    headings = [
        line
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]

    assert headings[0].startswith(f"## {greendrop.__version__} (20")


def test_every_fragment_has_an_area_a_name_and_a_kind():
    """The fragments that are not released yet are named as docs/changes says."""
    for fragment in (CHANGES / "next").glob("*.md"):
        build["area_and_kind"](fragment)


@pytest.mark.parametrize(
    "name",
    ["nothing.md", "name.repaired.md", "nowhere.name.fixed.md", "a.b.c.fixed.md"],
)
def test_a_fragment_with_another_name_is_refused(name):
    """A fragment of an unknown kind or area causes an error that names it."""
    with pytest.raises(ValueError, match=name):
        build["area_and_kind"](Path(name))


def test_a_release_has_its_fragments_by_kind_and_area(changes):
    """A release lists its fragments below headings, under its version and its day."""
    (changes / "next" / "other.fixed.md").write_text("It failed; it now works.\n")

    build["release"]("0.2.0", "2026-12-01", changes)

    text = build["changelog"](changes)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Changelog",
        "## 0.2.0 (2026-12-01)",
        "### Added",
        "#### Sending messages",
        "### Fixed",
        "#### Other",
    ]
    assert "\n- Sends messages.\n" in text
    assert list((changes / "next").iterdir()) == []


def test_a_release_takes_in_what_has_come_since(changes):
    """A release that is made again has its old fragments and the new ones."""
    build["release"]("0.2.0", "2026-12-01", changes)
    (changes / "next" / "sending.second.added.md").write_text("Sends batches.\n")

    build["release"]("0.2.0", "2026-12-02", changes)

    text = build["changelog"](changes)
    assert "## 0.2.0 (2026-12-02)" in text
    assert "- Sends messages.\n- Sends batches.\n" in text


def test_unreleased_changes_are_not_in_the_changelog(changes):
    """Fragments of `next` do not make CHANGELOG.md out of date."""
    assert build["changelog"](changes) == "# Changelog\n"


def test_releases_are_listed_from_the_newest(changes):
    """Versions are compared by their numbers: 0.10.0 comes before 0.9.0."""
    for version in ("0.9.0", "0.10.0"):
        build["release"](version, "2026-12-01", changes)

    text = build["changelog"](changes)

    assert text.index("## 0.10.0") < text.index("## 0.9.0")
