"""A sample of the soak: a few random programs; `make soak` runs many."""

import pytest

from tests.soak.__main__ import WORLDS, run_round


@pytest.mark.slow
@pytest.mark.patched
@pytest.mark.timeout(240)
@pytest.mark.parametrize("world", WORLDS)
def test_random_programs_keep_all_promises(world):
    """Each program ends, with what was acknowledged stored, and with nothing left."""
    done = run_round(world, seed=1, programs=2)

    assert done["programs"] >= 2
