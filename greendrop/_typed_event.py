"""The base class of `Event`; type checkers read the stub beside this module instead.

docs/generate.py writes the stub from the tables of events. It gives each key of each
event's payload its type. These are types of all layers, which this module must not
import.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

EventName_co = TypeVar("EventName_co", covariant=True)


class TypedEvent(Generic[EventName_co]):
    """The payload of an event, by key."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - the stub has the types
        payload: Any = self.payload
        return payload[key]
