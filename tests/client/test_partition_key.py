"""Messages with a `partition_key`, from the verb to their partition."""

import contextlib
import time

import gevent
import pytest

from greendrop import (
    ConfigurationInvalidError,
    DeliveryError,
    IllegalWaitError,
    Message,
    MessagesAbandonedError,
    ProduceError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    ProducerNotConfiguredError,
)
from greendrop.testing import MemoryCluster
from tests.tasks import Task, await_true, together

#: Seconds that nothing here takes when it works.
LONG = 20.0
#: Seconds that the hub may be held.
HELD = 0.05

PARTITIONERS = [
    None,  # librdkafka's default
    "consistent",
    "consistent_random",
    "murmur2",
    "murmur2_random",
    "fnv1a",
    "fnv1a_random",
]


@pytest.fixture
def topic(mock_cluster):
    """Create a topic of 6 partitions."""
    mock_cluster.create_topic("t", 6)
    return "t"


def batch_of(topic, count, **fields):
    """Make messages with different partition keys."""
    return [
        Message(topic, b"x", partition_key=f"key-{n}", label=n, **fields)
        for n in range(count)
    ]


# -- the partition of a key -----------------------------------------------------------


@pytest.mark.parametrize("name", PARTITIONERS)
def test_a_partition_key_selects_the_partition_of_an_equal_key(
    make_producer, topic, name
):
    """Each of librdkafka's partitioners takes it; the key is free for other uses."""
    producer = make_producer({"partitioner": name} if name else None)
    keys = [f"key-{number}" for number in range(30)]

    by_key = producer.produce_many_sync(Message(topic, b"x", key) for key in keys)
    by_partition_key = producer.produce_many_sync(batch_of(topic, 30, key="other"))
    by_itself = [
        producer.produce_sync(topic=topic, payload=b"x", partition_key=key).partition
        for key in keys
    ]

    expected = [report.partition for report in by_key]
    assert [report.partition for report in by_partition_key] == expected
    assert by_itself == expected
    assert len(set(expected)) > 1


def test_a_partition_key_takes_precedence_over_the_partition(make_producer, topic):
    """The key decides; a partition given as well is used for unknown topics only."""
    producer = make_producer()

    reports = producer.produce_many_sync(batch_of(topic, 30))
    again = producer.produce_many_sync(batch_of(topic, 30, partition=99))

    assert [each.partition for each in again] == [each.partition for each in reports]


def test_a_random_partitioner_ignores_partition_keys(
    make_producer, mock_cluster, topic
):
    """The partition is random for each message, and no metadata is requested."""
    producer = make_producer({"partitioner": "random"})
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.watch_requests()

    reports = producer.produce_many_sync(
        Message(topic, b"x", b"k", partition=0, partition_key="same") for _ in range(50)
    )

    assert len({report.partition for report in reports}) > 1
    assert "Metadata" not in mock_cluster.requests()


@pytest.mark.slow
def test_the_partition_is_used_as_long_as_the_topic_is_unknown(
    make_producer, mock_cluster, topic
):
    """Once librdkafka knows the topic, the key decides."""
    producer = make_producer()
    mock_cluster.fail_topic(topic, "UNKNOWN_TOPIC_OR_PARTITION")

    handle = producer.produce_async(
        topic=topic, payload=b"x", partition=4, partition_key="k"
    )
    mock_cluster.fail_topic(topic, "NONE")

    assert handle.wait(LONG).partition == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", ["LEADER_NOT_AVAILABLE", "UNKNOWN_TOPIC_OR_PARTITION"]
)
def test_a_partition_key_waits_for_the_topic(make_producer, mock_cluster, topic, error):
    """While the topic has no leader or is being created, metadata is asked again."""
    producer = make_producer()
    expected = producer.produce_sync(topic=topic, payload=b"x", key="k").partition
    mock_cluster.fail_topic(topic, error)

    task = Task(
        lambda: producer.produce_sync(topic=topic, payload=b"x", partition_key="k")
    )
    time.sleep(0.1)
    mock_cluster.fail_topic(topic, "NONE")

    assert task.join().partition == expected


@pytest.mark.slow
def test_a_failed_request_is_repeated(make_producer, mock_cluster, topic):
    """A request that gets no response, as from a broken connection, is repeated."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.fail_requests("Metadata", "LEADER_NOT_AVAILABLE", 2)

    assert producer.partition_count(topic) == 6

    mock_cluster.create_topic("other", 3)
    mock_cluster.fail_requests("Metadata", "_TRANSPORT")
    assert producer.partition_count("other") == 3


def test_events_have_the_original_message(make_producer, topic):
    """Only the message in librdkafka has the chosen partition."""
    producer = make_producer()
    events = []
    for name in ("message.produced_sync", "message.produced_async"):
        producer.monitor.subscribe(name, lambda event: events.append(event["message"]))
    producer.monitor.subscribe(
        "messages.produced_sync", lambda event: events.extend(event["messages"])
    )
    fields = {"topic": topic, "payload": b"x", "partition_key": "k"}

    producer.produce_sync(**fields)
    producer.produce_async(**fields)
    producer.produce_many_sync([fields])

    assert [(each.partition_key, each.partition) for each in events] == [
        (b"k", None)
    ] * 3


def test_a_message_that_waits_for_space_is_unchanged(make_producer, topic):
    """The events have the original message, which keeps the chosen partition."""
    producer = make_producer({"queue.buffering.max.messages": 1, "linger.ms": 50})
    events = []
    producer.monitor.subscribe("error.occurred", events.append)

    reports = producer.produce_many_sync(batch_of(topic, 5))
    single = [
        producer.produce_async(topic=topic, payload=b"x", partition_key=f"key-{n}")
        for n in range(5)
    ]

    assert {each["message"].partition for each in events} == {None}
    assert {each["type"] for each in events} == {
        "message.produce_many_sync",
        "message.produce_async",
    }
    assert [each.wait(LONG).partition for each in single] == [
        each.partition for each in reports
    ]


def test_a_full_queue_fails_a_batch_that_does_not_wait_for_space(make_producer, topic):
    """`wait_on_queue_full=False` has the same effect as without partition keys."""
    producer = make_producer(
        {"queue.buffering.max.messages": 2, "linger.ms": 50}, wait_on_queue_full=False
    )

    with pytest.raises(ProduceManyError, match="queue is full") as raised:
        producer.produce_many_async(batch_of(topic, 5))

    assert raised.value.failed_index == 2


def test_an_unknown_partitioner_is_refused_by_librdkafka(make_producer):
    """This includes settings that can't be checked before, because of a plugin."""
    producer = make_producer({"plugin.library.paths": "", "partitioner": "bogus"})

    with pytest.raises(ConfigurationInvalidError, match="partitioner"):
        producer.partition_count("t")


# -- partition counts -----------------------------------------------------------------


def test_partition_count_returns_the_number_of_partitions(
    make_producer, mock_cluster, topic
):
    """It connects, and the count is used for messages too."""
    producer = make_producer()

    assert producer.partition_count(topic) == 6
    assert producer.status == "connected"
    assert producer.partition_count("new") == 4  # created by the request

    mock_cluster.watch_requests()
    producer.produce_many_sync(batch_of(topic, 20))
    assert producer.partition_count(topic) == 6
    assert mock_cluster.requests().count("Metadata") <= 1  # the interval of librdkafka


@pytest.mark.slow
def test_unknown_topics_have_minus_one(make_producer, mock_cluster, topic):
    """The result comes after a time in which the topic could have been created."""
    mock_cluster.fail_topic(topic, "UNKNOWN_TOPIC_OR_PARTITION")

    assert make_producer().partition_count(topic) == -1


def test_a_hundred_greenlets_share_one_request(make_producer, mock_cluster, topic, hub):
    """The first messages of all greenlets wait for one response."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.watch_requests()

    together(
        lambda n=n: producer.produce_sync(
            topic=topic, payload=b"x", partition_key=f"key-{n}"
        )
        for n in range(100)
    )

    assert mock_cluster.requests().count("Metadata") == 1


def test_a_batch_requests_each_topic_once(make_producer, mock_cluster):
    """An inaccessible topic is requested again after a second."""
    producer = make_producer()
    for name in "abc":
        mock_cluster.create_topic(name, 2)
        producer.produce_sync(topic=name, payload=b"x")
    mock_cluster.watch_requests()

    producer.produce_many_sync(
        Message("abc"[n % 3], b"x", partition_key=f"key-{n}") for n in range(300)
    )

    assert mock_cluster.requests().count("Metadata") == 3


@pytest.mark.parametrize("topic", ["a b", "", "x" * 250, 5, None])
def test_bad_topics_are_refused(make_producer, topic):
    """A bad topic is refused before anything is opened."""
    producer = make_producer()

    with pytest.raises(ValueError, match=r"^topic "):
        producer.partition_count(topic)

    assert producer.status == "configured"


def test_partition_count_needs_a_producer_in_use(make_producer):
    """It is refused before `setup` and after `close`."""
    with pytest.raises(ProducerNotConfiguredError):
        Producer().partition_count("t")
    producer = make_producer(id="p")
    producer.close()
    with pytest.raises(ProducerClosedError, match="'p' is closed"):
        producer.partition_count("t")


# -- waiting for the count ------------------------------------------------------------


@pytest.mark.slow
def test_a_slow_response_does_not_hold_up_others(
    make_producer, mock_cluster, topic, longest_gap
):
    """While one greenlet waits for it, the hub runs, and others send."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.round_trip(0.5)

    with longest_gap() as gap:
        task = Task(
            lambda: producer.produce_sync(topic=topic, payload=b"x", partition_key="k")
        )
        gevent.sleep(0.05)
        started = time.monotonic()
        handles = [producer.produce_async(topic=topic, payload=b"x") for _ in range(10)]
        assert time.monotonic() - started < HELD
        report = task.join()
        for handle in handles:
            handle.wait(LONG)

    assert report.topic == topic
    assert gap.seconds < HELD


@pytest.mark.slow
def test_a_timeout_interrupts_the_wait(make_producer, mock_cluster, topic, hub, stored):
    """The interrupted message was not sent, and the next one is."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.round_trip(0.5)

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        producer.produce_sync(topic=topic, payload=b"x", partition_key="k")
    producer.produce_sync(topic=topic, payload=b"x", partition_key="k")

    assert producer.queue_size == 0
    assert stored(topic) == 2


@pytest.mark.parametrize("verb", ["produce_async", "produce_many_async"])
def test_in_the_hub_an_unknown_number_is_an_error(make_producer, topic, hub, verb):
    """Nothing is sent, and the count is requested; afterwards the message is sent."""
    producer = make_producer()
    fields = {"topic": topic, "payload": b"x", "partition_key": "k"}
    outcomes = []

    def call():
        try:
            if verb == "produce_async":
                outcomes.append(producer.produce_async(**fields))
            else:
                outcomes.extend(producer.produce_many_async([fields]))
        except IllegalWaitError as error:
            outcomes.append(error)

    hub.loop.run_callback(call)
    await_true(lambda: outcomes)
    assert "nothing was sent" in str(outcomes[0])
    assert producer.queue_size == 0

    producer.partition_count(topic)
    hub.loop.run_callback(call)
    await_true(lambda: len(outcomes) == 2)
    assert outcomes[1].wait(LONG).topic == topic


def test_in_the_hub_the_error_of_a_batch_has_the_sent_messages(
    make_producer, topic, hub
):
    """Messages without partition keys are sent, up to the first one with a key."""
    producer = make_producer()
    batch = [Message(topic, b"x"), Message(topic, b"x", partition_key="k")]
    raised = []

    def call():
        try:
            producer.produce_many_async(batch)
        except ProduceManyError as error:
            raised.append(error)

    hub.loop.run_callback(call)
    await_true(lambda: raised)

    (error,) = raised
    assert isinstance(error.__cause__, IllegalWaitError)
    assert error.failed_index == 1
    assert [each.wait(LONG).topic for each in error.dispatched] == [topic]


def test_in_a_listener_an_unknown_number_is_an_error(make_producer, topic):
    """The count is known at the next attempt."""
    producer = make_producer()
    events = []

    def send(event):
        if len(events) < 2:
            try:
                events.append(
                    producer.produce_async(topic=topic, payload=b"x", partition_key="k")
                )
            except IllegalWaitError as error:
                events.append(error)

    producer.monitor.subscribe("message.acknowledged", send)
    producer.produce_sync(topic=topic, payload=b"x")
    producer.partition_count(topic)
    producer.produce_sync(topic=topic, payload=b"x")

    assert "nothing was sent" in str(events[0])
    assert events[1].wait(LONG).topic == topic


# -- closing --------------------------------------------------------------------------


@pytest.mark.slow
def test_close_ends_the_wait_of_senders(
    make_producer, mock_cluster, topic, longest_gap
):
    """The senders' messages are not sent, and librdkafka gets no more requests."""
    producer = make_producer(id="p")
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.round_trip(1.0)
    fields = {"topic": topic, "payload": b"x", "partition_key": "k"}
    tasks = [
        Task(lambda: producer.partition_count(topic)),
        Task(lambda: producer.produce_sync(**fields)),
        Task(lambda: producer.produce_many_sync([fields])),
    ]
    gevent.sleep(0.1)

    with longest_gap() as gap:
        closer = Task(producer.close)
        for task in tasks:
            with pytest.raises(ProducerClosedError, match="'p' is clos"):
                task.join(0.5)
        closer.join()

    assert producer.status == "closed"
    assert gap.seconds < HELD


@pytest.mark.slow
def test_close_does_not_close_librdkafka_while_a_call_is_inside(make_producer, topic):
    """A call that never ends costs the client's memory, but not the process."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    client = producer._slot.client

    with client.kafka_handle._long_call():
        started = time.monotonic()
        producer.close()
        assert 2.0 < time.monotonic() - started < 6.0
        assert client.kafka_handle.producer.list_topics(topic, LONG).topics

    client.kafka_handle.producer.close()


@pytest.mark.slow
def test_close_waits_for_a_call_that_is_inside(make_producer, mock_cluster, topic):
    """The wait is short: a request for metadata ends by itself."""
    producer = make_producer()
    producer.produce_sync(topic=topic, payload=b"x")
    mock_cluster.round_trip(0.6)
    task = Task(
        lambda: producer.produce_sync(topic=topic, payload=b"x", partition_key="k")
    )
    time.sleep(0.1)

    started = time.monotonic()
    producer.close()

    assert time.monotonic() - started < 2.0
    with pytest.raises(ProducerClosedError):
        task.join()


@pytest.mark.slow
def test_an_unreachable_broker_costs_a_limited_wait(make_producer):
    """Then librdkafka accepts the message, and reports its outcome."""
    producer = make_producer(
        {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500}
    )

    started = time.monotonic()
    with pytest.raises(DeliveryError, match="last broker error"):
        producer.produce_sync(topic="t", payload=b"x", partition_key="k")

    assert time.monotonic() - started < 9.0


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched", "late"])
def test_partition_keys_work_in_every_kind_of_program(
    mode, mock_cluster, topic, run_script
):
    """Twenty greenlets or threads send at once, also after a fork."""
    run_script(
        """
        from greendrop import Producer, ProducerUsedInParentProcessError
        from tests.forking import Fork
        from tests.tasks import together

        producer = Producer({"bootstrap.servers": servers})

        def send(key):
            return producer.produce_sync(
                topic="t", payload=b"x", partition_key=key
            ).partition

        sent = together(lambda n=n: send(f"key-{n % 7}") for n in range(20))
        assert sent == [send(f"key-{n % 7}") for n in range(20)], sent

        def child():
            try:
                producer.partition_count("t")
            except ProducerUsedInParentProcessError:
                producer.reset()
            partition = send("key-0")
            producer.close()
            return partition

        assert Fork(child).result() == sent[0]
        producer.close()
        """,
        mode,
        servers=mock_cluster.bootstrap_servers,
    )


# -- a topic that is recreated with fewer partitions ----------------------------------


@pytest.fixture
def memory_cluster():
    """Start an in-memory cluster, where a topic can be deleted."""
    with MemoryCluster() as cluster:
        yield cluster


@pytest.fixture
def shrunk(world, memory_cluster):
    """Make a producer that knows 8 partitions, of which 2 are left."""
    made = []

    def make(**settings):
        memory_cluster.create_topic("t", 8)
        servers = {"bootstrap.servers": memory_cluster.bootstrap_servers}
        kafka = servers | settings.pop("kafka", {})
        producer = Producer(kafka=kafka, **settings)
        made.append(producer)
        assert producer.partition_count("t") == 8
        memory_cluster.clear()
        memory_cluster.create_topic("t", 2)
        return producer

    yield make
    for producer in made:
        producer.close(force=True)


def test_messages_to_a_topic_with_fewer_partitions_are_routed_once_more(
    shrunk, memory_cluster
):
    """None fails or is stored twice, and each is where its key leads now."""
    producer = shrunk()
    batch = [Message("t", b"%d" % n, partition_key=f"key-{n % 7}") for n in range(70)]

    handles = [producer.produce_async(**each._asdict()) for each in batch[:30]]
    reports = [handle.wait(LONG) for handle in handles]
    reports += producer.produce_many_sync(batch[30:])

    assert producer.partition_count("t") == 2
    again = producer.produce_many_sync(batch)
    assert [each.partition for each in reports] == [each.partition for each in again]
    stored = sorted(int(record.payload) for record in memory_cluster.records("t"))
    assert stored == sorted([*range(70)] * 2)


def test_a_message_that_is_routed_once_more_keeps_its_fields(shrunk, memory_cluster):
    """Key, headers, timestamp and label are those of the call."""
    producer = shrunk()

    reports = [
        producer.produce_sync(
            topic="t",
            payload=b"x",
            key=b"key",
            headers={"h": "v"},
            timestamp=1_700_000_000_000,
            label=number,
            partition_key=f"key-{number}",
        )
        for number in range(10)
    ]

    assert [report.label for report in reports] == list(range(10))
    assert all(
        (record.key, record.headers, record.timestamp)
        == (b"key", [("h", b"v")], 1_700_000_000_000)
        for record in memory_cluster.records("t")
    )


def test_a_message_is_routed_once_more_and_not_again(shrunk, memory_cluster):
    """If brokers return a number that is too large, the message fails in the end."""
    producer = shrunk()
    memory_cluster.fail_messages("_UNKNOWN_PARTITION", times=None)

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"1", partition_key="key")

    assert raised.value.name == "_UNKNOWN_PARTITION"


def test_routing_once_more_emits_no_events(shrunk):
    """Listeners get the delivery only, and nothing is left over."""
    producer = shrunk()
    errors, acknowledged = [], []
    producer.monitor.subscribe("error.occurred", errors.append)
    producer.monitor.subscribe("message.acknowledged", acknowledged.append)

    producer.produce_many_sync(batch_of("t", 30))
    producer.close(LONG)

    assert errors == []
    assert len(acknowledged) == 30
    assert producer.queue_size == 0


def test_payloads_do_not_live_as_long_as_handles(shrunk):
    """A handle refers to the message only while that is in flight."""
    producer = shrunk()

    handles = producer.produce_many_async(batch_of("t", 30))
    for handle in handles:
        handle.wait(LONG)

    assert [handle.message for handle in handles] == [None] * 30


def test_a_purge_drops_messages_that_are_routed_once_more(shrunk, memory_cluster):
    """Each of these messages has an outcome at once; none is sent later."""
    producer = shrunk()
    memory_cluster.round_trip(0.5)  # also for the request for the partition count
    handles = producer.produce_many_async(batch_of("t", 30))
    await_true(lambda: producer._slot.client._rerouter)

    producer.purge()

    assert all(handle.done for handle in handles)
    assert {handle.error.name for handle in handles if handle.error} <= {
        "_PURGE_QUEUE",
        "_PURGE_INFLIGHT",
        None,
    }
    assert producer.queue_size == 0


@pytest.mark.parametrize("force", [True, False])
def test_after_close_nothing_is_routed_once_more(shrunk, memory_cluster, force):
    """Every handle has an outcome, and undelivered messages are reported."""
    producer = shrunk()
    memory_cluster.round_trip(0.3)
    handles = producer.produce_many_async(batch_of("t", 30))

    with contextlib.suppress(MessagesAbandonedError):
        producer.close(LONG, force=force)

    assert all(handle.done for handle in handles)
    assert producer.queue_size == 0


def test_in_a_transaction_only_the_next_message_is_routed_by_the_new_count(
    shrunk, memory_cluster
):
    """The failure rolls back; repeating the transaction succeeds at once."""
    producer = shrunk(kafka={"transactional.id": "shrunk"})

    with pytest.raises(ProduceError), producer.transaction():
        producer.produce_many_async(batch_of("t", 30))
    with producer.transaction():
        handles = producer.produce_many_async(batch_of("t", 30))

    assert all(handle.report for handle in handles)
    assert len(memory_cluster.records("t")) == 30
