"""Logging in to Apache Kafka by SASL/OAUTHBEARER."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import gevent
import pytest

from greendrop import DeliveryError, OAuthToken, OAuthTokenError, Producer
from tests.interpreter import ROOT
from tests.servers.tokens import TokenServer
from tests.tasks import await_true

#: Seconds for which the hub may be held.
LONGEST_GAP = 0.05


@pytest.fixture
def secure(kafka_secure):
    """Give the listeners that want a login."""
    return kafka_secure.secure_listeners


@pytest.fixture
def topic(kafka_secure, topic):
    """Create the test's topic."""
    kafka_secure.create_topic(topic)
    return topic


@pytest.fixture
def values(kafka_secure, topic, read_topic):
    """Read what is in the test's topic."""

    def read():
        records = read_topic(kafka_secure.bootstrap_servers, topic)
        return [record.value for record in records]

    return read


@pytest.fixture
def login(secure):
    """Configure a login by token, and reconnecting soon."""
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "OAUTHBEARER",
        "reconnect.backoff.max.ms": 500,
        "log_level": 0,
    }


@pytest.fixture
def provider(secure):
    """Give tokens, and note in which threads that was."""
    return Provider(secure)


class Provider:
    """A provider of tokens that counts, and blocks the thread that it is called in."""

    def __init__(self, secure, lifetime=3600.0, delay=0.0):
        self.secure = secure
        self.lifetime = lifetime
        self.delay = delay
        self.threads = []
        self.error = None

    def __call__(self):
        """Give a token."""
        self.threads.append(threading.get_ident())
        threading.Event().wait(self.delay)
        if self.error is not None:
            raise self.error
        return OAuthToken(*self.secure.oauth_token(lifetime=self.lifetime))

    @property
    def calls(self):
        """How often it was called."""
        return len(self.threads)


def test_a_provider_logs_in(world, login, provider, topic, values):
    """Kafka takes the token; the provider ran once, and not in our thread."""
    with Producer(login, oauth_token_provider=provider) as producer:
        producer.produce_sync(topic=topic, payload=b"x")
        producer.produce_sync(topic=topic, payload=b"y")

    assert values() == [b"x", b"y"]
    assert provider.calls == 1
    assert threading.get_ident() not in provider.threads


def test_a_listener_logs_in(world, login, provider, topic, values):
    """A listener of the event gives the token by its bearer, before the first message.

    Acceptance check 33.
    """
    told = []
    with Producer(login, id="p") as producer:

        @producer.monitor.subscribe("oauthbearer.token_refresh")
        def give(event):
            told.append(event["producer_id"])
            event["bearer"].set_token(provider())

        report = producer.produce_sync(topic=topic, payload=b"x")

    assert report.offset == 0
    assert (told, provider.calls) == (["p"], 1)
    assert values() == [b"x"]


def test_one_token_serves_all_clients(login, provider, topic):
    """Variants and reconnects ask nobody while the token holds.

    WaterDrop subscribes the configured listener anew for each connection.
    """
    with Producer(login, oauth_token_provider=provider) as producer:
        variant = producer.variant(topic_config={"acks": 1})
        for _ in range(3):
            producer.produce_sync(topic=topic, payload=b"x")
            variant.produce_sync(topic=topic, payload=b"x")
            assert producer.disconnect()

    assert provider.calls == 1


def test_a_slow_provider_holds_nobody_up(login, provider, topic, longest_gap):
    """While it blocks, other greenlets run; all who send wait for the same token."""
    provider.delay = 0.5
    with (
        longest_gap() as gap,
        Producer(login, oauth_token_provider=provider) as producer,
    ):
        senders = [
            gevent.spawn(producer.produce_sync, topic=topic, payload=b"x")
            for _ in range(20)
        ]
        reports = [sender.get(timeout=30) for sender in senders]

    assert sorted(report.offset for report in reports) == list(range(20))
    assert provider.calls == 1
    assert gap.seconds < LONGEST_GAP


def test_a_failing_provider_is_told_and_tried_again(world, login, provider, topic):
    """Who sends gets its error, and nothing is queued; later the message is sent."""
    provider.error = ValueError("no tokens today")
    with Producer(login, oauth_token_provider=provider) as producer:
        with pytest.raises(OAuthTokenError) as caught:
            producer.produce_sync(topic=topic, payload=b"x")
        assert caught.value.__cause__ is provider.error
        assert producer.queue_size == 0

        provider.error = None
        deadline = time.monotonic() + 10
        while True:
            try:
                report = producer.produce_sync(topic=topic, payload=b"x")
                break
            except OAuthTokenError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    assert report.offset == 0
    assert provider.calls == 2


@pytest.mark.slow
def test_tokens_are_refreshed_once_each(hub, login, provider, topic):
    """New tokens come in time, by themselves; Kafka takes them on open connections.

    It wants one after nine tenths of the time of the last, or ends the connection.
    """
    provider.lifetime = 10.0
    errors = []
    with Producer(login, oauth_token_provider=provider) as producer:
        producer.monitor.subscribe(
            "error.occurred", lambda event: errors.append(event["error"])
        )
        offsets = [producer.produce_sync(topic=topic, payload=b"x").offset]
        # Nothing is sent meanwhile: an idle producer gets its tokens as well.
        await_true(lambda: provider.calls >= 3, timeout=60)
        offsets.append(producer.produce_sync(topic=topic, payload=b"x").offset)
        calls = provider.calls

    assert offsets == [0, 1]
    assert calls == 3
    assert errors == []


@pytest.mark.slow
def test_a_broker_that_comes_back_is_given_the_token_again(
    kafka_secure, login, provider, topic
):
    """A killed broker costs no message, and no second token."""
    (node,) = kafka_secure.nodes
    with Producer(login, oauth_token_provider=provider) as producer:
        producer.produce_sync(topic=topic, payload=b"x")
        node.kill()
        handle = producer.produce_async(topic=topic, payload=b"y")
        node.start()

        assert handle.wait(60).offset == 1

    assert provider.calls == 1


def test_a_refused_token_is_told_without_showing_it(login, topic):
    """A token that Kafka does not believe is named as the reason, and not shown."""
    secret = "aaaa.bbbb.cccc"
    errors = []
    kafka = {**login, "message.timeout.ms": 1500, "debug": "security"}
    with Producer(
        kafka, oauth_token_provider=lambda: OAuthToken(secret, time.time() + 60)
    ) as producer:
        producer.monitor.subscribe(
            "error.occurred", lambda event: errors.append(repr(event["error"]))
        )
        with pytest.raises(DeliveryError, match="last broker error") as caught:
            producer.produce_sync(topic=topic, payload=b"x")
        shown = [str(caught.value), repr(producer), repr(producer._core.settings)]

    assert "invalid_token" in str(caught.value)
    assert errors
    assert not [text for text in (*shown, *errors) if secret in text]


@pytest.mark.parametrize("mode", ["none", "unpatched", "patched", "late"])
@pytest.mark.slow
@pytest.mark.patched
def test_a_provider_may_use_http(mode, secure, login, topic, run_script):
    """What it asks by HTTP, patched or not, holds up no other task of the program."""
    program = """
    import json, time, urllib.request
    from greendrop import OAuthToken, Producer
    from tests.tasks import LongestGap, Task, sleep

    def provider():
        with urllib.request.urlopen(url, data=b"") as answer:
            told = json.load(answer)
        return OAuthToken(told["access_token"], time.time() + told["expires_in"])

    producer = Producer(login, oauth_token_provider=provider)
    sleep(0)
    with LongestGap() as gap:
        # In a program without gevent tasks are threads, which run meanwhile anyway.
        Task(lambda: producer.produce_sync(topic=topic, payload=b"x")).join()
    producer.close()
    print(gap.seconds, gap.ticks)
    """
    with TokenServer(secure.oauth_token, delay=0.5) as server:
        names = {"url": server.url, "login": login, "topic": topic}
        ended = run_script(program, mode, **names)

        assert server.issued == 1
    gap, ticks = map(float, ended.stdout.split())
    assert gap < 0.3
    assert ticks > 20


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_what_is_buffered_is_sent_at_exit(
    mode, secure, login, topic, *, values, run_script
):
    """A program that ends before anything was connected still logs in, and sends."""
    program = """
    from greendrop import OAuthToken, Producer

    producer = Producer(login, oauth_token_provider=lambda: OAuthToken(*token))
    producer.buffer_many({"topic": topic, "payload": b"x"} for _ in range(10))
    """

    run_script(program, mode, login=login, topic=topic, token=secure.oauth_token())

    assert values() == [b"x"] * 10


@pytest.mark.slow
@pytest.mark.patched
def test_the_example_logs_in(secure):
    """It sends to the listener that it is told of, with the tokens that it gets."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "oauth.py"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "GREENDROP_OAUTH_SERVERS": secure.sasl_bootstrap_servers},
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "have sent 10 messages" in done.stdout


def test_librdkafkas_own_oidc_needs_no_provider(secure, login, topic, longest_gap):
    """With its method oidc librdkafka gets the tokens, and nobody here is asked."""
    with TokenServer(secure.oauth_token, delay=0.3) as server:
        kafka = {
            **login,
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "shop",
            "sasl.oauthbearer.client.secret": "hunter2",
            "sasl.oauthbearer.token.endpoint.url": server.url,
        }
        with longest_gap() as gap, Producer(kafka) as producer:
            report = producer.produce_sync(topic=topic, payload=b"x")

        assert server.issued == 1
    assert report.offset == 0
    assert gap.seconds < LONGEST_GAP


def test_librdkafkas_unsecured_tokens_need_no_provider(login, topic):
    """With its own tokens for development likewise."""
    kafka = {
        **login,
        "enable.sasl.oauthbearer.unsecure.jwt": True,
        "sasl.oauthbearer.config": "principal=greendrop",
    }

    with Producer(kafka) as producer:
        assert producer.produce_sync(topic=topic, payload=b"x").offset == 0
