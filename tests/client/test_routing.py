"""The router: partition counts of topics are requested once and remembered."""

import signal
import threading
import time
from types import SimpleNamespace

import gevent
import pytest

from greendrop import BrokerError, IllegalWaitError, Message, ProducerClosedError
from greendrop._client import partition_counts as routing
from greendrop._client.partition_counts import Rerouter, RoutedHandle, Router
from greendrop._concurrency.wait_queue import WaitQueue
from greendrop._concurrency.waiters import new_waiter
from tests.interrupting import at_entry, handling, interrupt
from tests.tasks import Task, await_true, together

#: Seconds that no wait here takes when it works.
LONG = 10.0

UNKNOWN_TOPIC = BrokerError("no such topic", code=3, name="UNKNOWN_TOPIC_OR_PARTITION")
NO_LEADER = BrokerError("no leader", code=5, name="LEADER_NOT_AVAILABLE")
NO_ANSWER = BrokerError("timed out", code=-185, name="_TIMED_OUT")
FORBIDDEN = BrokerError("no", code=29, name="TOPIC_AUTHORIZATION_FAILED")
CLOSED = ProducerClosedError("closed")


class Brokers:
    """Brokers with scripted responses, at scripted times."""

    def __init__(self):
        self.answers = {}
        #: Topics and seconds of all requests, in order.
        self.requests = []
        self._answering = threading.Event()
        self._answering.set()

    def __call__(self, topic, seconds):
        """Return the next response for a topic; the last one is repeated for ever."""
        self.requests.append((topic, seconds))
        assert self._answering.wait(LONG)
        answers = self.answers[topic]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop_answering(self):
        """Let requests wait from now on."""
        self._answering.clear()

    def go_on(self):
        """Answer the waiting requests, and later ones."""
        self._answering.set()


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def brokers():
    """Make brokers with a topic of 6 partitions; after the test no request waits."""
    brokers = Brokers()
    brokers.answers["t"] = [6]
    yield brokers
    brokers.go_on()


def client(brokers, new_waiter=new_waiter):
    """Return the two parts of a client that a router uses."""
    return (
        SimpleNamespace(fetch_partition_count=brokers),
        SimpleNamespace(new_waiter=new_waiter),
    )


@pytest.fixture
def clock():
    """Make a clock that stands still."""
    return Clock()


@pytest.fixture
def router(brokers, clock):
    """Make a router that chooses the first byte of the key."""
    return Router(lambda key, count: key[0] % count, *client(brokers), clock)


@pytest.fixture
def retrying_router(brokers):
    """Make a router on the real clock, which repeats requests."""
    return Router(None, *client(brokers))


# -- one request for all ---------------------------------------------------------------


def test_partition_count_is_requested_once(router, brokers, clock):
    """One request in 30 s serves any number of messages."""
    assert [router.count("t") for _ in range(1_000)] == [6] * 1_000
    clock.now += 29.9
    assert router.count("t") == 6
    assert brokers.requests == [("t", 2.0)]


@pytest.mark.parametrize("kind", ["greenlets", "threads"])
def test_a_hundred_senders_share_one_request(router, brokers, request, kind):
    """A sender that comes during a request waits for its response."""
    brokers.stop_answering()
    if kind == "greenlets":
        request.getfixturevalue("hub")
        tasks = [gevent.spawn(router.count, "t") for _ in range(100)]
        gevent.sleep(0.05)
    else:
        counts = []
        tasks = [
            threading.Thread(target=lambda: counts.append(router.count("t")))
            for _ in range(100)
        ]
        for task in tasks:
            task.start()
        time.sleep(0.05)
    brokers.go_on()
    for task in tasks:
        task.join(LONG)

    if kind == "greenlets":
        counts = [task.value for task in tasks]
    assert counts == [6] * 100
    assert len(brokers.requests) == 1


def test_topics_are_requested_concurrently(router, brokers, hub):
    """A slow response for one topic does not hold up other topics."""
    brokers.answers |= {"u": [3], "v": [1]}
    assert together([lambda t=t: router.count(t) for t in "tuv"]) == [6, 3, 1]
    assert sorted(topic for topic, _ in brokers.requests) == ["t", "u", "v"]


def test_waiting_senders_go_on_in_the_order_of_their_calls(router, brokers, hub):
    """Senders go on in order, so that their messages are sent in that order."""
    brokers.stop_answering()
    order = []
    tasks = [Task(lambda n=n: (router.count("t"), order.append(n))) for n in range(50)]
    gevent.sleep(0.02)
    brokers.go_on()
    for task in tasks:
        task.join()

    assert order == list(range(50))


def test_a_killed_waiter_does_not_affect_others(router, brokers, hub):
    """The request goes on without the greenlet that made it."""
    brokers.stop_answering()
    first, second = (gevent.spawn(router.count, "t") for _ in range(2))
    gevent.sleep(0.01)
    first.kill()
    brokers.go_on()

    assert second.get(timeout=LONG) == 6
    assert len(brokers.requests) == 1


def test_waiting_lets_other_greenlets_run(router, brokers, longest_gap):
    """Other greenlets run, however long the brokers take."""
    brokers.stop_answering()
    with longest_gap() as gap:
        task = Task(router.count, "t")
        gevent.sleep(0.5)
        brokers.go_on()
        assert task.join() == 6

    assert gap.seconds < 0.2


# -- the age of a count ----------------------------------------------------------------


def test_an_old_count_is_used_while_a_new_one_is_requested(router, brokers, clock, hub):
    """After 30 s the count is requested again, and no sender waits for it."""
    assert router.count("t") == 6
    clock.now += 30.0
    brokers.answers["t"] = [8]
    brokers.stop_answering()

    assert [router.count("t") for _ in range(10)] == [6] * 10
    brokers.go_on()

    await_true(lambda: router.count("t") == 8)
    assert len(brokers.requests) == 2


def test_a_count_of_five_minutes_ago_is_not_used(router, brokers, clock):
    """After a night without messages the first sender waits for the current count."""
    router.count("t")
    clock.now += 301.0
    brokers.answers["t"] = [8]

    assert router.count("t") == 8


def test_fewer_partitions_are_accepted_once_the_old_count_has_aged(
    router, brokers, clock
):
    """A recreated topic may have fewer; within 30 s there is no request at all."""
    router.count("t")
    brokers.answers["t"] = [2]
    assert router.count("t") == 6
    clock.now += 30.0
    router.count("t")

    await_true(lambda: router.count("t") == 2)


@pytest.mark.slow
def test_a_topic_that_is_gone_is_unknown(router, brokers, clock):
    """It is unknown once brokers have denied it for as long as a creation takes."""
    router.count("t")
    clock.now += 30.0
    brokers.answers["t"] = [UNKNOWN_TOPIC]

    assert router.count("t") == 6
    await_true(lambda: router.count("t") == -1)


@pytest.mark.parametrize("problem", [FORBIDDEN, CLOSED], ids=["refused", "closed"])
def test_a_known_count_outlives_a_failed_request(router, brokers, clock, problem):
    """The count stays in use, and the next request comes a second later."""
    router.count("t")
    clock.now += 30.0
    brokers.answers["t"] = [problem]
    assert router.count("t") == 6
    await_true(lambda: not router._asking)

    assert [router.count("t") for _ in range(100)] == [6] * 100
    assert len(brokers.requests) == 2
    clock.now += 1.0
    assert router.count("t") == 6
    await_true(lambda: len(brokers.requests) == 3)


def test_a_known_count_is_used_when_requests_for_a_newer_one_fail(
    router, brokers, clock
):
    """However old the count is: a missing response does not make it wrong."""
    router.count("t")
    clock.now += 10_000.0
    brokers.answers["t"] = [FORBIDDEN]

    assert router.count("t") == 6


def test_an_unknown_topic_is_requested_again_after_a_second(router, brokers, clock):
    """A topic that is created later is found soon."""
    brokers.answers["t"] = [FORBIDDEN, 6]

    assert [router.count("t") for _ in range(100)] == [-1] * 100
    clock.now += 1.0
    assert router.count("t") == 6
    assert len(brokers.requests) == 2


def test_memory_for_topics_is_bounded(router, brokers, clock):
    """The number of remembered topics is limited; the oldest is dropped."""
    for number in range(routing._MAX_TOPICS):
        router._known[f"t{number}"] = routing._Known(1, clock.now + 1)

    assert router.count("t") == 6
    assert len(router._known) == routing._MAX_TOPICS
    assert router.count("t1") == 1
    assert "t0" not in router._known


# -- repeated requests -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", [NO_LEADER, NO_ANSWER, 0], ids=str)
def test_temporary_failures_are_retried(retrying_router, brokers, problem):
    """These are a missing leader, a missing response, and a topic in creation."""
    brokers.answers["t"] = [problem, problem, 6]

    started = time.monotonic()
    assert retrying_router.count("t") == 6

    assert 0.6 <= time.monotonic() - started < 1.5
    assert len(brokers.requests) == 3


@pytest.mark.slow
def test_a_topic_that_is_created_by_the_request_is_found(retrying_router, brokers):
    """Apache Kafka reports an unknown topic until it has created it."""
    brokers.answers["t"] = [UNKNOWN_TOPIC, 6]

    assert retrying_router.count("t") == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "least", "most"),
    [(UNKNOWN_TOPIC, 0.5, 2.0), (NO_ANSWER, 3.0, 6.0)],
    ids=["unknown", "no answer"],
)
def test_the_wait_for_a_count_ends(retrying_router, brokers, problem, least, most):
    """Requests are given up after some 5 s; a topic is created sooner, or never."""
    brokers.answers["t"] = [problem]

    started = time.monotonic()
    assert retrying_router.count("t") == -1

    assert least < time.monotonic() - started < most
    assert all(0 < seconds <= 2 for _, seconds in brokers.requests)


@pytest.mark.slow
def test_a_request_that_was_never_made_is_made_by_the_next_sender(router, brokers):
    """Ctrl-C can come between the decision to ask and the thread that does."""
    router._asking["t"] = WaitQueue()

    assert router.count("t") == -1
    router._known.clear()
    assert router.count("t") == 6


def test_permanent_failures_are_not_retried(retrying_router, brokers):
    """A sender without permission for a topic gets one error."""
    brokers.answers["t"] = [FORBIDDEN]

    assert retrying_router.count("t") == -1
    assert len(brokers.requests) == 1


# -- callers that can't wait -----------------------------------------------------------


def refuse():
    """Behave like a caller that can't wait."""
    raise IllegalWaitError("can't wait here")


def test_known_counts_are_used_by_callers_that_can_not_wait(brokers, clock):
    """An unknown count is requested, so that it is known the next time."""
    router = Router(None, *client(brokers, refuse), clock)

    with pytest.raises(IllegalWaitError, match=r"can't wait here; .* nothing was sent"):
        router.count("t")
    await_true(lambda: not router._asking)

    assert router.count("t") == 6
    clock.now += 10_000.0
    assert router.count("t") == 6


def test_no_sender_waits_for_a_stopped_router(router, brokers, hub):
    """Waiting senders fail at once, and no request follows."""
    brokers.stop_answering()
    task = Task(router.count, "t")
    await_true(lambda: brokers.requests)
    router.stop()

    assert task.join(1.0) == -1
    assert router.count("u") == -1
    assert len(brokers.requests) == 1


# -- choosing a partition --------------------------------------------------------------


def test_a_message_goes_where_its_partition_key_leads(router):
    """All other fields are unchanged, and so is the caller's message."""
    message = Message("t", b"x", b"k", [("a", b"1")], 3, b"\x0b", 5, "label")

    assert router.routed(message, {}) == message._replace(partition=5)
    assert type(router.routed(message, {})) is Message
    assert message.partition == 3


def test_a_message_to_an_unknown_topic_keeps_its_partition(router, brokers):
    """Without a partition of its own, librdkafka chooses one."""
    brokers.answers["t"] = [FORBIDDEN]

    for partition in (None, 3):
        message = Message("t", b"x", partition=partition, partition_key=b"k")
        assert router.routed(message, {}) is message


def test_random_needs_no_count(retrying_router, brokers):
    """A random partitioner chooses among available partitions, in librdkafka itself."""
    message = Message("t", b"x", partition=3, partition_key=b"k")

    assert retrying_router.routed(message, {}).partition is None
    assert brokers.requests == []


def test_messages_are_routed_up_to_the_first_that_can_not_be(brokers, clock):
    """Messages without `partition_key` pass; the first unroutable one ends the list."""
    router = Router(lambda key, count: key[0] % count, *client(brokers, refuse), clock)
    plain = Message("t", b"x", partition=3)
    known = Message("t", b"x", partition_key=b"\x07")
    unknown = known._replace(topic="u")
    brokers.answers["u"] = [2]
    router._known["t"] = routing._Known(6, clock.now + 1)

    routed = router.routed_many([plain, known, plain, unknown, plain], {})

    assert routed == [plain, known._replace(partition=1), plain]
    await_true(lambda: not router._asking)


def test_a_batch_is_routed_by_one_count(router, brokers, clock):
    """Messages with one key stay together, also when the topic grows meanwhile."""
    counts = {}
    message = Message("t", b"x", partition_key=b"\x07")
    assert router.routed(message, counts).partition == 1
    clock.now += 10_000.0
    brokers.answers["t"] = [8]

    assert router.routed(message, counts).partition == 1
    assert router.routed(message, {}).partition == 7
    assert counts == {"t": 6}


# -- routing once more -----------------------------------------------------------------

UNKNOWN_PARTITION = -190


class Failed:
    """A message to partition 5 of a topic that has fewer by now."""

    def __init__(self, key):
        message = Message("t", b"x", partition=5, partition_key=key)
        self.handle = RoutedHandle(message, None)
        #: How often its failure was made final.
        self.given_back = 0

    def give_back(self):
        """Count the call."""
        self.given_back += 1


class Rerouting:
    """A rerouter that records what it sends: keys and partitions, in order."""

    def __init__(self, router, *, enabled=True):
        self.sent = []
        self._it = Rerouter(router, self, enabled=enabled)

    def send_again(self, message, _):
        """Record a message."""
        self.sent.append((message.partition_key, message.partition))

    def on_interrupt(self):
        """Do nothing: no message gets lost."""

    def fail(self, *failures, code=UNKNOWN_PARTITION):
        """Report failures; return the handles that were accepted for routing."""
        taken = [self._it.on_failure(each.handle, code) for each in failures]
        for failure, is_taken in zip(failures, taken, strict=True):
            if is_taken:
                self._it.take(failure.handle, failure.give_back)
        self._it.start()
        return taken

    def drop(self):
        """Drop all waiting messages; return their number."""
        return len(self._it.drop())


@pytest.fixture
def fewer(router, brokers):
    """Make a router that knows of 6 partitions, of which 2 are left."""
    assert router.count("t") == 6
    brokers.answers["t"] = [2]
    return router


def test_failed_messages_are_routed_by_the_new_count(world, fewer, brokers):
    """They go out in the order of their failures, after one request for all."""
    rerouting = Rerouting(fewer)
    failures = [Failed(b"%c" % number) for number in range(10)]

    assert rerouting.fail(*failures) == [True] * 10
    await_true(lambda: len(rerouting.sent) == 10)

    assert rerouting.sent == [(b"%c" % number, number % 2) for number in range(10)]
    assert not any(each.given_back for each in failures)
    assert len(brokers.requests) == 2


def test_failed_messages_are_routed_although_the_task_was_interrupted(
    hub, fewer, hub_errors
):
    """A signal handler may raise before the task has done anything."""
    rerouting = Rerouting(fewer)
    rerouting.fail(Failed(b"a"))

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(Rerouter._run, raise_signal),
        pytest.raises(KeyboardInterrupt),
    ):
        gevent.sleep(1)
    hub_errors.clear()
    await_true(lambda: rerouting.sent)

    assert rerouting.sent == [(b"a", ord("a") % 2)]


def test_a_message_is_routed_only_once_more(world, fewer):
    """Its second failure is final."""
    rerouting = Rerouting(fewer)
    failure = Failed(b"a")
    rerouting.fail(failure)
    await_true(lambda: rerouting.sent)

    assert rerouting.fail(failure) == [False]


@pytest.mark.parametrize("answer", [6, FORBIDDEN], ids=["the same", "none"])
def test_a_message_fails_where_no_newer_count_is_known(world, fewer, brokers, answer):
    """It is not sent to the same partition again, nor to any other."""
    brokers.answers["t"] = [answer]
    rerouting = Rerouting(fewer)
    failure = Failed(bytes([5]))

    assert rerouting.fail(failure) == [True]
    await_true(lambda: failure.given_back)

    assert (failure.given_back, rerouting.sent) == (1, [])


def test_dropped_messages_are_not_sent(world, fewer, brokers):
    """It is not reported twice either, when the response comes."""
    brokers.stop_answering()
    rerouting = Rerouting(fewer)
    failures = [Failed(b"a"), Failed(b"b")]
    rerouting.fail(*failures)
    await_true(lambda: len(brokers.requests) == 2)

    assert rerouting.drop() == 2
    brokers.go_on()
    last = Failed(b"c")
    rerouting.fail(last)
    await_true(lambda: rerouting.sent)

    assert rerouting.sent == [(b"c", ord("c") % 2)]
    assert [each.given_back for each in failures] == [0, 0]


def test_a_closing_client_routes_nothing_once_more(world, fewer, brokers):
    """Messages that wait for a response fail at once, and so do later failures."""
    brokers.stop_answering()
    rerouting = Rerouting(fewer)
    waiting = Failed(b"a")
    rerouting.fail(waiting)
    await_true(lambda: len(brokers.requests) == 2)

    fewer.stop()
    await_true(lambda: waiting.given_back)

    assert rerouting.fail(Failed(b"b")) == [False]
    assert rerouting.sent == []


def test_in_a_transaction_a_failure_only_renews_the_count(world, fewer):
    """The message is not sent again, and the next one goes to the right partition."""
    rerouting = Rerouting(fewer, enabled=False)

    assert rerouting.fail(Failed(b"a")) == [False]
    assert fewer.count("t") == 2


@pytest.mark.parametrize("code", [3, -188])
def test_a_deleted_topic_is_requested_again(world, fewer, code):
    """Its messages fail, and its count is forgotten."""
    rerouting = Rerouting(fewer)

    assert rerouting.fail(Failed(b"a"), code=code) == [False]
    assert fewer.count("t") == 2


@pytest.mark.parametrize("code", [None, -192, 29])
def test_other_failures_change_nothing(world, fewer, brokers, code):
    """They have nothing to do with partitions."""
    rerouting = Rerouting(fewer)

    assert rerouting.fail(Failed(b"a"), code=code) == [False]
    assert fewer.count("t") == 6
    assert len(brokers.requests) == 1


def test_late_failures_do_not_renew_a_count_that_explains_them(world, fewer, brokers):
    """A thousand failures with one cause make one request."""
    rerouting = Rerouting(fewer, enabled=False)
    rerouting.fail(Failed(b"a"))
    assert fewer.count("t") == 2

    rerouting.fail(*[Failed(b"b") for _ in range(1_000)])

    assert fewer.count("t") == 2
    assert len(brokers.requests) == 2
