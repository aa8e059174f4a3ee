"""`greendrop.contrib.django`, in a minimal project with an in-memory database."""

from __future__ import annotations

import threading

import django
import pytest
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test.utils import override_settings

if not settings.configured:
    settings.configure(
        INSTALLED_APPS=["greendrop.contrib.django"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
        GREENDROP={},
        USE_TZ=True,
    )
    django.setup()

from greendrop import MessageInvalidError, ProduceManyError
from greendrop.contrib.django import (
    AliasSettings,
    _producers,
    close_producers,
    get_producer,
    produce_on_commit,
)


def test_type_checkers_know_every_key_of_an_alias():
    """`AliasSettings` has the keys that an alias may have; `KAFKA` is required."""
    assert tuple(AliasSettings.__annotations__) == _producers._KEYS
    assert AliasSettings.__required_keys__ == {"KAFKA"}


@pytest.fixture
def aliases(mock_cluster):
    """Configure two aliases on the mock cluster, and close them after the test."""
    kafka = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    both = {
        "default": {"KAFKA": kafka, "OPTIONS": {"id": "shop"}},
        "audit": {"KAFKA": kafka, "PREPARE": "tests.contrib.test_django.prepare"},
    }
    with override_settings(GREENDROP=both):
        yield both


@pytest.fixture
def database():
    """Keep the database connection open during the test."""
    yield connection
    connection.close()


prepared = []


def prepare(producer):
    """Prepare a new producer as a project does."""
    prepared.append(producer)


def raising(_):
    """Prepare a producer, with a mistake."""
    raise ZeroDivisionError("no such")


def problems():
    """Run the system checks, and return greendrop's texts by their ids."""
    return [
        (each.id, each.msg)
        for each in checks.run_checks()
        if str(each.id).startswith("greendrop")
    ]


# producers ---------------------------------------------------------------------------


def test_an_alias_has_one_producer(aliases):
    """All threads of a process get the same one, and it opens nothing."""
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(get_producer())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {id(get_producer())} == set(map(id, found))
    assert (get_producer().id, get_producer().status) == ("shop", "configured")
    assert get_producer("audit") is not get_producer()


def test_a_project_prepares_its_producers(aliases):
    """PREPARE names a function that subscribes listeners or adds middleware."""
    prepared.clear()

    assert prepared == [get_producer("audit")] == [get_producer("audit")]


def test_all_producers_are_closed_together(aliases, stored):
    """Messages in flight are delivered; later callers get a new producer."""
    old = get_producer()
    old.produce_async(topic="events", payload=b"x")

    close_producers()

    assert (old.status, stored("events")) == ("closed", 1)
    assert get_producer() is not old


def test_all_are_closed_even_if_one_loses_messages(aliases):
    """The loss is raised after the last producer was closed."""
    lost = {"KAFKA": {"bootstrap.servers": "127.0.0.1:1"}}
    with override_settings(GREENDROP={"default": lost, "audit": aliases["audit"]}):
        unreachable, audit = get_producer(), get_producer("audit")
        unreachable.produce_async(topic="events", payload=b"x")
        audit.produce_sync(topic="events", payload=b"x")

        with pytest.raises(Exception, match="1 message was not delivered"):
            close_producers(0.1)

    assert (unreachable.status, audit.status) == ("closed", "closed")


def test_changed_settings_give_new_producers(aliases):
    """A test that overrides settings gets producers with those settings."""
    before = get_producer()
    kafka = aliases["default"]["KAFKA"]

    with override_settings(GREENDROP={"default": {"KAFKA": kafka}}):
        within = get_producer()

    assert get_producer() not in (before, within)
    assert get_producer().id == "shop"


# checks ------------------------------------------------------------------------------


def test_the_system_check_accepts_valid_settings(aliases):
    """Valid settings cause no message."""
    assert problems() == []


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (None, "settings.GREENDROP['default'] needs KAFKA, a mapping with"),
        ({"OPTIONS": {}}, "settings.GREENDROP['default'] needs KAFKA, a mapping with"),
        ({"KAFKA": {}}, "settings.GREENDROP['default']: kafka: must not be empty"),
        (
            {"KAFKA": {"bootstrap.servers": "x:1"}, "OPTION": {}},
            "settings.GREENDROP['default'] has unknown keys ['OPTION']; there are",
        ),
        (
            {"KAFKA": {"bootstrap.servers": "x:1"}, "OPTIONS": {"max_wait": 1}},
            "settings.GREENDROP['default']: max_wait: no such setting",
        ),
        (
            {"KAFKA": {"bootstrap.servers": "x:1"}, "PREPARE": "nowhere.at_all"},
            "settings.GREENDROP['default'], PREPARE: No module named 'nowhere'",
        ),
    ],
)
def test_the_system_check_names_each_mistake(one, text):
    """A caller that wants the producer in spite of the check gets the same text."""
    with override_settings(GREENDROP={"default": one}):
        ((number, problem),) = problems()
        with pytest.raises(ImproperlyConfigured) as raised:
            get_producer()

    assert number == "greendrop.E002"
    assert problem.startswith(text)
    assert f"{raised.value}." == problem


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"KAFKA": None}, ": KAFKA: needs a mapping, not NoneType"),
        ({"KAFKA": "x:1"}, ": KAFKA: needs a mapping, not str"),
        ({"OPTIONS": None}, ": OPTIONS: needs a mapping, not NoneType"),
        ({"OPTIONS": ["id"]}, ": OPTIONS: needs a mapping, not list"),
        (
            {"OPTIONS": {"kafka": {}}},
            ": OPTIONS.kafka: librdkafka's keys go into KAFKA",
        ),
        ({"OPTIONS": {1: 1}}, ": OPTIONS: [1] are not names of settings"),
        ({"PREPARE": None}, ", PREPARE needs a function's dotted path, not NoneType"),
        (
            {"PREPARE": prepare},
            ", PREPARE needs a function's dotted path, not function",
        ),
        ({"PREPARE": "prepare"}, ", PREPARE: prepare doesn't look like a module path"),
        ({"PREPARE": "django.VERSION"}, ", PREPARE: 'django.VERSION' is not callable"),
        (
            {"PREPARE": "tests.contrib.test_django.raising"},
            ", PREPARE raised ZeroDivisionError: no such",
        ),
    ],
)
def test_the_system_check_survives_what_it_checks(wrong, text):
    """Values of any type, and errors of the project's own function, are reported."""
    one = {"KAFKA": {"bootstrap.servers": "x:1"}, **wrong}
    with override_settings(GREENDROP={"default": one}):
        assert problems() == [
            ("greendrop.E002", f"settings.GREENDROP['default']{text}.")
        ]
        with pytest.raises(ImproperlyConfigured):
            get_producer()


def test_the_system_check_misses_settings_and_default(aliases):
    """A missing mapping is an error; a missing default alias is a warning."""
    with override_settings(GREENDROP=None):
        assert [number for number, _ in problems()] == ["greendrop.E001"]
        with pytest.raises(ImproperlyConfigured, match="needs a mapping of aliases"):
            get_producer()
    with override_settings(GREENDROP={"audit": aliases["audit"]}):
        assert [number for number, _ in problems()] == ["greendrop.W001"]
        with pytest.raises(ImproperlyConfigured, match=r"no 'default'; .* 'audit'"):
            get_producer()


# transactions ------------------------------------------------------------------------


def test_a_commit_sends(aliases, database, stored):
    """Messages of a transaction are sent after it, in order, and not before."""
    with get_producer().scope(), transaction.atomic():
        produce_on_commit(topic="events", payload="first")
        produce_on_commit(topic="events", payload="second")
        assert get_producer().status == "configured"

    assert stored("events") == 2


def test_a_rollback_sends_nothing(aliases, database, stored):
    """A savepoint that is rolled back sends nothing either."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        give_up_after_sending("lost")
    with get_producer().scope(), transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            give_up_after_sending("lost")
        produce_on_commit(topic="events", payload="that alone")

    assert stored("events") == 1


def give_up_after_sending(payload):
    """Send a message, then roll the transaction back."""
    produce_on_commit(topic="events", payload=payload)
    raise ZeroDivisionError


def test_a_scope_waits_for_messages_sent_by_the_commit(aliases, database, mock_cluster):
    """The scope raises the failure; the transaction is committed by then."""
    mock_cluster.create_topic("closed")
    mock_cluster.fail_topic("closed", "TOPIC_AUTHORIZATION_FAILED")

    scope = get_producer().scope()
    with pytest.raises(ProduceManyError), scope, transaction.atomic():
        produce_on_commit(topic="closed", payload="x")


def test_a_bad_message_rolls_back(aliases, database):
    """The message is refused while the transaction can still be rolled back."""
    with pytest.raises(MessageInvalidError), transaction.atomic():
        produce_on_commit(topic="not a topic", payload="x")
    with pytest.raises(MessageInvalidError), transaction.atomic():
        produce_on_commit(topic="events", paylaod="x")


def test_a_message_that_is_too_large_is_refused_before_the_commit(aliases, database):
    """The limit is that of the producer that would send the message."""
    small = {**aliases["audit"], "OPTIONS": {"max_payload_size": 46}}
    with override_settings(GREENDROP={**aliases, "small": small}), transaction.atomic():
        with pytest.raises(MessageInvalidError, match="max_payload_size=46"):
            produce_on_commit(topic="events", payload="x" * 11, alias="small")
        produce_on_commit(topic="events", payload="x" * 11)


def test_outside_of_a_transaction_messages_are_sent_at_once(aliases, database, stored):
    """Django's on_commit behaves alike. `using` chooses the alias and its producer."""
    with get_producer("audit").scope():
        produce_on_commit(topic="events", payload="x", alias="audit")

    assert stored("events") == 1
    assert get_producer().status == "configured"
