"""Statistics: the changes since the previous ones, and a hub that is not held up."""

import json
import time
from itertools import pairwise
from types import SimpleNamespace

import gevent
import pytest

from greendrop import _concurrency
from greendrop._librdkafka.statistics import Statistics
from greendrop.errors import StatisticsNotEnabledError
from tests.tasks import await_true

KEYS = ("tx", "txerrs", "txmsgs")
SECOND = 1_000_000
OFTEN = {"statistics.interval.ms": 50}


def statistics(seconds, **numbers):
    """Write statistics as librdkafka does, with each number in all parts."""
    here = {"name": "text", **numbers}
    return json.dumps(
        {
            **here,
            "ts": int(seconds * SECOND),
            "brokers": {"a:1/1": {**here, "rtt": {"avg": 5, **numbers}}},
            "topics": {"t": {**here, "partitions": {"0": here, "-1": here}}},
            "cgrp": here,
        }
    )


def parts(read):
    """Return the parts of statistics that have changes."""
    topic = read["topics"]["t"]
    yield from (read, read["brokers"]["a:1/1"], topic, read["cgrp"])
    yield from topic["partitions"].values()


@pytest.fixture
def reader():
    """Make a reader of one client's statistics."""
    return Statistics(KEYS, _concurrency.CooperativeLoop())


def test_first_change_is_zero(reader):
    """The change is 0 in the first statistics, and for a new key."""
    reader.read(statistics(1, tx=100))
    read = reader.read(statistics(2, tx=100, txerrs=50))

    for part in parts(read):
        assert part["txerrs_d"] == 0
        assert part["txerrs_fd"] == 0


def test_changes_are_given_in_each_part(reader):
    """Root, brokers, topics, partitions and the group have changes."""
    reader.read(statistics(1, tx=100))
    read = reader.read(statistics(6, tx=130))

    for part in parts(read):
        assert part["tx"] == 130
        assert part["tx_d"] == 30
        assert part["tx_fd"] == 0


def test_age_of_a_number_is_given_in_seconds(reader):
    """The age is the time without a change, and is reset by a change."""
    ages = [
        reader.read(statistics(when, tx=value))["tx_fd"]
        for when, value in ((1, 5), (3.5, 5), (6, 5), (8.5, 6), (11, 6))
    ]

    assert ages == [0, 2.5, 5, 0, 2.5]


def test_only_requested_keys_get_changes(reader):
    """Keys that were not requested get no change, and neither do other parts."""
    reader.read(statistics(1, tx=1, rx=1))
    read = reader.read(statistics(2, tx=2, rx=2))

    assert "rx_d" not in read
    assert "tx_d" not in read["brokers"]["a:1/1"]["rtt"]


@pytest.mark.parametrize("value", ["text", True, None, {"a": 1}, [1]])
def test_values_that_are_not_numbers_get_no_change(reader, value):
    """A statistic that is not a number has no `_d` key."""
    reader.read(statistics(1, tx=value))
    read = reader.read(statistics(2, tx=value))

    assert "tx_d" not in read
    assert "tx_fd" not in read


def test_removed_numbers_are_forgotten(reader):
    """A topic that was gone starts again, and uses no memory while it is gone."""
    reader.read(statistics(1, tx=100))
    reader.read(json.dumps({"ts": 2 * SECOND, "tx": 100}))
    read = reader.read(statistics(3, tx=900))

    assert read["tx_d"] == 800
    assert read["topics"]["t"]["tx_d"] == 0
    assert len(reader._before) == 6


def test_without_keys_nothing_is_added():
    """Without requested keys librdkafka's statistics are passed on unchanged."""
    text = statistics(1, tx=1)

    assert Statistics((), _concurrency.CooperativeLoop()).read(text) == json.loads(text)


# -- a thousand partitions ------------------------------------------------------------


def large(partitions):
    """Write statistics of six brokers and a topic, as large as librdkafka's are."""
    window = {f"p{number}": number * 1000 for number in range(14)}
    keys = ("int_latency", "outbuf_latency", "rtt", "throttle")
    broker = {
        **{f"number{number}": number * 1000 for number in range(28)},
        **dict.fromkeys(keys, window),
        "req": {f"Request{number}": number for number in range(35)},
        "toppars": {
            f"topic-{n}": {"topic": "topic", "partition": n}
            for n in range(partitions // 6)
        },
    }
    partition = {f"some_number_{number}": number * 1000 for number in range(36)}
    return json.dumps(
        {
            "ts": SECOND,
            "tx": 1,
            "brokers": {f"broker-{n}:9092/{n}": broker for n in range(6)},
            "topics": {
                "topic": {
                    "batchsize": window,
                    "partitions": {str(n): partition for n in range(partitions)},
                }
            },
        }
    )


def longest_piece(keys):
    """Read a large text; return the longest processor time between two yields."""
    text = large(1_000)
    assert 600_000 < len(text) < 1_500_000
    times = []
    loop = SimpleNamespace(checkpoint=lambda: times.append(time.thread_time()))
    reader = Statistics(keys, loop)
    for _ in range(2):
        reader.read(text)
        times.append(time.thread_time())
    return max(after - before for before, after in pairwise(times))


@pytest.mark.parametrize("keys", [(), ("tx", "some_number_7", "number5")])
def test_thousand_partitions_are_read_in_small_pieces(keys):
    """Reading 775 KB takes 6 to 14 ms in all; other greenlets run meanwhile.

    The longest piece takes some 0.3 ms. Processor time includes the garbage collector,
    but no other programs of the machine.
    """
    assert min(longest_piece(keys) for _ in range(3)) < 0.01


def test_thousand_partitions_do_not_hold_the_hub(longest_gap):
    """A ticker runs while the statistics are read."""
    text = large(1_000)
    reader = Statistics(("tx",), _concurrency.CooperativeLoop())

    with longest_gap() as gap:
        for _ in range(10):
            reader.read(text)

    assert gap.ticks > 10
    assert gap.seconds < 0.05


# -- events of a real producer --------------------------------------------------------


@pytest.mark.slow
def test_changes_come_with_the_events(world, make_producer, until):
    """The keys that metrics need have changes by default; other keys on request."""
    for settings in ({}, {"statistics_deltas": ["msg_cnt"]}):
        producer = make_producer(OFTEN, **settings)
        emitted = []
        producer.monitor.subscribe("statistics.emitted", emitted.append)
        producer.produce_sync(topic="t", payload=b"x")
        until(lambda emitted=emitted: len(emitted) > 1)

        second = emitted[1]["statistics"]
        assert ("tx_d" in second) == (not settings)
        assert ("msg_cnt_d" in second) == bool(settings)


@pytest.mark.slow
def test_statistics_go_on_after_a_reconnect(world, make_producer, until, pause):
    """Statistics pause while disconnected, never repeat, and changes start again."""
    producer = make_producer(OFTEN)
    emitted = []
    producer.monitor.subscribe("statistics.emitted", emitted.append)
    producer.produce_sync(topic="t", payload=b"x")
    until(lambda: len(emitted) > 2)
    assert producer.disconnect()
    before = len(emitted)
    pause(0.3)
    assert len(emitted) == before

    producer.produce_sync(topic="t", payload=b"x")
    until(lambda: len(emitted) > before + 2)
    producer.close()

    after = len(emitted)
    pause(0.2)
    assert len(emitted) == after
    stamps = [(e["statistics"]["name"], e["statistics"]["ts"]) for e in emitted]
    assert len(set(stamps)) == len(stamps)
    assert len({name for name, _ in stamps}) == 2
    assert emitted[before]["statistics"]["tx_d"] == 0
    assert all(event["statistics"]["tx_d"] >= 0 for event in emitted)


@pytest.mark.slow
def test_statistics_may_be_requested_between_two_connections(make_producer, hub):
    """A subscription that is too late for one client is in time for the next one."""
    producer = make_producer(OFTEN)
    producer.produce_sync(topic="t", payload=b"x")
    with pytest.raises(StatisticsNotEnabledError):
        producer.monitor.subscribe("statistics.emitted", print)
    emitted = []
    producer.disconnect()
    producer.monitor.subscribe("statistics.emitted", emitted.append)

    producer.produce_sync(topic="t", payload=b"x")

    await_true(lambda: emitted)
    gevent.sleep(0)
