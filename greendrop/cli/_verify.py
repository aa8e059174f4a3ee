"""`greendrop verify`: what Apache Kafka's VerifiableProducer does.

The same options, and the same JSON lines on standard output, so that Kafka's own system
tests, and whoever has a tool for its protocol, can drive greendrop.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from greendrop.cli._shared import (
    DONE,
    MistakeError,
    Stop,
    read_properties,
    say,
)
from greendrop.errors import MessageInvalidError, MessagesAbandonedError, ProduceError
from greendrop.producer import Producer

if TYPE_CHECKING:
    import argparse

    from greendrop.delivery import DeliveryReport
    from greendrop.events import Event

#: Settings of Kafka's Java client that mean nothing to librdkafka.
_OF_JAVA = frozenset(
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


#: Seconds between two looks whether it is to end.
_LOOK_EVERY = 0.1


def add_to(commands: Any) -> None:  # noqa: ANN401 - argparse hides its class
    """Describe the options, which are those of Kafka's tool."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="do as Apache Kafka's VerifiableProducer does",
        description="Send increasing numbers, and tell of each on standard output, as"
        " a line of JSON, whether it was acknowledged; the protocol of Apache Kafka's"
        " VerifiableProducer. SIGTERM and Ctrl-C end it in good order.",
    )
    parser.add_argument("--topic", required=True, help="where they go")
    servers = parser.add_mutually_exclusive_group(required=True)
    servers.add_argument("--bootstrap-server", metavar="HOST:PORT,...", dest="servers")
    servers.add_argument(
        "--broker-list",
        metavar="HOST:PORT,...",
        dest="servers",
        help="the old name of that",
    )
    parser.add_argument(
        "--max-messages",
        type=int,
        default=-1,
        metavar="N",
        help="how many; below 0 until it is ended (default)",
    )
    parser.add_argument(
        "--throughput",
        type=int,
        default=-1,
        metavar="N",
        help="messages a second, about; 0 or below: all it can (default)",
    )
    parser.add_argument(
        "--acks",
        type=int,
        default=-1,
        choices=(0, 1, -1),
        help="how many replicas must have a message; -1 all (default)",
    )
    files = parser.add_mutually_exclusive_group()
    for name in ("--command-config", "--producer.config"):
        files.add_argument(
            name,
            metavar="FILE",
            dest="config_file",
            help="a file with settings, one NAME=VALUE a line",
        )
    parser.add_argument(
        "--message-create-time",
        type=int,
        default=-1,
        metavar="MS",
        help="timestamp of the first message, since 1970",
    )
    parser.add_argument(
        "--value-prefix", type=int, metavar="N", help="values are N.0, N.1 and so on"
    )
    parser.add_argument(
        "--repeating-keys",
        type=int,
        metavar="N",
        help="keys are 0 to N-1, again and again",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Send until there were enough, or until it is ended."""
    if options.repeating_keys is not None and options.repeating_keys < 1:
        raise MistakeError("--repeating-keys takes a number above 0")
    producer = Producer(kafka=_configuration(options), wait_timeout_on_queue_full=3600)
    teller = _Teller(options)
    producer.monitor.subscribe(teller)
    with Stop() as stop:
        try:
            teller.tell("startup_complete")
            _send(producer, options, teller, stop)
        except OSError:
            producer.close(force=True)
            raise
        with contextlib.suppress(MessagesAbandonedError):  # each is told of
            producer.close()
    if teller.unwritable is not None:
        raise teller.unwritable
    teller.conclude()
    return DONE


def _configuration(options: argparse.Namespace) -> dict[str, str]:
    kafka = {"acks": str(options.acks), "retries": "0"}
    kafka["bootstrap.servers"] = options.servers
    if options.config_file is not None:
        kafka.update(read_properties(options.config_file))
    for name in sorted(_OF_JAVA & kafka.keys()):
        say(f"{name} means something to Kafka's Java client only, and is left out")
        del kafka[name]
    if kafka.get("enable.idempotence") == "true" and kafka["retries"] == "0":
        del kafka["retries"]  # which idempotence can't do without
    return kafka


def _send(
    producer: Producer, options: argparse.Namespace, teller: _Teller, stop: Stop
) -> None:
    number = 0
    while number != options.max_messages and not stop.requested:
        if teller.unwritable is not None:
            raise teller.unwritable
        key, value = teller.key_and_value(number)
        timestamp = None
        if options.message_create_time >= 0:
            passed = (time.time() - teller.began) * 1000
            timestamp = options.message_create_time + int(passed)
        teller.sent += 1
        try:
            producer.produce_async(
                topic=options.topic,
                payload=value,
                key=key,
                timestamp=timestamp,
                label=(key, value),
            )
        except (ProduceError, MessageInvalidError) as error:
            teller.tell_failure((key, value), error)
        number += 1
        if options.throughput > 0:
            _sleep_until(teller.began + number / options.throughput, stop)


def _sleep_until(moment: float, stop: Stop) -> None:
    while not stop.requested and (left := moment - time.time()) > 0:
        time.sleep(min(left, _LOOK_EVERY))


class _Teller:
    """Writes what happens, a line of JSON for each event. A listener."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.began = time.time()
        self.sent = 0
        self._acked = 0
        #: Why nothing can be written any more: nobody reads it, say.
        self.unwritable: OSError | None = None

    def key_and_value(self, number: int) -> tuple[str | None, str]:
        """Make key and value of a message."""
        keys, prefix = self._options.repeating_keys, self._options.value_prefix
        key = None if keys is None else str(number % keys)
        return key, str(number) if prefix is None else f"{prefix}.{number}"

    def tell(self, name: str, **facts: object) -> None:
        """Write one line."""
        line = {"timestamp": int(time.time() * 1000), "name": name, **facts}
        # In one piece: it is written by several threads.
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def on_message_acknowledged(self, event: Event) -> None:
        """Tell of a message that was acknowledged."""
        report: DeliveryReport = event["delivery_report"]
        key, value = event["label"]
        self._acked += 1
        self._from_listener(
            "producer_send_success",
            key=key,
            value=value,
            topic=report.topic,
            partition=report.partition,
            # Kafka's own clients say so where a broker tells none.
            offset=-1 if report.offset is None else report.offset,
        )

    def on_error_occurred(self, event: Event) -> None:
        """Tell of a message that was not delivered."""
        if event["type"] == "librdkafka.dispatch_error":
            self.tell_failure(event["label"], event["error"])

    def tell_failure(self, label: tuple[str | None, str], error: Exception) -> None:
        """Tell of a message that was not delivered, or not even sent."""
        key, value = label
        kind = type(error)
        self._from_listener(
            "producer_send_error",
            topic=self._options.topic,
            key=key,
            value=value,
            exception=f"class {kind.__module__}.{kind.__qualname__}",
            message=str(error),
        )

    def _from_listener(self, name: str, **facts: object) -> None:
        if self.unwritable is None:
            try:
                self.tell(name, **facts)
            except OSError as error:
                self.unwritable = error  # told to who sends

    def conclude(self) -> None:
        """Tell the sums."""
        self.tell("shutdown_complete")
        self.tell(
            "tool_data",
            sent=self.sent,
            acked=self._acked,
            target_throughput=self._options.throughput,
            avg_throughput=self._acked / max(time.time() - self.began, 0.001),
        )
