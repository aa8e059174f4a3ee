"""A task that sends; run as a program, puts such tasks into the queue for a while.

Queue and results are files: no other server is needed.
"""

import os
import random
import sys
import time
import uuid
from pathlib import Path

from celery import Celery
from celery.signals import worker_shutdown

from greendrop.contrib.celery import connect
from tests.chaos.loads.hosted import HostedProducer

#: Messages of a task.
MESSAGES = 3
#: Longest rest, in seconds, between two tasks.
_REST = 0.1

folder = os.environ["FOLDER"]
app = Celery("chaos", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
    "polling_interval": 0.01,
}
hosted = HostedProducer()
connect()


@app.task(name="send")
def send():
    """Store a few messages; return their payloads.

    Celery may run a task twice, so each run has payloads of its own.
    """
    key = uuid.uuid4().hex
    payloads = [f"{key}-{number}" for number in range(MESSAGES)]
    with Path(folder, f"sent-{os.getpid()}.txt").open("a") as file:
        file.write("".join(f"{each}\n" for each in payloads))
    hosted.send(*payloads)
    return payloads


@worker_shutdown.connect
def report(**_):
    """Write the facts of this worker."""
    hosted.report()


def main() -> None:
    """Put tasks into the queue for the seconds in the first argument.

    The transport creates the file of a task before it writes the task, and a worker
    that reads the empty file ends. So it writes elsewhere, and the file is moved.
    """
    outbox, queue = Path(folder, "outbox"), Path(folder, "queue")
    app.conf.broker_transport_options["data_folder_out"] = str(outbox)
    deadline = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < deadline:
        send.delay()
        for path in outbox.iterdir():
            path.rename(queue / path.name)
        time.sleep(random.random() * _REST)


if __name__ == "__main__":
    main()
