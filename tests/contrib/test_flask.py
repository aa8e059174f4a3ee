"""`greendrop.contrib.flask`, an extension in the form that Flask documents."""

from __future__ import annotations

import pytest
from flask import Flask

from greendrop import ConfigurationInvalidError, Producer
from greendrop.contrib.flask import Greendrop


@pytest.fixture
def make_app(mock_cluster):
    """Construct apps of one factory, as a program and its tests do."""
    apps = []

    def make(extension, **config):
        app = Flask("shop")
        app.config["GREENDROP_KAFKA"] = {
            "bootstrap.servers": mock_cluster.bootstrap_servers
        }
        app.config.update(config)
        extension.init_app(app)

        @app.post("/orders")
        def order():
            report = extension.producer.produce_sync(topic="orders", payload=b"x")
            return {"partition": report.partition}

        apps.append(app)
        return app

    yield make
    for app in apps:
        app.extensions["greendrop"].close()


def test_a_view_sends_with_the_apps_producer(make_app, stored):
    """The extension is created at module level, and gets its app later."""
    app = make_app(Greendrop())

    assert app.test_client().post("/orders").status_code == 200
    assert stored("orders") == 1


def test_each_app_of_a_factory_has_a_producer(make_app):
    """One extension serves several apps; the current app selects the producer."""
    greendrop = Greendrop()
    one, other = make_app(greendrop), make_app(greendrop)

    with one.app_context():
        first = greendrop.producer
    with other.app_context():
        second = greendrop.producer

    assert first is one.extensions["greendrop"]
    assert second is other.extensions["greendrop"]
    assert first is not second


def test_nothing_is_opened_before_the_first_message(make_app):
    """An app may be created before a fork, as under gunicorn's --preload."""
    app = make_app(Greendrop())

    assert app.extensions["greendrop"].status == "configured"


def test_settings_come_from_the_config(make_app):
    """The config contains keys of librdkafka and of greendrop; mistakes are named."""
    greendrop = Greendrop()
    app = make_app(greendrop, GREENDROP_SETTINGS={"id": "shop"})

    assert app.extensions["greendrop"].id == "shop"
    with pytest.raises(ConfigurationInvalidError, match=r"^max_wait_timeuot: no such"):
        make_app(greendrop, GREENDROP_SETTINGS={"max_wait_timeuot": 1})
    with pytest.raises(ConfigurationInvalidError, match=r"^kafka\.bootstrap"):
        make_app(greendrop, GREENDROP_KAFKA={"acks": "all"})


def test_settings_may_be_arguments(make_app):
    """Settings in the config of an app take precedence, name by name."""
    greendrop = Greendrop(id="shop", max_wait_timeout=3)
    app = make_app(greendrop, GREENDROP_SETTINGS={"max_wait_timeout": 4})

    producer = app.extensions["greendrop"]
    assert (producer.id, producer.max_wait_timeout) == ("shop", 4.0)
    with pytest.raises(ConfigurationInvalidError, match=r"^max_wait_timeuot: no such"):
        make_app(Greendrop(max_wait_timeuot=3))


def test_a_missing_configuration_is_an_error():
    """Without GREENDROP_KAFKA the error names the missing key."""
    with pytest.raises(ConfigurationInvalidError, match=r"^GREENDROP_KAFKA: is not in"):
        Greendrop(Flask("shop"))


@pytest.mark.parametrize("kafka", [None, "localhost:9092", ["localhost:9092"]])
@pytest.mark.parametrize("settings", [None, "id", {"kafka": {}}, {1: 1}])
def test_every_setting_that_can_be_none_is_named(make_app, kafka, settings):
    """An environment without a variable leads to such values."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        make_app(Greendrop(), GREENDROP_KAFKA=kafka, GREENDROP_SETTINGS=settings)

    theirs, ours = raised.value.errors
    assert theirs == "GREENDROP_KAFKA"
    assert ours.removesuffix(".kafka") == "GREENDROP_SETTINGS"


def test_several_instances_have_names_and_keys_of_their_own(make_app, mock_cluster):
    """An app that sends to two clusters has two extensions."""
    app = make_app(Greendrop())
    app.config["AUDIT_KAFKA"] = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    audit = Greendrop(app, name="audit")

    with app.app_context(), audit.producer as producer:
        assert producer is app.extensions["audit"]
        assert producer is not app.extensions["greendrop"]


def test_a_test_may_bring_its_own_producer(make_app, make_producer):
    """With GREENDROP_PRODUCER no other producer is constructed."""
    mine = make_producer()

    app = make_app(Greendrop(), GREENDROP_PRODUCER=mine)

    assert app.extensions["greendrop"] is mine


def test_init_app_returns_the_producer(mock_cluster):
    """Listeners and middleware are added where the app is created."""
    app = Flask("shop")
    app.config["GREENDROP_KAFKA"] = {
        "bootstrap.servers": mock_cluster.bootstrap_servers
    }

    assert isinstance(Greendrop().init_app(app), Producer)


def test_an_app_that_was_not_initialised_is_an_error():
    """The error asks for init_app, and not for a key."""
    with (
        Flask("shop").app_context(),
        pytest.raises(RuntimeError, match="call init_app"),
    ):
        _ = Greendrop().producer
