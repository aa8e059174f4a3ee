"""The pages in docs match the code."""

import inspect
import json
import re
import runpy
from pathlib import Path

import pytest

import greendrop
from greendrop import errors, testing

DOCS = Path(__file__).parents[2] / "docs"

generated = runpy.run_path(str(DOCS / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", generated, ids=lambda page: page.name)
def test_generated_pages_are_current(page):
    """Pages made of tables match the tables; if not, run python docs/generate.py."""
    assert generated[page] == page.read_text()


@pytest.mark.parametrize("page", generated, ids=lambda page: page.name)
def test_every_row_of_a_generated_page_has_a_heading(page):
    """docs/generate.py has a group for every setting and event."""
    assert "\n## Other\n" not in generated[page]


def test_every_error_is_explained():
    """docs/reference/errors.md names each error of greendrop."""
    text = (DOCS / "reference" / "errors.md").read_text()
    names = [
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.GreendropError) and not name.startswith("_")
    ]

    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_public_name_is_in_the_api_reference():
    """Pages in docs/reference/api name all that greendrop exports."""
    pages = (DOCS / "reference" / "api").glob("*.md")
    text = "".join(page.read_text() for page in pages)
    # The page of exceptions takes them from their module.
    names = [
        f"{module.__name__}.{name}"
        for module in (greendrop, testing)
        for name in module.__all__
        if not hasattr(errors, name)
    ]

    assert len(names) > 20
    assert [name for name in names if not re.search(rf"{name}\b", text)] == []


@pytest.mark.parametrize(
    "page", sorted((DOCS / "decisions").glob("[0-9]*.md")), ids=lambda page: page.stem
)
def test_decisions_keep_the_form(page):
    """A decision has a number, context, decision, alternatives and costs."""
    lines = page.read_text().splitlines()

    assert lines[0].startswith(f"# {page.name[:4]}: ")
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## Context", "## Decision", "## Instead of", "## Costs"]


reliability = runpy.run_path(str(DOCS / "reliability.py"))


@pytest.mark.parametrize("promise", reliability["PROMISES"], ids=lambda each: each.text)
def test_every_promise_has_a_check_that_exists(promise):
    """Checks are test files of this tree, or targets of the Makefile."""
    root = DOCS.parent
    makefile = (root / "Makefile").read_text()

    assert promise.checks
    for name in promise.checks:
        check = reliability["CHECKS"].get(name)
        if check is None:
            assert (root / name).is_file()
        else:
            assert f"\n{check.target}:" in makefile


def test_every_kept_result_is_on_the_page():
    """docs/reliability.py knows each check of docs/reliability.json."""
    results = json.loads((DOCS / "reliability.json").read_text())

    assert results.keys() <= reliability["CHECKS"].keys()
