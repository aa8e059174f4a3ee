"""The command line: `greendrop`, or `python -m greendrop`.

A leaf: it uses what is public, and nobody imports it. Each command is a module with
`add_to`, which describes its options, and a function that runs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

import greendrop
from greendrop.cli import _bench, _doctor, _produce, _verify
from greendrop.cli._shared import FAILED, USAGE, MistakeError, Terminated, say
from greendrop.errors import ConfigurationInvalidError, GreendropError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = "Send messages to Kafka, and find out why that doesn't work."
_EPILOG = """exit status:
  0  all went well
  1  messages were not delivered, or a check failed
  2  options or settings are wrong; nothing was sent
  130, 143, 141  ended by Ctrl-C, by SIGTERM, or because nobody reads its output

GREENDROP_BOOTSTRAP_SERVERS in the environment stands for -b."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="greendrop",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"greendrop {greendrop.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    for module in (_produce, _doctor, _verify, _bench):
        module.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit status.

    Args:
        argv: The arguments, without the program's name. None: those of the process.
    """
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except (MistakeError, GreendropError) as error:
        return _explain(error)
    except BrokenPipeError:
        return _nobody_reads()
    except (KeyboardInterrupt, Terminated) as end:
        terminated = isinstance(end, Terminated)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    return status


def _explain(error: Exception) -> int:
    """Tell what went wrong, without a traceback; give the exit status."""
    if isinstance(error, ConfigurationInvalidError):
        for key, text in error.errors.items():
            say(f"{key.removeprefix('kafka.')}: {text}")
        return USAGE
    say(str(error))
    return USAGE if isinstance(error, MistakeError) else FAILED


def _nobody_reads() -> int:
    """End as a program does whose reader has gone, as `head` has."""
    # What is still in Python's own buffer would be written at exit, and fail again.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 128 + signal.SIGPIPE
