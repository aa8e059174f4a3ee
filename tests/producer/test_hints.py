"""Hints for programs that call a producer like another Kafka client's."""

import inspect

import pytest

from greendrop import Message, MessageInvalidError, Producer

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
        ({**GOOD, "value": b"x"}, "'value' is no argument; use payload"),
        ({**GOOD, "on_delivery": print}, "the handle that produce_async returns"),
        ({**GOOD, "callback": print}, "add_done_callback"),
        ({**GOOD, "timestamp_ms": 5}, "use timestamp"),
        ({**GOOD, "lable": 5}, "did you mean 'label'?"),
        ({**GOOD, "zzzzzz": 5}, "'zzzzzz' is no argument"),
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
def test_missing_arguments_are_named(producer, verb):
    """Unless another mistake explains why they are missing."""
    call = getattr(producer, verb)
    for arguments, text in [
        ({"topic": "t"}, "missing the argument 'payload'"),
        ({"payload": b"x"}, "missing the argument 'topic'"),
        ({}, "missing the arguments 'topic' and 'payload'"),
        ({"topic": "t", "value": b"x"}, "'value' is no argument; use payload"),
    ]:
        with pytest.raises(TypeError) as raised:
            call(**arguments)
        assert str(raised.value) == f"Producer.{verb}(): {text}"
    assert producer.status == "configured"


@pytest.mark.parametrize("verb", ONE)
def test_positional_arguments_are_explained(producer, verb):
    """The error says how to pass a message, a mapping, or anything else."""
    call = getattr(producer, verb)
    for argument, text in [
        (Message("t", b"x"), f"{verb}(**message._asdict())"),
        (GOOD, f"{verb}(**message)"),
        ("t", f"{verb}(topic=..., payload=...)"),
    ]:
        with pytest.raises(TypeError) as raised:
            call(argument)
        assert (
            str(raised.value)
            == f"Producer.{verb}(): all arguments are keywords: {text}"
        )
    with pytest.raises(TypeError, match="all arguments are keywords"):
        call("t", **GOOD)


def test_keys_of_a_batch_are_explained_as_arguments(producer):
    """A mapping with another client's keys names ours."""
    batch = [{"topic": "t", "payload": b"x", "value": b"x", "lable": 1}]
    with pytest.raises(MessageInvalidError) as raised:
        producer.produce_many_async(batch)

    assert raised.value.errors == {
        "messages[0].value": "no such field; use payload",
        "messages[0].lable": "no such field; did you mean 'label'?",
    }


@pytest.mark.parametrize("verb", ["tombstone_sync", "tombstone_async"])
def test_tombstones_are_explained(producer, verb):
    """They have hints, too."""
    call = getattr(producer, verb)
    good = {"topic": "t", "key": "k", "partition": 0}
    with pytest.raises(TypeError, match="missing the arguments 'key' and 'partition'"):
        call(topic="t")
    with pytest.raises(TypeError, match=r"'payload' is no argument$"):
        call(**good, payload=b"x")
    with pytest.raises(TypeError, match="add_done_callback"):
        call(**good, on_delivery=print)
    with pytest.raises(TypeError, match="all arguments are keywords"):
        call("t", **good)


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
