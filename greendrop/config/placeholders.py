"""What `{pid}`, `{hostname}` and `{slot}` stand for in a `transactional.id`.

Filled in when a client is built and not when its producer is made: by then the process
may be another one, forked from that.
"""

from __future__ import annotations

import os
import socket
import string
from contextvars import ContextVar

#: Number of the pool's slot that a producer is being made for; None outside of a pool.
current_slot: ContextVar[int | None] = ContextVar("slot", default=None)

_KNOWN = ("pid", "hostname", "slot")


def complaint(template: str, slot: int | None) -> str | None:
    """Tell what is wrong with a template, or None.

    Args:
        template: As the user wrote it.
        slot: See `filled`.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        return f"{error}; write {{{{ for a brace that is meant as such"
    for name in names:
        if name is not None and name not in _KNOWN:
            return f"knows {{pid}}, {{hostname}} and {{slot}}, but not {{{name}}}"
    if "slot" in names and slot is None:
        return "only a producer that a pool makes has a {slot}"
    return None


def filled(template: str, slot: int | None) -> str:
    """Fill in a template, for this process.

    Args:
        template: One that there is no complaint about.
        slot: Number of the pool's slot, if there is one.
    """
    return template.format(pid=os.getpid(), hostname=socket.gethostname(), slot=slot)
