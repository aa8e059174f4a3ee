"""Native locks, and signal handlers that raise while one is acquired."""

import pytest

from greendrop._concurrency import native

both_locks = pytest.mark.parametrize("name", ["new_lock", "_LockOfPython314"])


@pytest.mark.slow
@pytest.mark.patched
@both_locks
def test_a_handler_that_raises_leaves_no_lock_acquired(name, run_script):
    """A signal handler may raise at any moment of a `with` statement."""
    # Of so many rounds, half leave a plain lock of Python 3.14 acquired.
    program = """
    import random, signal, time
    from greendrop._concurrency import native

    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    lock = getattr(native, name)()
    signal.signal(signal.SIGALRM, interrupt)
    interrupted = left_acquired = 0
    for _ in range(300):
        deadline = time.monotonic() + 1
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0004))
            while time.monotonic() < deadline:
                for _ in range(100):
                    with lock:
                        pass
        except Interrupted:
            interrupted += 1
        while lock._is_owned():
            left_acquired += 1
            lock.release()
    assert interrupted == 300
    assert left_acquired == 0
    """

    run_script(program, "none", name=name)


@both_locks
def test_an_acquired_lock_can_be_acquired_again_by_its_thread(name):
    """A signal handler that needs a lock that its thread holds does not wait for it."""
    lock = getattr(native, name)()

    with lock, lock:
        pass

    assert not lock._is_owned()
