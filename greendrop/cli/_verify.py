"""The command `greendrop verify`: the counterpart of Kafka's VerifiableProducer.

It has the same options and writes the same JSON lines to standard output, so that
Kafka's own system tests, and other tools with the same protocol, can drive greendrop.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING

from greendrop.cli._shared import (
    DONE,
    ConnectionErrors,
    StopRequest,
    UsageError,
    read_properties,
    say,
    say_interrupted,
)
from greendrop.errors import SENDING_ERRORS, MessageInvalidError, MessagesAbandonedError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse

    from greendrop.cli._shared import Commands
    from greendrop.delivery import DeliveryReport
    from greendrop.events import Event

#: Settings of Kafka's Java client that librdkafka doesn't know.
_JAVA_ONLY = frozenset(
    {
        "key.serializer",
        "value.serializer",
        "buffer.memory",
        "max.block.ms",
        "metric.reporters",
        "interceptor.classes",
        "partitioner.class",
    }
)
#: Seconds between two checks for a signal.
_CHECK_INTERVAL = 0.1
#: Errors of single messages, after which the command goes on.
_FAILURES: tuple[type[Exception], ...] = (MessageInvalidError, *SENDING_ERRORS)


def add_to(commands: Commands) -> None:
    """Add the command and its options, which are those of Kafka's tool."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="send numbers, as Apache Kafka's VerifiableProducer does",
        description="Send increasing numbers, and write a JSON line for each message"
        " that is acknowledged or has failed to standard output. Options and output are"
        " those of Apache Kafka's VerifiableProducer. After SIGTERM or Ctrl-C it waits"
        " for the messages in flight, writes the totals and ends.",
    )
    parser.add_argument("--topic", required=True, help="topic of the messages")
    servers = parser.add_mutually_exclusive_group(required=True)
    servers.add_argument("--bootstrap-server", metavar="HOST:PORT,...", dest="servers")
    servers.add_argument(
        "--broker-list",
        metavar="HOST:PORT,...",
        dest="servers",
        help="the old name of --bootstrap-server",
    )
    parser.add_argument(
        "--max-messages",
        type=int,
        default=-1,
        metavar="N",
        help="how many messages to send; no end if below 0 (default)",
    )
    parser.add_argument(
        "--throughput",
        type=int,
        default=-1,
        metavar="N",
        help="messages a second, about; no limit if 0 or below (default)",
    )
    parser.add_argument(
        "--acks",
        type=int,
        default=-1,
        choices=(0, 1, -1),
        help="replicas that must have a message; -1 means all in sync (default)",
    )
    files = parser.add_mutually_exclusive_group()
    for name in ("--command-config", "--producer.config"):
        files.add_argument(
            name,
            metavar="FILE",
            dest="config_file",
            help="a file with settings of the client, one NAME=VALUE a line",
        )
    parser.add_argument(
        "--message-create-time",
        type=int,
        default=-1,
        metavar="MS",
        help="timestamp of the first message, in milliseconds since 1970",
    )
    parser.add_argument(
        "--value-prefix",
        type=int,
        metavar="N",
        help="send N.0, N.1 and so on",
    )
    parser.add_argument(
        "--repeating-keys",
        type=int,
        metavar="N",
        help="send the keys 0 to N-1, again and again",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send until --max-messages or a signal, and return the exit status."""
    if options.repeating_keys is not None and options.repeating_keys < 1:
        raise UsageError("--repeating-keys takes a number above 0")
    producer = Producer(kafka=_configuration(options), wait_timeout_on_queue_full=3600)
    writer = _JsonWriter(options)
    producer.monitor.subscribe(writer)
    producer.monitor.subscribe(ConnectionErrors())
    with StopRequest() as stop:
        try:
            writer.write("startup_complete")
            _send(producer, options, writer, stop)
            if stop.requested and (in_flight := producer.queue_size):
                say_interrupted(in_flight)
            # Each message that is dropped has a line of its own.
            with contextlib.suppress(MessagesAbandonedError):
                producer.close()
        finally:
            # Output can't be written, or the second signal came before `close` began.
            producer.close(force=True)
    if writer.unwritable is not None:
        raise writer.unwritable
    writer.write_totals()
    return DONE


def _configuration(options: argparse.Namespace) -> dict[str, str]:
    kafka = {"acks": str(options.acks), "retries": "0"}
    kafka["bootstrap.servers"] = options.servers
    if options.config_file is not None:
        kafka.update(read_properties(options.config_file))
    for name in sorted(_JAVA_ONLY & kafka.keys()):
        say(f"{name} is a setting of Kafka's Java client only, and is ignored")
        del kafka[name]
    if kafka.get("enable.idempotence") == "true" and kafka["retries"] == "0":
        del kafka["retries"]  # idempotence requires retries
    return kafka


def _send(
    producer: Producer,
    options: argparse.Namespace,
    writer: _JsonWriter,
    stop: StopRequest,
) -> None:
    number = 0
    while number != options.max_messages and not stop.requested:
        if writer.unwritable is not None:
            raise writer.unwritable
        key, value = writer.key_and_value(number)
        timestamp = None
        if options.message_create_time >= 0:
            elapsed = (time.time() - writer.started) * 1000
            timestamp = options.message_create_time + int(elapsed)
        writer.sent += 1
        try:
            producer.produce_async(
                topic=options.topic,
                payload=value,
                key=key,
                timestamp=timestamp,
                label=(key, value),
            )
        except _FAILURES as error:
            writer.write_failure((key, value), error)
        number += 1
        if options.throughput > 0:
            _sleep_until(writer.started + number / options.throughput, stop)


def _sleep_until(moment: float, stop: StopRequest) -> None:
    while not stop.requested and (remaining := moment - time.time()) > 0:
        time.sleep(min(remaining, _CHECK_INTERVAL))


class _JsonWriter:
    """Writes a JSON line for each event. A listener."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.started = time.time()
        self.sent = 0
        self._acked = 0
        #: The error that ended writing to standard output: a closed pipe, a full disk.
        self.unwritable: OSError | None = None

    def key_and_value(self, number: int) -> tuple[str | None, str]:
        """Return key and value of a message."""
        keys, prefix = self._options.repeating_keys, self._options.value_prefix
        key = None if keys is None else str(number % keys)
        return key, str(number) if prefix is None else f"{prefix}.{number}"

    def write(self, name: str, **facts: object) -> None:
        """Write one line."""
        line = {"timestamp": int(time.time() * 1000), "name": name, **facts}
        # One write for the whole line: several threads write.
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def on_message_acknowledged(self, event: Event) -> None:
        """Write that a message was acknowledged."""
        report: DeliveryReport = event["delivery_report"]
        key, value = event["label"]
        self._acked += 1
        self._try_to_write(
            "producer_send_success",
            key=key,
            value=value,
            topic=report.topic,
            partition=report.partition,
            # Kafka's own clients use -1 where the broker returns no offset.
            offset=-1 if report.offset is None else report.offset,
        )

    def on_error_occurred(self, event: Event) -> None:
        """Write that a message was not delivered."""
        if event["type"] == "librdkafka.dispatch_error":
            self.write_failure(event["label"], event["error"])

    def write_failure(
        self, label: tuple[str | None, str], error: BaseException
    ) -> None:
        """Write that a message was not delivered, or not sent."""
        key, value = label
        kind = type(error)
        self._try_to_write(
            "producer_send_error",
            topic=self._options.topic,
            key=key,
            value=value,
            exception=f"class {kind.__module__}.{kind.__qualname__}",
            message=str(error),
        )

    def _try_to_write(self, name: str, **facts: object) -> None:
        if self.unwritable is None:
            try:
                self.write(name, **facts)
            except OSError as error:
                self.unwritable = error  # `_send` raises it

    def write_totals(self) -> None:
        """Write the last two lines."""
        self.write("shutdown_complete")
        self.write(
            "tool_data",
            sent=self.sent,
            acked=self._acked,
            target_throughput=self._options.throughput,
            avg_throughput=self._acked / max(time.time() - self.started, 0.001),
        )
