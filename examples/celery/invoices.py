"""Celery tasks that send with one producer.

Queue and results are files in a folder, so that no other server is needed.
"""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[attr-defined]

from greendrop import DeliveryError, DeliveryTimeoutError, Producer, QueueFullError
from greendrop.contrib.celery import connect

folder = os.environ["CELERY_FOLDER"]
app = Celery("invoices", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
    "polling_interval": 0.01,
}

# At module level, for every pool: each process connects at its own first message.
producer = Producer(
    kafka={"bootstrap.servers": os.environ["GREENDROP_BOOTSTRAP_SERVERS"]}
)
# Each process of the worker delivers its messages in flight when it ends.
connect()


# A message may be stored although its send failed. An invoice that is stored twice is
# better than none: consumers deduplicate by the key.
@app.task(  # type: ignore[untyped-decorator]
    autoretry_for=(DeliveryError, DeliveryTimeoutError, QueueFullError),
    retry_backoff=True,
    max_retries=5,
)
def invoice(number: int) -> str:
    """Send an invoice; the task succeeds when Kafka has stored it."""
    report = producer.produce_sync(
        topic="greendrop-celery-invoices",
        key=str(number),
        payload=f"invoice {number}",
    )
    producer.produce_async(topic="greendrop-celery-log", payload=f"sent {number}")
    return f"partition {report.partition}, offset {report.offset}"
