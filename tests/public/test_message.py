import string
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from types import MappingProxyType

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from greendrop.errors import MessageInvalidError
from greendrop.message import (
    Message,
    SizeLimit,
    all_validated,
    as_message,
    checked,
    size_of,
)

#: Leaves 100 bytes for payload, key and headers.
LIMIT = SizeLimit(136, "max_payload_size")
SMALL = SizeLimit(39, "max_payload_size")
ROOMY = SizeLimit(10_000, "max_payload_size")


def accepted(**fields):
    """Give the wire form of a message that keeps the rules."""
    return checked(Message(**{"topic": "t", "payload": b"x", **fields}), LIMIT)


def refused(**fields):
    """Tell what is wrong with a message, by field."""
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
    """ASCII letters, digits, underscore, dot and dash make a topic, up to 249."""
    assert accepted(topic=topic).topic == topic


@pytest.mark.parametrize(
    "topic",
    ["", "a" * 250, "a b", "a/b", "ä", "t\n", "\nt", "a\0b", "t\ud800", "٣", "a:b"],
    ids=ascii,
)
def test_topic_of_anything_else_is_refused(topic):
    """A topic that Kafka would refuse is refused before it is sent."""
    assert "no legal topic name" in refused(topic=topic)["topic"]


@pytest.mark.parametrize("topic", [None, b"t", 1, ["t"], True])
def test_topic_of_another_type_is_refused(topic):
    """A topic is text, nothing else."""
    assert "needs text" in refused(topic=topic)["topic"]


def test_long_bad_topic_is_told_in_short():
    """A megabyte that was given as a topic by mistake doesn't flood the log."""
    assert len(refused(topic="a b" * 1_000_000)["topic"]) < 250


def test_bad_topic_is_refused_every_time():
    """A topic that was refused once is not taken for a known one later."""
    for _ in range(2):
        assert "topic" in refused(topic="not/legal")


def test_many_different_topics_are_all_accepted():
    """A program that makes up topic names can go on for ever."""
    for number in range(10_500):
        assert accepted(topic=f"made-up-{number}").topic == f"made-up-{number}"
    assert "topic" in refused(topic="made/up")


# -- payload --------------------------------------------------------------------------


def test_payload_of_bytes_goes_out_as_it_is():
    """Bytes are not copied or converted."""
    payload = bytes(range(100))

    assert accepted(payload=payload).payload is payload


def test_payload_of_text_goes_out_as_utf8():
    """Text becomes UTF-8."""
    assert accepted(payload="grün €").payload == "grün €".encode()


def test_no_payload_is_a_tombstone():
    """None is a payload of its own kind, and not the same as no bytes."""
    assert accepted(payload=None).payload is None
    assert accepted(payload=b"").payload == b""
    assert accepted(payload="").payload == b""


@pytest.mark.parametrize(
    "make", [bytearray, memoryview], ids=lambda make: make.__name__
)
def test_payload_of_other_bytes_is_copied(make):
    """What can change after the call is copied by it."""
    buffer = bytearray(b"before")
    wire = accepted(payload=make(buffer))
    buffer[:] = b"after!"

    assert wire.payload == b"before"
    assert type(wire.payload) is bytes


def test_payload_as_large_as_the_limit_is_accepted():
    """The limit itself is allowed."""
    assert len(accepted(payload=b"x" * 100).payload) == 100


@pytest.mark.parametrize("topic", ["new-topic-for-size", "t"])
def test_payload_above_the_limit_is_refused(topic):
    """One byte more is not allowed; also not on the short way of known topics."""
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
def test_all_of_a_message_counts(field, fields):
    """Payload, key and headers are compared with the limit; the largest is named."""
    accepted(topic="t")  # known, so that the short way is open

    assert refused(**fields).keys() == {field}


def test_a_message_of_exactly_the_limit_is_accepted():
    """Key and headers count with the lengths that a record has before each of them."""
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
def test_the_size_of_a_message_is_what_librdkafka_takes_it_for(key, headers, size):
    """Measured with librdkafka 2.16; tests of producers compare with the real one."""
    assert size_of(None, key, headers) == size
    assert size_of(b"x" * 500, key, headers) == 500 + size


def test_payload_of_text_is_measured_in_bytes():
    """Fifty letters of two bytes each fit into 100 bytes, 51 don't."""
    assert len(accepted(payload="ä" * 50).payload) == 100
    assert "payload 102" in refused(payload="ä" * 51)["payload"]


@pytest.mark.parametrize(
    "payload", [1, 1.5, True, {"a": 1}, ["x"], object()], ids=lambda p: type(p).__name__
)
def test_payload_of_another_type_is_refused(payload):
    """How to serialise an object is not for greendrop to guess."""
    text = refused(payload=payload)["payload"]

    assert text == f"needs bytes, text or None, not {type(payload).__name__}"


def test_released_memoryview_is_refused():
    """A view whose memory was given back is told like any other bad payload."""
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
    """An empty key is a mistake more often than not: None means no key."""
    assert "must not be empty" in refused(**{field: given})[field]


@pytest.mark.parametrize("field", ["key", "partition_key"])
@pytest.mark.parametrize("given", [1, 1.5, False, ("k",), object()])
def test_key_of_another_type_is_refused(field, given):
    """Numbers and other objects are no keys."""
    assert "needs bytes, text or None" in refused(**{field: given})[field]


def test_empty_key_is_refused_on_the_short_way():
    """A known topic with bytes takes a short cut, which still looks at the key."""
    accepted(topic="t")

    assert "key" in refused(topic="t", payload=b"x", key=b"")


# -- partition ------------------------------------------------------------------------


@pytest.mark.parametrize("partition", [None, -1, 0, 1, 2**31 - 1])
def test_partition_is_a_number_or_none(partition):
    """-1 and None have a partition chosen; Kafka numbers them with 32 bits."""
    assert accepted(partition=partition).partition == partition


@pytest.mark.parametrize("partition", [-2, 2**31, -(2**63), 10**30])
def test_partition_out_of_range_is_refused(partition):
    """Less than -1 and more than 32 bits are refused."""
    assert (
        "is not between -1 and 2147483647" in refused(partition=partition)["partition"]
    )


@pytest.mark.parametrize("partition", [0.0, "0", True, False, b"0", [0]])
def test_partition_of_another_type_is_refused(partition):
    """A partition is an integer, and True is none."""
    assert "needs an integer" in refused(partition=partition)["partition"]


@pytest.mark.parametrize("field", ["partition", "timestamp"])
def test_number_too_long_to_print_is_refused(field):
    """Python won't print an integer of over 4,300 digits; the message is refused."""
    assert field in refused(**{field: 10**5_000})


# -- timestamp ------------------------------------------------------------------------

UTC = timezone.utc


@pytest.mark.parametrize(
    "timestamp", [None, 0, 1, 1_700_000_000_000, 10**8 - 1, 10**11, 10**14 - 1]
)
def test_timestamp_is_milliseconds_or_none(timestamp):
    """Milliseconds since 1970 go out as they are."""
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
    """A moment in any time zone is the same moment, to the millisecond."""
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
    """It would be stored as a time in 1970 or in a far future; the unit is named."""
    text = refused(timestamp=timestamp)["timestamp"]

    assert f"{timestamp} looks like {unit}" in text
    assert "milliseconds" in text


@pytest.mark.parametrize(
    "timestamp", [1_700_000_000] + [1_700_000_000 * 10**n for n in (6, 9)]
)
def test_the_refusal_of_a_timestamp_names_the_milliseconds(timestamp):
    """The hint can be pasted."""
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
    """A datetime has no unit that could be mistaken."""
    assert accepted(timestamp=moment).timestamp == int(moment.timestamp()) * 1000


def test_timestamp_of_a_fraction_is_refused():
    """time.time() gives seconds with a fraction; the text shows what to write."""
    assert "time.time_ns() // 1_000_000" in refused(timestamp=1.7e9)["timestamp"]


def test_timestamp_of_a_naive_datetime_is_refused():
    """A datetime without a zone could mean any of 24 moments."""
    naive = datetime(2023, 11, 14)  # noqa: DTZ001

    assert "time zone" in refused(timestamp=naive)["timestamp"]


class Nowhere(tzinfo):
    """A time zone that doesn't know its offset: such a datetime counts as naive."""

    def utcoffset(self, _moment):
        """Tell that the offset isn't known."""
        return


def test_timestamp_in_a_zone_without_an_offset_is_refused():
    """Python calls a datetime naive also if its zone has no offset."""
    moment = datetime(1, 1, 1, tzinfo=Nowhere())

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
    """A float may be meant in seconds, so it is refused like anything else."""
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
        ({"a": "\ud800"}, "value of 'a' holds lone surrogates"),
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
    """What librdkafka can't send as a header is refused."""
    assert text in refused(headers=headers)["headers"]


@pytest.mark.parametrize("name", ["a\0b", "\0", "a\ud800"], ids=ascii)
def test_header_names_that_would_not_arrive_are_refused(name):
    """A name is a C string in UTF-8 to librdkafka: a NUL would cut it short."""
    assert "headers" in refused(headers={name: "x"})
    assert "headers" in refused(headers=[(name, "x")])


# -- several at once, and what is not touched -----------------------------------------


def test_all_bad_fields_are_told_at_once():
    """Who sends a message with five mistakes hears of five, by name."""
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
    """The text alone, as it appears in a log, is enough to find the mistakes."""
    with pytest.raises(MessageInvalidError, match=r"topic: .*; key: must not be empty"):
        accepted(topic="a b", key="")


def test_size_is_judged_when_the_rest_is_right():
    """A payload that is too large is told only for a message that is else right."""
    assert {"key"} == set(refused(payload=b"x" * 200, key=b""))


@pytest.mark.parametrize(
    "label",
    [None, 0, "text", {"a": [1]}, object(), lambda: None],
    ids=lambda label: type(label).__name__,
)
def test_label_is_anything_and_stays_the_same_object(label):
    """A label is the caller's business."""
    assert accepted(label=label).label is label
    assert accepted(label=label, payload="text").label is label


def test_callers_objects_are_never_changed():
    """Checking leaves message, headers and lists in them as they were."""
    values = ["1", b"2"]
    headers = {"a": values}
    message = Message("t", "text", key="k", headers=headers, timestamp=5)

    wire = checked(message, LIMIT)
    wire.headers.append(("b", b"3"))

    assert Message("t", "text", key="k", headers=headers, timestamp=5) == message
    assert headers == {"a": ["1", b"2"]}
    assert values == ["1", b"2"]


def test_headers_changed_after_the_call_are_not_sent():
    """The wire form is a copy: the caller may go on with its list."""
    pairs = [("a", b"1")]
    wire = accepted(headers=pairs)
    pairs.append(("b", b"2"))

    assert wire.headers == [("a", b"1")]


# -- items of batches -----------------------------------------------------------------


def test_message_in_a_batch_is_taken_as_it_is():
    """A `Message` needs no conversion."""
    message = Message("t", b"x")

    assert as_message(message) is message


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, lambda m: MappingProxyType(dict(m))]
)
def test_mapping_in_a_batch_becomes_a_message(kind):
    """Any mapping of a message's fields will do."""
    item = kind({"topic": "t", "payload": None, "label": 5})

    assert as_message(item) == Message("t", None, label=5)


def test_mapping_with_an_unknown_field_gets_a_hint():
    """A field that doesn't exist is refused, with the name that was likely meant."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topic": "t", "payload": b"", "partion": 1})

    assert (raised.value.errors) == {
        "partion": "no such field; did you mean 'partition'?"
    }


def test_unknown_field_like_no_other_gets_no_hint():
    """Where no name is near, none is suggested."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topic": "t", "payload": b"", "zzzzzz": 1})

    assert raised.value.errors == {"zzzzzz": "no such field"}


def test_mapping_without_topic_or_payload_is_refused():
    """A payload must be there, if only as None: no tombstone is sent by mistake."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({})

    assert raised.value.errors == {
        "topic": "this field is required",
        "payload": "this field is required",
    }


def test_mapping_tells_unknown_and_missing_fields_together():
    """All problems of an item are told at once."""
    with pytest.raises(MessageInvalidError) as raised:
        as_message({"topik": "t", 7: 1})

    assert {"topik", "7", "topic", "payload"} == set(raised.value.errors)


@pytest.mark.parametrize("item", [None, 1, "t", b"t", ("t", b"x"), ["t"], object()])
def test_batch_item_of_another_type_is_refused(item):
    """A plain tuple might have its fields in any order, so it is no message."""
    with pytest.raises(MessageInvalidError, match="needs a Message or a mapping"):
        as_message(item)


def test_mapping_is_not_changed():
    """The caller's mapping is read, no more."""
    item = {"topic": "t", "payload": "x", "headers": {"a": ["1"]}}

    checked(as_message(item), LIMIT)

    assert item == {"topic": "t", "payload": "x", "headers": {"a": ["1"]}}


# -- how a message looks --------------------------------------------------------------


def test_repr_tells_where_it_goes_and_not_what_it_says():
    """Payload, key and headers stay out of logs."""
    message = Message("orders", b"PAYLOAD", key="KEY", headers={"h": "HEADER"})

    assert repr(message) == "<Message topic='orders' payload=7 long>"


def test_repr_of_a_tombstone():
    """A tombstone is shown as one."""
    assert "payload=None" in repr(Message("orders", None))


def test_repr_of_a_message_that_breaks_the_rules():
    """A repr never raises: it is what one looks at to find the mistake."""
    assert "orders" in repr(Message("orders", 5))


def test_message_is_immutable():
    """A message that is on its way can't change."""
    with pytest.raises(AttributeError):
        Message("t", b"x").topic = "u"


# -- any message ----------------------------------------------------------------------

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


def on_the_wire(value):
    """What a value means: text is its UTF-8."""
    return value.encode() if isinstance(value, str) else value


def pairs_of(headers):
    """What headers mean: names with values, one by one, in order."""
    if headers is None:
        return []
    items = headers.items() if isinstance(headers, Mapping) else headers
    return [
        (name, on_the_wire(one))
        for name, value in items
        for one in (value if isinstance(value, list) else [value])
    ]


@given(good_messages)
def test_accepted_message_keeps_its_meaning(message):
    """Whatever is accepted goes out with the same meaning."""
    wire = checked(message, ROOMY)

    assert wire.topic == message.topic
    assert wire.payload == on_the_wire(message.payload)
    assert wire.key == on_the_wire(message.key)
    assert wire.partition_key == on_the_wire(message.partition_key)
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
def test_wire_form_is_accepted_as_it_is(message):
    """A message in wire form, sent again, is the same message.

    Unless its time was given as a datetime, and is one that no int may name.
    """
    wire = checked(message, ROOMY)

    if isinstance(message.timestamp, datetime) and wire.timestamp >= 10**8:
        # The number alone could be one of seconds or microseconds.
        assume(10**11 <= wire.timestamp < 10**14)
    assert checked(wire, ROOMY) == wire


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
    """Whatever is given as a message, only MessageInvalidError is raised.

    Each name in it is one of the message's fields.
    """
    try:
        wire = checked(message, LIMIT)
    except MessageInvalidError as error:
        assert error.errors.keys() <= set(Message._fields)  # noqa: PT017
    else:
        assert checked(wire, LIMIT) == wire


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(Message._fields) | st.text() | st.integers(), junk)
)
@example({10**5_000: 1})
def test_any_mapping_is_a_message_or_refused(item):
    """A batch's item becomes a message or is refused; no TypeError gets out."""
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
    """What is wrong is told without the payload, key or header value it is about."""
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
def test_a_batch_is_plain_when_each_of_its_messages_stays_as_it_is(batch):
    """The short way for batches lets through what the one for messages does."""
    for topic in ("events", "other"):
        checked(Message(topic, b""), SMALL)

    if all_validated(batch, SMALL):
        assert all(checked(message, SMALL) is message for message in batch)


def test_a_common_batch_is_plain():
    """Bytes to topics that passed before take the short way, with keys or without."""
    batch = [Message("events", b"x"), Message("events", b"", b"ke", label=[])]
    checked(batch[0], SMALL)

    assert all_validated(batch, SMALL)
    assert not all_validated([*batch, Message("events", "text")], SMALL)
    assert not all_validated([*batch, Message("events", b"xx", b"ke")], SMALL)
    assert not all_validated([], SMALL)
