"""Placeholders in a `transactional.id`: `{pid}`, `{hostname}` and `{slot}`.

They are filled in when a client is created, and not when its producer is: by then the
process may have forked.
"""

from __future__ import annotations

import os
import socket
import string
from contextvars import ContextVar

__all__: list[str] = []

#: Number of the pool's slot that a producer is being made for; None outside of a pool.
current_slot: ContextVar[int | None] = ContextVar("slot", default=None)

_NAMES = ("pid", "hostname", "slot")


def find_mistake(template: str, slot: int | None) -> str | None:
    """Describe the first mistake in a template, or return None.

    Args:
        template: The `transactional.id` as the user wrote it.
        slot: Number of the pool's slot, or None outside of a pool.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        return f"{error}; write {{{{ or }}}} for a brace that is part of the text"
    for name in names:
        if name is not None and name not in _NAMES:
            return (
                f"has no placeholder {{{name}}}, only {{pid}}, {{hostname}}, {{slot}}"
            )
    if "slot" in names and slot is None:
        return "only a producer that a pool creates has a {slot}"
    return None


def fill(template: str, slot: int | None) -> str:
    """Fill in a template for this process.

    Args:
        template: A template without mistakes.
        slot: Number of the pool's slot, or None outside of a pool.
    """
    return template.format(pid=os.getpid(), hostname=socket.gethostname(), slot=slot)
