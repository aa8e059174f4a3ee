"""Waits in a running asyncio event loop."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from greendrop import (
    DeliveryError,
    DeliveryTimeoutError,
    IllegalWaitError,
    ProduceManyError,
    Producer,
    QueueFullError,
    _concurrency,
)
from tests.interpreter import run

PROGRAM = """
    import asyncio
    from greendrop import Producer

    producer = Producer(kafka={"bootstrap.servers": servers})

    def send():
        return producer.produce_sync(topic="t", payload=b"x")

    async def main():
        await asyncio.to_thread(send)
        handle = producer.produce_async(topic="t", payload=b"x")
        await asyncio.to_thread(handle.wait)
        if blocks:
            for _ in range(3):
                send()
                producer.produce_many_sync([{"topic": "t", "payload": b"x"}])

    asyncio.run(main())
    send()
    producer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched"])
def test_blocked_event_loop_causes_one_warning(mode, mock_cluster):
    """However often coroutines call sync verbs, one log line names the alternative."""
    servers = mock_cluster.bootstrap_servers

    ended = run(PROGRAM, mode, fails=True, servers=servers, blocks=True)

    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 0
    assert "await asyncio.to_thread(producer.produce_sync" in line


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched"])
def test_waits_in_threads_of_asyncio_cause_no_warning(mode, mock_cluster):
    """`to_thread`, `produce_async` and waits after the loop block no event loop."""
    servers = mock_cluster.bootstrap_servers

    run(PROGRAM, mode, servers=servers, blocks=False)


GATHER = """
    import asyncio, time
    from greendrop import Producer

    producer = Producer(kafka={"bootstrap.servers": servers})

    async def tick(gaps):
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def main():
        await producer.produce_async(topic="t", payload=b"connected")
        gaps = []
        ticker = asyncio.create_task(tick(gaps))
        started = time.monotonic()
        handles = [producer.produce_async(topic="t", payload=b"x") for _ in range(200)]
        reports = await asyncio.gather(*handles)
        took = time.monotonic() - started
        ticker.cancel()
        assert len({(report.partition, report.offset) for report in reports}) == 200
        assert took > 0.5, took
        assert max(gaps) < took / 2, (max(gaps), took)

    asyncio.run(main())
    producer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "unpatched", "patched"])
def test_awaited_handles_let_the_event_loop_run_others(mode, mock_cluster):
    """Hundreds of awaited handles let a ticker run; no warning is logged."""
    mock_cluster.round_trip(0.5)
    servers = mock_cluster.bootstrap_servers

    ended = run(GATHER, mode, fails=True, servers=servers)

    assert ended.returncode == 0, ended.stderr
    assert "event_loop.blocked" not in ended.stderr


def test_an_awaited_handle_raises_the_error_of_wait(make_producer, mock_cluster):
    """Each await raises an error of its own for a message that was not delivered."""
    producer = make_producer()

    async def main():
        with pytest.raises(DeliveryError) as first:
            await producer.produce_async(topic="t", payload=b"x", partition=99)
        handle = await_done(producer)
        with pytest.raises(DeliveryError) as second:
            await handle
        with pytest.raises(DeliveryError) as third:
            await handle
        return first, second, third

    def await_done(producer):
        mock_cluster.fail_requests("Produce", "MESSAGE_TOO_LARGE", times=1)
        return producer.produce_async(topic="t", payload=b"x")

    errors = [each.value for each in asyncio.run(main())]

    assert errors[1].name == "MESSAGE_TOO_LARGE"
    assert errors[1] is not errors[2]


def test_a_cancelled_await_leaves_the_message_in_flight(make_producer, mock_cluster):
    """A timeout of asyncio ends only the wait; the handle can be awaited again."""
    producer = make_producer()

    async def main():
        await producer.produce_async(topic="t", payload=b"connected")
        mock_cluster.round_trip(0.5)
        handle = producer.produce_async(topic="t", payload=b"x")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.05)
        cancelled = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert handle.done is False
        assert handle._waiters is None
        return await handle

    assert asyncio.run(main()).topic == "t"


def test_an_await_ends_after_max_wait_timeout(mock_cluster):
    """An await has a deadline, like every wait."""
    kafka = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    patient = Producer(kafka, max_wait_timeout=60)
    producer = Producer(kafka, max_wait_timeout=0.1)

    async def main():
        longer = asyncio.ensure_future(patient.produce_async(topic="t", payload=b"x"))
        await asyncio.sleep(0)
        started = time.monotonic()
        outcomes = await asyncio.gather(
            *(producer.produce_async(topic="t", payload=b"x") for _ in range(300)),
            return_exceptions=True,
        )
        took = time.monotonic() - started
        assert not longer.done()
        longer.cancel()
        return outcomes, took

    outcomes, took = asyncio.run(main())

    assert {type(each) for each in outcomes} == {DeliveryTimeoutError}
    assert "within 0.1 s" in str(outcomes[0])
    assert 0.1 <= took < 10
    for each in (patient, producer):
        each.close(force=True)


def test_a_loop_may_end_before_the_report(make_producer, mock_cluster):
    """Waking a coroutine of a closed loop affects neither poller nor handle."""
    producer = make_producer()
    producer.produce_sync(topic="t", payload=b"connected")
    mock_cluster.round_trip(0.3)

    async def main():
        handle = producer.produce_async(topic="t", payload=b"x")
        coroutine = handle.__await__()
        coroutine.send(None)
        return handle, coroutine

    handle, _coroutine = asyncio.run(main())

    assert handle.wait(20).topic == "t"


class Wait:
    """An awaitable that is woken, and then uses the CPU for some seconds."""

    def __init__(self, resumed, works=0.0, timeout=60.0, source=None):
        self.waiter = _concurrency.EventLoopWaiter(source, timeout)
        self._resumed = resumed
        self._works = works

    def __await__(self):
        woken = yield from self.waiter.wait_slice()
        self.waiter.end()
        ends = time.monotonic() + self._works
        while time.monotonic() < ends:
            pass
        self._resumed.append(self)
        return woken


async def count_in_turns(count, works):
    """Wake coroutines at once; return how many each turn of the loop resumes."""
    resumed = []
    waits = [Wait(resumed, works) for _ in range(count)]
    everything = asyncio.gather(*waits)
    await asyncio.sleep(0)
    await asyncio.to_thread(lambda: [each.waiter.wake() for each in waits])
    turns = []
    while len(resumed) < count:
        before = len(resumed)
        await asyncio.sleep(0)
        turns.append(len(resumed) - before)
    assert all(await everything)
    return turns


def test_coroutines_are_resumed_in_several_turns_of_the_loop():
    """However many handles are resolved at once, other callbacks run in between."""
    turns = asyncio.run(count_in_turns(1_000, works=0.0))

    assert max(turns) <= 128


def test_busy_coroutines_are_resumed_in_more_turns_of_the_loop():
    """The longer they work, the fewer run before other callbacks do."""
    turns = asyncio.run(count_in_turns(100, works=0.002))

    assert max(turns) <= 32
    assert max(turns[-10:]) <= 2


def test_awaits_share_one_timer():
    """Hundreds of awaits give asyncio one timer to keep, not hundreds."""
    timers = []

    class Loop(asyncio.SelectorEventLoop):
        def call_at(self, when, callback, *args, context=None):
            timers.append(callback)
            return super().call_at(when, callback, *args, context=context)

    loop = Loop()
    try:
        loop.run_until_complete(count_in_turns(500, works=0.0))
    finally:
        loop.close()

    assert len(timers) <= 5


def test_one_await_for_each_source_checks_on_it_each_second():
    """The others wait on: with thousands of them, the checks would fill the loop."""

    async def main():
        resumed = []
        waits = [
            asyncio.ensure_future(Wait(resumed, source=index % 2))
            for index in range(20)
        ]
        done, pending = await asyncio.wait(waits, timeout=1.5)
        for each in pending:
            each.cancel()
        return [each.result() for each in done]

    assert asyncio.run(main()) == [False, False]


def test_a_closed_loop_is_freed_with_its_awaits():
    """Coroutines that never end keep nothing alive once their loop is gone."""

    def abandon():
        loop = asyncio.new_event_loop()

        async def main():
            return asyncio.ensure_future(Wait([]))

        loop.run_until_complete(main())
        loop.run_until_complete(asyncio.sleep(0))
        loop.set_exception_handler(lambda *_: None)  # a task that has not ended
        loop.close()
        return weakref.ref(loop)

    loop = abandon()
    gc.collect()

    assert loop() is None


def test_a_handle_is_awaited_in_an_event_loop_only(make_producer):
    """Without a loop the error names the alternative."""
    handle = make_producer().produce_async(topic="t", payload=b"x")

    with pytest.raises(RuntimeError, match=r"use wait\(\)"):
        handle.__await__().send(None)
    handle.wait(20)


@pytest.mark.parametrize("many", [False, True])
def test_produce_async_never_waits_for_space_in_an_event_loop(many):
    """A full queue raises at once; the error says how to limit the messages."""
    kafka = {
        "bootstrap.servers": "127.0.0.1:1",
        "log_level": 0,
        "queue.buffering.max.messages": 3,
    }
    producer = Producer(kafka, wait_timeout_on_queue_full=20)
    message = {"topic": "t", "payload": b"x"}

    async def main():
        for _ in range(3):
            producer.produce_async(**message)
        if many:
            producer.produce_many_async([message])
        else:
            producer.produce_async(**message)

    started = time.monotonic()
    with pytest.raises(ProduceManyError if many else QueueFullError) as raised:
        asyncio.run(main())

    assert "asyncio.Semaphore" in str(raised.value)
    assert raised.value.message_state == "not_sent"
    assert time.monotonic() - started < 10
    producer.close(force=True)


def test_produce_async_never_waits_for_partitions_in_an_event_loop(
    make_producer, mock_cluster
):
    """The first message with a `partition_key` is refused; later ones are sent."""
    mock_cluster.create_topic("t", partitions=3)
    mock_cluster.round_trip(0.3)
    producer = make_producer()
    message = {"topic": "t", "payload": b"x", "partition_key": "k"}

    async def main():
        with pytest.raises(IllegalWaitError, match="partition_count") as raised:
            producer.produce_async(**message)
        with pytest.raises(IllegalWaitError):
            producer.produce_many_async([message])
        await asyncio.to_thread(producer.partition_count, "t")
        await producer.produce_async(**message)
        await asyncio.gather(*producer.produce_many_async([message]))
        return raised.value

    assert asyncio.run(main()).message_state == "not_sent"


def test_produce_async_never_waits_for_a_transaction_in_an_event_loop(connected):
    """No transaction is begun implicitly in an event loop, only in a thread."""
    producer = connected()
    message = {"topic": "t", "payload": b"x"}

    async def main():
        errors = []
        for send in (
            lambda: producer.produce_async(**message),
            lambda: producer.produce_many_async([message]),
        ):
            with pytest.raises(IllegalWaitError, match="nothing was sent") as raised:
                send()
            errors.append(raised.value.message_state)
        handle = await asyncio.to_thread(producer.produce_async, **message)
        await handle
        return errors

    assert asyncio.run(main()) == ["not_sent", "not_sent"]


def test_produce_async_never_waits_for_a_token_in_an_event_loop():
    """The token is requested in the background; the message is refused meanwhile."""
    asked = threading.Event()
    go_on = threading.Event()

    def provide():
        asked.set()
        go_on.wait(20)
        raise ValueError("no token")

    kafka = {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "OAUTHBEARER",
        "log_level": 0,
    }
    producer = Producer(kafka, oauth_token_provider=provide)

    async def main():
        producer.produce_async(topic="t", payload=b"x")

    started = time.monotonic()
    with pytest.raises(IllegalWaitError, match="no OAuth token yet"):
        asyncio.run(main())

    assert time.monotonic() - started < 10
    assert asked.wait(10)
    go_on.set()
    producer.close()


def test_sync_verbs_wait_in_an_event_loop_after_async_ones(make_producer):
    """The restrictions of async verbs do not apply to later sync verbs."""
    producer = make_producer()

    async def main():
        producer.produce_async(topic="t", payload=b"x")
        return producer.produce_sync(topic="t", payload=b"x", partition_key="k")

    assert asyncio.run(main()).topic == "t"
