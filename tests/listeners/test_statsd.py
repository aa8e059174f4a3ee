"""Metrics as StatsD and Datadog's agent receive them."""

from __future__ import annotations

import socket
from collections import Counter

import pytest
from datadog.dogstatsd import DogStatsd
from statsd import StatsClient

from greendrop import DeliveryError, Event, Message, StatisticsNotEnabledError
from greendrop.listeners.statsd import METRICS, NAMES, Metric, StatsdListener

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}

#: WaterDrop's metrics and their types, as its documentation describes them.
DATADOG = {
    "produced_sync": "c",
    "produced_async": "c",
    "flushed_sync": "c",
    "flushed_async": "c",
    "buffer.size": "h",
    "acknowledged": "c",
    "error_occurred": "c",
    "calls": "c",
    "queue.size": "h",
    "deliver.attempts": "c",
    "deliver.errors": "c",
    "receive.errors": "c",
    "queue.latency.avg": "g",
    "queue.latency.p95": "g",
    "queue.latency.p99": "g",
    "network.latency.avg": "g",
    "network.latency.p95": "g",
    "network.latency.p99": "g",
}


class Agent:
    """A server that receives metrics by UDP, as StatsD and Datadog's agent do."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.2)
        self.address, self.port = self._socket.getsockname()
        self.lines: list[str] = []

    def receive(self) -> list[str]:
        """Return all lines received so far."""
        try:
            while packet := self._socket.recv(65_536):
                self.lines += packet.decode().splitlines()
        except TimeoutError:
            return self.lines

    def sums(self) -> Counter[str]:
        """Add up counters by name and tags."""
        sums: Counter[str] = Counter()
        for line in self.receive():
            name, rest = line.split(":", 1)
            value, kind, *tags = rest.split("|")
            if kind == "c":
                sums["|".join([name, *tags])] += int(float(value))
        return sums

    def close(self) -> None:
        """Stop the server."""
        self._socket.close()


@pytest.fixture
def agent():
    """Start a server."""
    agent = Agent()
    yield agent
    agent.close()


@pytest.fixture
def datadog(agent):
    """Create Datadog's own client."""
    client = DogStatsd(
        host=agent.address,
        port=agent.port,
        disable_telemetry=True,
        disable_buffering=True,
        disable_aggregation=True,
    )
    yield client
    client.close_socket()


@pytest.fixture
def statsd(agent):
    """Create the client of `statsd`."""
    client = StatsClient(agent.address, agent.port)
    yield client
    client.close()


def test_names_are_waterdrops():
    """The metrics are exactly those of WaterDrop's listener, by the same names."""
    assert set(DATADOG) == {*NAMES, *(metric.name for metric in METRICS)}


# --- Datadog --------------------------------------------------------------------------


@pytest.mark.slow
def test_messages_are_counted_with_tags(world, agent, datadog, make_producer):
    """One message and a batch of two count as three."""
    producer = make_producer()
    listener = StatsdListener(datadog, default_tags=["env:test", "team:a"])
    producer.monitor.subscribe(listener)

    producer.produce_sync(topic="a", payload=b"x")
    producer.produce_many_sync([Message("a", b"x"), Message("a", b"x")])
    producer.produce_async(topic="a", payload=b"x").wait()
    producer.produce_many_async([Message("a", b"x"), Message("b", b"x")])
    producer.close()

    sums = agent.sums()
    assert sums["greendrop.produced_sync|#env:test,team:a,topic:a"] == 3
    assert sums["greendrop.produced_async|#env:test,team:a,topic:a"] == 2
    assert sums["greendrop.produced_async|#env:test,team:a,topic:b"] == 1
    assert sums["greendrop.acknowledged|#env:test,team:a"] == 6
    for line in agent.lines:
        assert "|#env:test,team:a" in line


@pytest.mark.slow
def test_flushed_messages_count_as_produced_too(agent, datadog, make_producer):
    """`flushed_*` comes beside `produced_*`; the buffer's size is sent, too."""
    producer = make_producer()
    producer.monitor.subscribe(StatsdListener(datadog, namespace="waterdrop"))

    producer.buffer(topic="a", payload=b"x")
    producer.buffer_many([Message("a", b"x"), Message("b", b"x")])
    producer.flush_sync()
    producer.buffer(topic="a", payload=b"x")
    producer.flush_async()
    producer.close()

    sums = agent.sums()
    for verb in ("produced", "flushed"):
        assert sums[f"waterdrop.{verb}_sync|#topic:a"] == 2
        assert sums[f"waterdrop.{verb}_sync|#topic:b"] == 1
        assert sums[f"waterdrop.{verb}_async|#topic:a"] == 1
    sizes = [each for each in agent.lines if each.startswith("waterdrop.buffer.size")]
    assert sizes == [f"waterdrop.buffer.size:{size}|h" for size in (1, 3, 1)]


def test_errors_are_counted(mock_cluster, agent, datadog, make_producer):
    """Errors of every type are counted."""
    mock_cluster.fail_requests("Produce", "TOPIC_AUTHORIZATION_FAILED", times=9)
    producer = make_producer()
    producer.monitor.subscribe(StatsdListener(datadog))

    with pytest.raises(DeliveryError):
        producer.produce_sync(topic="a", payload=b"x")
    producer.close()

    # One by the poller, and one by the caller.
    assert agent.sums()["greendrop.error_occurred"] == 2


@pytest.mark.slow
def test_statistics_are_sent_for_each_broker(until, agent, datadog, make_producer):
    """Each broker has its tag; the bootstrap broker is left out."""
    producer = make_producer({"statistics.interval.ms": 50})
    producer.monitor.subscribe(StatsdListener(datadog))
    emitted = []
    producer.monitor.subscribe("statistics.emitted", emitted.append)
    broker = producer._core.settings.kafka["bootstrap.servers"]

    producer.produce_sync(topic="a", payload=b"x")
    until(lambda: len(emitted) > 4)
    producer.close()

    lines = agent.receive()
    kinds = {
        line.split(":")[0].removeprefix("greendrop."): line.split("|")[1]
        for line in lines
    }
    of_messages = {"produced_sync", "acknowledged"}
    of_statistics = {metric.name for metric in METRICS}
    assert kinds == {name: DATADOG[name] for name in of_messages | of_statistics}
    for metric in METRICS:
        sent = [each for each in lines if each.startswith(f"greendrop.{metric.name}:")]
        tags = f"#broker:{broker}" if metric.scope == "brokers" else metric.kind[0]
        assert {tags} == {line.split("|")[-1] for line in sent}
    assert "-1" not in {line.partition("broker:")[2] for line in lines}


def event(tx, *, name="greendrop#producer-1", **broker):
    """Create an event of statistics."""
    its = {"nodename": "kafka:9092", "nodeid": 1, "txerrs": 0, **broker}
    bootstrap = {"nodename": "seed:9092", "nodeid": -1, "txerrs": 9}
    topic = {"topic": "a", "batchsize": {"avg": 16}, "age": True}
    statistics = {
        "name": name,
        "type": "producer",
        "tx": tx,
        "brokers": {"kafka:9092/1": its, "seed": bootstrap},
        "topics": {"a": topic},
    }
    return Event("statistics.emitted", {"producer_id": "p", "statistics": statistics})


class Tagged:
    """A client that has only the methods of Datadog's."""

    def __init__(self):
        #: Method, name, value and tags.
        self.calls = []

    def increment(self, name, value, *, tags):
        """Record the call."""
        self.calls.append(("increment", name, value, tuple(tags)))

    def gauge(self, name, value, *, tags):
        """Record the call."""
        self.calls.append(("gauge", name, value, tuple(tags)))

    def histogram(self, name, value, *, tags):
        """Record the call."""
        self.calls.append(("histogram", name, value, tuple(tags)))


class Untagged:
    """A client that has only the methods of StatsD's."""

    def __init__(self):
        #: Name and value.
        self.calls = []

    def incr(self, name, count):
        """Record the call."""
        self.calls.append((name, count))

    def gauge(self, name, value):
        """Record the call."""
        self.calls.append((name, value))


def test_first_difference_is_zero():
    """Counts from before the subscription are not sent as if they were new."""
    client = Tagged()
    listener = StatsdListener(client, metrics=[METRICS[0]])

    for tx in (100, 103, 103):
        listener.on_statistics_emitted(event(tx))

    assert [value for _, _, value, _ in client.calls] == [0, 3, 0]


def test_only_numbers_are_sent():
    """Text, truth values and missing values make no metric."""
    client = Tagged()
    metrics = [
        Metric("count", "root", "type", ("type",)),
        Metric("gauge", "topics", "age", ("age",)),
        Metric("gauge", "brokers", "missing", ("rtt", "avg")),
        Metric("gauge", "brokers", "deeper", ("txerrs", "avg")),
        Metric("gauge", "root", "part", ("brokers",)),
    ]
    StatsdListener(client, metrics=metrics).on_statistics_emitted(event(1))

    assert client.calls == []


def test_topics_are_a_scope_and_unknown_scopes_are_refused():
    """A metric of a topic has its tag."""
    client = Tagged()
    metric = Metric("gauge", "topics", "batch", ("batchsize", "avg"))
    listener = StatsdListener(client, metrics=[metric], namespace="")

    listener.on_statistics_emitted(event(1))

    assert client.calls == [("gauge", "batch", 16, ("topic:a",))]
    with pytest.raises(ValueError, match="scope of metric 'batch' is 'partitions'"):
        StatsdListener(client, metrics=[metric._replace(scope="partitions")])
    with pytest.raises(ValueError, match="kind of metric 'batch' is 'timer'"):
        StatsdListener(client, metrics=[metric._replace(kind="timer")])


def test_new_client_counts_from_zero():
    """After a reconnect, or for a variant, each client is compared with itself."""
    client = Tagged()
    listener = StatsdListener(client, metrics=[METRICS[0]])

    listener.on_statistics_emitted(event(100))
    listener.on_statistics_emitted(event(5, name="another"))
    listener.on_statistics_emitted(event(101))
    listener.on_statistics_emitted(event(7, name="another"))
    gone = Event("producer.disconnected", {"producer_id": "p", "time": 0.1})
    listener.on_producer_disconnected(gone)
    listener.on_statistics_emitted(event(200))

    assert [value for _, _, value, _ in client.calls] == [0, 0, 1, 2, 0]


def test_without_statistics_it_may_be_subscribed_late(make_producer):
    """Without metrics from statistics the listener requests none."""
    producer = make_producer()
    producer.produce_sync(topic="a", payload=b"x")
    client = Tagged()

    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe(StatsdListener(client))
    producer.monitor.subscribe(StatsdListener(client, metrics=()))
    producer.produce_sync(topic="a", payload=b"x")

    names = [name for _, name, _, _ in client.calls]
    assert names == ["greendrop.acknowledged", "greendrop.produced_sync"]


def test_subclass_may_send_more(make_producer):
    """A method for another event is subscribed like all others."""

    class More(StatsdListener):
        def on_producer_connected(self, event):
            self.send_metric("count", "connected", 1, f"id:{event['producer_id']}")

    client = Tagged()
    producer = make_producer(id="orders")
    producer.monitor.subscribe(More(client))

    producer.produce_sync(topic="a", payload=b"x")

    assert ("increment", "greendrop.connected", 1, ("id:orders",)) in client.calls


# --- StatsD ---------------------------------------------------------------------------


@pytest.mark.slow
def test_statsd_has_tags_in_the_name(until, agent, statsd, make_producer):
    """The client of `statsd` has no tags: their values end the metric's name."""
    producer = make_producer({"statistics.interval.ms": 50})
    producer.monitor.subscribe(StatsdListener(statsd, default_tags=["env:test"]))
    emitted = []
    producer.monitor.subscribe("statistics.emitted", emitted.append)
    broker = producer._core.settings.kafka["bootstrap.servers"]

    producer.produce_sync(topic="orders.eu", payload=b"x")
    producer.buffer(topic="orders.eu", payload=b"x")
    until(lambda: len(emitted) > 2)
    producer.close()

    sums = agent.sums()
    assert sums["greendrop.produced_sync.test.orders_eu"] == 1
    assert sums["greendrop.acknowledged.test"] == 2
    assert "greendrop.buffer.size.test:1|g" in agent.lines
    node = broker.replace(".", "_").replace(":", "_")
    names = {line.split(":")[0] for line in agent.lines}
    assert f"greendrop.network.latency.p99.test.{node}" in names
    assert "greendrop.queue.size.test" in names


def test_any_object_with_the_methods_is_a_client(make_producer):
    """Other objects are refused; the error names the missing methods."""
    client = Untagged()
    producer = make_producer()
    producer.monitor.subscribe(StatsdListener(client))

    producer.produce_sync(topic="a", payload=b"x")

    assert ("greendrop.produced_sync.a", 1) in client.calls
    for other in (None, "127.0.0.1:8125", Agent):
        with pytest.raises(TypeError, match="neither increment"):
            StatsdListener(other)


def test_one_text_is_no_list_of_tags():
    """A text would be taken for a list of letters."""
    with pytest.raises(TypeError, match="list of tags, not 'service:shop'"):
        StatsdListener(Tagged(), default_tags="service:shop")


def test_client_that_raises_disturbs_no_caller(make_producer):
    """The error is reported as `listener.error`, and sending goes on."""

    class Unreachable(Tagged):
        def increment(self, name, value, *, tags):  # noqa: ARG002
            raise OSError("no route")

    producer = make_producer({"statistics.interval.ms": 50})
    events = []
    producer.monitor.subscribe("error.occurred", events.append)
    producer.monitor.subscribe(StatsdListener(Unreachable()))

    for _ in range(3):
        assert producer.produce_sync(topic="a", payload=b"x").offset is not None

    assert {"listener.error"} == {event["type"] for event in events}
    names = {event["event"] for event in events}
    assert {"message.acknowledged", "message.produced_sync"} <= names
