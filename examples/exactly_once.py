"""Reads one topic and writes another, each record exactly once, whatever is killed.

What was read and what is written go into one transaction, so both happen or neither.
End it with `kill -9` at any moment and start it again: it goes on where its last commit
was, and consumers that read with `read_committed` see nothing twice.

    python examples/exactly_once.py
    python examples/exactly_once.py --work HOST:9092 INPUT OUTPUT

The first way fills a topic and works on it until that is done. It does so on a built-in
mock cluster, or where `GREENDROP_BOOTSTRAP_SERVERS` says. The second way is only the
worker, for topics of your own; it ends when there was nothing to read for some seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

# Python looks for modules beside a script first, and `concurrent.py` there would hide
# that of the standard library.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from greendrop import Producer, TransactionError
from greendrop.testing import MockCluster

#: Records of one transaction, at most. More of them cost less each, and wait longer.
BATCH = 200
#: Seconds without anything to read after which the worker ends.
IDLE = 5.0
#: Seconds between two tries.
PAUSE = 0.5


def say(what: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def transform(value: bytes) -> bytes:
    """Do the work."""
    return value.upper()


def work(servers: str, source: str, target: str, name: str) -> None:
    """Work until there is nothing more to do, whatever goes wrong in between.

    Args:
        servers: Addresses of brokers.
        source: Topic to read.
        target: Topic to write.
        name: Of this worker, the same after each start. Two at the same time need two.
    """
    while True:
        try:
            with Producer(
                kafka={
                    "bootstrap.servers": servers,
                    "transactional.id": name,
                    # A killed worker's transaction holds up readers for so long, or
                    # until it is started again.
                    "transaction.timeout.ms": 30_000,
                    "message.timeout.ms": 20_000,
                },
                max_wait_timeout=60.0,
            ) as producer:
                # Has the brokers end what was open when the last one was killed. Not
                # until then do they tell how far it came.
                with producer.transaction():
                    pass
                work_by(producer, servers, source, target, name)
        except TransactionError as error:
            if error.name == "_FENCED":
                raise  # another worker of this name was started: it goes on
            say(f"{type(error).__name__}: {error}")
            time.sleep(PAUSE)
        else:
            return


def work_by(
    producer: Producer, servers: str, source: str, target: str, name: str
) -> None:
    """Read, and write, until an error or until there is nothing to read.

    After an error the caller begins anew, with another consumer: that one reads on
    after what was committed. So no offset is ever sought or guessed here.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"{source}-{target}",
            # Started again, it has its partitions back at once.
            "group.instance.id": name,
            "session.timeout.ms": 10_000,
            "auto.offset.reset": "earliest",
            # The transactions do that.
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "reconnect.backoff.max.ms": 1_000,
        }
    )
    try:
        consumer.subscribe([source])
        last = time.monotonic()
        while time.monotonic() < last + IDLE:
            records = [each for each in consumer.consume(BATCH, 0.5) if is_one(each)]
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


def is_one(record: Message) -> bool:
    """Tell whether this is a record; what a consumer gives may be an error."""
    error = record.error()
    if error is None:
        return True
    if error.fatal():
        raise KafkaException(error)
    if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - named so by librdkafka
        say(f"{error}")
    return False


def main() -> None:
    """Read the arguments; fill a topic first, unless told otherwise."""
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
        began = time.monotonic()
        work(servers, source, target, f"{arguments.name}-{run}")
        took = time.monotonic() - began - IDLE
        say(f"after {took:.1f} s nothing was left to do; look at {target}")


if __name__ == "__main__":
    main()
