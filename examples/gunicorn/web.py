"""A web application that answers a POST when its body is stored in Kafka."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from greendrop import ProduceError, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# At module level: constructing a producer opens nothing. Each worker connects at its
# first message, also in a preloaded application.
producer = Producer(
    kafka={"bootstrap.servers": os.environ["GREENDROP_BOOTSTRAP_SERVERS"]}
)


def app(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Store the body of the request; 503 means that it may not be stored."""
    body = environ["wsgi.input"].read()
    try:
        report = producer.produce_sync(topic="greendrop-gunicorn", payload=body)
    except ProduceError as error:
        status, answer = "503 Service Unavailable", {"error": str(error)}
    else:
        status = "200 OK"
        answer = {"stored": f"partition {report.partition}, offset {report.offset}"}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
