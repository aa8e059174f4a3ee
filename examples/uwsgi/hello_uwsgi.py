"""A web application that answers a POST when its body is stored in Kafka."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from greendrop import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# uWSGI imports this module before it forks its workers. Constructing a producer opens
# nothing, so each worker connects by itself.
producer = Producer(
    kafka={"bootstrap.servers": os.environ["GREENDROP_BOOTSTRAP_SERVERS"]}
)


def app(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Store the body of the request."""
    # Read all of it, or uWSGI resets the connection.
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    report = producer.produce_sync(topic="greendrop-uwsgi", payload=body)
    start_response("200 OK", [("Content-Type", "text/plain")])
    where = f"worker {os.getpid()}: partition {report.partition}, {producer.polling}"
    return [where.encode()]
