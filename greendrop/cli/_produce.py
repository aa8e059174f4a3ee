"""`greendrop produce`: sends lines, or JSON lines, from files or standard input."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from greendrop.cli._input import Input, Line
from greendrop.cli._shared import (
    DONE,
    FAILED,
    MistakeError,
    Terminated,
    add_connection,
    configuration,
    named_value,
    payload_limit,
    positive,
    say,
    sigterm_raises,
)
from greendrop.errors import (
    MessageInvalidError,
    MessagesAbandonedError,
    ProduceError,
)
from greendrop.message import check_topic
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from greendrop.events import Event

#: Failures that are told one by one; the others are only counted.
_MOST_TOLD = 10
#: Seconds that a message may wait for room: longer than librdkafka tries to send one.
_ROOM = 3600.0
#: Seconds for what is on its way, after Ctrl-C or SIGTERM.
_LAST_WAIT = 10.0
#: Seconds between two lines of progress.
_PROGRESS_EVERY = 0.2

_EPILOG = """examples:
  tail -f app.log | greendrop produce -b localhost:9092 -t logs
  greendrop produce -t orders -K : -H source=import orders.txt
  jq -c '{key: .id, payload: .}' in.json | greendrop produce -t orders --json

Empty lines are skipped. With --json each line is an object with the fields payload
(text, null for a tombstone, or any JSON, which is sent as such), key, headers,
partition, partition_key, timestamp (milliseconds since 1970) and topic; what it leaves
out comes from the options."""


def add_to(commands: Any) -> None:  # noqa: ANN401 - argparse hides its class
    """Describe the options."""
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
    message.add_argument("-t", "--topic", help="where they go")
    message.add_argument("-k", "--key", help="key of all messages without another one")
    message.add_argument(
        "-K",
        "--key-delimiter",
        metavar="TEXT",
        help="what stands between key and payload in each line",
    )
    message.add_argument(
        "-H",
        "--header",
        dest="headers",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="a header of all messages, without a value null; repeatable",
    )
    message.add_argument("-p", "--partition", type=int, help="their partition")
    message.add_argument(
        "-Z", "--null", action="store_true", help="send empty payloads as tombstones"
    )
    source = parser.add_argument_group("input and output")
    source.add_argument("--json", action="store_true", help="lines are JSON objects")
    source.add_argument(
        "-D", "--delimiter", metavar="TEXT", default="\n", help="what ends a message"
    )
    source.add_argument(
        "-c", "--count", type=positive, metavar="N", help="stop after N messages"
    )
    source.add_argument(
        "--report",
        action="store_true",
        help="write a JSON line for each delivered message, as it is delivered",
    )
    source.add_argument(
        "-q", "--quiet", action="store_true", help="no progress and no summary"
    )
    source.add_argument("files", nargs="*", metavar="FILE", help="- is standard input")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send; exit status 1 if a message was not delivered."""
    reader = _reader(options)
    kafka = configuration(options)
    producer = Producer(
        kafka=kafka,
        max_payload_size=payload_limit(kafka),
        wait_timeout_on_queue_full=_ROOM,
        instrument_on_wait_queue_full=False,
    )
    tally = _Tally(report=options.report, quiet=options.quiet)
    producer.monitor.subscribe(tally)
    with sigterm_raises():
        _send_all(producer, reader, options, tally)
    return tally.conclude()


def _reader(options: argparse.Namespace) -> Input:
    headers = [_header(each) for each in options.headers]
    if options.topic is not None:
        try:
            check_topic(options.topic)
        except ValueError as error:
            raise MistakeError(str(error)) from error
    elif not options.json:
        raise MistakeError("which topic? use -t TOPIC")
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
    )


def _header(text: str) -> tuple[str, bytes | None]:
    if text and "=" not in text:
        return text, None
    name, value = named_value(text, "-H", "NAME[=VALUE]", allow_empty=True)
    return name, os.fsencode(value)


def _unescaped(text: str, option: str) -> bytes:
    """Read a delimiter as kcat does, with escapes such as those of Python's strings."""
    try:
        delimiter = text.encode().decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        delimiter = os.fsencode(text)
    if not delimiter:
        raise MistakeError(f"{option} takes at least one character")
    return delimiter


def _send_all(
    producer: Producer, reader: Input, options: argparse.Namespace, tally: _Tally
) -> None:
    try:
        for stream, name in _streams(options.files, tally):
            for line in reader.lines(stream, name):
                _send(producer, reader, line, tally)
                if tally.sent == options.count:
                    break
            if tally.sent == options.count:
                break
    except (KeyboardInterrupt, Terminated):
        _end_early(producer, tally)
        raise
    except OSError:
        producer.close(force=True)
        raise
    _close(producer, tally, None)


def _end_early(producer: Producer, tally: _Tally) -> None:
    tally.end_progress()
    try:
        if producer.queue_size:
            say(
                f"interrupted; {producer.queue_size} messages are on their way"
                " (once more drops them)"
            )
        _close(producer, tally, _LAST_WAIT)
    finally:
        # The second signal may come anywhere. What is closed stays so.
        producer.close(force=True)
        tally.conclude()


def _close(producer: Producer, tally: _Tally, timeout: float | None) -> None:
    try:
        producer.close(timeout)
    except MessagesAbandonedError as error:
        say(str(error))
    finally:
        tally.end_progress()


def _streams(files: list[str], tally: _Tally) -> Iterator[tuple[BinaryIO, str]]:
    for name in files or ["-"]:
        if name == "-":
            if sys.stdin is None:
                raise MistakeError("there is no standard input to read from")
            yield sys.stdin.buffer, "standard input"
            continue
        try:
            with Path(name).open("rb") as stream:
                yield stream, name
        except OSError as error:
            # As `cat` does: the others are read all the same.
            tally.miss(name, error)


def _send(producer: Producer, reader: Input, line: Line, tally: _Tally) -> None:
    if tally.unwritable is not None:
        raise tally.unwritable
    tally.taken += 1
    try:
        fields = reader.fields(line)
        producer.produce_async(**fields, label=line.place)
        tally.sent += 1
    except (MistakeError, MessageInvalidError, ProduceError) as error:
        tally.fail(line.place, error)
    tally.show_progress()


class _Tally:
    """Counts what became of messages, and tells it. A listener."""

    def __init__(self, *, report: bool, quiet: bool) -> None:
        self.taken = 0
        self.sent = 0
        self.delivered = 0
        self.failed = 0
        #: Why no report can be written any more: nobody reads them, say.
        self.unwritable: OSError | None = None
        self._missed = False
        self._report = report
        self._progress = not quiet and sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._complaints: set[str] = set()

    def on_message_acknowledged(self, event: Event) -> None:
        """Count a delivered message."""
        self.delivered += 1
        if self._report and self.unwritable is None:
            told = event["delivery_report"]
            line = {
                "topic": told.topic,
                "partition": told.partition,
                "offset": told.offset,
                "timestamp": told.timestamp,
                **told.label._asdict(),
            }
            try:
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
            except OSError as error:
                self.unwritable = error  # told to who sends
        self.show_progress()

    def on_error_occurred(self, event: Event) -> None:
        """Count a message that failed, or pass on what librdkafka complains of."""
        if event["type"] == "librdkafka.dispatch_error":
            self.fail(event["label"], event["error"])
        elif event["type"] == "librdkafka.error":
            text = str(event["error"])
            if text not in self._complaints:
                self._complaints.add(text)
                self.end_progress()
                say(f"{text}; trying on")

    def fail(self, place: object, error: Exception) -> None:
        """Count a message that failed, and tell why."""
        self.failed += 1
        if self.failed <= _MOST_TOLD:
            self.end_progress()
            say(f"{place}: {error}")
        elif self.failed == _MOST_TOLD + 1:
            say("further failures are only counted")

    def miss(self, file: str, error: OSError) -> None:
        """Take note that a file can't be read, and tell why."""
        self._missed = True
        self.end_progress()
        say(f"can't read {file}: {error.strerror}")

    def show_progress(self) -> None:
        """Tell how far it is, every so often, if it is a person who reads."""
        now = time.monotonic()
        if self._progress and now - self._shown >= _PROGRESS_EVERY:
            self._shown = now
            sys.stderr.write(f"\r\x1b[K{self._summary(now)}")
            sys.stderr.flush()

    def end_progress(self) -> None:
        """Clear the line of progress, so that something else may be told."""
        if self._progress and self._shown > self._began:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def conclude(self) -> int:
        """Tell how it went; give the exit status."""
        if self._progress:
            say(self._summary(time.monotonic()))
        elif self.failed:
            say(f"not delivered: {self.failed:,} of {self.taken:,} messages")
        if self.unwritable is not None:
            raise self.unwritable
        return FAILED if self.failed or self._missed else DONE

    def _summary(self, now: float) -> str:
        seconds = max(now - self._began, 0.001)
        failed = f", {self.failed:,} failed" if self.failed else ""
        rate = f"{self.delivered / seconds:,.0f}/s"
        return f"{self.taken:,} sent, {self.delivered:,} delivered{failed}, {rate}"
