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
    """The listeners that require a login."""
    return kafka_secure.secure_listeners


@pytest.fixture
def topic(kafka_secure, topic):
    """Create the test's topic."""
    kafka_secure.create_topic(topic)
    return topic


@pytest.fixture
def values(kafka_secure, topic, read_topic):
    """Read the payloads of the test's topic."""

    def read():
        records = read_topic(kafka_secure.bootstrap_servers, topic)
        return [record.value for record in records]

    return read


@pytest.fixture
def login(secure):
    """Configure a login by token, and quick reconnects."""
    return {
        "bootstrap.servers": secure.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "OAUTHBEARER",
        "reconnect.backoff.max.ms": 500,
        "log_level": 0,
    }


@pytest.fixture
def provider(secure):
    """Return tokens, and record the calling threads."""
    return Provider(secure)


class Provider:
    """A provider of tokens that counts its calls, and blocks the calling thread."""

    def __init__(self, secure, lifetime=3600.0, delay=0.0):
        self.secure = secure
        self.lifetime = lifetime
        self.delay = delay
        self.threads = []
        self.error = None

    def __call__(self):
        """Return a token."""
        self.threads.append(threading.get_ident())
        threading.Event().wait(self.delay)
        if self.error is not None:
            raise self.error
        return OAuthToken(*self.secure.oauth_token(lifetime=self.lifetime))

    @property
    def calls(self):
        """The number of calls."""
        return len(self.threads)


def test_a_provider_logs_in(world, login, provider, topic, values):
    """Kafka accepts the token; the provider ran once, and in another thread."""
    with Producer(login, oauth_token_provider=provider) as producer:
        producer.produce_sync(topic=topic, payload=b"x")
        producer.produce_sync(topic=topic, payload=b"y")

    assert values() == [b"x", b"y"]
    assert provider.calls == 1
    assert threading.get_ident() not in provider.threads


def test_a_listener_logs_in(world, login, provider, topic, values):
    """A listener of the event sets the token of its bearer before the first message."""
    ids = []
    with Producer(login, id="p") as producer:

        @producer.monitor.subscribe("oauthbearer.token_refresh")
        def give(event):
            ids.append(event["producer_id"])
            event["bearer"].set_token(provider())

        report = producer.produce_sync(topic=topic, payload=b"x")

    assert report.offset == 0
    assert (ids, provider.calls) == (["p"], 1)
    assert values() == [b"x"]


def test_one_token_serves_all_clients(login, provider, topic):
    """Variants and reconnects reuse the token while it is valid.

    WaterDrop subscribes the configured listener again for each connection.
    """
    with Producer(login, oauth_token_provider=provider) as producer:
        variant = producer.variant(topic_config={"acks": 1})
        for _ in range(3):
            producer.produce_sync(topic=topic, payload=b"x")
            variant.produce_sync(topic=topic, payload=b"x")
            assert producer.disconnect()

    assert provider.calls == 1


def test_a_slow_provider_blocks_no_greenlet(login, provider, topic, longest_gap):
    """Other greenlets run while the provider blocks; all senders wait for one token."""
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


def test_a_failing_provider_is_reported_and_retried(world, login, provider, topic):
    """The sender gets the error, and nothing is queued; a later message is sent."""
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
    """New tokens come in time, and Kafka accepts them on open connections.

    Kafka ends a connection whose token has expired; a refresh is due after nine tenths
    of the lifetime.
    """
    provider.lifetime = 10.0
    errors = []
    with Producer(login, oauth_token_provider=provider) as producer:
        producer.monitor.subscribe(
            "error.occurred", lambda event: errors.append(event["error"])
        )
        offsets = [producer.produce_sync(topic=topic, payload=b"x").offset]
        # Nothing is sent meanwhile: an idle producer refreshes its token as well.
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


def test_a_refused_token_is_reported_without_its_value(login, topic):
    """A token that Kafka rejects is named as the reason, and not shown."""
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
    """The provider's HTTP request, patched or not, blocks no other task."""
    program = """
    import json, time, urllib.request
    from greendrop import OAuthToken, Producer
    from tests.tasks import LongestGap, Task, sleep

    def provider():
        with urllib.request.urlopen(url, data=b"") as answer:
            issued = json.load(answer)
        return OAuthToken(issued["access_token"], time.time() + issued["expires_in"])

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
def test_buffered_messages_are_sent_at_exit(
    mode, secure, login, topic, *, values, run_script
):
    """A program that exits before its first connection still logs in, and sends."""
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
    """The example sends to the configured listener, with the tokens that it gets."""
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
    """With the method oidc librdkafka fetches the tokens itself."""
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
    """Unsecured tokens for development, made by librdkafka, need no provider either."""
    kafka = {
        **login,
        "enable.sasl.oauthbearer.unsecure.jwt": True,
        "sasl.oauthbearer.config": "principal=greendrop",
    }

    with Producer(kafka) as producer:
        assert producer.produce_sync(topic=topic, payload=b"x").offset == 0
