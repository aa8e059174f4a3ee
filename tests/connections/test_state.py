"""The state of a producer: which status may follow which."""

import pytest

from greendrop._connections.state import State

OPEN = ("configured", "connected", "disconnected")


def in_status(status):
    """Return a state with a status."""
    state = State()
    state.status = status
    return state


@pytest.mark.parametrize("status", [*OPEN, "disconnecting"])
def test_every_open_status_may_lead_to_closing(status):
    """A producer can be closed at any time."""
    state = in_status(status)

    state.to("closing")
    state.to("closed")

    assert state.status == "closed"
    assert state.closing_or_closed


@pytest.mark.parametrize("end", ["closing", "closed"])
@pytest.mark.parametrize("status", [*OPEN, "disconnecting"])
def test_a_closed_producer_stays_closed(end, status):
    """A task that was slower than `close` changes nothing."""
    state = in_status(end)

    state.to(status)

    assert state.status == end
    assert state.refuses_caller


@pytest.mark.parametrize("status", ["configured", "disconnected"])
def test_only_a_connected_producer_disconnects(status):
    """Without connections there is nothing to disconnect."""
    state = in_status(status)

    state.to("disconnecting")

    assert state.status == status


def test_each_change_cancels_a_disconnect():
    """The disconnect finds out by its object that it is not wanted any more."""
    state = in_status("connected")
    token = state.begin_disconnect()
    assert (state.status, state.disconnect) == ("disconnecting", token)

    state.to("connected")

    assert state.disconnect is None


@pytest.mark.parametrize(
    ("status", "after"),
    [("connected", "configured"), ("closing", "closed"), ("closed", "closed")],
)
def test_reset_starts_again_unless_closed(status, after):
    """A forked child connects anew, but a closed producer is closed there, too."""
    state = in_status(status)

    state.reset()

    assert state.status == after
