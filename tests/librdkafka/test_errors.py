"""The errors that greendrop makes from librdkafka's, for messages."""

import pickle

import pytest
from confluent_kafka.cimpl import KafkaError

from greendrop import DeliveryError, Message, ProduceManyError
from greendrop._librdkafka.errors import ErrorTranslator
from greendrop.config.settings import build_settings


@pytest.fixture
def translator():
    """Make the error translator of a client without a fatal error or secrets."""
    return ErrorTranslator(build_settings({"bootstrap.servers": "localhost:9092"}, {}))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (10, "MESSAGE_TOO_LARGE"),
        (18, "RECORD_LIST_TOO_LARGE"),
        (32, "INVALID_TIMESTAMP"),
        (87, "INVALID_RECORD"),
    ],
)
def test_a_message_of_a_rejected_batch_is_not_blamed_alone(translator, code, name):
    """The broker names the batch that it rejects, and not the message at fault."""
    error = translator.delivery_error("t", KafkaError(code), 0)

    assert error.name == name
    assert error.batch_rejected
    assert not error.retriable
    assert "this message or another one in it" in str(error)
    assert "stored none of the batch" in str(error)


def test_a_message_that_failed_because_of_another_one_is_marked(translator):
    """The valid messages are marked if the broker has named the invalid ones."""
    error = translator.delivery_error("t", KafkaError(-138), 0)

    assert error.name == "_INVALID_DIFFERENT_RECORD"
    assert error.batch_rejected
    assert error.retriable
    assert "for another message in it" in str(error)


@pytest.mark.parametrize("code", [-192, -190, 29, 19])
def test_other_errors_are_of_the_message_alone(translator, code):
    """Other errors say nothing about a batch."""
    error = translator.delivery_error("t", KafkaError(code), 0)

    assert not error.batch_rejected
    assert "batch" not in str(error)


def test_a_rejected_batch_is_marked_after_pickling(translator):
    """The mark survives pickling, as in the result of a task."""
    error = pickle.loads(
        pickle.dumps(translator.delivery_error("t", KafkaError(10), 0))
    )

    assert error.batch_rejected


def test_a_refusal_by_librdkafka_does_not_blame_the_broker(translator):
    """The error says that librdkafka refused the message, not that the broker did."""
    cause = translator.translate(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    error = translator.enqueue_error("t", cause)

    assert "Broker" not in str(error)
    assert "message.max.bytes" in str(error)
    assert error.name == "MESSAGE_TOO_LARGE"
    assert not error.batch_rejected


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_errors_of_single_messages_name_the_rejected_batch(
    world, make_producer, mock_cluster, verb
):
    """The verb and the wait for a handle raise the same error."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"warm up")
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")

    with pytest.raises(DeliveryError) as raised:
        getattr(producer, verb)(topic="t", payload=b"x").wait(20.0)

    assert raised.value.batch_rejected


def test_rejected_messages_of_a_batch_can_be_sent_again_one_by_one(
    world, make_producer, mock_cluster
):
    """As documented, nothing of the rejected batch was stored."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"warm up", partition=0)
    messages = [Message("t", b"%d" % n, partition=0) for n in range(3)]
    mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE")

    with pytest.raises(ProduceManyError) as raised:
        producer.produce_many_sync(messages)
    for message, handle in zip(messages, raised.value.dispatched, strict=False):
        if handle.error is not None and handle.error.batch_rejected:
            producer.produce_sync(**message._asdict())

    stored = sorted(record.payload for record in mock_cluster.records("t"))
    assert stored == [b"0", b"1", b"2", b"warm up"]
