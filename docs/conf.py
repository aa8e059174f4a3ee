"""Sphinx: how `make docs` builds these pages, without a network."""

import re

from docutils import nodes
from sphinx.application import Sphinx

import greendrop

project = "greendrop"
author = "greendrop developers"
project_copyright = f"2026, {author}"
version = release = greendrop.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# `changes` holds the fragments of CHANGELOG.md.
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = f"greendrop {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_js_files = ["tables.js"]

# Pages link to each other's headings.
myst_heading_anchors = 3
# Blocks in `::::`, which GitHub shows as text, and lists with boxes to tick.
myst_enable_extensions = ["colon_fence", "tasklist"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# A heading of ours: what a call waits for, and where it must not be made.
napoleon_custom_sections = ["Blocking"]
# As part of the class's text. Else what autodoc finds as members is there twice.
napoleon_use_ivar = True

# `name`, and what stands behind it without a space, as in `Message`s.
_PAGE = re.compile(r"docs/([\w/-]+)\.md")
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)(\w?)")


def _as_rst(
    _app: Sphinx, _what: str, _name: str, _object: object, _: object, lines: list[str]
) -> None:
    """Turn our docstrings, written to be read in an editor, into reStructuredText."""
    for index, line in enumerate(lines):
        line = _PAGE.sub(r":doc:`/\1`", line)  # noqa: PLW2901 - still the same line
        lines[index] = _CODE.sub(
            lambda found: f"``{found[1]}``" + (f"\\ {found[2]}" if found[2] else ""),
            line,
        )
    # An indented block below a paragraph is a program or a drawing.
    for index in range(len(lines) - 1, 1, -1):
        begins = lines[index].startswith("    ") and not lines[index - 1]
        if begins and not lines[index - 2].startswith((" ", ":", "..")):
            lines[index:index] = ["::", ""]


def _skip(
    _app: Sphinx, _what: str, _name: str, item: object, _skip: object, _: object
) -> bool | None:
    """Leave out the fields of named tuples: their class describes them better."""
    return str(item.__doc__).startswith("Alias for field number") or None


#: Where a long name may break: after a dot or an underscore, and before a capital.
_BREAK = re.compile(r"(?<=[._])(?=\w)|(?<=[a-z])(?=[A-Z])")


def _let_names_break(_app: Sphinx, tree: nodes.document, _page: str) -> None:
    """Let long names in the cells of tables break between their words."""
    for cell in tree.findall(nodes.entry):
        for name in list(cell.findall(nodes.literal)):
            parts: list[nodes.Node] = []
            for part in _BREAK.split(name.astext()):
                parts += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]
            name.children = []
            name.extend(parts[1:])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("doctree-resolved", _let_names_break)
