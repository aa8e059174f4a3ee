"""Whether one task waits for another to end.

Looks into gevent's links and Python's frames, without importing what they belong to.
"""

from __future__ import annotations

import sys
from typing import Any

from greendrop._concurrency.native import get_ident


def waits_for(task: object, other: object) -> bool:
    """Tell whether a task waits for another one to end, as far as that can be seen.

    Between greenlets: by `join`, `get`, `joinall`, `wait`, a group's `join` and the
    like, also by way of third ones. Between threads: by `join`. Who waits for an event
    or a queue that the other one is to fill can't be seen.

    Args:
        task: As `current_task` gives it, and not the caller.
        other: The caller, or one that waits in this thread.
    """
    if isinstance(other, int):
        return isinstance(task, int) and _thread_joins(task, other)
    seen = [other]
    for each in seen:
        for waiting in _behind(each):
            is_main = getattr(waiting, "parent", waiting) is None
            if waiting is task or (is_main and task == get_ident()):
                return True
            if not any(waiting is one for one in seen):
                seen.append(waiting)
    return False


class _Spy:
    """Equal to nothing; remembers what it was compared with."""

    __slots__ = ("seen",)

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __eq__(self, other: object) -> bool:
        self.seen.append(other)
        return False


def _behind(source: Any) -> list[Any]:  # noqa: ANN401
    """Give the greenlets, and groups, that wait for something of gevent's."""
    unlink = getattr(source, "unlink", None)
    if unlink is None:
        return []
    # Where gevent is compiled nobody can look at the links; but they are compared.
    spy = _Spy()
    unlink(spy)
    behind = []
    for link in spy.seen:
        # The `switch` of a greenlet, or of a `Waiter` that has one; or a group's.
        owner = getattr(link, "__self__", None)
        owner = getattr(owner, "greenlet", None) or owner
        behind.append(getattr(owner, "_empty_event", owner))
    return behind


def _thread_joins(thread: int, other: int) -> bool:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - the only way to know
    while frame is not None:
        if frame.f_code.co_name == "join":
            joined = frame.f_locals.get("self")
            if getattr(joined, "ident", None) == other:
                return True
        frame = frame.f_back
    return False
