"""The command `greendrop produce`: sends lines of files or of standard input."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from greendrop import _wording
from greendrop._validation import check_topic
from greendrop.cli._input import Input, Line
from greendrop.cli._shared import (
    DONE,
    FAILED,
    ConnectionErrors,
    Terminated,
    UsageError,
    add_connection,
    configuration,
    named_value,
    payload_limit,
    positive,
    say,
    say_interrupted,
    sigterm_raises,
)
from greendrop.errors import SENDING_ERRORS, MessageInvalidError, MessagesAbandonedError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from greendrop.cli._shared import Commands
    from greendrop.events import Event

#: Failures that are printed one by one; further ones are only counted.
_MAX_PRINTED = 10
#: Seconds that a send may wait for a full queue: longer than `message.timeout.ms`.
_QUEUE_FULL_TIMEOUT = 3600.0
#: Seconds for the delivery of messages in flight after Ctrl-C or SIGTERM.
_INTERRUPTED_TIMEOUT = 10.0
#: Seconds between two updates of the progress line.
_PROGRESS_INTERVAL = 0.2
#: Seconds between two looks at the number of messages in flight, at most.
_LONGEST_PAUSE = 0.05
#: Errors of single lines, after which the command goes on.
_FAILURES: tuple[type[Exception], ...] = (
    UsageError,
    MessageInvalidError,
    *SENDING_ERRORS,
)

_EPILOG = """examples:
  tail -f app.log | greendrop produce -b localhost:9092 -t logs
  greendrop produce -t orders -K : -H source=import orders.txt
  jq -c '{key: .id, payload: .}' in.json | greendrop produce -t orders --json

Empty lines are skipped. With --json each line is an object with the fields payload
(text, null for a tombstone, or any other JSON, which is sent as JSON), key, headers,
partition, partition_key, timestamp (milliseconds since 1970) and topic. The options
supply the fields that it leaves out."""


def add_to(commands: Commands) -> None:
    """Add the command and its options."""
    import argparse

    parser: argparse.ArgumentParser = commands.add_parser(
        "produce",
        help="send lines from files or standard input",
        description="Send one message for each line of files or of standard input.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    message = parser.add_argument_group("messages")
    message.add_argument("-t", "--topic", help="topic of the messages")
    message.add_argument("-k", "--key", help="key of messages that have none")
    message.add_argument(
        "-K",
        "--key-delimiter",
        metavar="TEXT",
        help="text between key and payload in each line",
    )
    message.add_argument(
        "-H",
        "--header",
        dest="headers",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="a header of all messages; null without a value; repeatable",
    )
    message.add_argument(
        "-p", "--partition", type=int, help="partition of the messages"
    )
    message.add_argument(
        "-Z", "--null", action="store_true", help="send empty payloads as tombstones"
    )
    source = parser.add_argument_group("input and output")
    source.add_argument("--json", action="store_true", help="lines are JSON objects")
    source.add_argument(
        "-D",
        "--delimiter",
        metavar="TEXT",
        default="\n",
        help="text that ends each message",
    )
    source.add_argument(
        "-c", "--count", type=positive, metavar="N", help="stop after N messages"
    )
    source.add_argument(
        "--report",
        action="store_true",
        help="write a JSON line for each message when it is delivered",
    )
    source.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no summary"
    )
    source.add_argument("files", nargs="*", metavar="FILE", help="- is standard input")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send all lines, and return the exit status."""
    _check_topic(options)
    kafka = configuration(options)
    reader = _reader(options, payload_limit(kafka))
    producer = Producer(
        kafka=kafka,
        max_payload_size=payload_limit(kafka),
        wait_timeout_on_queue_full=_QUEUE_FULL_TIMEOUT,
        instrument_on_wait_queue_full=False,
    )
    tally = _Tally(report=options.report, quiet=options.quiet)
    producer.monitor.subscribe(tally)
    producer.monitor.subscribe(ConnectionErrors())
    with sigterm_raises():
        _send_all(producer, reader, options, tally)
    return tally.conclude()


def _check_topic(options: argparse.Namespace) -> None:
    if options.topic is not None:
        try:
            check_topic(options.topic)
        except ValueError as error:
            raise UsageError(str(error)) from error
    elif not options.json:
        raise UsageError("which topic? use -t TOPIC")


def _reader(options: argparse.Namespace, limit: int) -> Input:
    headers = [_header(each) for each in options.headers]
    key_delimiter = options.key_delimiter
    if key_delimiter is not None:
        key_delimiter = _unescaped(key_delimiter, "-K")
    return Input(
        delimiter=_unescaped(options.delimiter, "-D"),
        key_delimiter=key_delimiter,
        empty_is_null=options.null,
        as_json=options.json,
        defaults={
            "topic": options.topic,
            "key": None if options.key is None else os.fsencode(options.key),
            "headers": headers or None,
            "partition": options.partition,
        },
        limit=limit,
    )


def _header(text: str) -> tuple[str, bytes | None]:
    if text and "=" not in text:
        return text, None
    name, value = named_value(text, "-H", "NAME[=VALUE]", allow_empty=True)
    return name, os.fsencode(value)


def _unescaped(text: str, option: str) -> bytes:
    """Decode the escapes of a delimiter, as kcat does."""
    try:
        delimiter = text.encode().decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        delimiter = os.fsencode(text)
    if not delimiter:
        raise UsageError(f"{option} takes at least one character")
    return delimiter


def _send_all(
    producer: Producer, reader: Input, options: argparse.Namespace, tally: _Tally
) -> None:
    try:
        for stream, name in _streams(options, tally):
            for line in reader.lines(stream, name):
                _send(producer, reader, line, tally)
                if tally.sent == options.count:
                    break
            if tally.sent == options.count:
                break
        _wait_for_reports(producer)
        _close(producer, tally, None)
    except (KeyboardInterrupt, Terminated):
        _end_early(producer, tally)
        raise
    except OSError:
        producer.close(force=True)
        raise


def _wait_for_reports(producer: Producer) -> None:
    """Wait until every message is delivered or has failed.

    `close` waits for that too, but an interrupted `close` drops the messages in flight,
    and Ctrl-C is to give them another `_INTERRUPTED_TIMEOUT`. Each message gets its
    report within `message.timeout.ms`.
    """
    pause = 0.001
    while producer.queue_size:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _end_early(producer: Producer, tally: _Tally) -> None:
    try:
        if in_flight := producer.queue_size:
            say_interrupted(in_flight, _INTERRUPTED_TIMEOUT)
        _close(producer, tally, _INTERRUPTED_TIMEOUT)
    finally:
        # The second signal may have come before `close` began.
        producer.close(force=True)
        tally.conclude()


def _close(producer: Producer, tally: _Tally, timeout: float | None) -> None:
    try:
        producer.close(timeout)
    except MessagesAbandonedError as error:
        say(str(error))
    finally:
        tally.end_progress()


def _streams(
    options: argparse.Namespace, tally: _Tally
) -> Iterator[tuple[BinaryIO, str]]:
    for name in options.files or ["-"]:
        if name == "-":
            if sys.stdin is None:
                raise UsageError("there is no standard input to read from")
            if sys.stdin.isatty() and not options.quiet:
                say("reading lines from the terminal; Ctrl-D ends the input")
            yield sys.stdin.buffer, "standard input"
            continue
        try:
            with Path(name).open("rb") as stream:
                yield stream, name
        except OSError as error:
            # As `cat` does, go on with the other files.
            tally.on_unreadable(name, error)


def _send(producer: Producer, reader: Input, line: Line, tally: _Tally) -> None:
    if tally.unwritable is not None:
        raise tally.unwritable
    tally.taken += 1
    try:
        fields = reader.fields(line)
        producer.produce_async(**fields, label=line.place)
        tally.sent += 1
    except _FAILURES as error:
        tally.fail(line.place, error)
    tally.show_progress()


class _Tally:
    """Counts and prints the outcomes of messages. A listener."""

    def __init__(self, *, report: bool, quiet: bool) -> None:
        self.taken = 0
        self.sent = 0
        self.delivered = 0
        self.failed = 0
        #: The error that ended writing to standard output: a closed pipe, a full disk.
        self.unwritable: OSError | None = None
        self._files_unreadable = False
        self._report = report
        self._progress = not quiet and sys.stderr.isatty()
        self._started = self._shown = time.monotonic()

    def on_message_acknowledged(self, event: Event) -> None:
        """Count a delivered message, and write its report if that is wanted."""
        self.delivered += 1
        if self._report and self.unwritable is None:
            report = event["delivery_report"]
            line = {
                "topic": report.topic,
                "partition": report.partition,
                "offset": report.offset,
                "timestamp": report.timestamp,
                **event["label"]._asdict(),
            }
            try:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
            except OSError as error:
                self.unwritable = error  # `_send` raises it
        self.show_progress()

    def on_error_occurred(self, event: Event) -> None:
        """Count a message that was not delivered."""
        if event["type"] == "librdkafka.dispatch_error":
            self.fail(event["label"], event["error"])

    def fail(self, place: object, error: BaseException) -> None:
        """Count a message that failed, and print the reason."""
        self.failed += 1
        if self.failed <= _MAX_PRINTED:
            say(f"{place}: {error}")
        elif self.failed == _MAX_PRINTED + 1:
            say("further failures are only counted")

    def on_unreadable(self, file: str, error: OSError) -> None:
        """Record that a file can't be read, and print the reason."""
        self._files_unreadable = True
        say(f"can't read {file}: {error.strerror}")

    def show_progress(self) -> None:
        """Update the progress line on a terminal, at most five times a second."""
        now = time.monotonic()
        if self._progress and now - self._shown >= _PROGRESS_INTERVAL:
            self._shown = now
            sys.stderr.write(f"\r\x1b[K{self._summary(now)}")
            sys.stderr.flush()

    def end_progress(self) -> None:
        """Clear the progress line."""
        if self._progress and self._shown > self._started:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def conclude(self) -> int:
        """Print the summary, and return the exit status."""
        if self._progress:
            say(self._summary(time.monotonic()))
        elif self.failed:
            taken = _wording.count(self.taken, "message")
            say(f"not delivered: {self.failed:,} of {taken}")
        if self.unwritable is not None:
            raise self.unwritable
        return FAILED if self.failed or self._files_unreadable else DONE

    def _summary(self, now: float) -> str:
        seconds = max(now - self._started, 0.001)
        failed = f", {self.failed:,} failed" if self.failed else ""
        rate = f"{self.delivered / seconds:,.0f}/s"
        return f"{self.taken:,} sent, {self.delivered:,} delivered{failed}, {rate}"
