"""Scripts that fork, become daemons, or end with messages in flight."""

from __future__ import annotations

import os
import signal

import pytest

from tests.tasks import await_true

pytestmark = pytest.mark.slow

HOSTS = "tests.kafka.hosts"


def assert_silent(program):
    """Check that the script printed nothing."""
    for word in ("Traceback", "Error", "greendrop:"):
        assert word not in program.log


@pytest.mark.parametrize(
    ("method", "patched"),
    [("fork", ""), ("spawn", ""), ("forkserver", ""), ("fork", "yes")],
    ids=["fork", "spawn", "forkserver", "fork, patched"],
)
def test_children_of_multiprocessing_deliver_in_the_end(start, stored, method, patched):
    """Processes, pools and executors deliver messages that a child sent or buffered.

    Python's exit handlers don't run in them.
    """
    with start("-m", f"{HOSTS}.children", method, PATCHED=patched) as script:
        assert script.wait() == 0
        assert_silent(script)

    names = [f"p{number}" for number in range(3)]
    if not patched:
        names += [f"pool{number}" for number in range(20)]
        names += [f"executor{number}" for number in range(20)]
    kinds = ("sync", "buffered", "async")
    expected = {f"{name}-{kind}" for name in (*names, "parent") for kind in kinds}
    found = stored()
    assert found.keys() == expected
    assert set(found.values()) == {1}


@pytest.mark.parametrize("used", [[], ["used"]], ids=["before", "after use"])
def test_a_daemon_delivers_in_the_end(start, stored, used):
    """A daemon that forked twice, before or after its first message, sends and ends."""
    with start("-m", f"{HOSTS}.daemon", *used) as script:
        assert script.wait() == 0
        await_true(lambda: "daemon" in script.facts, 30)
        daemon = script.facts["daemon"]
        await_true(lambda: not os.path.exists(f"/proc/{daemon}"), 30)  # noqa: PTH110
        assert_silent(script)

    expected = {f"sync-{number}" for number in range(100)}
    expected |= {f"async-{number}" for number in range(1000)}
    if used:
        expected.add("parent")
    found = stored()
    assert found.keys() == expected
    assert set(found.values()) == {1}


@pytest.mark.parametrize(
    ("how", "status"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 1)]
)
def test_an_interrupted_script_delivers_its_messages(start, stored, how, status):
    """Ctrl-C, or sys.exit in a handler: all accepted messages are delivered at exit."""
    with start("-m", f"{HOSTS}.endless") as script:
        script.wait_for("sends", lambda: "ready" in script.facts)
        script.signal(signal.Signals[how])
        assert script.wait() == status

    sent = script.facts["sent"]
    found = stored()
    assert found.keys() >= {"first", *map(str, range(sent))}
    assert found.keys() <= {"first", *map(str, range(sent + 1))}
    assert "greendrop:" not in script.log
