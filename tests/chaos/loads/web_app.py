"""A web application that stores what is posted to it."""

from flask import Flask, request

from greendrop import ProduceError
from tests.chaos.loads.hosted import HostedProducer

app = Flask(__name__)
hosted = HostedProducer()


@app.post("/")
def send():
    """Store the request's body."""
    try:
        hosted.send(request.get_data(as_text=True))
    except ProduceError as error:
        return {"error": str(error)}, 503
    return {}
