"""Which names the live producers of this process have.

Two that share a `transactional.id` fence each other off; two that share an `id` can't
be told apart in events, logs and errors.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from greendrop.config.settings import Settings


class Identified(Protocol):
    """Who has names."""

    settings: Settings

    @property
    def live(self) -> bool:
        """Whether it still needs them, in this process."""
        ...


# By setting and name. A WeakValueDictionary has callbacks: what a signal
# handler raises in one of these is lost.
_owners: dict[tuple[str, str], weakref.ref[Identified]] = {}
_lock = _concurrency.new_lock()
# Of the process whose names these are.
_mark = _concurrency.fork_marker()


def claim(owner: Identified) -> None:
    """Take the names that an owner's settings give it: all, or none.

    Raises:
        ConfigurationInvalidError: Another live producer has one of them.
    """
    if _try(owner):
        # Garbage has no name, whether it was collected yet or not.
        gc.collect()
        if taken := _try(owner):
            raise ConfigurationInvalidError(taken)


def give_up_id(owner: Identified) -> None:
    """Let another producer have the `id` of one that goes on for a while."""
    with _lock:
        pair = ("id", owner.settings.id)
        if _owner_of(pair) is owner:
            del _owners[pair]


def _try(owner: Identified) -> dict[str, str]:
    """Take the names if all are free; else say of each that is not whose it is."""
    settings = owner.settings
    names = _names_of(settings)
    taken: dict[str, str] = {}
    with _lock:
        _rename_after_fork()
        for pair in list(_owners):
            if _owner_of(pair) is None:
                del _owners[pair]
        for pair in names.items():
            other = _owner_of(pair)
            still = other is not None and pair in _names_of(other.settings).items()
            if other is not None and other is not owner and still:
                key, name = pair
                user, needs = "another producer", "each"
                if key != "id":
                    user = f"producer {other.settings.id!r}"
                    needs = f"producer {settings.id!r}"
                taken[key] = (
                    f"{name!r} is in use by {user}, which is not closed; {needs} needs"
                    " one of its own"
                )
        if not taken:
            _owners.update(dict.fromkeys(names.items(), weakref.ref(owner)))
    return taken


def _rename_after_fork() -> None:
    """Take note of what owners are called in this process: `{pid}` differs."""
    global _mark  # noqa: PLW0603 - once in each process
    if _mark.same_process:
        return
    for key, name in list(_owners):
        reference = _owners.pop((key, name))
        owner = reference()
        if owner is not None:
            _owners[key, _names_of(owner.settings).get(key, name)] = reference
    _mark = _concurrency.fork_marker()


def _names_of(settings: Settings) -> dict[str, str]:
    names = {"id": settings.id}
    if transactional_id := settings.transactional_id:
        names["kafka.transactional.id"] = transactional_id
    return names


def _owner_of(pair: tuple[str, str]) -> Identified | None:
    reference = _owners.get(pair)
    owner = reference() if reference is not None else None
    return owner if owner is not None and owner.live else None
