"""Fragments of texts: counts, durations and the reasons of errors."""

import pytest

from greendrop import Producer, _wording
from greendrop.errors import ConfigurationInvalidError


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 messages"), (1, "1 message"), (2, "2 messages"), (1200, "1,200 messages")],
)
def test_nouns_agree_with_their_number(number, text):
    """The noun is singular for one message and plural otherwise."""
    assert _wording.count(number, "message") == text


def test_verbs_agree_with_their_number():
    """The verb is "was" for one and "were" for two."""
    assert _wording.count_were(1, "message") == "1 message was"
    assert _wording.count_were(2, "message") == "2 messages were"


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (9.99999, "10 s"),
        (10, "10 s"),
        (0.25, "0.25 s"),
        (0.0004, "0 s"),
        (1.23456, "1.235 s"),
        (12.3456, "12.3 s"),
        (179.9996, "180 s"),
        (86_400.0, "86400 s"),
    ],
)
def test_durations_are_rounded(duration, text):
    """A remainder of ten seconds is shown as ten seconds."""
    assert _wording.seconds(duration) == text


def test_reason_is_never_empty():
    """The reason for an exception without a text is its class."""
    assert _wording.reason(ValueError("why")) == "why"
    assert _wording.reason(ValueError()) == "ValueError"


def test_id_in_use_is_named_once():
    """The error of a second producer with the same id says that the id is in use."""
    producer = Producer({"bootstrap.servers": "localhost:1"}, id="same")
    with pytest.raises(ConfigurationInvalidError) as raised:
        Producer({"bootstrap.servers": "localhost:1"}, id="same")
    producer.close()

    text = "'same' is in use by another producer, which is not closed"
    assert text in raised.value.errors["id"]
