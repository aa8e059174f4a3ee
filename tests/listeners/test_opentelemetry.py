"""Spans, as the SDK's in-memory exporter has them."""

from __future__ import annotations

import copy
import pickle
import time

import gevent
import pytest
from opentelemetry import baggage, context, propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags

from greendrop import (
    DeliveryError,
    Message,
    MessageInvalidError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    ProducerNotConfiguredError,
    QueueFullError,
)
from greendrop.listeners.opentelemetry import trace

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
#: The example of W3C's Trace Context.
THEIRS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Spans:
    """The ended spans of a tracer provider."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.begun = []
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def all(self):
        """Spans of greendrop, in the order of their ends."""
        return [
            span
            for span in self.exporter.get_finished_spans()
            if span.instrumentation_scope.name != "test"
        ]

    @property
    def only(self):
        """The only span of greendrop."""
        (span,) = self.all
        return span


@pytest.fixture
def spans():
    """Return a tracer provider, and the spans that it exports."""
    spans = Spans()
    yield spans
    spans.provider.shutdown()


class Wire:
    """An interceptor that records headers as librdkafka gets them.

    It was added before tracing, so it sees the headers that tracing adds.
    """

    def __init__(self):
        self.headers = []

    def on_send(self, message):
        """Record the headers."""
        self.headers.append(message.headers)
        return message

    def on_batch(self, messages):
        """Do nothing."""

    def on_send_error(self, message, error):
        """Do nothing."""


@pytest.fixture
def wire():
    """Record the headers that the traced producers send."""
    return Wire()


@pytest.fixture
def make_traced(make_producer, spans, wire):
    """Construct traced producers."""

    def make(kafka=None, **settings):
        producer = make_producer(kafka, **settings)
        producer.intercept(lambda _: wire)
        trace(producer, tracer_provider=spans.provider)
        return producer

    return make


def traceparent(span):
    """Format a span's context as W3C defines it."""
    its = span.get_span_context()
    return f"00-{its.trace_id:032x}-{its.span_id:016x}-{its.trace_flags:02x}".encode()


# --- one message ----------------------------------------------------------------------


def test_span_ends_with_the_report(world, make_traced, spans):
    """Each message has one span, which has ended when produce_sync returns."""
    producer = make_traced({"client.id": "orders-service"})

    report = producer.produce_sync(topic="orders", payload=b"x", key="order-1")

    span = spans.only
    assert span.name == "send orders"
    assert span.kind is SpanKind.PRODUCER
    assert span.status.status_code is StatusCode.UNSET
    assert span.links == ()
    assert span.instrumentation_scope.schema_url.endswith("/1.44.0")
    host, port = producer._core.settings.kafka["bootstrap.servers"].split(":")
    assert dict(span.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": str(report.partition),
        "messaging.kafka.offset": report.offset,
        "messaging.kafka.message.key": "order-1",
        "messaging.client.id": "orders-service",
        "server.address": host,
        "server.port": int(port),
    }


@pytest.mark.slow
def test_span_lasts_until_the_broker_has_answered(mock_cluster, make_traced, spans):
    """The span covers the round trip, though the call returned long before."""
    mock_cluster.round_trip(0.1)
    producer = make_traced()

    handle = producer.produce_async(topic="orders", payload=b"x")
    assert spans.all == []
    handle.wait()

    assert spans.only.end_time - spans.only.start_time > 0.1e9


def test_context_is_taken_where_the_message_is_sent(make_traced, spans, wire):
    """The parent is the caller's span, even if that ended before the report."""
    producer = make_traced()

    with spans.tracer.start_as_current_span("request") as request:
        handle = producer.produce_async(topic="orders", payload=b"x")
    handle.wait()

    assert request.get_span_context().span_id == spans.only.parent.span_id
    assert [[("traceparent", traceparent(spans.only))]] == wire.headers


def test_greenlets_have_contexts_of_their_own(hub, make_traced, spans):
    """Each greenlet's message is the child of that greenlet's span."""
    producer = make_traced()
    parents = {}

    def work(number):
        with spans.tracer.start_as_current_span(f"request {number}") as request:
            parents[f"topic-{number}"] = request.get_span_context().span_id
            gevent.sleep(0)
            producer.produce_sync(topic=f"topic-{number}", payload=b"x")

    gevent.joinall([gevent.spawn(work, number) for number in range(20)])

    assert parents == {
        span.attributes["messaging.destination.name"]: span.parent.span_id
        for span in spans.all
    }


def test_tombstone_and_partition_are_attributes(make_traced, spans):
    """Attributes known at the beginning of the span are there for samplers."""
    producer = make_traced()

    producer.tombstone_sync(topic="orders", key=b"\xff", partition=2)
    producer.variant(max_wait_timeout=5.0).produce_sync(topic="orders", payload=b"")

    tombstone, other = spans.all
    assert tombstone.attributes["messaging.kafka.message.tombstone"] is True
    assert tombstone.attributes["messaging.destination.partition.id"] == "2"
    # A key that is not text has no canonical form.
    assert "messaging.kafka.message.key" not in tombstone.attributes
    assert "messaging.kafka.message.tombstone" not in other.attributes


def test_keys_may_be_left_out(make_producer, spans):
    """Keys may be personal data, so tracing can omit them."""
    producer = make_producer()
    trace(producer, tracer_provider=spans.provider, message_keys=False)

    producer.produce_sync(topic="orders", payload=b"x", key="secret")

    assert "secret" not in str(spans.only.attributes)


# --- failures -------------------------------------------------------------------------


def test_error_has_kafka_name(mock_cluster, make_traced, spans):
    """The error of the span is Kafka's name of the broker's refusal."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=10)
    producer = make_traced()

    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="orders", payload=b"x")

    assert spans.only.status.status_code is StatusCode.ERROR
    assert "was not delivered" in spans.only.status.description
    assert spans.only.attributes["error.type"] == "TOPIC_AUTHORIZATION_FAILED"


def test_purged_message_ends_its_span(make_traced, spans):
    """Messages dropped by purge or a forced close end their spans with an error."""
    producer = make_traced(NOWHERE)
    producer.produce_async(topic="orders", payload=b"1")
    producer.purge()
    producer.produce_async(topic="orders", payload=b"2")
    producer.close(0, force=True)

    names = [span.attributes["error.type"] for span in spans.all]
    assert names == ["_PURGE_QUEUE", "_PURGE_QUEUE"]


@pytest.mark.slow
def test_timed_out_message_ends_its_span(make_traced, spans):
    """The span ends when librdkafka gives up, not when the wait ends."""
    producer = make_traced(NOWHERE | {"message.timeout.ms": 50})

    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="orders", payload=b"x")

    assert spans.only.attributes["error.type"] == "_MSG_TIMED_OUT"


def test_refused_message_ends_its_span(make_traced, spans):
    """A message that was not queued has a span with an error, too."""
    full = make_traced(
        NOWHERE | {"queue.buffering.max.messages": 1}, wait_on_queue_full=False
    )
    full.produce_async(topic="orders", payload=b"x")
    with pytest.raises(QueueFullError):
        full.produce_async(topic="orders", payload=b"x")
    assert spans.only.attributes["error.type"] == "_QUEUE_FULL"

    closed = make_traced()
    closed.close()
    with pytest.raises(ProducerClosedError):
        closed.produce_sync(topic="orders", payload=b"x")
    assert spans.all[-1].attributes["error.type"] == "ProducerClosedError"


def test_invalid_message_has_no_span(make_traced, spans):
    """Nothing was sent and the caller gets the error, so there is nothing to trace."""
    producer = make_traced()

    with pytest.raises(MessageInvalidError):
        producer.produce_sync(topic="", payload=b"x")

    assert spans.all == []


@pytest.mark.slow
def test_every_span_that_begins_ends(hub, make_producer, mock_cluster):
    """Delivered, failed, purged, refused and killed sends end all their spans."""
    counting = Spans()
    begun = []
    counting.provider.add_span_processor(Counting(begun))
    producer = make_producer(
        {"queue.buffering.max.messages": 50}, wait_timeout_on_queue_full=0.05
    )
    trace(producer, tracer_provider=counting.provider)
    mock_cluster.round_trip(0.02)
    producer.produce_sync(topic="orders", payload=b"x")
    mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE", times=3)

    def send(number):
        while True:
            producer.produce_many_async([Message("orders", b"x")] * (number + 1))
            producer.produce_sync(topic="orders", payload=b"x")

    workers = [gevent.spawn(_swallowing, send, number) for number in range(10)]
    gevent.sleep(0.2)
    producer.purge()
    gevent.sleep(0.2)
    gevent.killall(workers)
    producer.close(5.0)

    ended = {span.get_span_context().span_id for span in counting.all}
    assert set(begun) == ended
    assert len(begun) == len(counting.all) > 100
    counting.provider.shutdown()


class Counting(SimpleSpanProcessor):
    """A span processor that records the spans that begin."""

    def __init__(self, begun):
        super().__init__(InMemorySpanExporter())
        self.begun = begun

    def on_start(self, span, parent_context=None):  # noqa: ARG002
        """Record the id of the span."""
        self.begun.append(span.get_span_context().span_id)


def _swallowing(function, *arguments):
    while True:
        try:
            function(*arguments)
        except Exception:  # noqa: BLE001 - all kinds are meant to happen
            gevent.sleep(0.005)


# --- the caller's own context ---------------------------------------------------------


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
def test_callers_context_is_kept_and_linked_to(make_traced, spans, wire, name):
    """A context in the headers stays; the span has a link to it."""
    producer = make_traced()
    headers = {name: THEIRS, "tracestate": "vendor=1"}

    producer.produce_sync(topic="orders", payload=b"x", headers=headers)

    ((theirs, state),) = wire.headers
    assert theirs == (name, THEIRS.encode())
    assert state == ("tracestate", b"vendor=1")
    assert headers == {name: THEIRS, "tracestate": "vendor=1"}
    assert spans.only.kind is SpanKind.CLIENT
    (link,) = spans.only.links
    assert f"{link.context.trace_id:032x}" in THEIRS
    assert f"{link.context.span_id:016x}" in THEIRS


@pytest.mark.parametrize("value", ["nonsense", b"\xff", None])
def test_invalid_context_is_not_replaced(make_traced, spans, wire, value):
    """The caller's headers stay, even with an invalid context."""
    producer = make_traced()

    producer.produce_sync(topic="a", payload=b"x", headers={"traceparent": value})

    ((header,),) = wire.headers
    assert header[0] == "traceparent"
    assert spans.only.links == ()
    assert spans.only.kind is SpanKind.PRODUCER


def test_other_headers_stay_and_come_first(make_traced, spans, wire):
    """The context is added after the caller's headers, which stay as they are."""
    producer = make_traced()
    headers = [("a", "1"), ("a", None)]

    producer.produce_sync(topic="orders", payload=b"x", headers=headers)

    assert [[("a", b"1"), ("a", None), ("traceparent", traceparent(spans.only))]] == (
        wire.headers
    )
    assert headers == [("a", "1"), ("a", None)]


def test_baggage_is_propagated(make_traced, spans, wire):
    """Propagators may add other headers beside the context, and add them once."""
    producer = make_traced()
    token = context.attach(baggage.set_baggage("user", "42"))
    try:
        producer.produce_sync(topic="orders", payload=b"x")
        producer.produce_sync(topic="orders", payload=b"x", headers={"baggage": "a=1"})
    finally:
        context.detach(token)

    first, second = map(dict, wire.headers)
    assert first["baggage"] == b"user=42"
    assert second["baggage"] == b"a=1"
    assert traceparent(spans.all[1]) == second["traceparent"]


# --- batches --------------------------------------------------------------------------


def test_batch_has_a_span_with_links_to_its_messages(world, make_traced, spans, wire):
    """Each message has its own span and context; the batch's span links to each."""
    producer = make_traced()

    with spans.tracer.start_as_current_span("request") as request:
        producer.produce_many_sync([Message("orders", b"%d" % n) for n in range(3)])

    *messages, batch = spans.all
    assert {"send orders"} == {span.name for span in spans.all}
    assert [span.kind for span in messages] == [SpanKind.PRODUCER] * 3
    assert {request.get_span_context().span_id} == {s.parent.span_id for s in spans.all}
    assert sorted(map(traceparent, messages)) == sorted(
        dict(h)["traceparent"] for h in wire.headers
    )
    assert batch.kind is SpanKind.CLIENT
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert {span.get_span_context().span_id for span in messages} == {
        link.context.span_id for link in batch.links
    }
    assert batch.start_time <= min(span.start_time for span in messages)
    assert batch.end_time >= max(span.end_time for span in messages)
    for span in messages:
        assert "messaging.batch.message_count" not in span.attributes
        assert "messaging.kafka.offset" in span.attributes


def test_batch_of_several_topics_names_none(make_traced, spans):
    """The batch's span has no topic if messages have several."""
    producer = make_traced()

    producer.produce_many_sync([Message("orders", b"x"), Message("events", b"x")])

    batch = spans.all[-1]
    assert batch.name == "send"
    assert "messaging.destination.name" not in batch.attributes


def test_batch_links_to_the_context_that_a_message_brings(make_traced, spans):
    """A message with a context of the caller's is linked by that context."""
    producer = make_traced()

    producer.produce_many_sync([Message("a", b"x", headers={"traceparent": THEIRS})])

    message, batch = spans.all
    assert message.kind is SpanKind.CLIENT
    assert [link.context for link in message.links] == [
        link.context for link in batch.links
    ]


@pytest.mark.slow
def test_batch_that_fails_in_part_ends(make_traced, spans):
    """The span of the batch has the error of the first message that was not queued."""
    producer = make_traced(
        NOWHERE | {"queue.buffering.max.messages": 2, "message.timeout.ms": 100},
        wait_on_queue_full=False,
    )

    with pytest.raises(ProduceManyError) as caught:
        producer.produce_many_async([Message("orders", b"x")] * 4)
    assert [each.attributes["error.type"] for each in spans.all] == ["_QUEUE_FULL"] * 2
    for handle in caught.value.dispatched:
        with pytest.raises(DeliveryError):
            handle.wait()

    assert len(spans.all) == 5
    batch = spans.all[-1]
    assert batch.status.status_code is StatusCode.ERROR
    assert batch.attributes["messaging.batch.message_count"] == 4


def test_buffered_messages_are_traced_when_flushed(make_traced, spans):
    """A flush is a batch; the context may be put into the headers before."""
    producer = make_traced()
    headers = {}
    with spans.tracer.start_as_current_span("request"):
        propagate.inject(headers)
        producer.buffer(topic="orders", payload=b"x", headers=headers)

    producer.flush_sync()

    message, batch = spans.all
    (link,) = message.links
    assert headers["traceparent"].split("-")[2] == f"{link.context.span_id:016x}"
    assert batch.attributes["messaging.batch.message_count"] == 1


# --- spans that are not recorded ------------------------------------------------------


def test_unsampled_message_propagates_its_context(make_producer, wire):
    """No span is exported; consumers still get the context, marked as not sampled."""
    off = Spans(sampler=ALWAYS_OFF)
    producer = make_producer()
    producer.intercept(lambda _: wire)
    trace(producer, tracer_provider=off.provider)

    report = producer.produce_sync(topic="orders", payload=b"x")
    producer.produce_many_sync([Message("orders", b"x")])

    assert off.all == []
    assert type(report.topic) is str
    for headers in wire.headers:
        flags = dict(headers)["traceparent"].decode().split("-")[3]
        assert not int(flags, 16) & TraceFlags.SAMPLED
    off.provider.shutdown()


def test_exporters_messages_make_no_spans(make_traced, spans, wire):
    """An exporter that sends spans by Kafka would trace itself for ever."""
    producer = make_traced()
    key = context._SUPPRESS_INSTRUMENTATION_KEY
    token = context.attach(context.set_value(key, value=True))
    try:
        producer.produce_sync(topic="orders", payload=b"x")
        producer.produce_many_sync([Message("orders", b"x")])
    finally:
        context.detach(token)

    assert spans.all == []
    assert wire.headers == [None, None]


@pytest.mark.patched
@pytest.mark.slow
def test_without_sdk_nothing_happens(run_script, mock_cluster):
    """With the API alone there are no spans, no headers, and no errors."""
    ended = run_script(
        """
        import sys
        sys.modules["opentelemetry.sdk"] = None
        from greendrop import Producer
        from greendrop.listeners.opentelemetry import trace

        with Producer(kafka={"bootstrap.servers": servers}) as producer:
            trace(producer)
            report = producer.produce_sync(topic="a", payload=b"x")
            producer.produce_many_sync([{"topic": "a", "payload": b"x"}])
        assert type(report.topic) is str
        print("fine")
        """,
        "patched",
        servers=mock_cluster.bootstrap_servers,
    )
    assert ended.stdout == "fine\n"
    assert ended.stderr == ""


# --- tracing of producers -------------------------------------------------------------


def test_tracing_twice_traces_once(make_traced, spans, wire):
    """A second call, or one for a variant, changes nothing."""
    producer = make_traced()
    trace(producer, tracer_provider=spans.provider)
    trace(producer.variant(max_wait_timeout=1.0), tracer_provider=spans.provider)

    producer.produce_sync(topic="orders", payload=b"x")

    assert [[("traceparent", traceparent(spans.only))]] == wire.headers


def test_producer_has_to_be_configured(spans):
    """A producer without settings can't be traced yet, and can be later."""
    producer = Producer()
    with pytest.raises(ProducerNotConfiguredError):
        trace(producer, tracer_provider=spans.provider)

    producer.setup(kafka=NOWHERE)
    trace(producer, tracer_provider=spans.provider)
    producer.close()


def test_handles_and_reports_are_unchanged(make_traced, spans):
    """Topics compare, copy and pickle as text; labels are the caller's."""
    producer = make_traced()
    label = object()

    handle = producer.produce_async(topic="orders", payload=b"x", label=label)
    report = handle.wait()

    assert handle.label is report.label is label
    assert report.topic == "orders"
    assert {"orders": 1}[report.topic] == 1
    assert type(copy.copy(report.topic)) is type(
        pickle.loads(pickle.dumps(report.topic))
    )
    assert type(pickle.loads(pickle.dumps(report.topic))) is str
    assert handle.topic.sending is None


def test_tracer_that_raises_disturbs_no_caller(make_producer, caplog):
    """The message is sent without a span."""
    producer = make_producer()
    broken = Spans()
    trace(producer, tracer_provider=broken.provider)

    class Broken(SimpleSpanProcessor):
        def on_start(self, span, parent_context=None):  # noqa: ARG002
            raise RuntimeError("broken")

    broken.provider.add_span_processor(Broken(InMemorySpanExporter()))

    producer.produce_sync(topic="orders", payload=b"x")

    assert "an interceptor raised" in caplog.text
    broken.provider.shutdown()


def test_server_is_named_if_there_is_one_only(make_producer, spans):
    """Of several servers the one that will be used is unknown."""
    for servers, expected in (
        ("kafka:9092", {"server.address": "kafka", "server.port": 9092}),
        ("PLAINTEXT://kafka:9092", {"server.address": "kafka", "server.port": 9092}),
        ("[::1]:9092", {"server.address": "::1", "server.port": 9092}),
        ("kafka", {"server.address": "kafka"}),
        ("one:9092,two:9092", {}),
    ):
        kafka = {"bootstrap.servers": servers, "log_level": 0}
        assert server_of_a_span(kafka, make_producer, spans) == expected


def test_server_is_named_by_each_setting(spans):
    """The setting has an older name, and a mock cluster of the client needs none."""
    for kafka, expected in (
        (
            {"metadata.broker.list": "kafka:9092"},
            {"server.address": "kafka", "server.port": 9092},
        ),
        ({"test.mock.num.brokers": 1}, {}),
    ):
        kafka["log_level"] = 0
        assert server_of_a_span(kafka, Producer, spans) == expected


def server_of_a_span(kafka, make_producer, spans):
    """Send a message to nowhere, and return the server's attributes of its span."""
    with make_producer(kafka) as producer:
        trace(producer, tracer_provider=spans.provider)
        producer.produce_async(topic="orders", payload=b"x")
        producer.purge()
    attributes = spans.all[-1].attributes
    return {name: attributes[name] for name in attributes if name.startswith("server.")}


@pytest.mark.slow
def test_tracing_leaves_the_hub_free(longest_gap, make_traced, spans):
    """Other greenlets run during a batch of thousands, and while an exporter waits."""
    producer = make_traced()
    producer.produce_sync(topic="orders", payload=b"x")

    class Slow(SimpleSpanProcessor):
        def on_end(self, span):
            if span.attributes["messaging.destination.name"] == "slow":
                gevent.sleep(0.2)

    spans.provider.add_span_processor(Slow(InMemorySpanExporter()))
    with longest_gap() as gap:
        handles = producer.produce_many_async([Message("orders", b"x")] * 5_000)
        started_at = time.monotonic()
        producer.produce_sync(topic="slow", payload=b"x")
        gevent.wait(handles)

    assert time.monotonic() - started_at > 0.2
    assert gap.seconds < 0.1
    assert len(spans.all) == 1 + 5_000 + 1 + 1
