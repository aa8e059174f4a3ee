"""The command line: `greendrop`, or `python -m greendrop`.

No other module of the package imports it. Each command is a module with `add_to`, which
adds the command and its options to the parser, and `run`, which returns the exit
status.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import greendrop
from greendrop.cli import _bench, _completion, _doctor, _produce, _verify
from greendrop.cli._shared import (
    FAILED,
    USAGE,
    LogHandler,
    Terminated,
    UsageError,
    say,
)
from greendrop.errors import ConfigurationInvalidError, GreendropError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__: list[str] = []

_DESCRIPTION = "Send messages to Kafka, and find out why that fails."
_EPILOG = """exit status:
  0    success
  1    messages were not delivered, or a check failed
  2    options or settings are wrong; nothing was sent
  130  interrupted by Ctrl-C
  141  the reader of the output has gone away
  143  ended by SIGTERM

The environment variable GREENDROP_BOOTSTRAP_SERVERS is used where -b is missing."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="greendrop",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"greendrop {greendrop.__version__}"
    parser.add_argument("--version", action="version", version=version)
    _completion.add_to(parser)
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    for module in (_produce, _doctor, _verify, _bench):
        module.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Args:
        argv: The arguments without the program's name; those of the process if None.
    """
    _prepare_streams()
    logging.getLogger("greendrop").addHandler(LogHandler())
    # The commands print connection problems themselves.
    logging.getLogger("greendrop.librdkafka").propagate = False
    logging.getLogger("greendrop.librdkafka").addHandler(logging.NullHandler())
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except (UsageError, GreendropError) as error:
        return _explain(error)
    except BrokenPipeError:
        _stop_writing()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _stop_writing()
        say(f"can't read or write: {error.strerror or error}")
        return FAILED
    except (KeyboardInterrupt, Terminated) as end:
        terminated = isinstance(end, Terminated)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    return status


def _explain(error: Exception) -> int:
    """Print an error without its traceback, and return the exit status."""
    if isinstance(error, ConfigurationInvalidError):
        for key, text in error.errors.items():
            say(f"{key.removeprefix('kafka.')}: {text}")
        return USAGE
    say(str(error))
    return USAGE if isinstance(error, UsageError) else FAILED


def _prepare_streams() -> None:
    """Replace closed streams, and let the open ones write any text."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stop_writing() -> None:
    """Keep Python from writing the rest of its buffer again when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
