"""The errors that greendrop makes from librdkafka's, for messages."""

import pickle

import pytest
from confluent_kafka.cimpl import KafkaError

from greendrop import DeliveryError, Message, ProduceManyError
from greendrop._librdkafka import error_codes
from greendrop._librdkafka.error_codes import error_code
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


#: Codes after which a broker may have stored the message, by their names.
MAYBE_STORED = (
    "_BAD_MSG",
    "_TRANSPORT",
    "_MSG_TIMED_OUT",
    "_TIMED_OUT",
    "_SSL",
    "_DESTROY",
    "_FATAL",
    "_INCONSISTENT",
    "_GAPLESS_GUARANTEE",
    "_PURGE_QUEUE",
    "_PURGE_INFLIGHT",
    "UNKNOWN_SERVER_ERROR",
    "REQUEST_TIMED_OUT",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "OUT_OF_ORDER_SEQUENCE_NUMBER",
    "DUPLICATE_SEQUENCE_NUMBER",
)
#: Codes of refusals: no broker has stored the message.
REFUSED = (
    "MESSAGE_TOO_LARGE",
    "INVALID_RECORD",
    "_INVALID_DIFFERENT_RECORD",
    "TOPIC_AUTHORIZATION_FAILED",
    "NOT_ENOUGH_REPLICAS",
    "CORRUPT_MESSAGE",
    "UNKNOWN_TOPIC_OR_PARTITION",
    "_UNKNOWN_PARTITION",
    "_UNKNOWN_TOPIC",
)


@pytest.mark.parametrize("name", MAYBE_STORED)
def test_a_message_that_may_be_stored_has_an_unknown_state(translator, name):
    """The request may have been executed although its answer is missing or useless."""
    error = translator.delivery_error("t", KafkaError(error_code(name)), 0)

    assert error.message_state == "unknown"
    assert pickle.loads(pickle.dumps(error)).message_state == "unknown"
    assert type(error)(*error.args).message_state == "unknown"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_message_is_not_delivered(translator, name):
    """The broker has stored nothing, or was never asked."""
    error = translator.delivery_error("t", KafkaError(error_code(name)), 0)

    assert error.message_state == "not_delivered"


@pytest.mark.parametrize("partition", [None, -1])
def test_a_message_without_a_partition_was_never_sent(translator, partition):
    """It timed out or was dropped while librdkafka knew no broker for it."""
    for code in (error_codes.MSG_TIMED_OUT, error_codes.PURGE_QUEUE):
        error = translator.delivery_error("t", KafkaError(code), partition)

        assert error.message_state == "not_delivered"


def test_a_failed_message_of_a_transaction_is_not_delivered():
    """Its transaction is aborted, so consumers never see it."""
    kafka = {"bootstrap.servers": "localhost:9092", "transactional.id": "t"}
    translator = ErrorTranslator(build_settings(kafka, {}))

    error = translator.delivery_error("t", KafkaError(error_codes.PURGE_INFLIGHT), 0)

    assert error.message_state == "not_delivered"


def test_a_message_whose_storing_was_too_slow_has_an_unknown_state(
    world, make_producer, mock_cluster
):
    """The verb raises the error that says so, with the real client."""
    producer = make_producer(kafka={"retries": 0})
    producer.produce_sync(topic="t", payload=b"warm up")
    mock_cluster.fail_requests("Produce", "NOT_ENOUGH_REPLICAS_AFTER_APPEND")

    with pytest.raises(DeliveryError) as raised:
        producer.produce_sync(topic="t", payload=b"x")

    assert raised.value.name == "NOT_ENOUGH_REPLICAS_AFTER_APPEND"
    assert raised.value.message_state == "unknown"


REFUSED_CERTIFICATE = "SSL routines::certificate verify failed: check ssl.ca.location"


def test_a_refused_certificate_may_have_expired(translator):
    """The text mentions only its authority, whatever OpenSSL found."""
    error = translator.client_error(KafkaError(KafkaError._SSL, REFUSED_CERTIFICATE))
    of_a_message = translator.delivery_error("t", KafkaError(-192), 0)

    assert "may also have expired" in str(error)
    assert str(of_a_message).count("may also have expired") == 1


def test_a_logged_refusal_of_a_certificate_may_have_expired(translator):
    """The text of an error is the same if librdkafka has only logged the reason."""
    translator.note_log_line(f"FAIL [c#producer-1] [thrd:x]: x: {REFUSED_CERTIFICATE}")

    error = translator.delivery_error("t", KafkaError(-192), 0)

    assert str(error).count("may also have expired") == 1


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
