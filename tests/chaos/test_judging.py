"""The judge of the chaos finds each kind of broken promise, and nothing else."""

import pytest

from tests.chaos.clients import MESSAGES, Record, Records
from tests.chaos.transactions import judge
from tests.servers.reading import Record as Stored


def stored(name, indexes=range(MESSAGES)):
    """Make the stored messages of a transaction, one partition each."""
    return [
        Stored("chaos", index, 10, 0, None, f"{name}-{index}".encode(), [])
        for index in indexes
    ]


def judged(outcome, committed):
    """Judge a run of one transaction, with the reports that `stored` makes."""
    reports = [(index, 10) for index in range(MESSAGES)]
    records = Records([Record("0-0", outcome, reports)])
    return judge(records, 1, committed, committed)


@pytest.mark.parametrize(
    ("outcome", "committed", "broken"),
    [
        ("committed", stored("0-0"), None),
        ("committed", stored("0-0", range(4)), "lost"),
        ("committed", [], "lost"),
        ("committed", stored("0-0") + stored("0-0", [2]), "doubled"),
        ("aborted", [], None),
        ("aborted", stored("0-0", [3]), "visible"),
        ("unknown", [], None),
        ("unknown", stored("0-0"), None),
        ("unknown", stored("0-0", [0, 1]), "torn"),
    ],
)
def test_each_broken_promise_is_found(outcome, committed, broken):
    """By what is visible, whatever the clients were told besides."""
    figures = judged(outcome, committed)

    kinds = ("lost", "visible", "torn", "doubled", "misplaced")
    assert [kind for kind in kinds if getattr(figures, kind)] == (
        [] if broken is None else [broken]
    )
    assert figures.is_good == (outcome == "committed" and broken is None)


def test_report_that_names_another_place_is_found():
    """Although the message is there."""
    records = Records([Record("0-0", "committed", [(0, 99)] * MESSAGES)])

    figures = judge(records, 1, stored("0-0"), stored("0-0"))

    assert figures.misplaced == MESSAGES
    assert not figures.is_good


def test_run_that_commits_nothing_proves_nothing():
    """As one whose clients are stuck."""
    assert not judge(Records(), 1, [], []).is_good
    assert not judge(Records(stuck=1), 1, stored("0-0"), stored("0-0")).is_good
