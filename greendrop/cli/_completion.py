"""Shell completion of the command line, by shtab (the extra `completion`)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from greendrop.cli._shared import DONE, USAGE, say

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add `--print-completion`."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        help="print the completion script of a shell (needs shtab)",
    )


class _PrintCompletion(argparse.Action):
    """Prints the completion script of the whole command line, and exits."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - the base class has it
        _option_string: str | None = None,
    ) -> None:
        try:
            import shtab
        except ImportError:
            say("--print-completion needs shtab: python -m pip install shtab")
            parser.exit(USAGE)
        for action in _actions(parser):
            if action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, shell=values) + "\n")
        parser.exit(DONE)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options of a parser and of its commands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions(command)
