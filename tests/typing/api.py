"""Every public call, as a user writes it. Only type-checked, by `make types`.

`assert_type` checks the type of a result; a call with wrong arguments has an ignore
with its code, and mypy complains about an ignore without an error.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gevent
from datadog.dogstatsd.base import DogStatsd
from opentelemetry.trace import get_tracer_provider
from prometheus_client import CollectorRegistry
from statsd import StatsClient
from typing_extensions import assert_type

import greendrop
from greendrop import (
    BrokerError,
    ConfigurationInvalidError,
    DeliveryError,
    DeliveryHandle,
    DeliveryReport,
    DeliveryScope,
    DeliveryTimeoutError,
    Event,
    EventName,
    EventNotRegisteredError,
    FlushTimeoutError,
    GreendropError,
    Headers,
    HeaderValue,
    IllegalWaitError,
    Interceptor,
    Message,
    MessageFields,
    MessageInvalidError,
    MessagePurgedError,
    MessagesAbandonedError,
    MessageState,
    Middleware,
    MiddlewareError,
    Monitor,
    NotDeliveredError,
    NotSentError,
    OAuthBearer,
    OAuthToken,
    OAuthTokenError,
    OutcomeUnknownError,
    ProduceError,
    ProduceManyError,
    Producer,
    ProducerAlreadyConfiguredError,
    ProducerClosedError,
    ProducerNotConfiguredError,
    ProducerSettings,
    ProducerUsedInParentProcessError,
    QueueFullError,
    Settings,
    StatisticsNotEnabledError,
    Status,
    Step,
    VariantInvalidError,
)
from greendrop import Listener as EventListener
from greendrop.contrib.celery import connect
from greendrop.contrib.django import (
    AliasSettings,
    close_producers,
    get_producer,
    produce_on_commit,
)
from greendrop.contrib.flask import Greendrop
from greendrop.contrib.gunicorn import worker_exit
from greendrop.contrib.locust import GreendropUser
from greendrop.events import EVENTS
from greendrop.listeners.log import LogListener
from greendrop.listeners.opentelemetry import trace
from greendrop.listeners.prometheus import PrometheusListener
from greendrop.listeners.statsd import METRICS, Metric, StatsdListener
from greendrop.testing import (
    MemoryCluster,
    MockCluster,
    Record,
    Recorder,
    fatal_error,
    in_memory,
    read_topic,
    trigger_fatal_error,
)

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka import Message as Read
    from flask import Flask
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker
    from typing_extensions import Unpack

    from greendrop.interceptors import Interceptor

assert_type(greendrop.__version__, str)


def configure() -> Producer:
    """Construct producers in each way."""
    later = Producer()
    later.setup(kafka={"bootstrap.servers": "localhost:9092"}, id="later")
    later.setup({"bootstrap.servers": "localhost:9092"})
    Producer({"bootstrap.servers": "localhost:9092", "linger.ms": 5, "acks": "all"})
    Producer(kafka={"enable.idempotence": True, "linger.ms": 0.5})
    Producer(kafka=MappingProxyType({"bootstrap.servers": "localhost:9092"}))
    Producer(["bootstrap.servers"])  # type: ignore[arg-type]
    return Producer(
        kafka={"bootstrap.servers": "localhost:9092"},
        id="typed",
        max_payload_size=1_000_000,
        max_wait_timeout=60,
        wait_on_queue_full=True,
        wait_timeout_on_queue_full=5.0,
        instrument_on_wait_queue_full=False,
        max_serve_time=0.005,
        exit_timeout=3.0,
        stall_alarm=0.5,
        statistics_deltas=["tx"],
        idle_disconnect_timeout=300.0,
        reload_on_idempotent_fatal_error=True,
        wait_backoff_on_idempotent_fatal_error=1.0,
        max_attempts_on_idempotent_fatal_error=3,
        non_reloadable_errors=("fenced",),
    )


def configure_from_a_mapping(kafka: dict[str, object]) -> None:
    """Pass settings on, with and without a misspelling."""
    settings: ProducerSettings = {"max_wait_timeout": 3, "statistics_deltas": ["tx"]}
    Producer(kafka, **settings)
    Producer().setup(kafka, **settings)
    settings["exit_timeout"] = 5.0
    settings["exit_timout"] = 5.0  # type: ignore[typeddict-unknown-key]
    untyped: dict[str, Any] = {"max_wait_timeout": 3}
    Producer(kafka, **untyped)

    Producer(kafka, max_wait_timout=3)  # type: ignore[call-arg]
    Producer(kafka, max_wait_timeout="3")  # type: ignore[arg-type]
    Producer(kafka, wait_on_queue_full=1)  # type: ignore[arg-type]
    Producer(kafka, oauth_token_provider=print)  # type: ignore[arg-type]
    Producer().setup(kafka, max_wait_timout=3)  # type: ignore[call-arg]
    Producer(kafka).variant(max_wait_timout=3)  # type: ignore[call-arg]
    # The addresses may be a list.
    Producer(kafka={"bootstrap.servers": ["a:9092", "b:9092"]})


def name_the_types_of_signatures(producer: Producer) -> None:
    """Annotate arguments and results of a producer."""
    value: HeaderValue = b"1"
    headers: Headers = {"a": value, "b": [value, None]}
    producer.produce_async(topic="t", payload=None, headers=headers)
    name: EventName = "message.acknowledged"
    listener: EventListener = print
    producer.monitor.subscribe(name, listener)
    status: Status = producer.status
    assert status

    def build(settings: Settings) -> Interceptor:
        assert_type(settings.id, str)
        return Tracer()

    producer.intercept(build)
    step: Step = producer.middleware.append(lambda message: message)
    producer.middleware.remove(step)


def look(producer: Producer) -> None:
    """Read the attributes of a producer."""
    assert_type(producer.id, str | None)
    assert_type(
        producer.status,
        Literal[
            "initial",
            "configured",
            "connected",
            "disconnecting",
            "disconnected",
            "closing",
            "closed",
        ],
    )
    assert_type(producer.queue_size, int)
    assert_type(producer.in_flight, int)
    assert_type(producer.settings, Mapping[str, object])
    assert_type(producer.topic_config, Mapping[str, str])
    assert_type(producer.max_wait_timeout, float | None)
    assert_type(producer.idempotent, bool)
    assert_type(producer.transactional, bool)
    assert_type(producer.disconnectable, bool)
    producer.settings["id"] = "x"  # type: ignore[index]
    producer.in_flight = 3  # type: ignore[misc]
    assert_type(producer.partition_count("t"), int)
    producer.partition_count(b"t")  # type: ignore[arg-type]
    assert_type(producer.polling, str | None)
    assert_type(producer.monitor, Monitor)
    assert_type(repr(producer), str)
    producer.id = "other"  # type: ignore[misc]


def send(producer: Producer) -> None:
    """Send one message."""
    assert_type(producer.produce_sync(topic="t", payload=b"x"), DeliveryReport)
    assert_type(producer.produce_async(topic="t", payload=b"x"), DeliveryHandle)
    producer.produce_sync(
        topic="t",
        payload="text",
        key=b"k",
        headers={"a": "1", "b": b"2", "c": None},
        partition=0,
        partition_key="p",
        timestamp=1_700_000_000_000,
        label=object(),
    )
    producer.produce_async(
        topic="t",
        payload=None,
        key="k",
        headers=[("a", "1"), ("a", b"2"), ("b", None)],
        partition=-1,
        partition_key=b"p",
        timestamp=datetime.now(timezone.utc),
        label={"order": 5},
    )
    producer.produce_async(topic="t", payload=None, headers={"a": ["1", b"2", None]})
    strings: dict[str, str] = {"a": "1"}
    producer.produce_async(topic="t", payload=None, headers=strings)
    producer.produce_async(topic="t", payload=None, headers=OrderedDict(strings))
    pairs: list[tuple[str, str]] = [("a", "1")]
    producer.produce_async(topic="t", payload=None, headers=pairs)
    lists: dict[str, list[str]] = {"a": ["1"]}
    producer.produce_async(topic="t", payload=None, headers=lists)

    producer.produce_sync(topic="t")  # type: ignore[call-arg]
    producer.produce_sync("t", b"x")  # type: ignore[arg-type, call-arg]
    producer.produce_sync(topic="t", payload=5)  # type: ignore[arg-type]
    producer.produce_sync(topic=b"t", payload=b"x")  # type: ignore[arg-type]
    producer.produce_async(topic="t", payload=b"", key=5)  # type: ignore[arg-type]


def pass_on(producer: Producer, **fields: Unpack[MessageFields]) -> None:
    """Pass the fields of a message on, and put them into a batch."""
    producer.produce_async(**fields)
    fields["key"] = "key"
    producer.produce_many_async([fields])
    pass_on(producer, topic="t", payload=b"x", key="k")
    pass_on(producer, topic="t", payload=b"x", kay="k")  # type: ignore[call-arg]
    pass_on(producer, topic="t")  # type: ignore[call-arg]


def send_in_a_scope(producer: Producer) -> None:
    """Wait for the messages sent in a block."""
    with producer.scope() as scope:
        assert_type(scope, DeliveryScope)
        producer.produce_async(topic="t", payload=b"x")
        scope.wait()
        scope.wait(timeout=5)
    with producer.scope(timeout=5.0):
        pass
    producer.scope(5, 6)  # type: ignore[call-arg]


def send_batches(producer: Producer, rows: Iterator[Mapping[str, Any]]) -> None:
    """Send several messages."""
    messages = [Message("t", b"x"), Message(topic="t", payload=None, key="k")]
    mappings: list[dict[str, Any]] = [
        {"topic": "t", "payload": b"x"},
        {"topic": "t", "payload": None},
    ]
    assert_type(producer.produce_many_sync(messages), list[DeliveryReport])
    assert_type(producer.produce_many_async(messages), list[DeliveryHandle])
    producer.produce_many_sync(mappings)
    producer.produce_many_async([Message("t", b"x"), {"topic": "t", "payload": b"x"}])
    producer.produce_many_sync(rows)
    producer.produce_many_async(Message("t", b"x", label=n) for n in range(3))
    producer.produce_many_sync([("t", b"x")])  # type: ignore[list-item]


def send_tombstones(producer: Producer, message: Message) -> None:
    """Delete keys."""
    assert_type(
        producer.tombstone_sync(topic="t", key="k", partition=0), DeliveryReport
    )
    assert_type(
        producer.tombstone_async(
            topic="t",
            key=b"k",
            partition=1,
            headers={"a": "1"},
            timestamp=1_700_000_000_000,
            label=object(),
        ),
        DeliveryHandle,
    )
    assert_type(producer.tombstone_many_sync([message]), list[DeliveryReport])
    assert_type(producer.tombstone_many_async([message]), list[DeliveryHandle])
    producer.tombstone_many_sync([{"topic": "t", "key": "k", "partition": 0}])
    producer.tombstone_sync(topic="t", key=None, partition=0)  # type: ignore[arg-type]
    producer.tombstone_sync(topic="t", key="k")  # type: ignore[call-arg]


def use_buffer(producer: Producer, rows: Iterator[Mapping[str, Any]]) -> None:
    """Buffer and flush."""
    producer.buffer(topic="t", payload=b"x")
    producer.buffer(topic="t", payload="x", key="k", partition=0, label=1)
    producer.buffer_many([Message("t", b"x")])
    producer.buffer_many(rows)
    assert_type(producer.buffered, tuple[Message, ...])
    assert_type(producer.flush_sync(), list[DeliveryReport])
    assert_type(producer.flush_async(), list[DeliveryHandle])
    producer.flush()
    try:
        producer.flush(timeout=2.5)
    except FlushTimeoutError as late:
        assert_type(late.count, int)
    producer.buffer(topic="t")  # type: ignore[call-arg]


def use_middleware(producer: Producer) -> None:
    """Add steps in each way."""
    assert_type(producer.middleware, Middleware)
    assert_type(producer.current_variant, Producer)

    @producer.middleware.append
    def step(message: Message) -> Message:
        return message._replace(key="k")

    producer.middleware.prepend(lambda message: message)
    producer.middleware.remove(step)
    producer.middleware.append(print)  # type: ignore[type-var]
    try:
        producer.flush_async()
    except MiddlewareError as broken:
        assert_type(broken.step, str)


def use_messages(message: Message) -> None:
    """Read the attributes of a message."""
    assert_type(message.topic, str)
    assert_type(message.payload, bytes | str | None)
    assert_type(message.key, bytes | str | None)
    assert_type(message.partition, int | None)
    assert_type(message.partition_key, bytes | str | None)
    assert_type(message.timestamp, int | datetime | None)
    assert_type(message.label, object)
    assert_type(message._replace(key="other"), Message)
    message.topic = "u"  # type: ignore[misc]
    Message("t")  # type: ignore[call-arg]


def use_handles(handle: DeliveryHandle) -> None:
    """Wait for a delivery report in each way."""
    assert_type(handle.wait(), DeliveryReport)
    assert_type(handle.wait(5), DeliveryReport)
    assert_type(handle.wait(timeout=0.5), DeliveryReport)
    assert_type(handle.done, bool)
    assert_type(handle.ready(), bool)
    assert_type(handle.report, DeliveryReport | None)
    assert_type(handle.error, ProduceError | None)
    assert_type(handle.topic, str)
    assert_type(handle.label, object)
    gevent.wait([handle], timeout=1)
    for ready in gevent.iwait([handle], timeout=1):
        assert_type(ready, DeliveryHandle)
    pickle.loads(pickle.dumps(handle))
    assert_type(handle.wait(None), DeliveryReport)
    assert_type(handle.result(), DeliveryReport)

    async def wait_in_asyncio() -> DeliveryReport:
        return await handle

    print(wait_in_asyncio)
    assert_type(handle.exception(timeout=1), ProduceError | None)
    handle.add_done_callback(lambda done: print(done.report))
    handle.wait("1")  # type: ignore[arg-type]


def use_reports(report: DeliveryReport) -> None:
    """Read the attributes of a delivery report."""
    assert_type(report.topic, str)
    assert_type(report.partition, int)
    assert_type(report.offset, int | None)
    assert_type(report.timestamp, int)
    assert_type(report.latency, float)
    assert_type(report.label, object)


class Listener:
    """A listener for two events."""

    def on_message_acknowledged(self, event: Event) -> None:
        """Handle an acknowledged message."""
        assert_type(event.name, str)
        assert_type(event["offset"], int | None)
        assert_type(event.payload, Mapping[str, Any])

    def on_error_occurred(self, event: Event) -> None:
        """Handle an error."""


def note(event: Event) -> int:
    """Take an event, and return a value that is ignored."""
    return len(event.payload)


def listen(producer: Producer) -> None:
    """Subscribe in each way."""
    monitor = producer.monitor
    listener = monitor.subscribe("message.acknowledged", note)
    assert_type(listener(Event("message.acknowledged", {})), int)
    monitor.subscribe(Listener())
    monitor.subscribe("error.occurred", lambda event: print(event["error"]))

    @monitor.subscribe("producer.closed")
    def closed(event: Event) -> str:
        return event.name

    assert_type(closed(Event("producer.closed", {})), str)
    assert_type(monitor.listens("producer.closed"), bool)
    monitor.unsubscribe(closed)
    monitor.unsubscribe(note)
    monitor.subscribe("error.occurred", len)  # type: ignore[call-overload]
    monitor.subscribe("error.ocurred", note)  # type: ignore[call-overload]
    for name in EVENTS:
        monitor.subscribe(name, note)


def log(producer: Producer, logger: object) -> None:
    """Log the events."""
    producer.monitor.subscribe(LogListener())
    listener = LogListener(logger, log_messages=True, limit=20)
    producer.monitor.subscribe(listener)
    LogListener(log_messages="yes")  # type: ignore[arg-type]


def listen_to_all_producers() -> None:
    """Subscribe to the process monitor."""
    assert_type(greendrop.monitor, Monitor)

    @greendrop.monitor.subscribe("producer.configured")
    def configured(event: Event) -> None:
        event["producer"].monitor.subscribe(Listener())

    greendrop.monitor.unsubscribe(configured)


def vary(producer: Producer) -> None:
    """Construct variants."""
    assert_type(producer.variant(), Producer)
    brisk = producer.variant(max_wait_timeout=5)
    brisk.variant(topic_config={"acks": 1, "compression.codec": "gzip"})
    config: Mapping[str, object] = MappingProxyType({"acks": "all"})
    assert_type(brisk.variant(max_wait_timeout=0.5, topic_config=config), Producer)
    producer.variant(5)  # type: ignore[call-arg]


def log_in(event: Event) -> OAuthToken:
    """Return a token."""
    token = OAuthToken("value", 1e9, principal="shop", extensions={"pool": "a"})
    OAuthToken("value", 1_000_000_000)
    OAuthToken("value")  # type: ignore[call-arg]
    bearer: OAuthBearer = event["bearer"]
    bearer.set_token(token)
    bearer.set_token("value")  # type: ignore[arg-type]
    bearer.set_failure("reason")
    Producer({"bootstrap.servers": "host"}, oauth_token_provider=lambda: token)
    return token


def end(producer: Producer) -> None:
    """Purge, disconnect and close in each way."""
    producer.purge()
    assert_type(producer.disconnect(), bool)
    with producer as same:
        assert_type(same, Producer)
    producer.close()
    producer.close(5)
    producer.close(timeout=5.0, force=True)
    producer.close(force=True)
    producer.reset()


def handle_errors(producer: Producer) -> None:
    """Catch each error, and read its attributes."""
    try:
        producer.produce_sync(topic="t", payload=b"x")
    except (
        ConfigurationInvalidError,
        MessageInvalidError,
        VariantInvalidError,
    ) as refused:
        assert_type(refused.errors, dict[str, str])
    except ProduceManyError as many:
        assert_type(many.failed_index, int)
        for handle in many.dispatched:
            handle.wait(0)
    except (
        QueueFullError,
        OAuthTokenError,
        MessagePurgedError,
        DeliveryError,
    ) as failed:
        assert_type(failed.code, int | None)
        assert_type(failed.name, str | None)
        assert_type(failed.fatal, bool)
        assert_type(failed.retriable, bool)
        assert_type(failed.abortable, bool)
        assert_type(failed.batch_rejected, bool)
        if isinstance(failed.__cause__, BrokerError):
            assert_type(failed.__cause__.code, int)
            assert_type(failed.__cause__.name, str)
            assert_type(failed.__cause__.fatal, bool)
    except DeliveryTimeoutError as late:
        timeout: TimeoutError = late
        print(timeout)
    except ProduceError as error:
        ours: GreendropError = error
        print(ours)
    except MessagesAbandonedError as abandoned:
        assert_type(abandoned.count, int)
        assert_type(abandoned.buffered, tuple[Any, ...])
    except (
        EventNotRegisteredError,
        IllegalWaitError,
        ProducerAlreadyConfiguredError,
        ProducerClosedError,
        ProducerNotConfiguredError,
        ProducerUsedInParentProcessError,
        StatisticsNotEnabledError,
    ) as usage:
        print(usage.args)


def ask_for_the_state(
    error: ProduceError | NotSentError | NotDeliveredError | OutcomeUnknownError,
) -> None:
    """Read the state of the message from each branch of errors."""
    assert_type(error.message_state, MessageState)


def make_up_errors() -> tuple[GreendropError, ...]:
    """Construct errors for tests of a user's own program."""
    return (
        DeliveryError("text"),
        QueueFullError("text"),
        BrokerError("text", code=10, name="MESSAGE_TOO_LARGE", fatal=True),
        ProduceManyError("text", dispatched=[], failed_index=0),
        MessagesAbandonedError("text", count=3),
        MessageInvalidError({"topic": "text"}),
        BrokerError("text"),  # type: ignore[call-arg]
    )


def test_programs(producer: Producer) -> None:
    """Use the helpers for tests of programs."""
    with MockCluster(brokers=3) as cluster:
        assert_type(cluster, MockCluster)
        assert_type(cluster.bootstrap_servers, str)
        cluster.create_topic("t", partitions=2)
        cluster.round_trip(0.02)
        cluster.round_trip(0.02, broker=1)
        cluster.broker_down()
        cluster.broker_down(1)
        cluster.broker_up()
        cluster.fail_requests("Produce", "NOT_LEADER_OR_FOLLOWER", times=2)
        cluster.fail_requests(0, 6)
        cluster.forgive_requests("Produce")
        cluster.delay_requests("Produce", 0.5)
        cluster.fail_topic("t", "UNKNOWN_TOPIC_OR_PARTITION")
        cluster.lead_partition("t", 0, None)
        cluster.coordinate_transactions("id", 1)
        cluster.watch_requests()
        assert_type(cluster.requests(), list[str])
        cluster.close()
    assert_type(MockCluster.spawn(), MockCluster)
    trigger_fatal_error(producer)
    trigger_fatal_error(producer, 47, "reason")
    assert_type(fatal_error(producer), tuple[int, str] | None)


def listeners(producer: Producer) -> None:
    """Construct listeners with their vendors' objects, and with similar ones."""
    producer.monitor.subscribe(PrometheusListener())
    registry = CollectorRegistry()
    PrometheusListener(registry, buckets=[0.1, 1], statistics=False)
    producer.monitor.subscribe(StatsdListener(DogStatsd(), default_tags=["a:b"]))
    StatsdListener(StatsClient(), namespace="shop", metrics=METRICS)
    StatsdListener(object())  # type: ignore[arg-type]
    metric = Metric("gauge", "topics", "batch", ("batchsize", "avg"))
    Metric("timer", "topics", "batch", ())  # type: ignore[arg-type]
    StatsdListener(StatsClient(), metrics=(metric,)).send_metric(
        "count", "mine", 1, "a:b"
    )
    trace(producer)
    trace(producer, tracer_provider=get_tracer_provider(), message_keys=False)


class Tracer:
    """An interceptor."""

    def on_send(self, message: Message) -> Message:
        """Add a header."""
        return message._replace(headers=[("a", b"b")])

    def on_batch(self, messages: Sequence[Message]) -> None:
        """Do nothing."""

    def on_send_error(self, message: Message, error: BaseException) -> None:
        """Do nothing."""


def interceptors(producer: Producer) -> None:
    """Construct an interceptor from the settings."""
    interceptor: Interceptor = Tracer()
    producer.intercept(lambda _: interceptor)
    producer.intercept(lambda settings: Tracer() if settings.id else interceptor)
    producer.intercept(interceptor)  # type: ignore[arg-type]


def transactions(producer: Producer, consumer: Consumer, read: list[Read]) -> None:
    """Use transactions of both kinds of producers, with consumers of confluent."""
    with producer.transaction() as tx:
        assert_type(tx, greendrop.Transaction[Producer])
        assert_type(tx.producer, Producer)
        assert_type(tx.outcome, Literal["committed", "aborted", "unknown"] | None)
        tx.mark_as_consumed(consumer, read[0])
        tx.mark_many_as_consumed(consumer, read, "metadata")
        tx.mark_as_consumed(producer, read[0])  # type: ignore[arg-type]
    assert_type(producer.run_in_transaction(lambda _: 7), int | None)
    producer.run_in_transaction(lambda: 7)  # type: ignore[arg-type, misc]
    assert_type(producer.in_transaction, bool)
    with greendrop.default_pool().transaction(timeout=1.0) as pooled:
        assert_type(pooled.producer, Producer)
    with producer.transaction() as tx:
        tx.abort()
    raise greendrop.AbortTransaction


def pools(producer: Producer) -> None:
    """Construct pools from settings, and from factories of both kinds."""
    pool = greendrop.ProducerPool(lambda slot: Producer(id=str(slot)), size=2)
    greendrop.ProducerPool(lambda: producer, timeout=1.0)
    greendrop.ProducerPool(
        lambda: Producer(max_wait_timout=3)  # type: ignore[call-arg]
    )
    kafka = {"bootstrap.servers": "localhost:9092"}
    greendrop.ProducerPool(kafka=kafka, size=2, max_wait_timeout=3.0)
    greendrop.ProducerPool(kafka=kafka, max_wait_timout=3)  # type: ignore[call-arg]
    with pool.producer() as one, pool.producer(timeout=0.5):
        assert_type(one, Producer)
    assert_type(pool.stats, greendrop.PoolStats)
    pool.reload(timeout=1.0)
    pool.reset()
    greendrop.set_default_pool(pool)
    assert_type(greendrop.default_pool(), greendrop.ProducerPool)
    pool.close(timeout=1.0, force=True)


def test_in_memory(producer: Producer) -> None:
    """Use in-memory brokers, and the helpers that read and record."""
    with in_memory(partitions=2, create_topics=False) as cluster:
        assert_type(cluster, MemoryCluster)
        cluster.create_topic("events", partitions=3)
        cluster.round_trip(0.1)
        cluster.broker_down()
        cluster.broker_up()
        cluster.fail_messages("MESSAGE_TOO_LARGE", 2, topic="events")
        cluster.fail_messages(10, None, when=lambda record: record.key == b"k")
        cluster.fail_calls("commit_transaction", "UNKNOWN", times=1, abortable=True)
        cluster.forgive()
        cluster.clear()
        assert_type(cluster.bootstrap_servers, str)
        assert_type(cluster.topics, Mapping[str, int])
        assert_type(cluster.records(), list[Record])
        assert_type(cluster.records("events", uncommitted=True), list[Record])
        assert_type(cluster.committed_offsets("group"), dict[tuple[str, int], int])
    with (
        MemoryCluster(partitions=1) as other,
        Recorder(producer, statistics=True) as all_of_it,
    ):
        other.close()
        assert_type(all_of_it.events, list[Event])
        assert_type(all_of_it.names, list[str])
        assert_type(
            all_of_it.named("producer.closed"), list[Event[Literal["producer.closed"]]]
        )
        assert_type(all_of_it.errors, list[BaseException])
        assert_type(
            all_of_it.wait_for("message.purged", 1, timeout=2.0),
            list[Event[Literal["message.purged"]]],
        )
        all_of_it.named("producer.close")  # type: ignore[type-var]
        all_of_it.clear()
        all_of_it.stop()
    Recorder(producer.monitor, producer)
    Recorder(greendrop.monitor)
    with MockCluster() as mock:
        assert_type(mock.records("events", uncommitted=True, timeout=5), list[Record])
    records = read_topic("host:9092", "events", kafka={"client.id": "reader"})
    assert_type(records[0].payload, bytes | None)


def hosts(app: Flask, server: Arbiter, worker: Worker) -> None:
    """Use the modules in `contrib`; Celery and Django have no types."""
    extension = Greendrop(app)
    Greendrop(app, max_wait_timeout=3)
    Greendrop(app, max_wait_timout=3)  # type: ignore[call-arg]
    assert_type(Greendrop(name="audit").init_app(app), Producer)
    assert_type(extension.producer, Producer)
    connect()
    connect(timeout=5.0)
    worker_exit(server, worker)
    assert_type(get_producer(), Producer)
    assert_type(get_producer("audit"), Producer)
    produce_on_commit(topic="t", payload=b"x", using="default", alias="audit")
    produce_on_commit(topic="t", payload=b"x", kay="y")  # type: ignore[call-arg]
    produce_on_commit(payload=b"x")  # type: ignore[call-arg]
    aliases: dict[str, AliasSettings] = {"default": {"KAFKA": {"acks": "all"}}}
    aliases["default"]["OPTIONS"] = {"max_wait_timeout": 3}
    options = aliases["default"]["OPTIONS"]
    options["max_wait_timout"] = 3  # type: ignore[typeddict-unknown-key]
    close_producers()
    close_producers(1.0, force=True)


class Shop(GreendropUser):
    """A class of users for Locust."""

    kafka: ClassVar[Mapping[str, object]] = {"bootstrap.servers": "localhost:9092"}
    settings: ClassVar[ProducerSettings] = {"max_wait_timeout": 1.0}

    def order(self) -> None:
        """Call all methods of the client."""
        sent = self.client.produce_sync(topic="t", payload=b"x", name="order")
        assert_type(sent, DeliveryReport | None)
        later = self.client.produce_async(topic="t", payload=b"x")
        assert_type(later, DeliveryHandle | None)
        many = self.client.produce_many_sync([Message("t", b"x")], name="orders")
        assert_type(many, list[DeliveryReport] | None)
        assert_type(self.client.producer, Producer)
        self.client.produce_sync(topic="t", value=b"x")  # type: ignore[call-arg]
