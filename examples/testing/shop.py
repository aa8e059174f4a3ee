"""A shop that sends a message for each order. Tested by test_shop.py.

    python examples/testing/shop.py tea

It sends to the Kafka that `GREENDROP_BOOTSTRAP_SERVERS` names.
"""

from __future__ import annotations

import json
import os
import sys

from greendrop import ProduceError, Producer

servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS") or "localhost:9092"
producer = Producer(kafka={"bootstrap.servers": servers}, max_wait_timeout=5.0)


def order(customer: str, what: str) -> str:
    """Take an order, and return the answer for the customer."""
    payload = json.dumps({"customer": customer, "what": what})
    try:
        report = producer.produce_sync(topic="orders", key=customer, payload=payload)
    except ProduceError:
        return "Sorry, try again later."
    return f"Thank you! Your order is number {report.partition}-{report.offset}."


if __name__ == "__main__":
    print(order("ada", sys.argv[1]))
