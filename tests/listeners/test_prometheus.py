"""Metrics as Prometheus reads them."""

from __future__ import annotations

import collections
import http.client
import json
import os
import re
import signal
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from greendrop import DeliveryError, Event, Message, StatisticsNotEnabledError
from greendrop.listeners.prometheus import METRICS, PrometheusListener
from tests.kafka.running import Program

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
DOCS = Path(__file__).parents[2] / "docs"


class Scraped:
    """A page of metrics, parsed."""

    def __init__(self, page: str) -> None:
        self.families = {
            each.name: each for each in text_string_to_metric_families(page)
        }

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Scraped:
        """Parse a registry's page."""
        return cls(generate_latest(registry).decode())

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of one sample; None if it is missing."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) < 2, found
        return found[0] if found else None

    def sum(self, name: str, **labels: str) -> float:
        """Add up all samples with these labels."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture
def registry():
    """Create a separate registry."""
    return CollectorRegistry()


@pytest.fixture
def scrape(registry):
    """Scrape the registry."""
    return lambda: Scraped.of(registry)


@pytest.fixture
def listener(registry):
    """Create a listener, which any number of producers may share."""
    return PrometheusListener(registry)


@pytest.fixture
def make_watched(make_producer, listener):
    """Construct producers with the listener."""

    def make(kafka=None, **settings):
        producer = make_producer(kafka, **settings)
        producer.monitor.subscribe(listener)
        return producer

    return make


# --- names ----------------------------------------------------------------------------


def test_names_follow_the_conventions():
    """Names have one prefix, snake case and base units; only counters end in _total."""
    for spec in METRICS:
        assert re.fullmatch("greendrop(_[a-z]+)+", spec.name), spec.name
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert not re.search("milli|micro|kilo|_ms", spec.name)
        assert spec.help
        assert not spec.help.endswith(".")
        assert not set(spec.labels) & {"partition", "key", "offset", "producer"}
    assert len({spec.name for spec in METRICS}) == len(METRICS)


def test_every_metric_is_on_the_page_of_docs():
    """docs/observe/metrics.md has each metric, with its labels."""
    text = (DOCS / "observe" / "metrics.md").read_text()

    for spec in METRICS:
        (row,) = [line for line in text.splitlines() if f"| `{spec.name}`" in line]
        assert row.split("|")[2].strip() == spec.kind
        for label in spec.labels:
            assert f"`{label}`" in row


# --- counters and gauges --------------------------------------------------------------


def test_messages_are_counted_by_topic(world, make_watched, scrape):
    """Single messages and batches are counted by verb; latencies are measured."""
    producer = make_watched()

    producer.produce_sync(topic="a", payload=b"x")
    producer.produce_many_sync([Message("a", b"x"), Message("b", b"x")])
    producer.produce_async(topic="b", payload=b"x").wait()
    for handle in producer.produce_many_async([Message("b", b"x")] * 3):
        handle.wait()

    page = scrape()
    produced = "greendrop_messages_produced_total"
    assert page(produced, topic="a", verb="sync") == 2
    assert page(produced, topic="b", verb="sync") == 1
    assert page(produced, topic="b", verb="async") == 4
    assert page("greendrop_messages_acknowledged_total", topic="a") == 2
    assert page("greendrop_messages_acknowledged_total", topic="b") == 5
    assert page("greendrop_delivery_duration_seconds_count", topic="b") == 5
    assert 0 < page("greendrop_delivery_duration_seconds_sum", topic="b") < 5
    assert page("greendrop_connections_total") == 1


@pytest.mark.slow
def test_delivery_duration_is_in_seconds(mock_cluster, make_watched, scrape):
    """A broker that takes 0.1 s counts into the bucket for it."""
    mock_cluster.round_trip(0.1)
    producer = make_watched()

    producer.produce_sync(topic="a", payload=b"x")

    bucket = "greendrop_delivery_duration_seconds_bucket"
    assert scrape()(bucket, topic="a", le="0.05") == 0
    assert scrape()(bucket, topic="a", le="2.5") == 1


def test_failures_have_kafka_name(mock_cluster, make_watched, scrape):
    """A failed message is counted once, and so is each reported error."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=9)
    producer = make_watched()

    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="a", payload=b"x")

    error = "TOPIC_AUTHORIZATION_FAILED"
    page = scrape()
    assert page("greendrop_messages_failed_total", topic="a", error=error) == 1
    errors = "greendrop_errors_total"
    assert page(errors, type="librdkafka.dispatch_error", error=error) == 1
    assert page(errors, type="message.produce_sync", error=error) == 1


def test_buffer_and_flush_are_measured(make_watched, scrape):
    """The gauge counts buffered messages of all producers, until a flush or purge."""
    one, other = make_watched(), make_watched()
    buffered = "greendrop_buffer_messages"

    one.buffer(topic="a", payload=b"x")
    other.buffer_many([Message("a", b"x")] * 2)
    assert scrape()(buffered) == 3
    one.flush_sync()
    assert scrape()(buffered) == 2
    other.purge()
    assert scrape()(buffered) == 0
    one.buffer(topic="a", payload=b"x")
    one.flush_async()
    other.buffer(topic="a", payload=b"x")
    other.close()

    assert scrape()(buffered) == 0
    flushed = "greendrop_messages_flushed_total"
    assert scrape()(flushed, topic="a", verb="sync") == 1
    assert scrape()(flushed, topic="a", verb="async") == 2


def test_rare_events_are_counted(listener, scrape):
    """Transactions, purged messages and stalls are counted."""
    error = DeliveryError("purged")
    listener.on_transaction_finished(
        Event("transaction.finished", {"outcome": "abort"})
    )
    listener.on_hub_stalled(Event("hub.stalled", {"seconds": 1.5}))
    listener.on_message_purged(
        Event("message.purged", {"topic": "a", "error": error, "producer_id": "p"})
    )
    listener.on_producer_reloaded(Event("producer.reloaded", {"producer_id": "p"}))

    page = scrape()
    assert page("greendrop_transactions_total", outcome="abort") == 1
    assert page("greendrop_hub_stalled_seconds_total") == 1.5
    failed = "greendrop_messages_failed_total"
    assert page(failed, topic="a", error="DeliveryError") == 1
    assert page("greendrop_reloads_total") == 1


# --- statistics -----------------------------------------------------------------------


def test_queue_and_brokers_come_from_statistics(world, until, make_watched, scrape):
    """Statistics of librdkafka's queue and of each broker appear in base units."""
    producer = make_watched({"statistics.interval.ms": 50})
    producer.produce_sync(topic="a", payload=b"x" * 100)
    broker = producer._core.settings.kafka["bootstrap.servers"]
    requests = "greendrop_broker_requests_total"
    trip = "greendrop_broker_round_trip_seconds"

    until(lambda: scrape()(requests, broker=broker))
    until(lambda: scrape()(trip, broker=broker, statistic="p99") is not None)
    # The statistics may have been taken while the message was in flight.
    until(lambda: scrape()("greendrop_queue_messages") == 0)

    page = scrape()
    assert {broker} == {
        sample.labels["broker"]
        for family in page.families.values()
        for sample in family.samples
        if "broker" in sample.labels
    }
    assert 0 <= page(trip, broker=broker, statistic="avg") < 5


def test_queue_is_that_of_all_producers(until, make_watched, scrape):
    """Queues of two blocked producers are added up, and are empty once both close."""
    unreachable = NOWHERE | {"statistics.interval.ms": 50}
    one, other = make_watched(unreachable), make_watched(unreachable)
    one.produce_many_async([Message("a", b"12345")] * 3)
    other.produce_many_async([Message("a", b"12345")] * 4)

    until(lambda: scrape()("greendrop_queue_messages") == 7)
    assert scrape()("greendrop_queue_bytes") >= 35
    one.close(force=True, timeout=0)
    until(lambda: scrape()("greendrop_queue_messages") == 4)
    other.close(force=True, timeout=0)

    assert scrape()("greendrop_queue_messages") == 0


@pytest.mark.slow
def test_registries_keep_producers_apart(until, make_producer):
    """Statistics and errors of one producer never reach the registry of another."""
    registries = [CollectorRegistry(), CollectorRegistry()]
    fine, broken = (
        make_producer(kafka | {"statistics.interval.ms": 50})
        for kafka in ({}, NOWHERE | {"message.timeout.ms": 100})
    )
    for producer, registry in zip((fine, broken), registries, strict=True):
        producer.monitor.subscribe(PrometheusListener(registry))

    with pytest.raises(DeliveryError):
        broken.produce_sync(topic="a", payload=b"x")
    fine.produce_sync(topic="a", payload=b"x")
    until(lambda: Scraped.of(registries[0]).sum("greendrop_broker_requests_total"))

    of_fine, of_broken = map(Scraped.of, registries)
    assert of_fine.sum("greendrop_errors_total") == 0
    assert of_broken.sum("greendrop_errors_total") >= 2
    assert of_broken.sum("greendrop_broker_requests_total") == 0
    assert of_broken.sum("greendrop_messages_acknowledged_total") == 0


@pytest.mark.slow
def test_statistics_go_on_after_a_reconnect(pause, until, make_watched, scrape):
    """There are none while disconnected; then they continue without duplicates."""
    producer = make_watched({"statistics.interval.ms": 100})
    emitted = []
    producer.monitor.subscribe(
        "statistics.emitted", lambda event: emitted.append(event["statistics"])
    )
    producer.produce_sync(topic="a", payload=b"x")
    until(lambda: len(emitted) >= 2)
    counted = scrape().sum("greendrop_broker_requests_total")

    assert producer.disconnect()
    there = len(emitted)
    pause(0.3)
    assert len(emitted) == there
    producer.produce_sync(topic="a", payload=b"x")
    until(lambda: len(emitted) >= there + 3)

    moments = [each["ts"] for each in emitted[there:]]
    assert moments == sorted(set(moments))
    assert len({each["name"] for each in emitted[there:]}) == 1
    assert scrape().sum("greendrop_broker_requests_total") > counted
    assert scrape()("greendrop_connections_total") == 2


def statistics(name="greendrop#producer-1", *, tx=0, msg_cnt=0):
    """Return the relevant part of librdkafka's statistics."""
    broker = {"nodename": "kafka:9092", "nodeid": 1, "tx": tx, "rtt": {"cnt": 0}}
    bootstrap = {**broker, "nodeid": -1, "nodename": "seed:9092", "tx": 1_000}
    brokers = {"kafka:9092/1": broker, "seed:9092/bootstrap": bootstrap}
    return {"name": name, "msg_cnt": msg_cnt, "msg_size": 0, "brokers": brokers}


def emitted(producer_id="p", **values):
    """Create the event."""
    payload = {"producer_id": producer_id, "statistics": statistics(**values)}
    return Event("statistics.emitted", payload)


def test_counters_continue_with_a_new_client(listener, scrape):
    """A new client counts from 0; the count of the old one is kept."""
    requests = "greendrop_broker_requests_total"
    for tx in (5, 5, 8):
        listener.on_statistics_emitted(emitted(tx=tx))
    assert scrape()(requests, broker="kafka:9092") == 8

    listener.on_producer_disconnected(
        Event("producer.disconnected", {"producer_id": "p"})
    )
    listener.on_statistics_emitted(emitted(name="greendrop#producer-2", tx=3))
    listener.on_statistics_emitted(emitted(name="greendrop#producer-3", tx=4))

    assert scrape()(requests, broker="kafka:9092") == 8 + 3 + 4
    assert scrape()(requests, broker="seed:9092") is None


def test_variants_have_clients_of_their_own(listener, scrape):
    """Clients of one producer that exist together are added up, without ended ones."""
    listener.on_statistics_emitted(emitted(name="a", msg_cnt=2))
    listener.on_statistics_emitted(emitted(name="b", msg_cnt=3))
    assert scrape()("greendrop_queue_messages") == 5

    listener.on_producer_reloaded(Event("producer.reloaded", {"producer_id": "p"}))
    listener.on_statistics_emitted(emitted(name="c", msg_cnt=1))

    assert scrape()("greendrop_queue_messages") == 1


def test_statistics_may_be_left_off(make_producer, registry, scrape):
    """Without statistics the listener may be subscribed at any time."""
    producer = make_producer()
    producer.produce_sync(topic="a", payload=b"x")
    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe(PrometheusListener(registry))

    producer.monitor.subscribe(PrometheusListener(registry, statistics=False))
    producer.produce_sync(topic="a", payload=b"x")

    assert scrape()("greendrop_messages_acknowledged_total", topic="a") == 1


# --- registries and processes ---------------------------------------------------------


def test_listeners_of_a_registry_share_its_metrics(make_producer, registry, scrape):
    """A second listener, as each of several producers may have, is no duplicate."""
    for _ in range(2):
        producer = make_producer()
        producer.monitor.subscribe(PrometheusListener(registry, buckets=(1.0, 2.0)))
        producer.produce_sync(topic="a", payload=b"x")

    assert scrape()("greendrop_messages_acknowledged_total", topic="a") == 2
    bucket = "greendrop_delivery_duration_seconds_bucket"
    assert scrape()(bucket, topic="a", le="2.0") == 2


def test_default_registry_is_prometheus_clients_own():
    """Without an argument the metrics are on the page that Prometheus serves."""
    PrometheusListener()
    assert b"greendrop_queue_messages" in generate_latest(REGISTRY)


@pytest.mark.patched
@pytest.mark.slow
def test_child_does_not_report_for_its_parent(run_script):
    """After a fork the gauges are those of the child's own producers, from 0."""
    run_script(
        """
        import os
        from prometheus_client import REGISTRY
        from greendrop import Producer
        from greendrop.listeners.prometheus import PrometheusListener

        def buffered():
            return REGISTRY.get_sample_value("greendrop_buffer_messages")

        listener = PrometheusListener()

        def hold(messages):
            producer = Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})
            producer.monitor.subscribe(listener)
            for _ in range(messages):
                producer.buffer(topic="a", payload=b"x")
            return producer

        producer = hold(2)
        child = os.fork()
        if not child:
            hold(3)
            os._exit(int(buffered()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert buffered() == 2
        producer.purge()
        """,
        "none",
    )


def ask(address, method, path, body=None):
    """Make a request by a separate connection; any worker may answer."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode(), answer.headers
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["late", "preloaded"])
def test_workers_of_gunicorn_are_added_up(mock_cluster, tmp_path, preload):
    """Two gevent workers are scraped by HTTP: each page has the sums of both.

    When one of them dies its counters stay, and its gauges disappear.
    """
    folder = tmp_path / "metrics"
    folder.mkdir()
    gunicorn = ["-m", "gunicorn", "--worker-class=gevent", "--workers=2", *preload]
    gunicorn += ["--bind=127.0.0.1:0", "--no-control-socket"]
    gunicorn += [
        "--config=tests/listeners/metrics_host.py",
        "tests.listeners.metrics_host:app",
    ]
    with Program(
        *gunicorn,
        log_file=tmp_path / "log",
        SERVERS=mock_cluster.bootstrap_servers,
        PROMETHEUS_MULTIPROC_DIR=str(folder),
    ) as server:
        listening = re.compile("Listening at: http://([0-9.:]+)")
        address = server.wait_for("listens", lambda: listening.search(server.log))[1]
        sent = reach_all(address, "/send", 2, at_least=3)
        holders = reach_all(address, "/hold", 2)
        page = Scraped(ask(address, "GET", "/metrics")[0])
        acknowledged = "greendrop_messages_acknowledged_total"
        durations = "greendrop_delivery_duration_seconds_count"
        assert page(acknowledged, topic="events") == sum(sent.values())
        assert page(durations, topic="events") == sum(sent.values())
        assert page("greendrop_connections_total") == 2
        assert page("greendrop_buffer_messages") == sum(holders.values())

        victim, survivor = holders
        os.kill(victim, signal.SIGKILL)
        # gunicorn would wait for a worker that is just starting.
        server.wait_for(
            "starts another worker", lambda: len(workers_of(address) - {victim}) == 2
        )
        page = Scraped(ask(address, "GET", "/metrics")[0])
        assert page("greendrop_buffer_messages") == holders[survivor]
        assert page(acknowledged, topic="events") == sum(sent.values())
        assert page.sum("greendrop_broker_requests_total") > 0
        server.terminate()
        assert server.wait() == 0
        assert "Traceback" not in server.log


def reach_all(address, path, workers, at_least=1):
    """Make requests until each worker had so many; return the counts by pid."""
    asked = collections.Counter()
    while len(asked) < workers or min(asked.values()) < at_least:
        asked[json.loads(ask(address, "POST", path, b"x")[0])["pid"]] += 1
        assert sum(asked.values()) < 2_000
    return asked


def workers_of(address):
    """Return the pids of the workers that answer within a while."""
    return {int(ask(address, "GET", "/metrics")[1]["Pid"]) for _ in range(20)}
