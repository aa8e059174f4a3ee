import string
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from types import MappingProxyType

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from greendrop._validation import (
    SizeLimit,
    all_validated,
    as_message,
    size_of,
    validate,
)
from greendrop.errors import MessageInvalidError
from greendrop.message import Message

#: Leaves 100 bytes for payload, key and headers.
LIMIT = SizeLimit(136, "max_payload_size")
SMALL = SizeLimit(39, "max_payload_size")
ROOMY = SizeLimit(10_000, "max_payload_size")


def accepted(**fields):
    """Return the normalized form of a valid message."""
    return validate(Message(**{"topic": "t", "payload": b"x", **fields}), LIMIT)


def refused(**fields):
    """Return the errors of an invalid message, by field."""
    with pytest.raises(MessageInvalidError) as raised:
        accepted(**fields)
    return raised.value.errors


# -- topic ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic",
    ["t", "a" * 249, "Az09_.-", "-", "_", "0", "a..b", "__consumer_offsets"],
    ids=lambda topic: topic[:20],
)
def test_topic_of_ascii_word_characters_is_accepted(topic):
    """A topic has up to 249 ASCII letters, digits, underscores, dots and dashes."""
    assert accepted(topic=topic).topic == topic


@pytest.mark.parametrize(
    "topic",
    ["", "a" * 250, "a b", "a/b", "ä", "t\n", "\nt", "a\0b", "t\ud800", "٣", "a:b"],
    ids=ascii,
)
def test_topic_of_anything_else_is_refused(topic):
    """A topic that Kafka would refuse is refused before it is sent."""
    assert "not a valid topic name" in refused(topic=topic)["topic"]


@pytest.mark.parametrize("topic", [None, b"t", 1, ["t"], True])
def test_topic_of_another_type_is_refused(topic):
    """A topic is text and nothing else."""
    assert "needs text" in refused(topic=topic)["topic"]


def test_long_bad_topic_is_abbreviated():
    """A megabyte given as a topic by mistake does not flood the log."""
    assert len(refused(topic="a b" * 1_000_000)["topic"]) < 250


def test_bad_topic_is_refused_every_time():
    """A topic that was refused once is refused again later."""
    for _ in range(2):
        assert "topic" in refused(topic="not/legal")


def test_many_different_topics_are_all_accepted():
    """A program that generates topic names does not run into a limit."""
    for number in range(10_500):
        assert accepted(topic=f"made-up-{number}").topic == f"made-up-{number}"
    assert "topic" in refused(topic="made/up")


# -- payload --------------------------------------------------------------------------


def test_payload_of_bytes_is_sent_unchanged():
    """Bytes are neither copied nor converted."""
    payload = bytes(range(100))

    assert accepted(payload=payload).payload is payload


def test_payload_of_text_is_sent_as_utf8():
    """Text becomes UTF-8."""
    assert accepted(payload="grün €").payload == "grün €".encode()


def test_none_as_payload_is_a_tombstone():
    """None is a payload of its own kind, distinct from empty bytes."""
    assert accepted(payload=None).payload is None
    assert accepted(payload=b"").payload == b""
    assert accepted(payload="").payload == b""


@pytest.mark.parametrize(
    "make", [bytearray, memoryview], ids=lambda make: make.__name__
)
def test_payload_of_other_bytes_is_copied(make):
    """A payload that can change after the call is copied by the call."""
    buffer = bytearray(b"before")
    wire = accepted(payload=make(buffer))
    buffer[:] = b"after!"

    assert wire.payload == b"before"
    assert type(wire.payload) is bytes


def test_payload_as_large_as_the_limit_is_accepted():
    """A payload of exactly the limit is accepted."""
    assert len(accepted(payload=b"x" * 100).payload) == 100


@pytest.mark.parametrize("topic", ["new-topic-for-size", "t"])
def test_payload_above_the_limit_is_refused(topic):
    """One byte above the limit is refused, on the fast path of known topics too."""
    accepted(topic="t")

    text = refused(topic=topic, payload=b"x" * 101)["payload"]

    assert "takes 137 bytes (payload 101, record 36)" in text
    assert "max_payload_size=136" in text
    assert "nothing was sent" in text


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("key", {"payload": None, "key": b"k" * 101}),
        ("key", {"payload": b"x" * 50, "key": b"k" * 51}),
        ("payload", {"payload": b"x" * 60, "key": b"k" * 41}),
        ("headers", {"payload": b"x", "headers": {"a": b"v" * 97}}),
        ("payload", {"payload": b"x" * 61, "headers": {"a": b"v" * 38}}),
    ],
)
def test_size_includes_payload_key_and_headers(field, fields):
    """Payload, key and headers together are limited; the largest is named."""
    accepted(topic="t")  # known, so that the fast path is open

    assert refused(**fields).keys() == {field}


def test_a_message_of_exactly_the_limit_is_accepted():
    """The size includes the length fields that a record has before key and headers."""
    assert accepted(payload=b"x" * 50, key=b"k" * 50)
    assert accepted(payload=b"x" * 60, headers={"a": b"v" * 37})
    assert (
        "headers 41" in refused(payload=b"x" * 60, headers={"a": b"v" * 38})["payload"]
    )


@pytest.mark.parametrize(
    ("key", "headers", "size"),
    [
        (None, [], 36),
        (b"k" * 10, [], 46),
        (None, [("a", b"b")], 40),
        (None, [("a", None)], 39),
        (None, [("a", b"b" * 63)], 102),
        (None, [("a", b"b" * 64)], 104),
        (None, [("a" * 63, b"b")], 102),
        (None, [("a" * 64, b"b")], 104),
        (None, [("ä" * 40, b"b")], 120),
        (None, [("a", b"b")] * 3, 48),
    ],
)
def test_the_size_of_a_message_is_the_size_that_librdkafka_computes(key, headers, size):
    """The sizes are those of librdkafka 2.16; other tests measure the real one."""
    assert size_of(None, key, headers) == size
    assert size_of(b"x" * 500, key, headers) == 500 + size


def test_payload_of_text_is_measured_in_bytes():
    """Fifty two-byte letters fit into 100 bytes; 51 don't."""
    assert len(accepted(payload="ä" * 50).payload) == 100
    assert "payload 102" in refused(payload="ä" * 51)["payload"]


@pytest.mark.parametrize(
    "payload", [1, 1.5, True, {"a": 1}, ["x"], object()], ids=lambda p: type(p).__name__
)
def test_payload_of_another_type_is_refused(payload):
    """Only bytes and text are payloads: greendrop does not serialise objects."""
    text = refused(payload=payload)["payload"]

    assert text == f"needs bytes, text or None, not {type(payload).__name__}"


def test_released_memoryview_is_refused():
    """A released memoryview is refused like any other bad payload."""
    view = memoryview(b"x")
    view.release()

    assert "payload" in refused(payload=view)


@pytest.mark.parametrize("field", ["payload", "key", "partition_key"])
def test_lone_surrogates_are_refused(field):
    """Text that UTF-8 can't encode is a bad field, not a UnicodeEncodeError."""
    assert "surrogates" in refused(**{field: "a\ud800"})[field]


# -- key and partition key ------------------------------------------------------------


@pytest.mark.parametrize("field", ["key", "partition_key"])
@pytest.mark.parametrize(
    ("given", "wire"),
    [(None, None), (b"k", b"k"), ("k", b"k"), ("ä", "ä".encode()), (b"\0", b"\0")],
)
def test_key_is_bytes_text_or_none(field, given, wire):
    """A key is bytes, text or absent."""
    assert getattr(accepted(**{field: given}), field) == wire


@pytest.mark.parametrize("field", ["key", "partition_key"])
@pytest.mark.parametrize("given", [b"", "", bytearray()])
def test_empty_key_is_refused(field, given):
    """An empty key is refused, since it usually is a mistake: None means no key."""
    assert "must not be empty" in refused(**{field: given})[field]


@pytest.mark.parametrize("field", ["key", "partition_key"])
@pytest.mark.parametrize("given", [1, 1.5, False, ("k",), object()])
def test_key_of_another_type_is_refused(field, given):
    """Numbers and other objects are refused as keys."""
    assert "needs bytes, text or None" in refused(**{field: given})[field]


def test_empty_key_is_refused_on_the_fast_path():
    """The fast path for known topics with bytes checks the key too."""
    accepted(topic="t")

    assert "key" in refused(topic="t", payload=b"x", key=b"")


# -- partition ------------------------------------------------------------------------


@pytest.mark.parametrize("partition", [None, -1, 0, 1, 2**31 - 1])
def test_partition_is_a_number_or_none(partition):
    """-1 and None let a partitioner choose; other partitions are 32-bit integers."""
    assert accepted(partition=partition).partition == partition


@pytest.mark.parametrize("partition", [-2, 2**31, -(2**63), 10**30])
def test_partition_out_of_range_is_refused(partition):
    """Partitions below -1 or above 32 bits are refused."""
    assert (
        "is not between -1 and 2147483647" in refused(partition=partition)["partition"]
    )


@pytest.mark.parametrize("partition", [0.0, "0", True, False, b"0", [0]])
def test_partition_of_another_type_is_refused(partition):
    """A partition is an integer, and True is not one."""
    assert "needs an integer" in refused(partition=partition)["partition"]


@pytest.mark.parametrize("field", ["partition", "timestamp"])
def test_number_too_long_to_print_is_refused(field):
    """Python can't print integers of over 4,300 digits; the message is refused."""
    assert field in refused(**{field: 10**5_000})


# -- timestamp ------------------------------------------------------------------------

UTC = timezone.utc


@pytest.mark.parametrize(
    "timestamp", [None, 0, 1, 1_700_000_000_000, 10**8 - 1, 10**11, 10**14 - 1]
)
def test_timestamp_is_milliseconds_or_none(timestamp):
    """Milliseconds since 1970 are sent unchanged."""
    assert accepted(timestamp=timestamp).timestamp == timestamp


@pytest.mark.parametrize(
    ("moment", "milliseconds"),
    [
        (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 1_000),
        (datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC), 1_700_000_000_123),
        (
            datetime(2023, 11, 15, 0, 13, 20, tzinfo=timezone(timedelta(hours=2))),
            1_700_000_000_000,
        ),
        (datetime(2023, 11, 14, 22, 13, 20, 999_600, tzinfo=UTC), 1_700_000_001_000),
    ],
)
def test_timestamp_of_an_aware_datetime_becomes_milliseconds(moment, milliseconds):
    """A datetime in any time zone denotes the same moment, to the millisecond."""
    assert accepted(timestamp=moment).timestamp == milliseconds


@pytest.mark.parametrize(
    ("timestamp", "unit"),
    [
        (1_700_000_000, "seconds"),
        (10**8, "seconds"),
        (10**11 - 1, "seconds"),
        (1_700_000_000_000_000, "microseconds"),
        (10**14, "microseconds"),
        (1_700_000_000_000_000_000, "nanoseconds"),
        (2**63 - 1, "nanoseconds"),
    ],
)
def test_timestamp_of_another_unit_is_refused(timestamp, unit):
    """A time in 1970 or the far future is refused; the likely unit is named."""
    text = refused(timestamp=timestamp)["timestamp"]

    assert f"{timestamp} looks like {unit}" in text
    assert "milliseconds" in text


@pytest.mark.parametrize(
    "timestamp", [1_700_000_000] + [1_700_000_000 * 10**n for n in (6, 9)]
)
def test_the_refusal_of_a_timestamp_names_the_milliseconds(timestamp):
    """The value in the hint can be pasted."""
    assert "did you mean 1700000000000?" in refused(timestamp=timestamp)["timestamp"]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 20, tzinfo=UTC),
        datetime(1972, 5, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_timestamp_of_a_datetime_may_be_any_moment(moment):
    """A datetime has no unit that could be mistaken, so any moment is accepted."""
    assert accepted(timestamp=moment).timestamp == int(moment.timestamp()) * 1000


def test_timestamp_of_a_fraction_is_refused():
    """time.time() returns fractional seconds; the error shows what to write."""
    assert "time.time_ns() // 1_000_000" in refused(timestamp=1.7e9)["timestamp"]


def test_timestamp_of_a_naive_datetime_is_refused():
    """A datetime without a zone could mean any of 24 moments."""
    naive = datetime(2023, 11, 14)  # noqa: DTZ001

    assert "time zone" in refused(timestamp=naive)["timestamp"]


class ZoneWithoutOffset(tzinfo):
    """A time zone that doesn't know its offset: such a datetime counts as naive."""

    def utcoffset(self, _moment):
        """Return None: the offset is unknown."""
        return


def test_timestamp_in_a_zone_without_an_offset_is_refused():
    """Python calls a datetime naive also if its zone has no offset."""
    moment = datetime(1, 1, 1, tzinfo=ZoneWithoutOffset())

    assert "time zone" in refused(timestamp=moment)["timestamp"]


@pytest.mark.parametrize(
    "timestamp",
    [-1, 2**63, datetime(1969, 12, 31, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)],
    ids=str,
)
def test_timestamp_out_of_range_is_refused(timestamp):
    """Kafka's timestamps begin in 1970 and have 63 bits."""
    assert "is not between" in refused(timestamp=timestamp)["timestamp"]


@pytest.mark.parametrize("timestamp", [1.5, "2023-11-14", True, b"1", timedelta(1)])
def test_timestamp_of_another_type_is_refused(timestamp):
    """A float may be meant as seconds, so it is refused like any other type."""
    assert "needs milliseconds" in refused(timestamp=timestamp)["timestamp"]


# -- headers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "wire"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"a": "1"}, [("a", b"1")]),
        ({"a": b"\xff"}, [("a", b"\xff")]),
        ({"a": None}, [("a", None)]),
        ({"a": ""}, [("a", b"")]),
        ({"a": ["1", b"2", None]}, [("a", b"1"), ("a", b"2"), ("a", None)]),
        ({"a": ("1", "2"), "b": "3"}, [("a", b"1"), ("a", b"2"), ("b", b"3")]),
        ({"a": []}, None),
        (
            [("a", "1"), ("b", b"2"), ("a", None)],
            [("a", b"1"), ("b", b"2"), ("a", None)],
        ),
        ([["a", "1"]], [("a", b"1")]),
        ((("a", "1"),), [("a", b"1")]),
        (MappingProxyType({"a": "ä"}), [("a", "ä".encode())]),
        (OrderedDict([("z", "1"), ("a", "2")]), [("z", b"1"), ("a", b"2")]),
        ({"": "x"}, [("", b"x")]),
        ({"ключ": "x"}, [("ключ", b"x")]),
    ],
    ids=str,
)
def test_headers_become_pairs_in_order(headers, wire):
    """Mappings, repeated values and lists of pairs all become a list of pairs."""
    assert accepted(headers=headers).headers == wire


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ("a", "needs a mapping or a list of pairs, not str"),
        (b"a", "needs a mapping or a list of pairs, not bytes"),
        (1, "needs a mapping or a list of pairs, not int"),
        ({"a"}, "needs a mapping or a list of pairs, not set"),
        ({1: "x"}, "a name needs to be text, not int"),
        ({b"a": "x"}, "a name needs to be text, not bytes"),
        ({None: "x"}, "a name needs to be text, not NoneType"),
        ({"a": 1}, "value of 'a' needs bytes, text or None, not int"),
        ({"a": {"b": "c"}}, "value of 'a' needs bytes, text or None, not dict"),
        ({"a": ["x", 1]}, "value of 'a' needs bytes, text or None, not int"),
        ({"a": [["x"]]}, "value of 'a' needs bytes, text or None, not list"),
        ({"a": "\ud800"}, "value of 'a' contains lone surrogates"),
        (["ab"], "each item needs to be a pair"),
        ([("a",)], "each item needs to be a pair"),
        ([("a", "b", "c")], "each item needs to be a pair"),
        ([("a", ["x"])], "value of 'a' needs bytes, text or None, not list"),
        ([(1, "x")], "a name needs to be text, not int"),
        ([None], "each item needs to be a pair"),
    ],
    ids=ascii,
)
def test_bad_headers_are_refused(headers, text):
    """A header that librdkafka can't send is refused."""
    assert text in refused(headers=headers)["headers"]


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\ud800"], ids=ascii)
def test_header_names_that_would_not_arrive_are_refused(name):
    """For librdkafka a header name is a C string: a NUL would truncate it."""
    assert "headers" in refused(headers={name: "x"})
    assert "headers" in refused(headers=[(name, "x")])


# -- several errors at once, and the caller's objects ---------------------------------


def test_all_bad_fields_are_named_at_once():
    """The error for a message with five mistakes names all five fields."""
    errors = refused(
        topic="a b",
        payload=1,
        key="",
        headers=1,
        partition=-2,
        partition_key=b"",
        timestamp="now",
    )

    assert sorted(errors) == [
        "headers",
        "key",
        "partition",
        "partition_key",
        "payload",
        "timestamp",
        "topic",
    ]


def test_error_names_fields_in_its_text():
    """The error's text, as it appears in a log, is enough to find the mistakes."""
    with pytest.raises(MessageInvalidError, match=r"topic: .*; key: must not be empty"):
        accepted(topic="a b", key="")


def test_size_is_checked_only_if_all_fields_are_valid():
    """The size is checked only if all fields are valid."""
    assert {"key"} == set(refused(payload=b"x" * 200, key=b""))


@pytest.mark.parametrize(
    "label",
    [None, 0, "text", {"a": [1]}, object(), lambda: None],
    ids=lambda label: type(label).__name__,
)
def test_label_is_anything_and_stays_the_same_object(label):
    """A label may be any object; it is neither checked nor copied."""
    assert accepted(label=label).label is label
    assert accepted(label=label, payload="text").label is label


def test_callers_objects_are_never_changed():
    """Validation leaves the message, its headers and the lists in them unchanged."""
    values = ["1", b"2"]
    headers = {"a": values}
    message = Message("t", "text", key="k", headers=headers, timestamp=5)

    wire = validate(message, LIMIT)
    wire.headers.append(("b", b"3"))

    assert Message("t", "text", key="k", headers=headers, timestamp=5) == message
    assert headers == {"a": ["1", b"2"]}
    assert values == ["1", b"2"]


def test_headers_changed_after_the_call_are_not_sent():
    """The normalized form is a copy, so the caller may go on changing its list."""
    pairs = [("a", b"1")]
    wire = accepted(headers=pairs)
    pairs.append(("b", b"2"))

    assert wire.headers == [("a", b"1")]


# -- items of batches -----------------------------------------------------------------


def test_message_in_a_batch_is_used_unchanged():
    """A `Message` needs no conversion."""
    message = Message("t", b"x")

    assert as_message(message) is message


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, lambda m: MappingProxyType(dict(m))]
)
def test_mapping_in_a_batch_becomes_a_message(kind):
    """Any mapping with a message's fields is accepted."""
    item = kind({"topic": "t", "payload": None, "label": 5})

    assert as_message(item) == Message("t", None, label=5)


def test_mapping_with_an_unknown_field_gets_a_hint():
    """An unknown field is refused, with the field that was likely meant."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topic": "t", "payload": b"", "partion": 1})

    assert (raised.value.errors) == {
        "partion": "no such field; did you mean 'partition'?"
    }


def test_unknown_field_unlike_any_other_gets_no_hint():
    """An unknown field unlike any known field is refused without a suggestion."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topic": "t", "payload": b"", "zzzzzz": 1})

    assert raised.value.errors == {"zzzzzz": "no such field"}


def test_mapping_without_topic_or_payload_is_refused():
    """The payload is mandatory, even if None: no accidental tombstones."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({})

    assert raised.value.errors == {
        "topic": "this field is required",
        "payload": "this field is required",
    }


def test_unknown_and_missing_fields_of_a_mapping_are_named_together():
    """The error names all problems of a batch item at once."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topik": "t", 7: 1})

    assert {"topik", "7", "topic", "payload"} == set(raised.value.errors)


@pytest.mark.parametrize("item", [None, 1, "t", b"t", ("t", b"x"), ["t"], object()])
def test_batch_item_of_another_type_is_refused(item):
    """A plain tuple is refused, since its fields could be in any order."""
    with pytest.raises(MessageInvalidError, match="needs a Message or a mapping"):
        as_message(item)


def test_mapping_is_not_changed():
    """The caller's mapping is only read."""
    item = {"topic": "t", "payload": "x", "headers": {"a": ["1"]}}

    validate(as_message(item), LIMIT)

    assert item == {"topic": "t", "payload": "x", "headers": {"a": ["1"]}}


# -- repr -----------------------------------------------------------------------------


def test_repr_shows_the_destination_and_not_the_content():
    """Payload, key and headers stay out of logs."""
    message = Message("orders", b"PAYLOAD", key="KEY", headers={"h": "HEADER"})

    assert repr(message) == "<Message topic='orders' payload=7 long>"


def test_repr_shows_a_tombstone():
    """The repr of a tombstone says that it is one."""
    assert "payload=None" in repr(Message("orders", None))


def test_repr_of_an_invalid_message_does_not_raise():
    """A repr never raises, since it is needed to find the mistake."""
    assert "orders" in repr(Message("orders", 5))


def test_message_is_immutable():
    """The fields of a message in flight can't be assigned."""
    with pytest.raises(AttributeError):
        Message("t", b"x").topic = "u"


# -- arbitrary messages ---------------------------------------------------------------

texts = st.text(max_size=20)
values = st.none() | st.binary(max_size=20) | texts
keys = st.none() | st.binary(min_size=1, max_size=20) | st.text(min_size=1, max_size=20)
names = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10
)
good_messages = st.builds(
    Message,
    topic=st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=9),
    payload=values,
    key=keys,
    headers=st.none()
    | st.dictionaries(names, values | st.lists(values, max_size=3), max_size=4)
    | st.lists(st.tuples(names, values), max_size=4),
    partition=st.none() | st.integers(-1, 2**31 - 1),
    partition_key=keys,
    timestamp=st.none()
    | st.integers(0, 10**8 - 1)
    | st.integers(10**11, 10**14 - 1)
    | st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    label=st.integers(),
)


def wire_bytes(value):
    """Return the bytes that a value is sent as: text becomes UTF-8."""
    return value.encode() if isinstance(value, str) else value


def pairs_of(headers):
    """Return the pairs of name and value that headers are sent as, in order."""
    if headers is None:
        return []
    items = headers.items() if isinstance(headers, Mapping) else headers
    return [
        (name, wire_bytes(one))
        for name, value in items
        for one in (value if isinstance(value, list) else [value])
    ]


@given(good_messages)
def test_accepted_message_keeps_its_meaning(message):
    """Every accepted message is sent with the meaning that the caller gave it."""
    wire = validate(message, ROOMY)

    assert wire.topic == message.topic
    assert wire.payload == wire_bytes(message.payload)
    assert wire.key == wire_bytes(message.key)
    assert wire.partition_key == wire_bytes(message.partition_key)
    assert wire.partition == message.partition
    assert wire.label is message.label
    assert (wire.headers or []) == pairs_of(message.headers)
    if isinstance(message.timestamp, datetime):
        since = timedelta(milliseconds=wire.timestamp)
        off = message.timestamp - datetime(1970, 1, 1, tzinfo=UTC) - since
        assert abs(off) <= timedelta(milliseconds=0.6)
    else:
        assert wire.timestamp == message.timestamp


@given(good_messages)
def test_normalized_message_is_accepted_unchanged(message):
    """Validating a normalized message again returns the same message.

    The exception is a datetime whose number of milliseconds is refused as an integer.
    """
    wire = validate(message, ROOMY)

    if isinstance(message.timestamp, datetime) and wire.timestamp >= 10**8:
        # As an integer it could be a number of seconds or microseconds.
        assume(10**11 <= wire.timestamp < 10**14)
    assert validate(wire, ROOMY) == wire


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=8)
    | st.text(st.characters(), max_size=8)
    | st.datetimes()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.none() | st.integers() | st.text(max_size=3), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.builds(
        Message,
        topic=junk,
        payload=junk,
        key=junk,
        headers=junk,
        partition=junk,
        partition_key=junk,
        timestamp=junk,
    )
)
@example(Message("t", b"", partition=10**5_000))
@example(Message("t", b"", timestamp=10**5_000))
@example(Message("t", b"", headers={"\ud800": b""}))
def test_anything_is_accepted_or_refused_by_name(message):
    """Validation of arbitrary values raises nothing but MessageInvalidError.

    Each name in the error is one of the message's fields.
    """
    try:
        wire = validate(message, LIMIT)
    except MessageInvalidError as error:
        assert error.errors.keys() <= set(Message._fields)  # noqa: PT017
    else:
        assert validate(wire, LIMIT) == wire


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(Message._fields) | st.text() | st.integers(), junk)
)
@example({10**5_000: 1})
def test_any_mapping_is_a_message_or_refused(item):
    """An arbitrary mapping becomes a message or is refused, never with a TypeError."""
    try:
        message = as_message(item)
    except MessageInvalidError as error:
        assert error.errors  # noqa: PT017
    else:
        assert message._asdict().items() >= item.items()


secret = "KEEP-THIS-OUT-OF-LOGS"


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": secret * 20},
        {"payload": [secret]},
        {"payload": secret + "\ud800"},
        {"key": [secret]},
        {"key": secret + "\ud800"},
        {"partition_key": (secret,)},
        {"headers": secret},
        {"headers": {"name": [secret, 1]}},
        {"headers": {"name": secret + "\ud800"}},
        {"headers": [secret]},
        {"timestamp": secret},
        {"partition": secret},
    ],
    ids=str,
)
def test_texts_of_refusals_hold_no_content(fields):
    """Error texts describe a bad field without its payload, key or header value."""
    assert secret not in str(refused(**fields))


@given(
    st.lists(
        st.builds(
            Message,
            topic=st.sampled_from(["events", "other"]) | junk,
            payload=st.binary(max_size=3) | junk,
            key=st.none() | st.binary(max_size=2) | junk,
            headers=st.none() | junk,
            partition=st.none() | junk,
            partition_key=st.none() | junk,
            timestamp=st.none() | junk,
        )
        | junk,
        max_size=3,
    )
)
@example([Message("events", b"x")])
@example([Message("events", b"x"), Message("events", b"xxxx")])
@example([Message("events", b"x", b"")])
@example([Message("never seen before", b"x")])
def test_a_batch_is_plain_when_each_of_its_messages_needs_no_conversion(batch):
    """The fast path of batches accepts what the one of single messages does."""
    for topic in ("events", "other"):
        validate(Message(topic, b""), SMALL)

    if all_validated(batch, SMALL):
        assert all(validate(message, SMALL) is message for message in batch)


def test_a_common_batch_is_plain():
    """Messages of bytes to known topics take the fast path, with keys or without."""
    batch = [Message("events", b"x"), Message("events", b"", b"ke", label=[])]
    validate(batch[0], SMALL)

    assert all_validated(batch, SMALL)
    assert not all_validated([*batch, Message("events", "text")], SMALL)
    assert not all_validated([*batch, Message("events", b"xx", b"ke")], SMALL)
    assert not all_validated([], SMALL)
