"""Tasks, with one producer at module level as users write it.

Queue and results are files: no other server is needed.
"""

import os

from celery import Celery

from greendrop import Producer
from greendrop.contrib.celery import connect

folder = os.environ["FOLDER"]
app = Celery("hosts", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
    "polling_interval": 0.01,
}
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
connect()


waiting = set()


@app.task(bind=True)
def send(task, payload):
    """Store the payload.

    Return partition and offset, process, and number of waiting tasks.
    """
    waiting.add(task.request.id)
    report = producer.produce_sync(topic=os.environ["TOPIC"], payload=payload)
    waited = len(waiting)
    waiting.remove(task.request.id)
    return {
        "place": [report.partition, report.offset],
        "process": os.getpid(),
        "polling": producer.polling,
        "waiting": waited,
    }


@app.task
def send_two(payload):
    """Store the payload and wait, then send it once more and don't."""
    producer.produce_sync(topic=os.environ["TOPIC"], payload=payload)
    producer.buffer(topic=os.environ["TOPIC"], payload=f"{payload}-buffered")
    producer.produce_async(topic=os.environ["TOPIC"], payload=f"{payload}-later")
    return payload
