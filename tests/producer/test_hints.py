"""Hints for programs that call a producer like another Kafka client's."""

import inspect

import pytest

from greendrop import Message, Producer

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
GOOD = {"topic": "t", "payload": b"x"}
ONE = ("produce_sync", "produce_async", "buffer")


@pytest.fixture
def producer():
    """Make a producer that never connects."""
    with Producer(NOWHERE) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("produce", "produce_async(topic=..., payload=...)"),
        ("send", "produce_sync(topic=..., payload=...)"),
        ("poll", "not needed"),
        ("list_topics", "partition_count(topic)"),
        ("begin_transaction", "with producer.transaction()"),
        ("send_offsets_to_transaction", "mark_as_consumed"),
    ],
)
def test_methods_of_other_clients_name_ours(producer, name, ours):
    """The AttributeError names the method to use instead; `hasattr` is false."""
    with pytest.raises(AttributeError) as raised:
        getattr(producer, name)

    assert str(raised.value).startswith(f"'Producer' object has no attribute '{name}';")
    assert ours in str(raised.value)
    assert not hasattr(producer, name)


def test_other_missing_attributes_have_pythons_text(producer):
    """Without a hint the text is Python's, which may suggest a name."""
    with pytest.raises(AttributeError) as raised:
        producer.produce_snyc(**GOOD)

    text = "'Producer' object has no attribute 'produce_snyc'"
    assert str(raised.value) == text
    assert (raised.value.name, raised.value.obj) == ("produce_snyc", producer)


@pytest.mark.parametrize("verb", ONE)
@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ({"topic": "t", "value": b"x"}, "'value' is no argument; use payload="),
        ({**GOOD, "on_delivery": print}, "the handle that produce_async returns"),
        ({**GOOD, "callback": print}, "add_done_callback"),
        ({**GOOD, "timestamp_ms": 5}, "use timestamp="),
        ({**GOOD, "lable": 5}, "did you mean 'label'?"),
        ({**GOOD, "xyz": 5}, "there are topic, payload, key"),
        ({"topic": "t"}, "missing 'payload'"),
        ({}, "missing 'topic', 'payload'"),
    ],
)
def test_arguments_of_other_clients_name_ours(producer, verb, arguments, ours):
    """A wrong keyword raises a TypeError that names ours; nothing is sent."""
    with pytest.raises(TypeError) as raised:
        getattr(producer, verb)(**arguments)

    assert str(raised.value).startswith(f"Producer.{verb}(): ")
    assert ours in str(raised.value)
    assert producer.status == "configured"


@pytest.mark.parametrize("verb", ONE)
@pytest.mark.parametrize(
    ("argument", "ours"),
    [
        (Message("t", b"x"), "(**message._asdict())"),
        ({"topic": "t", "payload": b"x"}, "(**message)"),
        ([Message("t", b"x")], "_many"),
        ("t", "all arguments are keywords: {verb}(topic=..., payload=...)"),
    ],
)
def test_positional_arguments_are_explained(producer, verb, argument, ours):
    """The error for positional arguments says how to call the verb."""
    with pytest.raises(TypeError) as raised:
        getattr(producer, verb)(argument)
    with pytest.raises(TypeError):
        getattr(producer, verb)(argument, **GOOD)

    assert ours.format(verb=verb) in str(raised.value)


@pytest.mark.parametrize("verb", ["tombstone_sync", "tombstone_async"])
def test_tombstones_are_explained(producer, verb):
    """Tombstone verbs have hints too."""
    with pytest.raises(TypeError, match="missing 'key', 'partition'"):
        getattr(producer, verb)(topic="t")
    with pytest.raises(TypeError, match="add_done_callback"):
        getattr(producer, verb)(topic="t", key="k", partition=0, on_delivery=print)
    with pytest.raises(TypeError, match=r"keywords: \w+\(topic=\.\.\., key="):
        getattr(producer, verb)("t", "k", 0)


@pytest.mark.parametrize("verb", ONE)
def test_signatures_show_the_fields_of_messages(verb):
    """Editors and documentation see the fields, without the catch-all parameters."""
    parameters = inspect.signature(getattr(Producer, verb)).parameters

    assert list(parameters) == ["self", *Message._fields]
    assert parameters["payload"].default is inspect.Parameter.empty
    assert all(
        each.kind is each.KEYWORD_ONLY
        for name, each in parameters.items()
        if name != "self"
    )
