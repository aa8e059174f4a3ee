"""greendrop together with agents that patch confluent-kafka for all programs."""

from __future__ import annotations

import json
import textwrap

import pytest

pytestmark = [pytest.mark.patched, pytest.mark.slow]

SCRIPT = """
import json, os, sys
# The agents must not report anything.
os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
os.environ["DD_REMOTE_CONFIGURATION_ENABLED"] = "false"
os.environ["DD_KAFKA_PROPAGATION_ENABLED"] = "true"
os.environ["DD_TRACE_OTEL_ENABLED"] = "true" if provider == "ddtrace" else "false"
if order == "greendrop first":
    import greendrop

import ddtrace
from ddtrace.trace import TraceFilter, tracer

class Keep(TraceFilter):
    def process_trace(self, trace):
        theirs.extend(trace)  # and nothing is sent

theirs = []
tracer.configure(trace_processors=[Keep()])
ddtrace.patch(kafka=True)
from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor
ConfluentKafkaInstrumentor().instrument()

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import set_tracer_provider
exporter = InMemorySpanExporter()
if provider == "ddtrace":
    from ddtrace.opentelemetry import TracerProvider
    set_tracer_provider(TracerProvider())
else:
    set_tracer_provider(TracerProvider())
    from opentelemetry.trace import get_tracer_provider
    get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

import confluent_kafka, gevent
from greendrop import Producer
from greendrop.listeners.opentelemetry import trace
from tests.tasks import LongestGap

assert confluent_kafka._datadog_patch
assert confluent_kafka.Producer.__name__ == "AutoInstrumentedProducer"
with Producer(kafka={"bootstrap.servers": servers}) as producer:
    trace(producer)
    producer.produce_sync(topic="events", payload=b"warm up")
    with LongestGap() as gap, tracer.trace("web"):
        producer.produce_sync(topic="events", payload=b"x")
        producer.produce_many_sync([{"topic": "events", "payload": b"x"}] * 100)

from confluent_kafka import cimpl
consumer = cimpl.Consumer({
    "bootstrap.servers": servers, "group.id": "g", "auto.offset.reset": "earliest"
})
consumer.assign([cimpl.TopicPartition("events", n, 0) for n in range(4)])
headers = []
while len(headers) < 102:
    message = consumer.poll(1.0)
    if message is not None and not message.error():
        headers.append([name for name, _ in message.headers()])
consumer.close()
names = [span.name for span in exporter.get_finished_spans()]
names += [span.resource for span in theirs]
print(json.dumps({"headers": headers, "names": names, "gap": gap.seconds}))
"""


@pytest.mark.parametrize("provider", ["ddtrace", "opentelemetry"])
@pytest.mark.parametrize("order", ["greendrop first", "agents first"])
def test_headers_have_one_context_beside_other_agents(
    run_script, mock_cluster, provider, order
):
    """The headers have one context, each message has one span, and no hub is held up.

    Both agents have patched confluent-kafka. Spans go to OpenTelemetry's SDK, or
    through ddtrace's own tracer provider to ddtrace.
    """
    ended = run_script(
        SCRIPT,
        "patched",
        servers=mock_cluster.bootstrap_servers,
        provider=provider,
        order=order,
    )

    result = json.loads(ended.stdout.splitlines()[-1])
    for names in result["headers"]:
        assert names.count("traceparent") == 1
        assert names.count("tracestate") <= 1
    # The single messages, those of the batch, and the batch itself.
    assert result["names"].count("send events") == 1 + 1 + 100 + 1
    assert set(result["names"]) == {"send events", "web"}
    assert result["gap"] < 0.2
    assert "Traceback" not in ended.stderr


#: How each agent starts, before or after greendrop is imported. None of them reports.
AGENTS = {
    "newrelic": """
        os.environ |= {"NEW_RELIC_DEVELOPER_MODE": "true", "NEW_RELIC_LOG": "/dev/null"}
        import newrelic.agent
        newrelic.agent.initialize()
        import confluent_kafka.cimpl
        assert hasattr(confluent_kafka.cimpl.Producer.produce, "__wrapped__")
        application = newrelic.agent.register_application(timeout=10.0)
        work = newrelic.agent.BackgroundTask(application, "work")
        """,
    "ddtrace": """
        os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
        os.environ["DD_REMOTE_CONFIGURATION_ENABLED"] = "false"
        os.environ["DD_TRACE_ENABLED"] = "false"
        import ddtrace
        ddtrace.patch(kafka=True)
        work = ddtrace.tracer.trace("work")
        """,
    "opentelemetry": """
        from opentelemetry.instrumentation.confluent_kafka import (
            ConfluentKafkaInstrumentor,
        )
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import get_tracer, set_tracer_provider
        set_tracer_provider(TracerProvider())
        ConfluentKafkaInstrumentor().instrument()
        work = get_tracer("work").start_as_current_span("work")
        """,
    "sentry": """
        import sentry_sdk
        from sentry_sdk.transport import Transport

        class Nowhere(Transport):
            def capture_envelope(self, envelope):
                pass

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, transport=Nowhere
        )
        work = sentry_sdk.start_transaction(name="work")
        """,
}

USE = """
from greendrop import ConfigurationInvalidError, Producer
from greendrop.testing import MockCluster

try:
    Producer(kafka={"bootstrap.servers": "localhost:9092", "lingr.ms": 5})
except ConfigurationInvalidError as error:
    assert "'linger.ms'" in error.errors["kafka.lingr.ms"], error
else:
    raise AssertionError("a misspelt key was accepted")

headers = {"tag": ["one", "two"], "other": None}
with (
    MockCluster() as cluster,
    Producer(kafka={"bootstrap.servers": cluster.bootstrap_servers}) as producer,
):
    with work:
        for payload in (b"1", b"2"):
            producer.produce_sync(topic="events", payload=payload, headers=headers)
        producer.produce_many_sync(
            [{"topic": "events", "payload": b"3", "headers": headers}]
        )
    assert producer.polling == "fd", producer.polling
    stored = [record.headers for record in cluster.records("events")]
    assert stored == [[("tag", b"one"), ("tag", b"two"), ("other", None)]] * 3, stored
"""


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("order", ["greendrop first", "agent first"])
def test_no_agent_changes_what_a_producer_does(run_script, agent, order):
    """Configuration check, polling, mock clusters and headers work as without an agent.

    New Relic's agent replaces the class that greendrop builds on, in the extension
    module itself; the other agents replace the class that `confluent_kafka` exports.
    """
    start = textwrap.dedent(AGENTS[agent])
    imported = ("import greendrop", start)
    if order == "agent first":
        imported = imported[::-1]

    run_script("\n".join(("import os", *imported, USE)), "patched")
