"""A web application that stores what is posted to it, and answers when it is stored."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from greendrop import ProduceError, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# At module level: it opens nothing, so each worker, also of a preloaded application,
# connects by itself at its first message.
producer = Producer(
    kafka={"bootstrap.servers": os.environ["GREENDROP_BOOTSTRAP_SERVERS"]}
)


def app(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Store the request's body; 503 means that it is not known to be stored."""
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
