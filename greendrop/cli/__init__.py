"""The command line: `greendrop`, or `python -m greendrop`.

A leaf: it uses what is public, and nobody imports it. Each command is a module with
`add_to`, which describes its options, and a function that runs it.
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
    _mend_streams()
    # The commands report what goes wrong with brokers in their own words.
    logging.getLogger("greendrop.librdkafka").addHandler(logging.NullHandler())
    logging.getLogger("greendrop.librdkafka").propagate = False
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except (MistakeError, GreendropError) as error:
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
    """Tell what went wrong, without a traceback; give the exit status."""
    if isinstance(error, ConfigurationInvalidError):
        for key, text in error.errors.items():
            say(f"{key.removeprefix('kafka.')}: {text}")
        return USAGE
    say(str(error))
    return USAGE if isinstance(error, MistakeError) else FAILED


def _mend_streams() -> None:
    """See to it that there are streams to write to, and that any text can be."""
    if sys.stdout is None:  # closed by who started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stop_writing() -> None:
    """Have Python not try again, at exit, to write what it still has."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
