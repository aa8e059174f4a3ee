import copy
import gc
import math
import pickle
import threading
import time

import gevent
import pytest

from greendrop import _concurrency
from greendrop.delivery import DeliveryHandle, DeliveryReport, ReportQueue
from greendrop.errors import (
    BrokerError,
    DeliveryError,
    DeliveryTimeoutError,
    IllegalWaitError,
)
from tests.tasks import await_true

#: Seconds. Nothing here takes nearly as long when it works.
LONG = 10.0


class FakeClient:
    """The client of a handle: makes waiters, and records calls."""

    def __init__(self):
        self.waits = 0
        self.complaint = None
        self.callback_errors = []
        self.limits = []

    def on_limit(self):
        """Record the length of the queue."""
        self.limits.append(len(self.queue))

    def new_waiter(self, _is_done):
        """Make a waiter as the real client does."""
        self.waits += 1
        return _concurrency.new_waiter()

    def ensure_progress(self):
        """Do nothing."""

    def last_broker_error(self):
        """Return the error that the test has set."""
        return self.complaint

    def on_callback_error(self, error):
        """Record the error of a callback."""
        self.callback_errors.append(error)


class FakeMessage:
    """confluent-kafka's message, as a delivery report has it."""

    def partition(self):
        """Return the partition."""
        return 2

    def offset(self):
        """Return the offset."""
        return 7

    def timestamp(self):
        """Return the timestamp's kind and value."""
        return (1, 1_700_000_000_000)

    def latency(self):
        """Return seconds."""
        return 0.25


@pytest.fixture
def client():
    """Make a client that does nothing."""
    return FakeClient()


@pytest.fixture
def calls(client):
    """Collect the lengths at which the queue reached its limit."""
    return client.limits


@pytest.fixture
def reports(client):
    """Make the queue that handles append themselves to."""
    client.queue = ReportQueue(client)
    return client.queue


@pytest.fixture
def handle(reports):
    """Make a handle in flight."""
    return DeliveryHandle("orders", "a label", reports)


def deliver(handle):
    """Report a delivered message as the poller does."""
    handle(None, FakeMessage())
    handle._resolve()


def error():
    """Make a delivery error with a cause."""
    error = DeliveryError("a message was not delivered: message too large")
    error.__cause__ = BrokerError("too large", code=10, name="MESSAGE_TOO_LARGE")
    return error


def refuse(handle):
    """Refuse a message as the client does when librdkafka refuses it."""
    handle._fail(error())
    handle._resolve()


# -- states ---------------------------------------------------------------------------


def test_new_handle_is_pending(handle):
    """A message that was just sent has no outcome."""
    assert handle.topic == "orders"
    assert handle.label == "a label"
    assert handle.done is False
    assert handle.ready() is False
    assert handle.report is None
    assert handle.error is None
    assert repr(handle) == "<DeliveryHandle 'orders' pending label='a label'>"


def test_reported_handle_is_pending_until_it_is_resolved(handle, reports):
    """The outcome is visible only after the listeners have run."""
    handle(None, FakeMessage())

    assert list(reports) == [handle]
    assert handle.done is False
    assert handle.report is None


def test_delivered_handle_has_a_report(handle):
    """The report of a delivered message has place, time, latency and label."""
    deliver(handle)

    assert handle.done is True
    assert handle.ready() is True
    assert handle.error is None
    assert handle.report == DeliveryReport(
        topic="orders",
        partition=2,
        offset=7,
        timestamp=1_700_000_000_000,
        latency=0.25,
        label="a label",
    )
    assert repr(handle) == "<DeliveryHandle 'orders' delivered to 2@7 label='a label'>"


def test_failed_handle_has_an_error(handle):
    """The handle of a failed message has an error with its cause, and no report."""
    refuse(handle)

    assert handle.done is True
    assert handle.report is None
    assert handle.error.name == "MESSAGE_TOO_LARGE"
    assert repr(handle) == "<DeliveryHandle 'orders' failed label='a label'>"


def test_queue_wakes_the_poller_at_its_limit(reports, calls):
    """From the limit on, each report wakes the poller; below it none does."""
    reports.limit = 3
    for _ in range(4):
        DeliveryHandle("orders", None, reports)(None, FakeMessage())

    assert calls == [3, 4]


def test_queue_wakes_the_poller_for_each_report_of_other_threads(
    reports, calls, handle
):
    """A report that another thread polled wakes the poller."""
    handle(None, FakeMessage())

    assert calls == [1]


# -- waiting --------------------------------------------------------------------------


def by_thread(function, *args):
    """Call a function in a native thread a moment later; too late it has no effect."""
    timer = threading.Timer(0.02, function, args)
    timer.start()
    return timer


def test_wait_returns_the_report(world, handle):
    """A waiter gets the report as soon as it arrives."""
    timer = by_thread(deliver, handle)

    assert handle.wait(LONG).offset == 7
    timer.join()


def test_wait_raises_the_error(world, handle):
    """A waiter for a message that fails gets its error, with the cause."""
    timer = by_thread(refuse, handle)

    with pytest.raises(DeliveryError) as raised:
        handle.wait(LONG)

    assert raised.value.code == 10
    timer.join()


def test_wait_on_a_resolved_handle_returns_at_once(world, handle, client):
    """Every wait for a resolved handle returns the same report."""
    deliver(handle)

    assert handle.wait(0) is not None
    assert handle.wait(0) == handle.wait() == handle.report
    assert client.waits == 0


def test_each_wait_raises_an_error_of_its_own(handle):
    """Many tasks may wait for one message; their tracebacks don't mix."""
    refuse(handle)
    raised = []
    for _ in range(2):
        with pytest.raises(DeliveryError) as info:
            handle.wait(0)
        raised.append(info.value)

    assert raised[0] is not raised[1]
    assert raised[0] is not handle.error
    assert raised[0].__cause__ is raised[1].__cause__ is handle.error.__cause__
    assert handle.error.__traceback__ is None


def test_wait_gives_up_after_its_timeout(world, handle):
    """Without a report in time the error says that the message may be delivered."""
    started = time.monotonic()
    with pytest.raises(DeliveryTimeoutError) as raised:
        handle.wait(0.05)

    assert 0.045 <= time.monotonic() - started < LONG / 2
    text = str(raised.value)
    assert "'orders' within 0.05 s" in text
    assert "may still be delivered" in text
    assert "last broker error" not in text


def test_timeout_names_the_last_broker_error(handle, client):
    """The last broker error is the most likely reason."""
    client.complaint = "127.0.0.1:1: connection refused (_TRANSPORT, -195)"

    with pytest.raises(DeliveryTimeoutError, match="connection refused"):
        handle.wait(0)


def test_handle_outlives_a_timeout(world, handle):
    """The wait can be repeated, and gets the report."""
    with pytest.raises(DeliveryTimeoutError):
        handle.wait(0.01)
    timer = by_thread(deliver, handle)

    assert handle.wait(LONG).offset == 7
    timer.join()


def test_wait_that_ended_early_leaves_no_waiter_behind(world, handle):
    """A thousand short waits on one message use no memory afterwards."""
    for _ in range(10):
        with pytest.raises(DeliveryTimeoutError):
            handle.wait(0)

    assert handle._waiters is None


@pytest.mark.parametrize("timeout", [-1, -0.001, math.inf, math.nan])
def test_wait_needs_a_finite_timeout(handle, timeout):
    """Every wait ends: an infinite timeout is refused."""
    with pytest.raises(ValueError, match="finite seconds"):
        handle.wait(timeout)


@pytest.mark.parametrize("timeout", [b"1", "1"])
def test_wait_needs_a_number(handle, timeout):
    """Other values than numbers are refused."""
    with pytest.raises((TypeError, ValueError)):
        handle.wait(timeout)


def test_wait_without_a_timeout_waits_as_long_as_the_producer(client):
    """`max_wait_timeout` of the producer is the default of all waits."""
    handle = DeliveryHandle("orders", None, ReportQueue(client, 0.05))

    for wait in (handle.wait, handle.result, handle.exception):
        with pytest.raises(DeliveryTimeoutError, match=r"within 0\.05 s"):
            wait()


def test_result_returns_the_report_or_raises(world, handle, reports):
    """`result` is `wait` under its name in `concurrent.futures`."""
    refused = DeliveryHandle("orders", None, reports)
    refuse(refused)
    by_thread(deliver, handle)

    assert handle.result(LONG).partition == 2
    with pytest.raises(DeliveryError):
        refused.result(LONG)


def test_exception_returns_the_error_or_none(world, handle, reports):
    """`exception` waits for the outcome, and raises only after its timeout."""
    refused = DeliveryHandle("orders", None, reports)
    with pytest.raises(DeliveryTimeoutError):
        refused.exception(0.01)
    by_thread(refuse, refused)
    by_thread(deliver, handle)

    assert isinstance(refused.exception(LONG), DeliveryError)
    assert handle.exception(LONG) is None


def test_done_callbacks_are_called_with_the_handle_in_order(handle):
    """Each function is called once, after the waiters were woken."""
    called = []
    for number in range(3):
        handle.add_done_callback(
            lambda it, number=number: called.append((number, it, it.done))
        )

    before = list(called)
    deliver(handle)
    handle._resolve()

    assert before == []
    assert called == [(number, handle, True) for number in range(3)]


def test_a_done_callback_of_a_done_handle_is_called_at_once(handle):
    """A function that is added after the outcome is called in the caller."""
    deliver(handle)
    called = []

    handle.add_done_callback(called.append)

    assert called == [handle]


def test_failing_done_callbacks_do_not_stop_the_others(handle, client):
    """The error of a function is reported; the functions after it are called."""
    called = []
    problem = ValueError("mine")

    def fail(_handle):
        raise problem

    handle.add_done_callback(fail)
    handle.add_done_callback(called.append)
    deliver(handle)

    assert client.callback_errors == [problem]
    assert called == [handle]


def test_a_failing_callback_of_a_done_handle_is_logged(handle, caplog):
    """The caller that adds such a function doesn't get the function's error."""
    deliver(handle)

    handle.add_done_callback(lambda _: 1 / 0)

    (record,) = caplog.records
    assert "listener.error" in record.getMessage()
    assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_done_callback_needs_to_be_callable(handle):
    """A mistake is raised where it was made."""
    with pytest.raises(TypeError, match="callable, not int"):
        handle.add_done_callback(3)


def test_done_callbacks_race_with_the_outcome(reports):
    """Whenever a function is added, it is called exactly once."""
    for _ in range(200):
        handle = DeliveryHandle("orders", None, reports)
        called = []
        thread = threading.Thread(target=deliver, args=(handle,))
        thread.start()
        handle.add_done_callback(called.append)
        thread.join()
        assert called == [handle]


def test_done_callbacks_run_in_the_poller(world, make_producer, spawn, until):
    """They run where listeners run: waiting there for the same producer is refused."""
    producer = make_producer()
    outcomes = []
    errors = []

    def wait_for_another(_handle):
        try:
            producer.produce_sync(topic="events", payload=b"2")
        except IllegalWaitError as error:
            outcomes.append(error.message_state)
            raise

    def send():
        producer.monitor.subscribe("error.occurred", errors.append)
        handle = producer.produce_async(topic="events", payload=b"1")
        handle.add_done_callback(wait_for_another)
        until(lambda: errors)

    spawn(send).join()

    assert outcomes == ["unknown"]
    (event,) = errors
    assert event["type"] == "listener.error"
    assert event["event"] == "add_done_callback"
    assert isinstance(event["error"], IllegalWaitError)


def test_wait_refused_by_the_client_leaves_nothing(handle, client):
    """In a listener the client makes no waiter; the handle does not change."""

    def waiter(_done):
        raise IllegalWaitError("in a listener")

    client.new_waiter = waiter

    with pytest.raises(IllegalWaitError):
        handle.wait(LONG)
    assert handle._waiters is None


def test_many_tasks_wait_for_one_message(world, handle):
    """Greenlets and threads may wait for the same message, and all of them wake."""
    results = []

    def wait():
        results.append(handle.wait(LONG))

    threads = [threading.Thread(target=wait) for _ in range(10)]
    for thread in threads:
        thread.start()
    greenlets = []
    if world == "greenlets":
        greenlets = [gevent.spawn(wait) for _ in range(20)]
        gevent.sleep(0)
    deadline = time.monotonic() + LONG
    while count_waiters(handle) < len(threads) + len(greenlets):
        assert time.monotonic() < deadline
        time.sleep(0.001)

    deliver(handle)
    for each in [*threads, *greenlets]:
        each.join(LONG)

    assert results == [handle.report] * (len(threads) + len(greenlets))
    assert handle._waiters is None


def count_waiters(handle):
    """Count the waiters of a handle."""
    chain, count = handle._waiters, 0
    while chain is not None:
        chain, count = chain[1], count + 1
    return count


def test_killed_waiter_leaves_the_others_waiting(hub, handle):
    """A kill removes one waiter, and only that one."""
    greenlets = [gevent.spawn(handle.wait, LONG) for _ in range(3)]
    gevent.sleep(0.01)
    greenlets[1].kill()
    assert count_waiters(handle) == 2

    deliver(handle)
    gevent.joinall(greenlets, timeout=LONG)

    assert [each.value for each in greenlets[::2]] == [handle.report] * 2


def test_gevent_timeout_interrupts_a_wait(hub, handle):
    """A `gevent.Timeout` ends the wait and leaves the handle pending."""
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        handle.wait(LONG)
    assert handle._waiters is None

    deliver(handle)

    assert handle.wait(0).offset == 7


def test_resolving_races_with_waiting(world, reports):
    """Whether the wait or the report comes first, the wait ends."""
    handles = [DeliveryHandle("orders", None, reports) for _ in range(300)]
    thread = threading.Thread(target=lambda: [deliver(each) for each in handles])
    thread.start()

    offsets = [each.wait(LONG).offset for each in handles]

    assert offsets == [7] * 300
    thread.join()


# -- with gevent's own functions ------------------------------------------------------


def test_gevent_wait_waits_for_handles(hub, reports):
    """`gevent.wait` returns when all handles are resolved."""
    handles = [DeliveryHandle("orders", number, reports) for number in range(3)]
    for number, each in enumerate(handles):
        gevent.spawn_later(0.01 * number, deliver if number else refuse, each)

    ready = gevent.wait(handles, timeout=LONG)

    assert set(ready) == set(handles)
    assert all(each.done for each in handles)


def test_gevent_iwait_yields_handles_as_they_resolve(hub, reports):
    """`gevent.iwait` yields each handle when it is resolved."""
    handles = [DeliveryHandle("orders", number, reports) for number in range(3)]
    for number, each in enumerate(reversed(handles)):
        gevent.spawn_later(0.02 * (number + 1), deliver, each)

    came = [each.label for each in gevent.iwait(handles, timeout=LONG)]

    assert came == [2, 1, 0]


def test_gevent_wait_gives_up_after_its_timeout(hub, handle):
    """Pending handles are not returned, and keep no link."""
    assert gevent.wait([handle], timeout=0.02) == []
    assert handle._waiters is None


def test_gevent_wait_returns_resolved_handles_at_once(hub, handle):
    """A handle that was resolved before can be waited for."""
    deliver(handle)

    assert gevent.wait([handle], timeout=LONG) == [handle]


def test_gevent_wait_mixes_handles_with_others(hub, handle):
    """Handles, events and greenlets can be waited for together."""
    greenlet = gevent.spawn_later(0.01, deliver, handle)

    ready = gevent.wait([handle, greenlet], timeout=LONG)

    assert set(ready) == {handle, greenlet}


def test_gevent_wait_wakes_for_a_report_of_another_thread(hub, handle):
    """The report may come from a native thread."""
    timer = by_thread(deliver, handle)

    assert gevent.wait([handle], timeout=LONG) == [handle]
    timer.join()


def test_linked_callback_is_called_in_the_hub_that_linked_it(hub, handle):
    """A link is called once, with the handle, in the thread that made it."""
    called = []
    handle.rawlink(lambda each: called.append((each, _concurrency.get_ident())))
    timer = by_thread(deliver, handle)
    await_true(lambda: called)
    timer.join()
    gevent.sleep(0.01)

    assert called == [(handle, _concurrency.get_ident())]


def test_unlinked_callback_is_not_called(hub, handle):
    """An unlinked callback is not called; the others are."""
    called = []

    def first(_handle):
        called.append(1)

    def second(_handle):
        called.append(2)

    handle.rawlink(first)
    handle.rawlink(second)
    handle.unlink(first)
    handle.unlink(first)
    deliver(handle)
    gevent.sleep(0.01)

    assert called == [2]


def test_link_to_a_resolved_handle_is_called_soon(hub, handle):
    """A link that is added after the outcome is called."""
    deliver(handle)
    called = []
    handle.rawlink(called.append)
    assert called == [], "not inside the call: gevent's own objects don't do that"
    gevent.sleep(0.01)

    assert called == [handle]


# -- resources ------------------------------------------------------------------------


def test_resolved_handle_does_not_refer_to_the_client(reports, handle):
    """A program may keep its handles; they don't keep the client alive."""
    assert any(each is reports for each in gc.get_referents(handle))

    deliver(handle)

    assert not any(each is reports for each in gc.get_referents(handle))


def test_handle_takes_no_attributes(handle):
    """A handle is small: there may be a hundred thousand of them."""
    with pytest.raises(AttributeError):
        handle.anything = 1


@pytest.mark.parametrize("resolve", [deliver, refuse])
def test_resolved_handle_pickles(handle, resolve):
    """A resolved handle has the same content in another process."""
    resolve(handle)

    got = pickle.loads(pickle.dumps(handle))

    assert got.done
    assert got.report == handle.report
    assert str(got.error) == str(handle.error)
    assert repr(got) == repr(handle)


def test_pending_handle_pickles(handle):
    """A pending handle can't be resolved in another process, and says so."""
    got = pickle.loads(pickle.dumps(handle))

    assert (got.topic, got.label, got.report) == ("orders", "a label", None)
    with pytest.raises(DeliveryTimeoutError, match="may still be delivered"):
        got.wait(LONG)
    assert not handle.done


def test_report_is_an_immutable_tuple(handle):
    """A report can be compared, copied, pickled and unpacked."""
    deliver(handle)
    report = handle.report

    assert copy.copy(report) == report == pickle.loads(pickle.dumps(report))
    topic, partition, offset, timestamp, latency, label = report
    assert (topic, partition, offset, label) == ("orders", 2, 7, "a label")
    assert timestamp == 1_700_000_000_000
    assert latency == 0.25
