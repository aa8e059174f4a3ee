"""The judge of the chaos finds each kind of broken promise, and no others."""

import pytest

from tests.chaos.clients import MESSAGES, Record, Records
from tests.chaos.transactions import judge
from tests.servers.reading import Record as Stored


def stored(name, indexes=range(MESSAGES)):
    """Create the stored messages of a transaction, one partition each."""
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
    """Visible messages decide, whatever outcome the clients recorded."""
    figures = judged(outcome, committed)

    kinds = ("lost", "visible", "torn", "doubled", "misplaced")
    assert [kind for kind in kinds if getattr(figures, kind)] == (
        [] if broken is None else [broken]
    )
    assert figures.is_good == (outcome == "committed" and broken is None)


def test_report_with_a_wrong_place_is_found():
    """A wrong report is found even though the message is stored."""
    records = Records([Record("0-0", "committed", [(0, 99)] * MESSAGES)])

    figures = judge(records, 1, stored("0-0"), stored("0-0"))

    assert figures.misplaced == MESSAGES
    assert not figures.is_good


def test_run_without_commits_proves_nothing():
    """A run without commits is not good, nor is one with stuck clients."""
    assert not judge(Records(), 1, [], []).is_good
    assert not judge(Records(stuck=1), 1, stored("0-0"), stored("0-0")).is_good
