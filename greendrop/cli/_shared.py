"""What commands share: how to get to a Kafka, signals, and what is said to people."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from greendrop.config import BOOTSTRAP

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

#: Exit statuses; see the epilog of `greendrop --help`.
DONE, FAILED, USAGE = 0, 1, 2

_SERVERS = "GREENDROP_BOOTSTRAP_SERVERS"


class MistakeError(Exception):
    """The user has asked for something that can't be; the text says what."""


class Terminated(BaseException):
    """SIGTERM has come."""


def say(text: str) -> None:
    """Tell the user something, beside the output."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"greendrop: {text}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Have SIGTERM end what is in the block as Ctrl-C does, by `Terminated`."""

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """Whether Ctrl-C or SIGTERM has come. A context manager.

    For loops that end between two steps, and not within one. The second signal raises,
    `KeyboardInterrupt` or `Terminated`.
    """

    requested = False

    def _on_signal(self, number: int, _: object) -> None:
        if self.requested:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Stop:
        """Listen to signals."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {each: signal.signal(each, self._on_signal) for each in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them to who listened before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where Kafka is and how to get in."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "-b",
        "--bootstrap-servers",
        metavar="HOST:PORT,...",
        help=f"addresses of brokers; by default those in {_SERVERS}",
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
        help="a file with such settings, one a line; the place for passwords, as other"
        " users of the machine can read command lines",
    )


def configuration(options: argparse.Namespace) -> dict[str, str]:
    """Give librdkafka's settings: from the file, then -X, then -b.

    Raises:
        MistakeError: Something can't be read, or no broker is named.
    """
    kafka: dict[str, str] = {}
    if options.config_file is not None:
        kafka.update(read_properties(options.config_file))
    for each in options.properties:
        _set(kafka, *named_value(each, "-X", "NAME=VALUE", allow_empty=True))
    servers = options.bootstrap_servers
    if servers is None and not kafka.keys() & set(BOOTSTRAP):
        servers = os.environ.get(_SERVERS)
    if servers is not None:
        _set(kafka, BOOTSTRAP[0], servers)
    if not any(map(kafka.get, BOOTSTRAP)):
        raise MistakeError(f"no brokers are named: use -b HOST:PORT, or set {_SERVERS}")
    return kafka


def _set(kafka: dict[str, str], name: str, value: str) -> None:
    """Set it, in place of what it is called otherwise, too."""
    for other in BOOTSTRAP if name in BOOTSTRAP else ():
        kafka.pop(other, None)
    kafka[name] = value


def payload_limit(kafka: Mapping[str, str]) -> int:
    """Give the most bytes of a payload: what librdkafka was told, or our default."""
    told = kafka.get("message.max.bytes", "")
    return int(told) if told.isdecimal() and int(told) else 1_000_012


def named_value(
    text: str, option: str, form: str, *, allow_empty: bool = False
) -> tuple[str, str]:
    """Split what an option was given at the first `=`.

    Raises:
        MistakeError: There is none, or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not name.strip() or not equals or not (value or allow_empty):
        # Not the text itself: it may be a password.
        raise MistakeError(f"{option} takes {form}, and {name[:40]!r} is none")
    return name.strip(), value


def read_properties(file: str) -> dict[str, str]:
    """Read settings from a file: one a line, `NAME=VALUE`; `#` begins a comment.

    Raises:
        MistakeError: It can't be read, or a line is none.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text in UTF-8"
        raise MistakeError(f"can't read {file}: {reason}") from error
    settings: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "!")):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name.strip():
            raise MistakeError(f"{file}, line {number}: no NAME=VALUE")
        settings[name.strip()] = value.strip()
    return settings


def positive(text: str) -> int:
    """Read a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seconds(text: str) -> float:
    """Read a number of seconds above 0, for argparse."""
    number = float(text)
    if not 0 < number < 86_400:  # noqa: PLR2004 - a day
        raise ValueError
    return number
