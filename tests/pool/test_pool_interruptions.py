"""Signal handlers that raise while a pool's producer is checked out or in."""

import signal

import pytest

from greendrop import ProducerPool
from tests.interrupting import at_entry, handling


def interrupt():
    """Do what Python's own handler of Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place", [ProducerPool._check_out, ProducerPool._check_in, ProducerPool._fill]
)
def test_an_interrupted_block_frees_its_slot(world, make_producer, place):
    """Another block gets the only producer at once."""
    pool = ProducerPool(lambda: make_producer(), size=1)  # noqa: PLW0108 - no slot

    with (
        handling(signal.SIGINT, interrupt) as raise_signal,
        at_entry(place, raise_signal) as calls,
        pytest.raises(KeyboardInterrupt),
        pool.producer(),
    ):
        pass

    assert calls
    assert pool.stats.available == 1
    with pool.producer(1) as producer:
        producer.produce_sync(topic="t", payload=b"x")
    pool.close(force=True)
