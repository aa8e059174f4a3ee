"""The ledger finds each kind of broken promise, and no others."""

import pytest

from greendrop import DeliveryReport, DeliveryTimeoutError, Producer, QueueFullError
from greendrop.testing import Record
from tests.soak.ledger import Ledger

TOPIC = "soak"


@pytest.fixture
def producer():
    """Construct an idempotent producer, which is not used."""
    with Producer(
        kafka={"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": True}
    ) as producer:
        yield producer


@pytest.fixture
def ledger(producer):
    """Make a ledger that listens to the producer."""
    ledger = Ledger()
    ledger.listen(producer)
    return ledger


def stored(*labels):
    """Create the stored records of messages, one after the other in one partition."""
    return [
        Record(TOPIC, 0, offset, 0, None, label.encode(), [])
        for offset, label in enumerate(labels)
    ]


def report(label, offset=0):
    """Create the report of a message."""
    return DeliveryReport(TOPIC, 0, offset, 0, 0.0, label)


def emit(producer, name, label, **payload):
    """Emit an event about a message."""
    producer.monitor.emit(name, {"label": label, **payload})


@pytest.fixture
def reported(ledger, producer):
    """Note a message that was sent and acknowledged."""
    (attempt,) = ledger.begin(producer, "main", 1)
    emit(producer, "message.acknowledged", attempt.label)
    ledger.end([attempt], [report(attempt.label)])
    return attempt


def test_a_stored_message_breaks_nothing(ledger, reported):
    """An acknowledged message that is stored once, in its place, is right."""
    assert ledger.check(stored(reported.label)) == []


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "not stored"),
        (["1", "1"], "2 times"),
        (["1", "2"], "never sent"),
    ],
)
def test_what_is_stored_is_compared_with_what_was_acknowledged(
    ledger, reported, labels, text
):
    """A message that is lost, doubled or from elsewhere is found."""
    broken = ledger.check(stored(*labels))

    assert any(text in each for each in broken), broken


def test_a_report_of_another_place_is_found(ledger, producer):
    """The offset of a report is compared with the stored record."""
    (attempt,) = ledger.begin(producer, "main", 1)
    emit(producer, "message.acknowledged", attempt.label)
    ledger.end([attempt], [report(attempt.label, offset=7)])

    assert "at its place" in ledger.check(stored(attempt.label))[0]


def test_a_second_outcome_is_found(ledger, producer, reported):
    """A message has one outcome."""
    emit(
        producer,
        "error.occurred",
        reported.label,
        type="librdkafka.dispatch_error",
    )

    assert "1 failures" in ledger.check(stored(reported.label))[0]


def test_a_verb_that_has_not_returned_is_found(ledger, producer):
    """A verb of which nothing is heard is reported."""
    ledger.begin(producer, "main", 1)

    assert "has not returned" in ledger.check([])[0]


def test_a_buffered_message_that_vanishes_is_found(ledger, producer):
    """A buffered message is sent, or handed back."""
    attempts = ledger.begin(producer, "main", 2)
    ledger.end(attempts, None)
    ledger.unsent.append(attempts[1].label)

    (broken,) = ledger.check([])

    assert "lost without a word" in broken
    assert f"label={attempts[0].label!r}" in broken


def test_errors_are_compared_with_what_is_stored(ledger, producer):
    """A message that was not sent is not stored; an unknown one has an outcome."""
    unsent, unknown = ledger.begin(producer, "main", 2)
    ledger.fail([unsent], QueueFullError("full"))
    ledger.fail([unknown], DeliveryTimeoutError("late"))

    broken = ledger.check(stored(unsent.label))

    assert [each.partition(":")[0] for each in broken] == [
        "it was not sent, and is stored",
        "its outcome was unknown, and no event has it",
    ]


def test_disorder_is_found(ledger, producer):
    """Messages of one sender are stored in its order."""
    first, second = ledger.begin(producer, "main", 2)
    for attempt, offset in ((first, 1), (second, 0)):
        emit(producer, "message.acknowledged", attempt.label)
        ledger.end([attempt], [report(attempt.label, offset)])

    assert "is stored before" in ledger.check(stored(second.label, first.label))[0]


def test_lost_answers_excuse_copies_of_messages_in_flight(ledger, producer, reported):
    """Mock brokers store a message twice if their answer is lost; others don't."""
    (flying,) = ledger.begin(producer, "main", 1)
    ledger.expect_lost_answers()
    emit(producer, "message.acknowledged", flying.label)
    ledger.end([flying], [report(flying.label, 2)])

    records = stored(reported.label, flying.label, flying.label)

    assert ledger.check(records) == []
    assert ledger.check([*records, *stored(*"111")[2:]])


def test_errors_of_brokers_are_no_outcomes(ledger, producer):
    """Only errors of single messages count."""
    producer.monitor.emit("error.occurred", {"type": "librdkafka.error"})

    assert ledger.check([]) == []
