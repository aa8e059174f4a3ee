"""OAuth tokens: their fields, when the provider is called, and what stays secret.

`tests/kafka/test_oauth.py` tests logins. Here no broker listens, so messages wait.
"""

import copy
import logging
import pickle
import sys
import threading
import time
from types import SimpleNamespace

import gevent
import pytest

from greendrop import (
    ConfigurationInvalidError,
    DeliveryError,
    GreendropError,
    IllegalWaitError,
    MessageInvalidError,
    MessagesAbandonedError,
    OAuthBearer,
    OAuthToken,
    OAuthTokenError,
    ProduceManyError,
    Producer,
    ProducerClosedError,
    _concurrency,
)
from greendrop._connections.oauth import TokenRefresher
from greendrop._librdkafka import bindings
from greendrop.config.settings import build_settings
from greendrop.events import Monitor
from tests.payloads import check_payload

LOGIN = {
    "bootstrap.servers": "127.0.0.1:1",
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanisms": "OAUTHBEARER",
    "message.timeout.ms": 500,
    "log_level": 0,
}
SECRET = "aaaa.bbbb.cccc"
MESSAGE = {"topic": "events", "payload": b"x"}


class Provider:
    """A provider of tokens that records its calls.

    Args:
        lifetime: Seconds for which each token is valid.
    """

    def __init__(self, lifetime=3600.0):
        self.lifetime = lifetime
        self.threads = []
        self.error = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self):
        """Return a token."""
        self.threads.append(threading.get_ident())
        assert self.may_answer.wait(20)
        if self.error is not None:
            raise self.error
        return OAuthToken(SECRET, time.time() + self.lifetime)

    @property
    def calls(self):
        """Return the number of calls."""
        return len(self.threads)


@pytest.fixture
def provider():
    """Make a provider; after the test it no longer blocks."""
    made = Provider()
    yield made
    made.may_answer.set()


@pytest.fixture
def producer(provider):
    """Make a producer that logs in by token, and is closed after the test."""
    producer = Producer(LOGIN, id="p", oauth_token_provider=provider)
    yield producer
    producer.close(force=True)


# -- tokens ----------------------------------------------------------------------------


def test_no_repr_shows_a_token():
    """The values of a token and of its extensions are in no repr."""
    token = OAuthToken(SECRET, 1e9, "shop", {"pool": "hunter2"})
    bearer = OAuthBearer()
    bearer.set_token(token)

    shown = f"{token!r} {token} {bearer!r} {bearer}"

    assert "shop" in shown
    assert "pool" in shown
    assert SECRET not in shown
    assert "hunter2" not in shown


def test_a_token_does_not_change():
    """Later changes of the caller's mapping have no effect; copies are equal."""
    extensions = {"pool": "a"}
    token = OAuthToken(SECRET, 1e9, extensions=extensions)
    extensions["pool"] = "b"

    other = copy.copy(token)

    assert dict(other.extensions) == {"pool": "a"}
    assert (other.value, other.expires_at, other.principal) == (SECRET, 1e9, "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"value": SECRET + "\n"}, "value of a token contains spaces, line ends"),
        ({"value": ""}, "nothing at all"),
        ({"value": SECRET.encode()}, "needs to be text, not bytes"),
        ({"value": SECRET + "ä"}, "not ASCII"),
        ({"expires_at": 1_700_000_000_000}, "did you mean 1700000000.0"),
        ({"expires_at": "tomorrow"}, "seconds since 1970, not str"),
        ({"expires_at": float("inf")}, "seconds since 1970"),
        ({"expires_at": True}, "not bool"),
        ({"principal": None}, "principal of a token needs to be text"),
        ({"principal": "a\0b"}, "principal of a token needs to be text"),
        ({"extensions": {"auth": "x"}}, "extension key of a token"),
        ({"extensions": {"not-letters": "x"}}, "extension key of a token"),
        ({"extensions": {"a": SECRET + "\0"}}, "extension a of a token contains"),
        ({"extensions": {"a": 1}}, "extension a of a token needs to be text, not int"),
    ],
)
def test_invalid_tokens_are_refused(changes, text):
    """Each rule is librdkafka's or Kafka's; no error text shows the value."""
    fields = {"value": SECRET, "expires_at": 1e9, **changes}

    with pytest.raises(ValueError, match=text) as caught:
        OAuthToken(**fields)

    assert SECRET not in str(caught.value)


def test_the_first_answer_to_a_request_counts():
    """Of two listeners the first to set a token counts; other values are refused."""
    token = OAuthToken(SECRET, 1e9)
    given, failed = OAuthBearer(), OAuthBearer()
    assert not given.answered

    given.set_token(token)
    given.set_failure("too late")
    failed.set_failure("down")
    failed.set_token(token)

    assert (given.token, given.failure) == (token, None)
    assert (failed.token, failed.failure) == (None, "down")
    with pytest.raises(TypeError, match="not str") as caught:
        OAuthBearer().set_token(SECRET)
    assert SECRET not in str(caught.value)


# -- settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kafka", "text"),
    [
        ({"sasl.mechanisms": "PLAIN"}, "sasl.mechanisms is not OAUTHBEARER"),
        ({"security.protocol": "SSL"}, "security.protocol is not SASL_SSL"),
        ({"sasl.oauthbearer.method": "OIDC"}, "librdkafka gets the tokens itself"),
        (
            {"enable.sasl.oauthbearer.unsecure.jwt": True},
            "librdkafka makes the tokens",
        ),
    ],
)
def test_a_provider_without_effect_is_refused(provider, kafka, text):
    """A provider without OAUTHBEARER as mechanism would never be called."""
    with pytest.raises(ConfigurationInvalidError, match=text) as caught:
        Producer({**LOGIN, **kafka}, oauth_token_provider=provider)

    assert list(caught.value.errors) == ["oauth_token_provider"]


def test_a_provider_is_a_function():
    """A token, or any other uncallable value, is refused without being shown."""
    with pytest.raises(ConfigurationInvalidError, match="not str") as caught:
        Producer(LOGIN, oauth_token_provider=SECRET)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["sasl.mechanism", "sasl.mechanisms"])
def test_both_names_of_the_mechanism_are_accepted(provider, key):
    """The mechanism may be written in upper or lower case, as librdkafka accepts it."""
    kafka = {
        "bootstrap.servers": "host",
        "security.protocol": "sasl_ssl",
        key: "OAuthBearer",
    }

    assert build_settings(kafka, {"oauth_token_provider": provider}).uses_oauth


def test_no_repr_shows_a_provider(producer):
    """The repr of a partial would show its arguments, such as a secret."""
    shown = f"{producer!r} {producer._core.settings!r}"

    assert "oauth_token_provider='[hidden]'" in shown
    assert "Provider object" not in shown


def test_a_mock_cluster_needs_no_token(provider):
    """The mock cluster in the same client accepts connections without a login."""
    kafka = {
        **LOGIN,
        "bootstrap.servers": "",
        "test.mock.num.brokers": 1,
        "message.timeout.ms": 5000,
    }
    with Producer(kafka, oauth_token_provider=provider) as producer:
        producer.produce_sync(**MESSAGE)

    assert provider.calls == 0


def test_a_login_by_token_needs_a_source_of_tokens():
    """Without provider and listener the first message fails at once."""
    producer = Producer(LOGIN)

    with pytest.raises(ConfigurationInvalidError, match="nothing provides tokens"):
        producer.produce_sync(**MESSAGE)

    assert producer.status == "configured"


# -- sources of tokens -----------------------------------------------------------------


def test_concurrent_senders_request_one_token(world, spawn, producer, provider, until):
    """All senders of first messages wait for one token, requested in another thread."""
    provider.may_answer.clear()
    senders = [spawn(lambda: producer.produce_async(**MESSAGE)) for _ in range(10)]
    until(lambda: provider.calls)
    assert producer.queue_size == 0
    provider.may_answer.set()
    for sender in senders:
        sender.join()

    assert producer.queue_size == 10
    assert provider.calls == 1
    assert threading.get_ident() not in provider.threads


def test_a_provider_that_blocks_holds_no_hub(producer, longest_gap):
    """The provider may sleep, compute or block in C."""
    producer._core._connections.tokens._provider = lambda: (
        time.sleep(0.5),
        OAuthToken(SECRET, time.time() + 60),
    )[1]
    with longest_gap() as gap:
        producer.produce_async(**MESSAGE)

    assert gap.seconds < 0.2
    assert gap.ticks > 50


def test_a_provider_may_use_gevent(hub, producer, provider):
    """Code that waits by gevent gets a hub in the provider's thread, for its call.

    The check after each test would find the descriptors of the loop.
    """
    hubs = []

    def ask():
        gevent.sleep(0.01)
        hubs.append(gevent.get_hub())
        return provider()

    producer._core._connections.tokens._provider = ask
    producer.produce_async(**MESSAGE)

    assert hubs[0] is not hub
    assert provider.calls == 1


def test_clients_share_a_token(world, producer, provider):
    """Variants and new connections request no token while the current one is valid."""
    variant = producer.variant(topic_config={"acks": 1})
    for each in producer, variant, producer:
        with pytest.raises(DeliveryError):
            each.produce_sync(**MESSAGE)
        assert each.disconnect()

    assert provider.calls == 1


def test_without_a_provider_the_listener_is_called(world):
    """The event comes once, with the producer's id; the listener's token is used."""
    observed = []
    producer = Producer(LOGIN, id="p")

    @producer.monitor.subscribe("oauthbearer.token_refresh")
    def give(event):
        check_payload(event)
        observed.append((event["producer_id"], threading.get_ident()))
        event["bearer"].set_token(OAuthToken(SECRET, time.time() + 60))

    producer.produce_async(**MESSAGE)
    producer.produce_async(**MESSAGE)
    producer.close(force=True)

    ((producer_id, thread),) = observed
    assert producer_id == "p"
    assert thread != threading.get_ident()


def test_with_a_provider_no_listener_is_called(producer, provider):
    """A producer has one source of tokens."""
    observed = []
    producer.monitor.subscribe("oauthbearer.token_refresh", observed.append)

    producer.produce_async(**MESSAGE)

    assert (provider.calls, observed) == (1, [])


def test_librdkafka_gets_the_token(producer):
    """The token is set in librdkafka, which refuses a token that it cannot use."""
    producer.produce_async(**MESSAGE)
    native = producer._core.main.client.kafka_handle.producer
    token = OAuthToken(SECRET, time.time() + 60, "shop", {"a": "b", "c": "d"})

    assert bindings.set_oauth_token(native, token) == 0
    expired = OAuthToken(SECRET, time.time() - 60)
    assert bindings.set_oauth_token(native, expired) == -186
    assert bindings.set_oauth_token(object(), token) is None


# -- failures --------------------------------------------------------------------------


FAILURES = {
    "raises": (RuntimeError(f"no {SECRET} today"), "failed with RuntimeError"),
    "exits": (SystemExit(SECRET), "failed with SystemExit"),
    "is killed": (gevent.GreenletExit(SECRET), "failed with GreenletExit"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_raised_in_the_sender(world, producer, provider, failure):
    """No message is queued; an event comes first; no text shows the cause."""
    provider.error, text = FAILURES[failure]
    observed = []
    producer.monitor.subscribe("error.occurred", observed.append)

    with pytest.raises(OAuthTokenError, match=f"oauth_token_provider {text}") as caught:
        producer.produce_sync(**MESSAGE)

    assert caught.value.__cause__ is provider.error
    assert [event["type"] for event in observed] == [
        "oauthbearer.token_refresh",
        "message.produce_sync",
    ]
    assert {event["producer_id"] for event in observed} == {"p"}
    assert {str(event["error"]) for event in observed} == {str(caught.value)}
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(observed)
    assert (producer.queue_size, producer.status) == (0, "configured")


def test_an_error_of_a_token_pickles():
    """The error has its text and its cause after pickling."""
    error = OAuthTokenError("no OAuth token")
    error.__cause__ = ValueError("down")

    other = pickle.loads(pickle.dumps(error))

    assert str(other) == "no OAuth token"
    assert repr(other.__cause__) == "ValueError('down')"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "oauth_token_provider gave nothing"),
        (SECRET, "gave no OAuthToken, but a str"),
        ((SECRET, 1e9), "gave no OAuthToken, but a tuple"),
        (OAuthToken(SECRET, 1e9), "that of oauth_token_provider has expired, at 1e9"),
    ],
)
def test_an_invalid_token_is_a_failure(answer, text):
    """The error names the type of the bad value, and never its content."""
    text = text.replace("1e9", "1000000000.0")
    producer = Producer(LOGIN, oauth_token_provider=lambda: answer)

    with pytest.raises(OAuthTokenError, match=text) as caught:
        producer.produce_async(**MESSAGE)

    assert SECRET not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("listener", "text"),
    [
        (lambda _: None, "the listener of oauthbearer.token_refresh gave nothing"),
        (lambda event: event["bearer"].set_failure("IdP down"), "token: IdP down"),
        (lambda event: event["nothing"], "gave nothing"),
    ],
)
def test_a_listener_that_sets_no_token_is_a_failure(caplog, listener, text):
    """A listener that sets no token, reports a failure or raises causes an error.

    An exception of the listener is reported as well.
    """
    producer = Producer(LOGIN)
    observed = []
    producer.monitor.subscribe(
        "error.occurred", lambda event: observed.append(event["type"])
    )
    producer.monitor.subscribe("oauthbearer.token_refresh", listener)
    caplog.set_level(logging.CRITICAL, "greendrop")

    with pytest.raises(OAuthTokenError, match=text):
        producer.produce_async(**MESSAGE)

    raised = ["listener.error"] if text == "gave nothing" else []
    assert observed == [*raised, "oauthbearer.token_refresh", "message.produce_async"]


def test_batches_and_the_buffer_keep_their_messages(producer, provider):
    """A batch is refused as a whole; a flush puts all messages back for later."""
    provider.error = ValueError("down")
    with pytest.raises(ProduceManyError) as caught:
        producer.produce_many_sync([MESSAGE] * 3)
    assert isinstance(caught.value.__cause__, OAuthTokenError)
    producer.buffer_many([MESSAGE] * 3)
    with pytest.raises(ProduceManyError):
        producer.flush_async()
    assert len(producer.buffered) == 3

    provider.error = None
    producer._core._connections.tokens._failure = None
    assert len(producer.flush_async()) == 3


def test_an_invalid_message_requests_no_token(producer, provider):
    """A message is validated before a client is built."""
    with pytest.raises(MessageInvalidError):
        producer.produce_sync(topic="no topic!", payload=b"x")

    assert provider.calls == 0


# -- waiting ---------------------------------------------------------------------------


def test_the_hub_does_not_wait_for_a_token(hub, producer, provider):
    """A send in the hub raises and queues nothing, but a token is requested."""
    caught = []

    def send():
        try:
            producer.produce_async(**MESSAGE)
        except GreendropError as error:
            caught.append(error)

    hub.loop.run_callback(send)
    while producer._core._connections.tokens.current() is None:
        gevent.sleep(0.005)
    producer.produce_async(**MESSAGE)

    (error,) = caught
    assert isinstance(error, IllegalWaitError)
    assert "nothing was sent" in str(error)
    assert (provider.calls, producer.queue_size) == (1, 1)


def test_the_provider_does_not_wait_for_its_own_token(world, producer, provider):
    """A provider that sends by the producer that called it gets an error at once."""
    caught = []

    def ask():
        try:
            producer.produce_async(**MESSAGE)
        except GreendropError as error:
            caught.append(error)
        return provider()

    producer._core._connections.tokens._provider = ask
    producer.produce_async(**MESSAGE)

    (error,) = caught
    assert isinstance(error, IllegalWaitError)
    assert "nothing was sent" in str(error)
    assert (provider.calls, producer.queue_size) == (1, 1)


def test_a_killed_sender_does_not_cost_others_the_token(hub, producer, provider):
    """A timeout or a kill ends the wait of one sender, and of no other."""
    provider.may_answer.clear()
    killed = gevent.spawn(producer.produce_async, **MESSAGE)
    waiting = gevent.spawn(producer.produce_async, **MESSAGE)
    with gevent.Timeout(0.05, exception=False):
        producer.produce_async(**MESSAGE)
    killed.kill()
    provider.may_answer.set()
    waiting.get(timeout=10)

    assert (provider.calls, producer.queue_size) == (1, 1)


def test_close_does_not_wait_for_a_token(world, spawn, producer, provider, until):
    """Senders that wait for the token fail; the token is not used any more."""
    provider.may_answer.clear()
    caught = []

    def send():
        try:
            producer.produce_sync(**MESSAGE)
        except GreendropError as error:
            caught.append(error)

    sender = spawn(send)
    until(lambda: provider.calls)
    started = time.monotonic()
    producer.close()
    sender.join()

    assert time.monotonic() - started < 1
    assert [type(error) for error in caught] == [ProducerClosedError]
    provider.may_answer.set()
    until(lambda: not producer._core._connections.tokens._refreshes)
    assert producer.status == "closed"


def test_the_last_flush_waits_for_a_token_as_long_as_close(world, producer, provider):
    """Buffered messages need a token, and `close` has its own time limit."""
    provider.may_answer.clear()
    producer.buffer(**MESSAGE)
    started = time.monotonic()
    with pytest.raises(MessagesAbandonedError, match="no OAuth token in time"):
        producer.close(timeout=0.2)

    assert 0.15 < time.monotonic() - started < 2
    assert (producer.status, len(producer.buffered)) == ("closed", 1)


# -- refreshes -------------------------------------------------------------------------


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.seconds = 1e9

    def __call__(self):
        """Return the time."""
        return self.seconds


@pytest.fixture
def clock():
    """Make a clock."""
    return Clock()


@pytest.fixture
def given():
    """Collect the tokens that clients were given."""
    return []


@pytest.fixture
def tokens(clock, given):
    """Make a token refresher with a clock; tokens are numbered and valid for 100 s."""

    def give():
        asked.append(clock())
        if tokens.error is not None:
            raise tokens.error
        return OAuthToken(str(len(asked)), clock() + 100)

    asked = []
    settings = build_settings(LOGIN, {"oauth_token_provider": give})
    owner = SimpleNamespace(set_token=given.append)
    tokens = TokenRefresher(settings, Monitor(), owner, clock)
    tokens.error = None
    tokens.asked = asked
    return tokens


def wait(tokens):
    """Wait for a token, or for the end of the current refresh."""
    tokens.wait(_concurrency.Deadline(10))


def review(tokens, until):
    """Review the token as two clients do each second; wait for the refresh."""
    tokens.review()
    tokens.review()
    until(lambda: not tokens._refreshes)


def test_a_token_is_refreshed_in_time(tokens, clock, given, until):
    """A token is refreshed once, after four fifths of its lifetime; clients get it."""
    wait(tokens)
    for clock.seconds in (1e9 + 1, 1e9 + 79.9):
        review(tokens, until)
    assert tokens.asked == [1e9]

    clock.seconds = 1e9 + 80
    review(tokens, until)
    review(tokens, until)

    assert tokens.asked == [1e9, 1e9 + 80]
    assert [token.value for token in given] == ["1", "2"]
    assert tokens.current().value == "2"


def test_a_failed_refresh_leaves_the_token_and_is_tried_again(tokens, clock, until):
    """It is repeated after 10 s, as in librdkafka; senders are not affected."""
    wait(tokens)
    clock.seconds = 1e9 + 80
    tokens.error = ValueError("down")
    review(tokens, until)
    review(tokens, until)
    clock.seconds = 1e9 + 89.9
    review(tokens, until)
    wait(tokens)
    assert tokens.current().value == "1"
    assert tokens.asked == [1e9, 1e9 + 80]

    tokens.error = None
    clock.seconds = 1e9 + 90
    review(tokens, until)

    assert tokens.asked == [1e9, 1e9 + 80, 1e9 + 90]
    assert tokens.current().value == "3"


def test_an_expired_token_is_not_used(tokens, clock):
    """Senders that need a connection wait for a new token."""
    wait(tokens)
    clock.seconds = 1e9 + 100
    assert tokens.current() is None

    wait(tokens)

    assert tokens.current().value == "2"


def test_a_failure_is_cached_for_a_second(tokens, clock):
    """A thousand sends in a second call the provider once."""
    tokens.error = ValueError("down")
    for clock.seconds in (1e9, 1e9 + 0.5, 1e9 + 0.9, 1e9 + 1.1):
        with pytest.raises(OAuthTokenError):
            wait(tokens)

    assert tokens.asked == [1e9, 1e9 + 1.1]


def test_a_refresh_without_a_thread_is_a_failure(tokens, clock, until, monkeypatch):
    """Without a free thread polling goes on, and the refresh is repeated later."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    wait(tokens)
    with monkeypatch.context() as patch:
        patch.setattr(_concurrency.native, "start_new_thread", refuse)
        clock.seconds = 1e9 + 80
        review(tokens, until)
        clock.seconds = 1e9 + 100
        with pytest.raises(OAuthTokenError, match="RuntimeError"):
            wait(tokens)
    clock.seconds = 1e9 + 110
    review(tokens, until)

    assert tokens.current().value == "2"


def test_a_sender_that_comes_after_a_refresh_uses_its_token(tokens, clock):
    """A sender that saw no token while a refresh ended uses the refreshed token."""
    wait(tokens)

    assert tokens._begin(lambda: tokens.current() is None) is None

    assert (len(tokens.asked), tokens._refreshes) == (1, {})


@pytest.mark.slow
def test_an_idle_producer_gets_new_tokens(world, provider, until):
    """An idle producer refreshes its token without sends; a closed one does not."""
    provider.lifetime = 1.5
    producer = Producer(
        {**LOGIN, "message.timeout.ms": 60_000}, oauth_token_provider=provider
    )
    producer.produce_async(**MESSAGE)
    until(lambda: provider.calls == 3)
    producer.close(force=True)
    calls = provider.calls

    time.sleep(2.5)

    assert provider.calls == calls


# -- processes -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_a_child_forked_during_a_refresh_gets_its_own_token(mode, run_script):
    """The child calls the provider itself, whatever the parent's thread was doing."""
    program = """
    import ctypes, os, sys, time
    from greendrop import _concurrency
    from greendrop import OAuthToken, Producer
    from tests.forking import Fork, forks
    from tests.tasks import Task, await_true, sleep

    asked, answer = [], _concurrency.ThreadWaiter()

    def provider():
        asked.append(os.getpid())
        if asked[-1] == parent:
            assert answer.wait(20)
        return OAuthToken("x", time.time() + 60)

    def send():
        producer.produce_async(topic="events", payload=b"x")
        return asked.count(os.getpid()), producer.queue_size

    parent = os.getpid()
    producer = Producer(login, oauth_token_provider=provider)
    sleep(0)
    task = Task(send)
    await_true(lambda: asked)
    ways = forks()
    if "gevent" not in sys.modules:  # which reaps only children that gevent has forked
        ways["fork in C"] = ctypes.PyDLL(None).fork
    for fork in ways.values():
        assert Fork(send, fork).result() == [1, 1]
    answer.wake()
    assert task.join() == (1, 1)
    producer.close(force=True)
    """

    run_script(program, mode, login={**LOGIN, "message.timeout.ms": 60_000})


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_exit_does_not_wait_for_a_provider_that_hangs(mode, run_script):
    """The process ends within `exit_timeout`, and reports what was not sent.

    Python 3.12 starts no thread then, so it ends only when the provider returns.
    """
    program = """
    import time
    from greendrop import _concurrency
    from greendrop import OAuthToken, Producer

    producer = Producer(
        login,
        id="p",
        exit_timeout=0.5,
        oauth_token_provider=lambda: _concurrency.ThreadWaiter().wait(patience),
    )
    producer.buffer(topic="events", payload=b"x")
    print(time.monotonic())
    """

    no_threads = sys.version_info[:2] == (3, 12)
    patience = 2 if no_threads else 20
    names = {"login": LOGIN, "patience": patience}
    ended = run_script(program, mode, fails=True, **names)

    assert ended.returncode == 0
    assert time.monotonic() - float(ended.stdout) < 4
    text = "producer 'p' is closed; 1 buffered message was not delivered"
    assert text in ended.stderr
