"""The names of the live producers of this process.

Two producers that share a `transactional.id` fence each other off. Two that share an
`id` can't be distinguished in events, logs and errors.
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
    """An object whose settings contain names."""

    settings: Settings

    @property
    def is_live(self) -> bool:
        """Whether it still needs the names, in this process."""
        ...


# By setting and name. A WeakValueDictionary would need callbacks, and an exception that
# a signal handler raises inside such a callback is lost.
_owners: dict[tuple[str, str], weakref.ref[Identified]] = {}
_lock = _concurrency.new_lock()
# Marks the process in which the names were computed: `{pid}` differs in a child.
_mark = _concurrency.fork_marker()


def reserve(owner: Identified) -> None:
    """Reserve the names in an owner's settings: all, or none.

    Raises:
        ConfigurationInvalidError: Another live producer has one of them.
    """
    if _try(owner):
        # An unreachable owner has no name, whether or not it was collected already.
        gc.collect()
        if taken := _try(owner):
            raise ConfigurationInvalidError(taken)


def release_id(owner: Identified) -> None:
    """Release the `id` of an owner that stays live for a while."""
    with _lock:
        pair = ("id", owner.settings.id)
        if _owner_of(pair) is owner:
            del _owners[pair]


def _try(owner: Identified) -> dict[str, str]:
    """Reserve the names if all are free, else describe each conflict."""
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
            # A reload may have changed the other producer's names.
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
    """Update the names for this process, since `{pid}` differs after a fork."""
    global _mark  # noqa: PLW0603 - once in each process
    if _mark[0]:
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
    return owner if owner is not None and owner.is_live else None
