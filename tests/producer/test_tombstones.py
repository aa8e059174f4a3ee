import copy

import pytest

from greendrop import Message, MessageInvalidError, Producer

NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}
GOOD = {"topic": "events", "key": "k", "partition": 1}

MANY = {
    "tombstone_many_sync": lambda producer, batch: producer.tombstone_many_sync(batch),
    "tombstone_many_async": lambda producer, batch: [
        handle.wait(20) for handle in producer.tombstone_many_async(batch)
    ],
}
ONE = {
    "tombstone_sync": lambda producer, **fields: producer.tombstone_sync(**fields),
    "tombstone_async": lambda producer, **fields: producer.tombstone_async(
        **fields
    ).wait(20),
}
ALL = {
    **ONE,
    **{
        name: lambda producer, verb=verb, **fields: verb(producer, [fields])[0]
        for name, verb in MANY.items()
    },
}
every_verb = pytest.mark.parametrize("verb", ALL.values(), ids=ALL)
both_batches = pytest.mark.parametrize("verb", MANY.values(), ids=MANY)


@every_verb
def test_tombstone_has_a_key_a_partition_and_no_payload(sent, verb):
    """A tombstone arrives in its partition, with headers, timestamp and label."""
    producer, messages = sent

    report = verb(
        producer,
        **GOOD,
        headers={"why": "gone"},
        timestamp=1_700_000_000_000,
        label="mine",
    )

    assert (report.partition, report.label) == (1, "mine")
    (message,) = messages
    assert (message.payload, message.key) == (None, b"k")
    assert message.timestamp == 1_700_000_000_000
    assert message.headers == [("why", b"gone")]


BAD = [
    ("key", None, "needs one"),
    ("key", "", "needs one"),
    ("key", b"", "needs one"),
    ("key", 5, "needs bytes"),
    ("partition", None, "needs one, 0 or more"),
    ("partition", -1, "needs one, 0 or more"),
    ("partition", -2, "not between"),
    ("partition", "1", "needs an integer"),
    ("topic", "no topic!", "not a valid topic"),
    ("headers", 5, "needs a mapping"),
]


@every_verb
@pytest.mark.parametrize(("field", "value", "text"), BAD)
def test_tombstone_with_a_bad_field_is_refused(verb, field, value, text):
    """Key and partition are required, and the rules of all messages apply."""
    producer = Producer(kafka=NOWHERE)

    with pytest.raises(MessageInvalidError) as raised:
        verb(producer, **{**GOOD, field: value})

    ((name, observed),) = raised.value.errors.items()
    assert name.endswith(field)
    assert text in observed
    assert producer.status == "configured"


@every_verb
def test_partition_zero_is_accepted(sent, verb):
    """0 is the lowest valid partition."""
    producer, _ = sent

    assert verb(producer, **{**GOOD, "partition": 0}).partition == 0


@both_batches
@pytest.mark.parametrize("missing", ["topic", "key", "partition"])
def test_tombstone_without_a_field_is_refused(verb, missing):
    """A mapping that lacks one of the three fields is refused."""
    producer = Producer(kafka=NOWHERE)
    item = {name: value for name, value in GOOD.items() if name != missing}

    with pytest.raises(MessageInvalidError) as raised:
        verb(producer, [item])

    assert list(raised.value.errors) == [f"messages[0].{missing}"]


@both_batches
def test_all_bad_fields_are_named_at_once(verb):
    """The error has the bad fields of all messages; the whole batch is refused."""
    producer = Producer(kafka=NOWHERE)

    with pytest.raises(MessageInvalidError) as raised:
        verb(
            producer,
            [
                GOOD,
                {"topic": "!", "partition": -1, "colour": "red"},
                {**GOOD, "partition_key": "p"},
                Message("events", b"x"),
                5,
            ],
        )

    assert set(raised.value.errors) == {
        "messages[1].topic",
        "messages[1].key",
        "messages[1].partition",
        "messages[1].colour",
        "messages[2].partition_key",
        "messages[3].key",
        "messages[3].partition",
        "messages[4].message",
    }
    assert producer.status == "configured"


@both_batches
def test_payload_is_left_out_and_the_callers_mapping_is_not_changed(sent, verb):
    """A record that is to be deleted may be given unchanged."""
    producer, messages = sent
    batch = [{**GOOD, "payload": b"old", "headers": {"a": "1"}}, {**GOOD}]
    before = copy.deepcopy(batch)

    reports = verb(producer, [*batch, Message("events", b"old", key="k", partition=2)])

    assert [report.partition for report in reports] == [1, 1, 2]
    assert [message.payload for message in messages] == [None] * 3
    assert batch == before


@every_verb
def test_tombstones_go_through_the_middleware(sent, verb):
    """Middleware gets tombstones like other messages."""
    producer, messages = sent
    producer.middleware.append(lambda message: message._replace(key="other"))

    verb(producer, **GOOD)

    assert [message.key for message in messages] == [b"other"]
