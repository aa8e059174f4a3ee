"""The tracing context in messages, as an independent client reads it."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from greendrop import Message, Producer
from greendrop.listeners.opentelemetry import trace

THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def exporter():
    """Keep spans in memory."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    """Make a tracer provider that exports all spans to memory."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def written(span):
    """Format a span's context as W3C defines it."""
    its = span.get_span_context()
    return f"00-{its.trace_id:032x}-{its.span_id:016x}-{its.trace_flags:02x}".encode()


def test_traceparent_in_kafka_is_that_of_the_span(
    kafka, topic, read_topic, exporter, provider
):
    """Partition and offset of each span lead to the record that has its context."""
    kafka.create_topic(topic, partitions=3)
    with Producer(kafka={"bootstrap.servers": kafka.bootstrap_servers}) as producer:
        trace(producer, tracer_provider=provider)
        with provider.get_tracer("test").start_as_current_span("request") as request:
            producer.produce_sync(topic=topic, payload=b"single", headers={"a": "1"})
            producer.produce_many_sync([Message(topic, b"%d" % n) for n in range(20)])
            producer.buffer(topic=topic, payload=b"buffered")
            producer.flush_sync()

    records = {
        (str(record.partition), record.offset): record.headers
        for record in read_topic(kafka.bootstrap_servers, topic)
    }
    spans = exporter.get_finished_spans()
    messages = [span for span in spans if span.kind is SpanKind.PRODUCER]
    assert len(records) == len(messages) == 22
    for span in messages:
        its = span.attributes
        place = its["messaging.destination.partition.id"], its["messaging.kafka.offset"]
        names = [name for name, _ in records[place]]
        assert names.count("traceparent") == 1
        assert dict(records[place])["traceparent"] == written(span)
        assert span.parent.span_id == request.get_span_context().span_id
    single = records[next(place for place, each in records.items() if len(each) > 1)]
    assert single[0] == ("a", b"1")


def test_callers_traceparent_arrives_unchanged(
    kafka, topic, read_topic, exporter, provider
):
    """Consumers see the context that the caller has put into the headers."""
    headers = {"traceparent": THEIRS, "tracestate": "vendor=1"}
    with Producer(kafka={"bootstrap.servers": kafka.bootstrap_servers}) as producer:
        trace(producer, tracer_provider=provider)
        producer.produce_sync(topic=topic, payload=b"x", headers=headers)

    (record,) = read_topic(kafka.bootstrap_servers, topic)
    assert record.headers == [
        ("traceparent", THEIRS.encode()),
        ("tracestate", b"vendor=1"),
    ]
    (span,) = exporter.get_finished_spans()
    assert f"{span.links[0].context.span_id:016x}" in THEIRS
