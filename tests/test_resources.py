"""The list of open descriptors that the check for leftovers compares."""

from __future__ import annotations

import os
import select

import pytest

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


def test_a_second_event_loop_is_left_open():
    """A loop counts as left open unless it replaced another one."""
    before = Open.now()

    with select.epoll() as loop:
        number = loop.fileno()
        left = before.left_open(0.0)

    assert left == [f"file descriptor {number} of anon_inode:[eventpoll]"]
