"""Tasks, with one producer at module level as users write it.

Queue and results are files: no other server is needed.
"""

import os

from celery import Celery
from celery.signals import worker_ready, worker_shutdown

from greendrop import Producer
from tests.kafka.running import tell
from tests.tasks import LongestGap

folder = os.environ["FOLDER"]
app = Celery("hosts", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
    "polling_interval": 0.01,
}
# What is told to the test goes out as it is.
app.conf.worker_redirect_stdouts = False
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})


@app.task
def send(payload):
    """Store the payload and tell where, and who did it."""
    report = producer.produce_sync(topic=os.environ["TOPIC"], payload=payload)
    return [report.partition, report.offset, os.getpid(), producer.polling]


gap = LongestGap()


@worker_ready.connect
def _begin(**_):
    gap.__enter__()
    tell(ready=True)


@worker_shutdown.connect
def _end(**_):
    gap.__exit__()
    tell(gap=gap.seconds, ticks=gap.ticks)
