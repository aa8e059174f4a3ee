"""A web application with metrics, for gunicorn with several workers.

As in docs/observe/metrics.md: each worker keeps its metrics in files of a folder, and
any of them can answer with the sums of all.
"""

import os

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from greendrop import Producer
from greendrop.listeners.prometheus import PrometheusListener

app = Flask(__name__)
producer = Producer(
    kafka={
        "bootstrap.servers": os.environ["SERVERS"],
        "statistics.interval.ms": 100,
    }
)
producer.monitor.subscribe(PrometheusListener())


@app.post("/send")
def send():
    """Send the request's body, and return the worker's pid."""
    report = producer.produce_sync(topic="events", payload=request.get_data())
    return {"pid": os.getpid(), "partition": report.partition}


@app.post("/hold")
def hold():
    """Keep the request's body in the buffer."""
    producer.buffer(topic="events", payload=request.get_data())
    return {"pid": os.getpid()}


@app.get("/metrics")
def metrics():
    """Return the metrics of all workers."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    page = generate_latest(registry)
    return Response(page, mimetype="text/plain", headers={"Pid": str(os.getpid())})


def child_exit(server, worker):
    """Remove a worker's gauges: this module is also the configuration of gunicorn."""
    mark_process_dead(worker.pid)
