"""Whether the payload of an event is as its row in the tables says."""

import builtins
import importlib
import itertools
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from greendrop.events import EVENTS, PROCESS_EVENTS

ROWS = {**EVENTS, **PROCESS_EVENTS}
GENERATE = Path(__file__).parents[1] / "docs" / "generate.py"


def check_payload(event):
    """Assert that an event has the keys of its row, with values of their types."""
    row = ROWS[event.name]
    required, known = set(row.payload), row.types.keys()
    assert required <= event.payload.keys() <= known, event
    for key, value in event.payload.items():
        kind = eval(row.types[key], vars(builtins), names())
        assert fits(value, kind), f"{event.name}: {key} is {value!r}, not {kind}"


def names():
    """Return all names that the types in the tables are made of."""
    modules = runpy.run_path(str(GENERATE))["TYPE_MODULES"]
    found = {}
    for module in reversed(modules):
        found |= vars(importlib.import_module(module))
    return found


def fits(value, kind):
    """Return whether a value has a type, as far as that can be seen."""
    if kind is typing.Any or getattr(kind, "_is_protocol", False):
        return True
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return value in inner
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, each) for each in inner)
    plain = {None: type(None), float: (int, float)}.get(origin, origin)
    if origin in (dict, Mapping):
        parts = [*zip(value, itertools.repeat(inner[0]))]
        parts += zip(value.values(), itertools.repeat(inner[1]))
    else:
        parts = [(each, inner[0]) for each in value] if inner else []
    return isinstance(value, plain) and all(itertools.starmap(fits, parts))
