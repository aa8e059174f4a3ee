"""The judge of the chaos finds each kind of broken promise, and no others."""

from collections import Counter
from functools import partial

import pytest

from tests.chaos.judge import Figures, Stored, judge
from tests.chaos.records import Recorder, Sent, Summary, read_sent
from tests.chaos.report import Result
from tests.tasks import together


def sent(outcome, numbers=range(5), *, group="", partition=0, first_offset=10):
    """Create messages of one key, with reports if they are acknowledged."""
    reported = outcome == "acknowledged"
    return [
        Sent(
            f"key-{number}",
            outcome,
            partition if reported else None,
            first_offset + number if reported else None,
            group,
        )
        for number in numbers
    ]


def stored(numbers=range(5), *, partition=0, first_offset=10):
    """Create stored messages, at the offsets of `sent`."""
    return [Stored(partition, first_offset + each, f"key-{each}") for each in numbers]


ALL = ("lost", "doubled", "disordered", "visible", "torn", "misplaced", "foreign")


@pytest.mark.parametrize(
    ("messages", "found", "broken"),
    [
        (sent("acknowledged"), stored(), {}),
        (sent("acknowledged"), stored(range(4)), {"lost": 1}),
        (sent("acknowledged"), [], {"lost": 5}),
        (
            sent("acknowledged"),
            [*stored(), Stored(0, 15, "key-2")],
            {"doubled": 1},
        ),
        (sent("aborted"), [], {}),
        (sent("aborted"), stored([3]), {"visible": 1}),
        (sent("unknown", group="a"), [], {}),
        (sent("unknown", group="a"), stored(), {}),
        (sent("unknown", group="a"), stored([0, 1]), {"torn": 1}),
        (sent("unknown"), stored([0, 1]), {}),
        (sent("failed"), stored([0, 1]), {}),
        (
            sent("acknowledged"),
            stored(first_offset=11),
            {"misplaced": 5},
        ),
        (sent("acknowledged"), [*stored(), Stored(0, 15, "key-9")], {"foreign": 1}),
    ],
)
def test_each_broken_promise_is_found(messages, found, broken):
    """Stored messages decide, whatever outcome the programs recorded."""
    figures = judge(messages, found)

    assert {name: getattr(figures, name) for name in ALL if getattr(figures, name)} == (
        broken
    )
    assert len(figures.examples) == sum(
        broken.get(name, 0) for name in ("lost", "visible", "misplaced")
    )


@pytest.mark.parametrize(
    ("order", "count"),
    [((0, 1, 2), 0), ((0, 2, 1), 1), ((2, 1, 0), 2), ((2, 0, 1), 2), ((1, 0, 2), 1)],
)
def test_messages_behind_later_ones_are_found(order, count):
    """A message behind a later one of its key is out of order."""
    messages = [Sent(f"key-{number}", "acknowledged") for number in range(3)]
    found = [Stored(0, offset, f"key-{each}") for offset, each in enumerate(order)]

    assert judge(messages, found).disordered == count


def test_order_is_that_of_each_key_and_partition():
    """Keys, and partitions, have no order among each other."""
    messages = [
        Sent(f"{key}-{each}", "acknowledged") for key in "ab" for each in (0, 1)
    ]
    found = [
        *(Stored(0, 5, "a-0"), Stored(1, 2, "a-1")),
        *(Stored(0, 3, "b-0"), Stored(0, 4, "b-1")),
    ]

    assert judge(messages, found).disordered == 0


def test_report_without_an_offset_is_not_misplaced():
    """A broker that answers "duplicate" names no offset."""
    messages = [Sent("key-0", "acknowledged", 0, -1), Sent("key-1", "acknowledged", 0)]

    assert judge(messages, stored([0, 1])).misplaced == 0


def result(figures=None, *, once=True, empty_gap=0.0, **summary):
    """Create a result that is good but for what is given."""
    return Result(
        title="some load",
        seed=1,
        seconds=1.0,
        once=once,
        figures=figures or Figures(Counter(acknowledged=1)),
        summary=Summary(**summary),
        empty_gap=empty_gap,
    )


@pytest.mark.parametrize("broken", ALL)
def test_broken_promise_fails_a_run(broken):
    """Messages may be doubled and out of order only without idempotence."""
    figures = Figures(Counter(acknowledged=1), **{broken: 1})

    assert result(figures).violations == {broken: 1}
    assert result(figures, once=False).violations == (
        {} if broken in {"doubled", "disordered"} else {broken: 1}
    )


def test_run_without_acknowledgements_proves_nothing():
    """A run in which nothing was acknowledged has failed."""
    assert result(Figures()).violations == {"acknowledged": 0}


def test_stuck_task_fails_a_run():
    """Tasks that did not end break the promise that every wait ends."""
    assert result(stuck=1).violations == {"stuck": 1}


@pytest.mark.parametrize(
    ("gap", "empty", "passed"),
    [(0.019, 0.0, True), (0.021, 0.0, False), (0.1, 0.09, True), (None, 0.0, True)],
)
def test_long_gap_fails_a_run(gap, empty, passed):
    """The hub's longest gap is compared with that of an empty program."""
    found = result(gap=gap, empty_gap=empty)

    assert found.case.passed == passed
    assert bool(found.violations) != passed


def test_records_are_read_as_they_were_written(tmp_path):
    """The account of a program survives its file."""
    messages = [*sent("acknowledged"), *sent("unknown", group="a")]
    recorder = Recorder(tmp_path)
    for each in messages:
        recorder.record(each)
    recorder.error(ValueError("x"))
    recorder.summary.gap = 0.5
    recorder.close()

    assert read_sent(tmp_path / "sent.tsv") == messages
    summary = Summary.read(tmp_path / "sent.json")
    assert summary.errors == Counter({"ValueError": 1})
    assert summary.gap == 0.5


def test_records_of_several_threads_are_whole(tmp_path):
    """Threads write lines, not parts of lines."""
    recorder = Recorder(tmp_path)
    messages = [sent("acknowledged", range(each, 20_000, 8)) for each in range(8)]

    together([partial(record_all, recorder, each) for each in messages])
    recorder.close()

    assert sorted(read_sent(tmp_path / "sent.tsv")) == sorted(
        each for some in messages for each in some
    )


def record_all(recorder, messages):
    """Record messages one after the other."""
    for each in messages:
        recorder.record(each)
