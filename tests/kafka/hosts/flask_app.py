"""A web application, with one producer at module level as users write it."""

import os

from flask import Flask, request

from greendrop import Producer
from tests.tasks import LongestGap

app = Flask(__name__)
producer = Producer(kafka={"bootstrap.servers": os.environ["SERVERS"]})
topic = os.environ["TOPIC"]
gap = LongestGap()
if os.environ.get("USED_TOO_EARLY"):
    producer.produce_sync(topic=topic, payload="before the fork")


@app.post("/send")
def send():
    """Store the request's body."""
    report = producer.produce_sync(topic=topic, payload=request.get_data())
    return {"partition": report.partition, "offset": report.offset}


@app.post("/send-later")
def send_later():
    """Send the request's lines without waiting for them."""
    for line in request.get_data().splitlines():
        producer.produce_async(topic=topic, payload=line)
    return {}, 202


@app.post("/buffer")
def buffer():
    """Keep the request's lines for the end."""
    for line in request.get_data().splitlines():
        producer.buffer(topic=topic, payload=line)
    return {}, 202


@app.post("/measure")
def measure():
    """Start to measure how long greenlets of this worker have to wait."""
    gap.__enter__()
    return {}


@app.get("/measured")
def measured():
    """Return the measurement."""
    gap.__exit__()
    return {"seconds": gap.seconds, "ticks": gap.ticks, "polling": producer.polling}
