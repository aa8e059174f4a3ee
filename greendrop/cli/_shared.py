"""Parts that the commands share: connection options, signals, messages to people."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from greendrop import _wording
from greendrop.config.kafka import BOOTSTRAP

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from greendrop.events import Event

#: The commands of the parser of `greendrop`. argparse has no public name for them.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

#: Exit statuses; see the epilog of `greendrop --help`.
DONE, FAILED, USAGE = 0, 1, 2

_SERVERS = "GREENDROP_BOOTSTRAP_SERVERS"
#: librdkafka's default of `message.max.bytes`, plus its own allowance.
_DEFAULT_MAX_BYTES = 1_000_012
#: The part of librdkafka's texts that differs from one attempt to the next.
_ATTEMPT = re.compile(r" \(after \d+ms in state [^)]*\)")


class UsageError(Exception):
    """The options or the input are wrong; the text says how."""


class Terminated(BaseException):
    """The process received SIGTERM."""


def say(text: str) -> None:
    """Print a line for the user on standard error, in the place of a progress line."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{clear}greendrop: {text}\n")
        sys.stderr.flush()


def say_interrupted(in_flight: int, timeout: float | None = None) -> None:
    """Print that the command only waits for messages in flight, and how long."""
    limit = "" if timeout is None else f" up to {timeout:g} s"
    messages = _wording.count(in_flight, "message")
    say(
        f"interrupted; waiting{limit} for {messages} in flight"
        " (a second Ctrl-C drops what is left)"
    )


class LogHandler(logging.Handler):
    """Prints the warnings of the library in the form of the command's own messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        facts = getattr(record, "greendrop", {})
        if facts.get("event") == "brokers.silent":
            brokers, text = facts["brokers"], facts["text"]
            advice = f"`greendrop doctor -b {brokers}` checks the connection"
            say(f"{brokers}: {text} ({advice})")
        else:
            say(record.getMessage())


class ConnectionErrors:
    """Prints why the brokers can't be reached, each reason once. A listener."""

    def __init__(self) -> None:
        self._printed: set[str] = set()

    def on_error_occurred(self, event: Event) -> None:
        """Print an error of the client as a whole, unless it was printed before."""
        if event["type"] != "librdkafka.error":
            return
        error = event["error"]
        text = _ATTEMPT.sub("", str(error))
        # "All brokers are down" follows, and adds nothing to, the reason. It comes
        # alone where brokers close each connection, as those do that expect TLS.
        all_down = getattr(error, "name", None) == "_ALL_BROKERS_DOWN"
        advice = " (`greendrop doctor` finds out why)" if all_down else ""
        if text not in self._printed and not (all_down and self._printed):
            self._printed.add(text)
            say(f"{text}; still trying{advice}")


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` in the block when SIGTERM arrives."""

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """A context manager that records the first Ctrl-C or SIGTERM in `requested`.

    For loops that may only end between two steps. The second signal raises
    `KeyboardInterrupt` or `Terminated`.
    """

    requested = False

    def _on_signal(self, number: int, _: object) -> None:
        if self.requested:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopRequest:
        """Install the signal handlers."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {each: signal.signal(each, self._on_signal) for each in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the connection to Kafka."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "-b",
        "--bootstrap-servers",
        metavar="HOST:PORT,...",
        help=f"addresses of brokers (default: {_SERVERS} in the environment)",
    )
    group.add_argument(
        "-X",
        dest="properties",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of librdkafka, such as security.protocol=SASL_SSL; repeatable",
    )
    group.add_argument(
        "-F",
        dest="config_file",
        metavar="FILE",
        help="a file with such settings, one NAME=VALUE a line; put passwords there,"
        " because other users of the machine can read command lines",
    )


def configuration(options: argparse.Namespace) -> dict[str, str]:
    """Return librdkafka's settings: those of the file, then of -X, then of -b.

    Raises:
        UsageError: A file or an option can't be read, or no broker is named.
    """
    kafka: dict[str, str] = {}
    if options.config_file is not None:
        kafka.update(read_properties(options.config_file))
    for each in options.properties:
        _set(kafka, *named_value(each, "-X", "NAME=VALUE", allow_empty=True))
    given = options.bootstrap_servers
    if given is None and not kafka.keys() & set(BOOTSTRAP):
        given = os.environ.get(_SERVERS)
    if given is not None:
        _set(kafka, BOOTSTRAP[0], given)
    if not servers(kafka):
        raise UsageError(f"no brokers are named: use -b HOST:PORT, or set {_SERVERS}")
    return kafka


def servers(kafka: Mapping[str, str]) -> str:
    """Return the addresses of the brokers, or an empty text."""
    return next(filter(None, map(kafka.get, BOOTSTRAP)), "")


def _set(kafka: dict[str, str], name: str, value: str) -> None:
    """Set a property, and remove its other names."""
    for other in BOOTSTRAP if name in BOOTSTRAP else ():
        kafka.pop(other, None)
    kafka[name] = value


def payload_limit(kafka: Mapping[str, str]) -> int:
    """Return the largest payload in bytes: `message.max.bytes`, or its default."""
    given = kafka.get("message.max.bytes", "")
    return int(given) if given.isdecimal() and int(given) else _DEFAULT_MAX_BYTES


def named_value(
    text: str, option: str, form: str, *, allow_empty: bool = False
) -> tuple[str, str]:
    """Split the value of an option at the first `=`.

    Raises:
        UsageError: It contains no `=`, or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not name.strip() or not equals or not (value or allow_empty):
        # Without the whole text: it may be a password.
        raise UsageError(f"{option} takes {form}, and {name[:40]!r} is none")
    return name.strip(), value


def read_properties(file: str) -> dict[str, str]:
    """Read settings from a file: one `NAME=VALUE` a line; `#` starts a comment.

    Raises:
        UsageError: The file can't be read, or a line has no `NAME=VALUE`.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"can't read {file}: {reason}") from error
    settings: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "!")):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{file}, line {number}: no NAME=VALUE")
        settings[name.strip()] = value.strip()
    return settings


def positive(text: str) -> int:
    """Convert an argument to a whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seconds(text: str) -> float:
    """Convert an argument to a number of seconds above 0 and below a day."""
    number = float(text)
    if not 0 < number < 86_400:  # noqa: PLR2004 - a day
        raise ValueError
    return number
