"""A distinct secret in every secret setting appears in nothing that comes out."""

from __future__ import annotations

import time

import pytest

from greendrop import GreendropError, OAuthToken, Producer, ProducerPool
from greendrop.events import EVENTS
from greendrop.listeners.log import LogListener
from tests.cli import commands
from tests.config.test_redaction import KEYS, secret
from tests.security.output import check
from tests.tasks import sleep

#: A login that librdkafka accepts, with a secret in each key that one may have.
SASL = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanisms": "PLAIN",
    "sasl.username": secret("sasl.username"),
    "sasl.password": secret("sasl.password"),
}
DEAD = {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 300}


def listening(out, kafka, **settings):
    """Make a producer with listeners for every event."""
    producer = Producer()
    out.listen_to(producer.monitor, EVENTS)
    producer.monitor.subscribe(LogListener(log_messages=True))
    producer.setup({"statistics.interval.ms": 100, "debug": "all", **kafka}, **settings)
    return producer


def test_secrets_are_distinct():
    """A secret that is found names its setting."""
    assert len({secret(key) for key in KEYS}) == len(KEYS)


@pytest.mark.slow
def test_an_unusable_login_reveals_no_secret(hub, out):
    """Failing messages, variants, scopes, pools and statistics reveal no secret."""
    pool = ProducerPool(lambda: listening(out, DEAD | SASL), size=1)

    with pool, pool.producer() as producer:
        out.collect(pool)
        out.collect(producer)
        for attempt in (
            lambda: producer.produce_sync(topic="t", payload=b"x"),
            lambda: producer.produce_many_sync([{"topic": "t", "payload": b"x"}]),
            lambda: producer.variant(topic_config={"acks": "S3cr3t-acks"}),
            lambda: producer.variant(topic_config=SASL),
            lambda: producer.setup(DEAD | SASL),
            lambda: producer.partition_count("t"),
            producer.transaction,
        ):
            try:
                out.collect(attempt())
            except GreendropError as error:
                out.collect(error)
        with producer.scope(0.1) as scope:
            out.collect(scope)
        sleep(0.3)
        out.collect(producer.variant(max_wait_timeout=1.0))

    check(out, SASL["sasl.username"], SASL["sasl.password"])


@pytest.mark.slow
def test_statistics_of_librdkafka_reveal_no_secret(hub, out, mock_cluster):
    """Statistics of a connected client that has secrets reveal none of them."""
    secrets = {
        key: secret(key)
        for key in ("sasl.password", "ssl.key.password", "sasl.username")
    }
    kafka = {
        "bootstrap.servers": mock_cluster.bootstrap_servers,
        "security.protocol": "plaintext",
    }
    with listening(out, kafka | secrets) as producer:
        emitted = []
        producer.monitor.subscribe("statistics.emitted", emitted.append)
        producer.produce_sync(topic="t", payload=b"x")
        sleep(0.5)

    assert emitted
    check(out, *secrets.values())


OAUTH = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanisms": "OAUTHBEARER"}


BAD_TOKENS = {
    "text": lambda: "S3cr3tToken",
    "line end": lambda: OAuthToken("S3cr3tToken\n", time.time() + 60),
    "expired": lambda: OAuthToken("S3cr3tToken", time.time() - 60),
    "milliseconds": lambda: OAuthToken("S3cr3tToken", time.time() * 1000),
    "extension": lambda: OAuthToken(
        "S3cr3tToken", 1e10, "me", {"key": "S3cr3tToken\0"}
    ),
    "good": lambda: OAuthToken("S3cr3tToken", time.time() + 60),
}


@pytest.mark.slow
@pytest.mark.parametrize("token", BAD_TOKENS)
def test_tokens_are_not_revealed(hub, out, token):
    """Neither a token that is refused nor one that is used is revealed."""
    producer = listening(
        out, DEAD | OAUTH, oauth_token_provider=BAD_TOKENS[token], max_wait_timeout=1.0
    )
    try:
        producer.produce_sync(topic="t", payload=b"x")
    except GreendropError as error:
        out.collect(error)
    producer.close(force=True)

    check(out, "S3cr3tToken")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "json"])
def test_doctor_reveals_no_secret(form):
    """Doctor shows settings and errors of a login, and none of its secrets."""
    options = [f"-X{key}={value}" for key, value in {**SASL, **DEAD}.items()]
    more = ["--json"] if form == "json" else []

    done = commands.run("doctor", "--timeout", "1", *more, *options)

    assert done.status
    for key in ("sasl.username", "sasl.password"):
        assert SASL[key] not in done.stdout + done.stderr


@pytest.mark.slow
def test_commands_reveal_no_secret_of_a_bad_configuration():
    """A command that refuses its configuration does not quote secrets."""
    options = [f"-X{key}={secret(key)}" for key in KEYS]

    done = commands.run("produce", "-b", "127.0.0.1:1", *options, "-t", "topic")

    assert done.status == 2
    assert "sasl" in done.stderr
    assert "S3cr3t" not in done.stdout + done.stderr


def test_errors_keep_the_frames_of_the_program():
    """An error of a configuration shows where the program has made it."""
    with pytest.raises(GreendropError) as raised:
        Producer(kafka={"bootstrap.servers": "127.0.0.1:1", "acks": "some"})

    names = [entry.name for entry in raised.traceback]
    assert names[0] == "test_errors_keep_the_frames_of_the_program"
    assert "build_settings" not in names


def test_a_secret_stays_secret_while_another_error_is_handled(out):
    """An error raised in an `except` block drags no frames along."""
    kafka = {**DEAD, "sasl.password": secret("sasl.password"), "acks": "some"}
    try:
        int("of the program")
    except ValueError:
        with pytest.raises(GreendropError) as raised:
            Producer(kafka=kafka)

    out.collect(raised.value)
    check(out, secret("sasl.password"))
