"""Programs for other clients, ported line by line with the errors as the guide.

Each test writes a line as it is in the old program, and then as the error says.
"""

import json

import pytest

from greendrop import (
    ConfigurationInvalidError,
    MessagesAbandonedError,
    ProduceError,
    Producer,
)

ORDERS = [{"id": number, "item": "tea"} for number in range(20)]


def stored(cluster):
    """Return the ids of all orders that are stored, in order."""
    return sorted(json.loads(each.payload)["id"] for each in cluster.records("orders"))


def test_a_program_for_confluent_kafka(mock_cluster):
    """Configuration, produce with a callback, poll, flush, and its exit."""
    mock_cluster.create_topic("orders", partitions=1)
    conf = {
        "bootstrap.servers": mock_cluster.bootstrap_servers,
        "acks": "all",
        "error_cb": print,
    }
    delivered, failed = [], []

    def on_delivery(error, message):
        (delivered if error is None else failed).append(message)

    with pytest.raises(ConfigurationInvalidError, match=r"error\.occurred"):
        Producer(conf)
    del conf["error_cb"]
    producer = Producer(conf)
    producer.monitor.subscribe("error.occurred", print)

    order = ORDERS[0]
    with pytest.raises(AttributeError, match=r"use produce_async\(topic=\.\.\., payl"):
        producer.produce("orders", json.dumps(order), on_delivery=on_delivery)
    with pytest.raises(TypeError, match="all arguments are keywords: produce_async"):
        producer.produce_async("orders", json.dumps(order), on_delivery=on_delivery)
    with pytest.raises(TypeError, match="; use payload"):
        producer.produce_async(topic="orders", value=json.dumps(order))
    with pytest.raises(TypeError, match="add_done_callback"):
        producer.produce_async(
            topic="orders", payload=json.dumps(order), on_delivery=on_delivery
        )

    def on_done(handle):
        (delivered if handle.error is None else failed).append(handle.report)

    for order in ORDERS:
        handle = producer.produce_async(
            topic="orders", key=str(order["id"]), payload=json.dumps(order)
        )
        handle.add_done_callback(on_done)
        with pytest.raises(AttributeError, match="it is not needed"):
            producer.poll(0)
    producer.flush(30)

    assert producer.in_flight == 0
    assert (len(delivered), failed) == (len(ORDERS), [])
    assert stored(mock_cluster) == [order["id"] for order in ORDERS]
    producer.close()


def test_a_program_for_confluent_kafka_with_transactions(mock_cluster):
    """The calls of a transaction become one block."""
    servers = mock_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "transactional.id": "orders"})
    for call in ("init_transactions", "begin_transaction", "commit_transaction"):
        with pytest.raises(AttributeError, match=r"with producer\.transaction\(\)"):
            getattr(producer, call)()

    with producer.transaction():
        producer.produce_async(topic="orders", payload=json.dumps(ORDERS[0]))
    producer.close()

    assert stored(mock_cluster) == [0]


def test_a_program_for_kafka_python(mock_cluster):
    """Settings as keywords, serializers, futures, flush, and close."""
    mock_cluster.create_topic("orders", partitions=1)
    servers = [mock_cluster.bootstrap_servers]
    with pytest.raises(ConfigurationInvalidError) as raised:
        Producer(
            bootstrap_servers=servers,
            acks="all",
            linger_ms=5,
            max_block_ms=5000,
            value_serializer=json.dumps,
        )
    assert raised.value.errors.keys() == {
        *("bootstrap_servers", "acks", "linger_ms", "max_block_ms", "value_serializer"),
        "kafka",
    }
    for name, ours in (
        ("bootstrap_servers", "set bootstrap.servers in kafka={...}"),
        ("linger_ms", "set linger.ms in kafka={...}"),
        ("max_block_ms", "wait_timeout_on_queue_full"),
        ("value_serializer", "middleware"),
    ):
        assert ours in raised.value.errors[name]
    producer = Producer(
        kafka={"bootstrap.servers": servers, "acks": "all", "linger.ms": 5},
        wait_timeout_on_queue_full=5,
    )
    producer.middleware.append(
        lambda message: message._replace(payload=json.dumps(message.payload))
    )

    with pytest.raises(AttributeError, match=r"use produce_async\(topic=\.\.\., payl"):
        producer.send("orders", ORDERS[0])
    handles = [producer.produce_async(topic="orders", payload=each) for each in ORDERS]
    with pytest.raises(AttributeError, match=r"use wait\(timeout\) or result"):
        handles[0].get(timeout=10)
    assert handles[0].result(timeout=30).offset == 0
    with pytest.raises(AttributeError, match="use add_done_callback"):
        handles[0].add_errback(print)
    producer.flush(timeout=30)
    assert all(handle.done for handle in handles)
    assert handles[-1].exception() is None
    with pytest.raises(AttributeError, match=r"use partition_count\(topic\)"):
        producer.partitions_for("orders")
    assert producer.partition_count("orders") == 1
    producer.close(timeout=30)

    assert stored(mock_cluster) == [order["id"] for order in ORDERS]


def test_handlers_of_other_clients_errors_become_one(mock_cluster):
    """`KafkaError` and `KafkaTimeoutError` become `ProduceError`, with its state."""
    servers = mock_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers}, max_wait_timeout=0.2)
    producer.produce_sync(topic="orders", payload=b"connected", partition=0)
    mock_cluster.round_trip(2)

    states = []
    for message in ({"partition": 99}, {}):
        try:
            producer.produce_sync(topic="orders", payload=b"x", **message)
        except ProduceError as error:
            states.append(error.message_state)
    mock_cluster.round_trip(0)
    try:
        producer.close(timeout=30)
    except MessagesAbandonedError:
        states.append("abandoned")

    assert states[:2] == ["not_delivered", "unknown"]
