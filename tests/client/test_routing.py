"""How many partitions a topic has: asked for once, remembered, and never in the way."""

import threading
import time

import gevent
import pytest

from greendrop import BrokerError, IllegalWaitError, Message, ProducerClosedError
from greendrop._client import partition_counts as routing
from greendrop._client.partition_counts import Rerouter, RoutedHandle, Router
from greendrop._concurrency.wait_queue import WaitQueue
from greendrop._concurrency.waiters import new_waiter
from tests.tasks import Task, await_true, together

#: Seconds that no wait here takes when it works.
LONG = 10.0

UNKNOWN_TOPIC = BrokerError("no such topic", code=3, name="UNKNOWN_TOPIC_OR_PARTITION")
NO_LEADER = BrokerError("no leader", code=5, name="LEADER_NOT_AVAILABLE")
NO_ANSWER = BrokerError("timed out", code=-185, name="_TIMED_OUT")
FORBIDDEN = BrokerError("no", code=29, name="TOPIC_AUTHORIZATION_FAILED")
CLOSED = ProducerClosedError("closed")


class Brokers:
    """Brokers that answer what the test says, when it says so."""

    def __init__(self):
        self.answers = {}
        #: Topics and seconds of all requests, in order.
        self.requests = []
        self._answering = threading.Event()
        self._answering.set()

    def __call__(self, topic, seconds):
        """Answer with what is next for a topic; the last answer goes on for ever."""
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
        """Answer them, and those to come."""
        self._answering.set()


class Clock:
    """A clock that goes when the test says so."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        """Tell the time, in seconds."""
        return self.now


@pytest.fixture
def brokers():
    """Make brokers with a topic of 6 partitions; no request is left waiting there."""
    brokers = Brokers()
    brokers.answers["t"] = [6]
    yield brokers
    brokers.go_on()


@pytest.fixture
def clock():
    """Make a clock that stands still."""
    return Clock()


@pytest.fixture
def router(brokers, clock):
    """Make a router that chooses the first byte of the key."""
    return Router(lambda key, count: key[0] % count, brokers, new_waiter, clock)


@pytest.fixture
def patient(brokers):
    """Make a router on the real clock, to see it try again."""
    return Router(None, brokers, new_waiter)


# -- once for all ---------------------------------------------------------------------


def test_brokers_are_asked_once(router, brokers, clock):
    """One request in 30 s, for as many messages as may come."""
    assert [router.count("t") for _ in range(1_000)] == [6] * 1_000
    clock.now += 29.9
    assert router.count("t") == 6
    assert brokers.requests == [("t", 2.0)]


@pytest.mark.parametrize("kind", ["greenlets", "threads"])
def test_a_hundred_who_ask_share_one_request(router, brokers, request, kind):
    """Who comes while a request is under way waits for its answer."""
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


def test_topics_are_asked_for_side_by_side(router, brokers, hub):
    """One whose answer is slow does not keep the others waiting."""
    brokers.answers |= {"u": [3], "v": [1]}
    assert together([lambda t=t: router.count(t) for t in "tuv"]) == [6, 3, 1]
    assert sorted(topic for topic, _ in brokers.requests) == ["t", "u", "v"]


def test_who_waits_goes_on_in_the_order_of_the_calls(router, brokers, hub):
    """So that their messages are sent in that order."""
    brokers.stop_answering()
    order = []
    tasks = [Task(lambda n=n: (router.count("t"), order.append(n))) for n in range(50)]
    gevent.sleep(0.02)
    brokers.go_on()
    for task in tasks:
        task.join()

    assert order == list(range(50))


def test_a_killed_waiter_harms_no_other(router, brokers, hub):
    """The request goes on without the one who made it."""
    brokers.stop_answering()
    first, second = (gevent.spawn(router.count, "t") for _ in range(2))
    gevent.sleep(0.01)
    first.kill()
    brokers.go_on()

    assert second.get(timeout=LONG) == 6
    assert len(brokers.requests) == 1


def test_waiting_lets_other_greenlets_run(router, brokers, longest_gap):
    """However long the brokers take."""
    brokers.stop_answering()
    with longest_gap() as gap:
        task = Task(router.count, "t")
        gevent.sleep(0.3)
        brokers.go_on()
        assert task.join() == 6

    assert gap.seconds < 0.05


# -- for how long ---------------------------------------------------------------------


def test_an_old_number_is_used_while_a_new_one_is_asked_for(
    router, brokers, clock, hub
):
    """After 30 s the brokers are asked again, and nobody waits for that."""
    assert router.count("t") == 6
    clock.now += 30.0
    brokers.answers["t"] = [8]
    brokers.stop_answering()

    assert [router.count("t") for _ in range(10)] == [6] * 10
    brokers.go_on()

    await_true(lambda: router.count("t") == 8)
    assert len(brokers.requests) == 2


def test_a_number_of_five_minutes_ago_is_not_used(router, brokers, clock):
    """After a night without messages the first one waits for what is true now."""
    router.count("t")
    clock.now += 301.0
    brokers.answers["t"] = [8]

    assert router.count("t") == 8


def test_fewer_partitions_are_believed_once_the_old_number_has_aged(
    router, brokers, clock
):
    """A topic may be made anew, with fewer; within 30 s nobody is asked at all."""
    router.count("t")
    brokers.answers["t"] = [2]
    assert router.count("t") == 6
    clock.now += 30.0
    router.count("t")

    await_true(lambda: router.count("t") == 2)


@pytest.mark.slow
def test_a_topic_that_is_gone_is_unknown(router, brokers, clock):
    """Once the brokers have said so for as long as its creation would take."""
    router.count("t")
    clock.now += 30.0
    brokers.answers["t"] = [UNKNOWN_TOPIC]

    assert router.count("t") == 6
    await_true(lambda: router.count("t") == -1)


@pytest.mark.parametrize("problem", [FORBIDDEN, CLOSED], ids=["refused", "closed"])
def test_a_known_number_outlives_a_failed_request(router, brokers, clock, problem):
    """It is used on, and the brokers are left alone for a second."""
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


def test_a_known_number_is_used_on_when_waiting_for_a_newer_one_was_in_vain(
    router, brokers, clock
):
    """However old it is: no answer doesn't make it wrong."""
    router.count("t")
    clock.now += 10_000.0
    brokers.answers["t"] = [FORBIDDEN]

    assert router.count("t") == 6


def test_unknown_holds_for_a_second(router, brokers, clock):
    """A topic that is created later is found soon."""
    brokers.answers["t"] = [FORBIDDEN, 6]

    assert [router.count("t") for _ in range(100)] == [-1] * 100
    clock.now += 1.0
    assert router.count("t") == 6
    assert len(brokers.requests) == 2


def test_made_up_topics_do_not_fill_the_memory(router, brokers, clock):
    """What is remembered has a limit; from there on the oldest makes room."""
    for number in range(routing._MAX_TOPICS):
        router._known[f"t{number}"] = routing._Known(1, clock.now + 1)

    assert router.count("t") == 6
    assert len(router._known) == routing._MAX_TOPICS
    assert router.count("t1") == 1
    assert "t0" not in router._known


# -- trying again ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", [NO_LEADER, NO_ANSWER, 0], ids=str)
def test_what_passes_is_tried_again(patient, brokers, problem):
    """A topic without leader, a request without answer, a topic just being made."""
    brokers.answers["t"] = [problem, problem, 6]

    began = time.monotonic()
    assert patient.count("t") == 6

    assert 0.6 <= time.monotonic() - began < 1.5
    assert len(brokers.requests) == 3


@pytest.mark.slow
def test_a_topic_that_is_created_when_asked_for_is_found(patient, brokers):
    """Apache Kafka says "unknown" until it has created the topic."""
    brokers.answers["t"] = [UNKNOWN_TOPIC, 6]

    assert patient.count("t") == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "least", "most"),
    [(UNKNOWN_TOPIC, 0.5, 2.0), (NO_ANSWER, 3.0, 6.0)],
    ids=["unknown", "no answer"],
)
def test_nobody_waits_for_ever(patient, brokers, problem, least, most):
    """No answer for some 5 s is none; a topic is created sooner, or not at all."""
    brokers.answers["t"] = [problem]

    began = time.monotonic()
    assert patient.count("t") == -1

    assert least < time.monotonic() - began < most
    assert all(0 < seconds <= 2 for _, seconds in brokers.requests)


@pytest.mark.slow
def test_a_request_that_was_never_made_is_not_waited_for_again(router, brokers):
    """Ctrl-C can come between the decision to ask and the thread that does."""
    router._asking["t"] = WaitQueue()

    assert router.count("t") == -1
    router._known.clear()
    assert router.count("t") == 6


def test_what_does_not_pass_is_not_tried_again(patient, brokers):
    """Who may not see a topic is told so once."""
    brokers.answers["t"] = [FORBIDDEN]

    assert patient.count("t") == -1
    assert len(brokers.requests) == 1


# -- where nobody can wait ------------------------------------------------------------


def refuse():
    """Be where nobody can wait."""
    raise IllegalWaitError("can't wait here")


def test_what_is_known_is_told_where_nobody_can_wait(brokers, clock):
    """What isn't is asked for, so that it is known the next time."""
    router = Router(None, brokers, refuse, clock)

    with pytest.raises(IllegalWaitError, match=r"can't wait here; .* nothing was sent"):
        router.count("t")
    await_true(lambda: not router._asking)

    assert router.count("t") == 6
    clock.now += 10_000.0
    assert router.count("t") == 6


def test_nobody_waits_for_a_router_that_has_stopped(router, brokers, hub):
    """Who waits is sent away at once, and nobody asks any more."""
    brokers.stop_answering()
    task = Task(router.count, "t")
    gevent.sleep(0.01)
    router.stop()

    assert task.join(1.0) == -1
    assert router.count("u") == -1
    assert len(brokers.requests) == 1


# -- choosing -------------------------------------------------------------------------


def test_a_message_goes_where_its_partition_key_leads(router):
    """All else stays as it was, the caller's message too."""
    message = Message("t", b"x", b"k", [("a", b"1")], 3, b"\x0b", 5, "label")

    assert router.routed(message, {}) == message._replace(partition=5)
    assert type(router.routed(message, {})) is Message
    assert message.partition == 3


def test_a_message_to_an_unknown_topic_keeps_its_partition(router, brokers):
    """Or has none; then librdkafka chooses."""
    brokers.answers["t"] = [FORBIDDEN]

    for partition in (None, 3):
        message = Message("t", b"x", partition=partition, partition_key=b"k")
        assert router.routed(message, {}) is message


def test_random_needs_no_number(patient, brokers):
    """By itself librdkafka chooses at random, among partitions that can be had."""
    message = Message("t", b"x", partition=3, partition_key=b"k")

    assert patient.routed(message, {}).partition is None
    assert brokers.requests == []


def test_several_are_routed_up_to_the_first_that_can_not_be(brokers, clock):
    """Those without a `partition_key` pass; the one in the way says what it is."""
    router = Router(lambda key, count: key[0] % count, brokers, refuse, clock)
    plain = Message("t", b"x", partition=3)
    known = Message("t", b"x", partition_key=b"\x07")
    unknown = known._replace(topic="u")
    brokers.answers["u"] = [2]
    router._known["t"] = routing._Known(6, clock.now + 1)

    routed = router.routed_many([plain, known, plain, unknown, plain], {})

    assert routed == [plain, known._replace(partition=1), plain]
    await_true(lambda: not router._asking)


def test_a_batch_is_routed_by_one_number(router, brokers, clock):
    """So messages of a key stay together, also when the topic grows meanwhile."""
    counts = {}
    message = Message("t", b"x", partition_key=b"\x07")
    assert router.routed(message, counts).partition == 1
    clock.now += 10_000.0
    brokers.answers["t"] = [8]

    assert router.routed(message, counts).partition == 1
    assert router.routed(message, {}).partition == 7
    assert counts == {"t": 6}


# -- routing once more ----------------------------------------------------------------

UNKNOWN_PARTITION = -190


class Failed:
    """A message to partition 5 of a topic that has fewer by now."""

    def __init__(self, key):
        message = Message("t", b"x", partition=5, partition_key=key)
        self.handle = RoutedHandle(message, None)
        #: How often it was told that its failure is final.
        self.given_back = 0

    def give_back(self):
        """Count."""
        self.given_back += 1


class Rerouting:
    """A rerouter, and what it has sent: keys and partitions, in order."""

    def __init__(self, router, *, enabled=True):
        self.sent = []
        self._it = Rerouter(
            router,
            lambda message, _: self.sent.append(
                (message.partition_key, message.partition)
            ),
            lambda: None,
            enabled=enabled,
        )

    def fail(self, *failures, code=UNKNOWN_PARTITION):
        """Report failures; tell which of them were taken."""
        taken = [self._it.on_failure(each.handle, code) for each in failures]
        for failure, is_taken in zip(failures, taken, strict=True):
            if is_taken:
                self._it.take(failure.handle, failure.give_back)
        self._it.start()
        return taken

    def drop(self):
        """Give up what is there; tell how many that was."""
        return len(self._it.drop())


@pytest.fixture
def fewer(router, brokers):
    """Make a router that knows of 6 partitions, of which 2 are left."""
    assert router.count("t") == 6
    brokers.answers["t"] = [2]
    return router


def test_failed_messages_are_routed_by_the_new_number(world, fewer, brokers):
    """In the order of their failures, after one question for all of them."""
    rerouting = Rerouting(fewer)
    failures = [Failed(b"%c" % number) for number in range(10)]

    assert rerouting.fail(*failures) == [True] * 10
    await_true(lambda: len(rerouting.sent) == 10)

    assert rerouting.sent == [(b"%c" % number, number % 2) for number in range(10)]
    assert not any(each.given_back for each in failures)
    assert len(brokers.requests) == 2


def test_a_message_that_was_routed_once_more_is_not_taken_again(world, fewer):
    """Its second failure is final."""
    rerouting = Rerouting(fewer)
    failure = Failed(b"a")
    rerouting.fail(failure)
    await_true(lambda: rerouting.sent)

    assert rerouting.fail(failure) == [False]


@pytest.mark.parametrize("answer", [6, FORBIDDEN], ids=["the same", "none"])
def test_a_message_fails_where_nothing_better_is_known(world, fewer, brokers, answer):
    """It is not sent to the same partition again, nor to any."""
    brokers.answers["t"] = [answer]
    rerouting = Rerouting(fewer)
    failure = Failed(bytes([5]))

    assert rerouting.fail(failure) == [True]
    await_true(lambda: failure.given_back)

    assert (failure.given_back, rerouting.sent) == (1, [])


def test_what_is_dropped_is_not_sent(world, fewer, brokers):
    """Nor told of twice, when the answer comes."""
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
    """What is waiting for an answer fails at once, and what fails later, too."""
    brokers.stop_answering()
    rerouting = Rerouting(fewer)
    waiting = Failed(b"a")
    rerouting.fail(waiting)
    await_true(lambda: len(brokers.requests) == 2)

    fewer.stop()
    await_true(lambda: waiting.given_back)

    assert rerouting.fail(Failed(b"b")) == [False]
    assert rerouting.sent == []


def test_in_a_transaction_a_failure_only_renews_the_number(world, fewer):
    """The message is not sent by itself, and the next one goes where it should."""
    rerouting = Rerouting(fewer, enabled=False)

    assert rerouting.fail(Failed(b"a")) == [False]
    assert fewer.count("t") == 2


@pytest.mark.parametrize("code", [3, -188])
def test_a_topic_that_is_gone_is_asked_for_anew(world, fewer, code):
    """Its messages fail, and what was known of it is forgotten."""
    rerouting = Rerouting(fewer)

    assert rerouting.fail(Failed(b"a"), code=code) == [False]
    assert fewer.count("t") == 2


@pytest.mark.parametrize("code", [None, -192, 29])
def test_other_failures_change_nothing(world, fewer, brokers, code):
    """They say nothing about partitions."""
    rerouting = Rerouting(fewer)

    assert rerouting.fail(Failed(b"a"), code=code) == [False]
    assert fewer.count("t") == 6
    assert len(brokers.requests) == 1


def test_late_failures_do_not_renew_a_number_that_explains_them(world, fewer, brokers):
    """A thousand failures of one cause are one question."""
    rerouting = Rerouting(fewer, enabled=False)
    rerouting.fail(Failed(b"a"))
    assert fewer.count("t") == 2

    rerouting.fail(*[Failed(b"b") for _ in range(1_000)])

    assert fewer.count("t") == 2
    assert len(brokers.requests) == 2
