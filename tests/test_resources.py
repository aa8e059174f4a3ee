"""The list of open descriptors that the check for leftovers compares."""

from __future__ import annotations

import os
import select

import pytest

from greendrop._concurrency import native
from tests.resources import Open

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="there are no epoll descriptors"
)


def test_an_event_loop_may_get_another_descriptor():
    """A loop that was forked closes its descriptor, and another file may get that."""
    loop = select.epoll()
    reader, writer = os.pipe()
    before = Open.now()
    number = loop.fileno()

    loop.close()
    os.dup2(reader, number)
    with select.epoll():
        left = before.left_open(0.0)

    for each in (number, reader, writer):
        os.close(each)
    assert len(left) == 1
    assert left[0].startswith(f"file descriptor {number} of pipe:")


def test_a_thread_is_left_open_with_the_stacks_of_all():
    """The list shows where threads are, since all have the same name."""
    before = Open.now()
    started, ends = native.allocate_lock(), native.allocate_lock()
    started.acquire()
    ends.acquire()

    def wait_for_the_end():
        started.release()
        ends.acquire()

    native.start_new_thread(wait_for_the_end, ())
    started.acquire()
    left = before.left_open(0.0)

    ends.release()
    assert not before.left_open(10.0)
    assert left[0].startswith("thread ")
    assert any("in wait_for_the_end" in each for each in left[1:])


def test_a_second_event_loop_is_left_open():
    """A loop counts as left open unless it replaced another one."""
    before = Open.now()

    with select.epoll() as loop:
        number = loop.fileno()
        left = before.left_open(0.0)

    assert left == [f"file descriptor {number} of anon_inode:[eventpoll]"]
