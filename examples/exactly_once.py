"""Reads one topic and writes another, each record exactly once, whatever is killed.

The offsets of the input and the messages of the output go into one transaction, so both
are committed or neither. Kill it with `kill -9` at any moment and start it again: it
continues after its last commit, and consumers with `read_committed` see nothing twice.

    python examples/exactly_once.py
    python examples/exactly_once.py --work HOST:9092 INPUT OUTPUT

The first command fills a topic and processes it, on a built-in mock cluster or on the
brokers in `GREENDROP_BOOTSTRAP_SERVERS`. The second one only runs the worker, on topics
of your own; it ends when there was nothing to read for some seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from greendrop import Producer, TransactionError
from greendrop.testing import MockCluster

#: The most records of one transaction. Larger transactions cost less per record, but
#: each record waits longer for its commit.
BATCH = 200
#: Seconds without anything to read after which the worker ends.
IDLE = 5.0
#: Seconds between two attempts.
PAUSE = 0.5


class RebalancedError(Exception):
    """Partitions were taken from this worker."""


def say(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def transform(value: bytes) -> bytes:
    """Return the output for one record."""
    return value.upper()


def work(servers: str, source: str, target: str, name: str) -> None:
    """Process the topic until nothing is left, and retry after errors.

    Args:
        servers: Addresses of brokers.
        source: Topic to read.
        target: Topic to write.
        name: The name of this worker, the same after each start. Each of several
            concurrent workers needs its own.
    """
    while True:
        try:
            with Producer(
                kafka={
                    "bootstrap.servers": servers,
                    "transactional.id": name,
                    # The open transaction of a killed worker blocks readers for this
                    # time, or until the worker is started again.
                    "transaction.timeout.ms": 30_000,
                    "message.timeout.ms": 20_000,
                },
                max_wait_timeout=60.0,
            ) as producer:
                # Make the brokers end the transaction of a killed predecessor. Until
                # then they don't return its committed offsets.
                with producer.transaction():
                    pass
                work_by(producer, servers, source, target, name)
        except TransactionError as error:
            if error.name == "_FENCED":
                raise  # another worker with this name has taken over
            say(f"{type(error).__name__}: {error}")
            time.sleep(PAUSE)
        except RebalancedError:
            say("partitions have moved; starting again after the last commit")
        else:
            return


def work_by(
    producer: Producer, servers: str, source: str, target: str, name: str
) -> None:
    """Read and write until an error, or until there is nothing to read.

    After an error the caller starts again with a new consumer, which continues after
    the last committed offset. So this function never has to seek.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"{source}-{target}",
            # A restarted worker gets its partitions back at once.
            "group.instance.id": name,
            "session.timeout.ms": 10_000,
            "auto.offset.reset": "earliest",
            # The transactions commit the offsets.
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "reconnect.backoff.max.ms": 1_000,
        }
    )
    revoked = []

    def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
        revoked.extend(partitions)

    try:
        # With a callback, partitions move only inside of `consume`. Without one they
        # also move during a transaction, and the offsets of records that another worker
        # has read as well would be committed.
        consumer.subscribe([source], on_revoke=on_revoke)
        last = time.monotonic()
        while time.monotonic() < last + IDLE:
            records = [each for each in consumer.consume(BATCH, 0.5) if is_record(each)]
            if revoked:
                # Some of these records may be another worker's by now.
                raise RebalancedError
            if not records:
                continue
            with producer.transaction() as tx:
                for record in records:
                    producer.produce_async(
                        topic=target,
                        key=record.key(),
                        payload=transform(record.value() or b""),
                    )
                tx.mark_many_as_consumed(consumer, records)
            last = time.monotonic()
    finally:
        consumer.close()


def is_record(record: Message) -> bool:
    """Return whether a consumer returned a record, and not an error."""
    error = record.error()
    if error is None:
        return True
    if error.fatal():
        raise KafkaException(error)
    if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - its name in librdkafka
        say(f"{error}")
    return False


def main() -> None:
    """Parse the arguments, and fill a topic first unless only the worker is wanted."""
    parser = argparse.ArgumentParser(description="Exactly once, from topic to topic.")
    parser.add_argument("--work", nargs=3, metavar=("SERVERS", "INPUT", "OUTPUT"))
    parser.add_argument("--name", default="greendrop-exactly-once-1")
    arguments = parser.parse_args()
    if arguments.work:
        servers, source, target = arguments.work
        work(servers, source, target, arguments.name)
        return
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
        if not servers:
            servers = stack.enter_context(MockCluster()).bootstrap_servers
        run = uuid.uuid4().hex[:8]
        source, target = f"greendrop-in-{run}", f"greendrop-out-{run}"
        with Producer(kafka={"bootstrap.servers": servers}) as producer:
            lines = [{"topic": source, "payload": f"line {n}"} for n in range(1_000)]
            producer.produce_many_sync(lines)
        say(f"{len(lines)} records are in {source}; the worker starts")
        started = time.monotonic()
        work(servers, source, target, f"{arguments.name}-{run}")
        elapsed = time.monotonic() - started - IDLE
        say(f"after {elapsed:.1f} s nothing was left to do; look at {target}")


if __name__ == "__main__":
    main()
