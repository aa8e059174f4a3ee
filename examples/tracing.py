"""Spans of single messages, of a batch, of a failure and of a traced message.

    python examples/tracing.py

Needs OpenTelemetry's SDK: `python -m pip install ".[opentelemetry]" opentelemetry-sdk`.
A real program exports its spans; here they are printed. Messages go to a built-in mock
cluster, or to the brokers in `GREENDROP_BOOTSTRAP_SERVERS`.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Python searches the folder of a script first. There concurrent.py would hide the
# standard library's `concurrent`.
if (here := str(Path(__file__).resolve().parent)) in sys.path:
    sys.path.remove(here)

import gevent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from greendrop import DeliveryError, Message, Producer
from greendrop.listeners.opentelemetry import trace
from greendrop.testing import MockCluster

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

TOPIC = "greendrop-tracing"
CLOSED = "greendrop-tracing-closed"


def handle_request(producer: Producer, tracer: Tracer, number: int) -> None:
    """Send in a span, as a web handler in the span of its framework does."""
    with tracer.start_as_current_span(f"request {number}"):
        producer.produce_sync(topic=TOPIC, payload=b"alone", key=f"order-{number}")
        if number == 1:
            producer.produce_many_async([Message(TOPIC, b"in a batch")] * 3)
        elif number == 2:  # noqa: PLR2004 - the second of three
            headers = {
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            }
            producer.produce_async(topic=TOPIC, payload=b"forwarded", headers=headers)
        else:
            try:
                producer.produce_sync(topic=CLOSED, payload=b"never")
            except DeliveryError:
                return


def described(span: ReadableSpan) -> str:
    """Return one line about a span."""
    attributes: dict[str, Any] = dict(span.attributes or {})
    milliseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    facts = [f"{span.kind.name:<9}{milliseconds:6.1f} ms"]
    if "messaging.kafka.offset" in attributes:
        partition = attributes["messaging.destination.partition.id"]
        facts.append(f"at {partition}:{attributes['messaging.kafka.offset']}")
    if "messaging.batch.message_count" in attributes:
        facts.append(f"{attributes['messaging.batch.message_count']} messages")
    if span.links:
        facts.append(f"{len(span.links)} links")
    if "error.type" in attributes:
        facts.append(attributes["error.type"])
    return f"{span.name:<30}{'  '.join(facts)}"


def show(spans: tuple[ReadableSpan, ...]) -> None:
    """Print each request with its child spans."""
    requests = [span for span in spans if span.parent is None]
    for request in sorted(requests, key=lambda span: span.name):
        sys.stdout.write(f"{described(request)}\n")
        for span in spans:
            if span.parent and span.parent.span_id == request.context.span_id:
                sys.stdout.write(f"  {described(span)}\n")


def main() -> None:
    """Handle three requests concurrently, and print their spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("web")
    with ExitStack() as stack:
        servers = os.environ.get("GREENDROP_BOOTSTRAP_SERVERS")
        if not servers:
            cluster = stack.enter_context(MockCluster())
            cluster.round_trip(0.02)
            cluster.fail_topic(CLOSED, "TOPIC_AUTHORIZATION_FAILED")
            servers = cluster.bootstrap_servers
        producer = stack.enter_context(Producer(kafka={"bootstrap.servers": servers}))
        trace(producer, tracer_provider=provider)
        gevent.joinall(
            [
                gevent.spawn(handle_request, producer, tracer, number)
                for number in (1, 2, 3)
            ],
            raise_error=True,
        )
    show(exporter.get_finished_spans())
    provider.shutdown()


if __name__ == "__main__":
    main()
