"""Sphinx: how `make docs` builds these pages, without a network."""

from importlib.metadata import version as version_of

project = "greendrop"
author = "greendrop developers"
project_copyright = f"2026, {author}"
version = release = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# `changes` holds the pieces of changelog.md.
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = f"greendrop {release}"

# Pages link to each other's headings.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# A heading of ours: what a call waits for, and where it must not be made.
napoleon_custom_sections = ["Blocking"]
