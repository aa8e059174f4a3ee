"""A web application that stores what is posted to it, and answers when it is stored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from greendrop import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# uWSGI imports this before it forks its workers. It opens nothing, so each of them
# connects by itself.
producer = Producer(
    kafka={"bootstrap.servers": os.environ["GREENDROP_BOOTSTRAP_SERVERS"]}
)


def app(
    environ: dict[str, Any], start_response: Callable[..., object]
) -> Iterable[bytes]:
    """Store the request's body."""
    # All of it, or uWSGI resets the connection.
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    report = producer.produce_sync(topic="greendrop-uwsgi", payload=body)
    start_response("200 OK", [("Content-Type", "text/plain")])
    where = f"worker {os.getpid()}: partition {report.partition}, {producer.polling}"
    return [where.encode()]
