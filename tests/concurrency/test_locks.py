"""Native locks, and signal handlers that raise while one is acquired."""

import random
import signal

import pytest

from greendrop._concurrency import native

#: Rounds, and the longest time until a signal in each, in seconds. Of so many, half
#: leave a plain lock of Python 3.14 acquired.
_ROUNDS, _LONGEST = 300, 0.0004


class _InterruptError(Exception):
    pass


def _interrupt(*_):
    raise _InterruptError


every_lock = pytest.mark.parametrize(
    "new_lock", [native.new_lock, native._LockOfPython314]
)


@every_lock
def test_a_handler_that_raises_leaves_no_lock_acquired(new_lock):
    """A signal handler may raise at any moment of a `with` statement."""
    lock = new_lock()
    left_acquired = 0

    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        for _ in range(_ROUNDS):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, _LONGEST))
                while True:
                    with lock:
                        pass
            except _InterruptError:
                pass
            while lock._is_owned():
                left_acquired += 1
                lock.release()
    finally:
        signal.signal(signal.SIGALRM, before)

    assert left_acquired == 0


@every_lock
def test_an_acquired_lock_can_be_acquired_again_by_its_thread(new_lock):
    """A signal handler that needs a lock that its thread holds does not wait for it."""
    lock = new_lock()

    with lock, lock:
        pass

    assert not lock._is_owned()
