"""Hostile input: whatever is passed in, the answer is a result or an error of ours.

Each test runs a sample of the cases; `make hostile-input` runs 100,000 of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from greendrop import (
    ConfigurationInvalidError,
    GreendropError,
    Message,
    MessageInvalidError,
    Producer,
    _concurrency,
)
from greendrop._librdkafka.check import properties
from greendrop._librdkafka.statistics import Statistics, UnreadableStatisticsError
from greendrop.cli._input import Input
from greendrop.cli._shared import UsageError, read_properties
from greendrop.config.settings import SETTINGS
from tests.tasks import await_true

CASES = int(os.environ.get("GREENDROP_CASES", "60"))
#: Seconds for all cases of a test.
LONGEST = 120 + CASES / 10

hostile = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONGEST)]

TOPICS = ("t", "events.v1", "a_B-9")
#: Characters that are special somewhere: to C, UTF-8, JSON, Kafka, terminals or logs.
special = st.text(
    st.one_of(st.characters(), st.sampled_from("\0\ud800\udfff\n\r\"'\\%{}\x1b\u202e="))
)
simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    special,
    st.binary(max_size=64),
    st.sampled_from(
        (object(), len, bytearray(b"x"), memoryview(b"x"), 2**63, -(2**70))
    ),
)
anything = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(special | st.integers(), inner, max_size=3),
    ),
    max_leaves=5,
)
text_or_bytes = st.one_of(st.text(max_size=64), st.binary(max_size=64))
good_headers = st.one_of(
    st.none(),
    st.lists(st.tuples(st.text(min_size=1, max_size=9), text_or_bytes), max_size=3),
    st.dictionaries(st.text(min_size=1, max_size=9), text_or_bytes, max_size=3),
)
# A valid name of another topic would have the brokers create that topic.
bad_topics = anything.filter(lambda topic: not isinstance(topic, str) or "\0" in topic)
messages = st.fixed_dictionaries(
    {
        "topic": st.one_of(*[st.sampled_from(TOPICS)] * 4, bad_topics),
        "payload": st.one_of(*[text_or_bytes | st.none()] * 4, anything),
    },
    optional={
        "key": st.one_of(*[text_or_bytes | st.none()] * 4, anything),
        "headers": st.one_of(*[good_headers] * 4, anything),
        "partition": st.one_of(st.integers(0, 3), anything),
        "partition_key": st.one_of(st.none(), st.none(), text_or_bytes, anything),
        "timestamp": st.one_of(
            st.none(), st.integers(1_700_000_000_000, 1_900_000_000_000), anything
        ),
        "label": anything,
    },
)


def as_bytes(value):
    """Return what a broker stores for a payload or key."""
    return value.encode() if isinstance(value, str) else value


def test_messages_arrive_as_they_are_or_raise(mock_cluster, make_producer):
    """Every message is stored with its bytes, or refused; the producer goes on."""
    for topic in TOPICS:
        mock_cluster.create_topic(topic, 4)
    producer = make_producer(max_wait_timeout=20.0)
    sent = []

    @hostile
    @given(messages)
    def send(fields):
        with contextlib.suppress(MessageInvalidError):
            sent.append((producer.produce_async(**fields), fields))

    send()
    producer.flush(60)

    places = {
        (each.topic, each.partition, each.offset): each for each in stored(mock_cluster)
    }
    assert sent
    for handle, fields in sent:
        if handle.error is not None:
            # No topic has this partition.
            assert handle.error.name == "_UNKNOWN_PARTITION"
            continue
        report = handle.wait(0)
        record = places[report.topic, report.partition, report.offset]
        assert record.payload == as_bytes(fields["payload"])
        assert record.key == (as_bytes(fields.get("key")) or record.key)
    assert len(places) == sum(handle.error is None for handle, _ in sent)


def stored(cluster):
    """Read all records of all topics."""
    return [each for topic in TOPICS for each in cluster.records(topic, timeout=60)]


def test_batches_are_sent_as_a_whole_or_not_at_all(mock_cluster, make_producer):
    """A batch with a message that is invalid is refused, and none of it is sent."""
    for topic in TOPICS:
        mock_cluster.create_topic(topic, 4)
    producer = make_producer(max_wait_timeout=20.0)
    handles = []

    @hostile
    @given(st.lists(messages | anything, max_size=4) | anything)
    @example(5)
    @example({"topic": "t", "payload": b"x"})
    @example([Message("t", b"x"), None])
    def send(batch):
        with contextlib.suppress(MessageInvalidError):
            handles.extend(producer.produce_many_async(batch))

    send()
    producer.flush(60)

    assert all(each.done for each in handles)
    delivered = [each for each in handles if each.report]
    assert len(stored(mock_cluster)) == len(delivered)


# Keys whose values librdkafka runs, loads, or writes for.
DANGEROUS = {"plugin.library.paths", "sasl.kerberos.kinit.cmd", "debug"}
keys = st.sampled_from(sorted(properties().keys() - DANGEROUS))
values = st.one_of(
    anything,
    st.sampled_from(
        ("true", "all", "1", "0", "-1", "1e6", "SASL_SSL", "gzip", "PLAIN")
    ),
)


@hostile
@given(
    kafka=st.dictionaries(keys | special, values, max_size=4) | anything,
    options=st.dictionaries(
        st.sampled_from([each.name for each in SETTINGS]), anything, max_size=2
    ),
    servers=st.sampled_from(("127.0.0.1:1", "localhost:9092")) | values,
)
def test_configurations_are_accepted_or_refused(kafka, options, servers):
    """A configuration makes a producer, or raises one error that names its mistakes."""
    if isinstance(kafka, dict):
        kafka = {"bootstrap.servers": servers, **kafka}
    with contextlib.suppress(ConfigurationInvalidError):
        producer = Producer(kafka=kafka, **options)
        assert repr(producer)
        producer.close(force=True)


parts = st.sampled_from(("ts", "tx", "brokers", "topics", "partitions", "cgrp", "0"))
json_texts = st.recursive(
    simple.filter(lambda each: isinstance(each, (str, int, float, type(None)))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(parts, inner, max_size=4)
    ),
    max_leaves=12,
).map(json.dumps)


@hostile
@given(st.lists(json_texts | st.text(max_size=40), max_size=3))
@example(["[" * 100_000])
@example(['{"brokers": {"a": 5}}', '{"ts": "x"}', '{"topics": []}', "5"])
@example(['{"ts": 1, "tx": 1e400}', '{"ts": 1, "tx": -1e400}', '{"tx": 1}'])
def test_statistics_are_read_or_refused(texts):
    """Statistics that are not as they should be raise one kind of error."""
    statistics = Statistics(("tx",), _concurrency.CooperativeLoop())
    for text in texts:
        with contextlib.suppress(UnreadableStatisticsError):
            assert isinstance(statistics.read(text), dict)


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\n", "\x01", "é"])
def test_a_client_with_a_hostile_name_sends(world, make_producer, name):
    """Statistics that its name makes unreadable are reported, and harm no message.

    librdkafka does not escape the name; the JSON error came out of `produce_sync`.
    """
    producer = make_producer({"client.id": name, "statistics.interval.ms": 20})
    emitted, errors = [], []
    producer.monitor.subscribe("statistics.emitted", emitted.append)
    producer.monitor.subscribe("error.occurred", errors.append)

    for _ in range(3):
        producer.produce_sync(topic="t", payload=b"x")
        await_true(lambda: emitted or errors)

    if not emitted:
        assert {each["type"] for each in errors} == {"librdkafka.error"}
        assert "no JSON" in str(errors[0]["error"])
    assert producer.produce_sync(topic="t", payload=b"x")


@hostile
@given(
    data=st.binary(max_size=200) | json_texts.map(str.encode),
    delimiter=st.sampled_from((b"\n", b"\0", b"ab")),
    key_delimiter=st.sampled_from((None, b":", b"\n")),
    as_json=st.booleans(),
    empty_is_null=st.booleans(),
)
@example(
    data=b"[" * 100_000,
    delimiter=b"\n",
    key_delimiter=None,
    as_json=True,
    empty_is_null=False,
)
@example(
    data=b'{"payload": 1e999, "key": NaN}',
    delimiter=b"\n",
    key_delimiter=None,
    as_json=True,
    empty_is_null=False,
)
def test_lines_become_messages_or_usage_errors(
    data, delimiter, key_delimiter, as_json, empty_is_null
):
    """Each line of `greendrop produce` is a message, or is refused with a reason."""
    reader = Input(
        delimiter=delimiter,
        key_delimiter=key_delimiter,
        empty_is_null=empty_is_null,
        as_json=as_json,
        defaults={"topic": "t", "key": None},
        limit=100,
    )
    for line in reader.lines(io.BytesIO(data), "file"):
        with contextlib.suppress(UsageError):
            assert "payload" in reader.fields(line)


def test_files_of_settings_are_read_or_refused(tmp_path):
    """A file of settings is read, or refused without its values."""
    path = tmp_path / "settings"

    @hostile
    @given(
        st.binary(max_size=200)
        | special.map(lambda text: text.encode("utf-8", "replace"))
    )
    def read(data):
        path.write_bytes(data)
        with contextlib.suppress(UsageError):
            assert all(map(isinstance, read_properties(str(path)).values(), [str]))

    read()


def test_a_variant_is_accepted_or_refused(mock_cluster, make_producer):
    """A variant with any configuration is made, or refused; it opens nothing."""
    producer = make_producer()

    @hostile
    @given(
        topic_config=st.none() | st.dictionaries(keys | special, values) | anything,
        max_wait_timeout=st.none() | anything,
    )
    def make(topic_config, max_wait_timeout):
        with contextlib.suppress(GreendropError):
            variant = producer.variant(
                topic_config=topic_config, max_wait_timeout=max_wait_timeout
            )
            assert repr(variant)

    make()
    assert producer.status == "configured"
