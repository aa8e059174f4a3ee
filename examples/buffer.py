"""Messages that are buffered, and sent when a database has committed.

Nothing is sent before the commit. A step of the middleware adds a header to each
message. `buffer` raises an error for an invalid message, and a flush reports and drops
a message that librdkafka refuses. The last flush, that of `close`, sends the rest.

    python examples/buffer.py

It sends to a built-in mock cluster, or to the brokers in
`GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

from greendrop import Message, MessageInvalidError, ProduceManyError, Producer
from greendrop.testing import MockCluster

TOPIC = "greendrop-buffer"


def take_orders(database: sqlite3.Connection, producer: Producer, count: int) -> None:
    """Write orders, and buffer a message for each."""
    for number in range(1, count + 1):
        database.execute("INSERT INTO orders VALUES (?)", (number,))
        producer.buffer(topic=TOPIC, key=f"order-{number}", payload="taken")
    print(f"{count} orders taken, {len(producer.buffered)} messages buffered")


def add_source(message: Message) -> Message:
    """Add a header with the source of the message."""
    return message._replace(headers={"source": "shop"})


def main() -> int:
    """Take orders, commit and flush; return the exit status."""
    servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS", "")
    with ExitStack() as stack:
        if not servers:
            servers = stack.enter_context(MockCluster()).bootstrap_servers
        database = stack.enter_context(closing(sqlite3.connect(":memory:")))
        producer = stack.enter_context(
            Producer(kafka={"bootstrap.servers": servers, "message.timeout.ms": 10_000})
        )
        producer.middleware.append(add_source)
        database.execute("CREATE TABLE orders (number INTEGER)")

        take_orders(database, producer, 5)
        database.commit()
        reports = producer.flush_sync()
        print(f"committed, and {len(reports)} messages stored")

        take_orders(database, producer, 3)
        try:
            # A mistake that mypy would find: the mapping is not encoded.
            mistake: Any = {"forgotten": "json.dumps"}
            producer.buffer(topic=TOPIC, payload=mistake)
        except MessageInvalidError as error:
            print(f"not buffered: {error}")
        producer.buffer(topic=TOPIC, payload="lost", partition=1_000)
        database.commit()
        try:
            producer.flush_sync()
        except ProduceManyError as error:
            stored = sum(each.report is not None for each in error.dispatched)
            print(f"{stored} messages stored, and one refused: {error}")

        take_orders(database, producer, 2)
        database.commit()
        print(f"{len(producer.buffered)} messages wait; close sends them")
    print(f"closed, {len(producer.buffered)} messages left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
