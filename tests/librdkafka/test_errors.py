"""The errors that greendrop makes of librdkafka's, for messages."""

import pickle

import pytest
from confluent_kafka.cimpl import KafkaError

from greendrop import DeliveryError, Message, ProduceManyError
from greendrop._librdkafka.errors import ErrorTranslator


@pytest.fixture
def verdicts():
    """Make the errors of a client without a fatal error and without secrets."""
    return ErrorTranslator(lambda: None, lambda code: KafkaError(code).name(), str)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (10, "MESSAGE_TOO_LARGE"),
        (18, "RECORD_LIST_TOO_LARGE"),
        (32, "INVALID_TIMESTAMP"),
        (87, "INVALID_RECORD"),
    ],
)
def test_a_message_of_a_rejected_batch_is_not_blamed_alone(verdicts, code, name):
    """The broker says which batch it rejects, and not for which of its messages."""
    error = verdicts.delivery_error("t", KafkaError(code), 0)

    assert error.name == name
    assert error.batch_rejected
    assert not error.retriable
    assert "this message or another one in it" in str(error)
    assert "stored none of the batch" in str(error)


def test_a_message_that_another_one_failed_is_told_apart(verdicts):
    """The valid messages are marked, if the broker has named the invalid ones."""
    error = verdicts.delivery_error("t", KafkaError(-138), 0)

    assert error.name == "_INVALID_DIFFERENT_RECORD"
    assert error.batch_rejected
    assert error.retriable
    assert "for another message in it" in str(error)


@pytest.mark.parametrize("code", [-192, -190, 29, 19])
def test_other_errors_are_of_the_message_alone(verdicts, code):
    """They say nothing about a batch."""
    error = verdicts.delivery_error("t", KafkaError(code), 0)

    assert not error.batch_rejected
    assert "batch" not in str(error)


def test_a_rejected_batch_is_seen_after_pickling(verdicts):
    """As in the result of a task."""
    error = pickle.loads(pickle.dumps(verdicts.delivery_error("t", KafkaError(10), 0)))

    assert error.batch_rejected


def test_a_refusal_by_librdkafka_does_not_blame_the_broker(verdicts):
    """Its own text for a message that is too large reads as if a broker had said so."""
    cause = verdicts.translate(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    error = verdicts.enqueue_error("t", cause)

    assert "Broker" not in str(error)
    assert "message.max.bytes" in str(error)
    assert error.name == "MESSAGE_TOO_LARGE"
    assert not error.batch_rejected


@pytest.mark.parametrize("verb", ["produce_sync", "produce_async"])
def test_single_messages_tell_that_their_batch_was_rejected(
    world, make_producer, mock_cluster, verb
):
    """Whatever raises the error: the verb itself, or the wait for its handle."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"warm up")
    mock_cluster.fail_requests("Produce", "INVALID_RECORD")

    with pytest.raises(DeliveryError) as raised:
        getattr(producer, verb)(topic="t", payload=b"x").wait(20.0)

    assert raised.value.batch_rejected


def test_rejected_messages_of_a_batch_can_be_sent_again_one_by_one(
    world, make_producer, mock_cluster
):
    """As the documentation has it: nothing of the rejected batch was stored."""
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
