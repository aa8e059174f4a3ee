"""Which names the live producers of this process have.

Two that share a `transactional.id` fence each other off; two that share an `id` can't
be told apart in events, logs and errors.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from greendrop import _waiting
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from greendrop.config import Settings


class Named(Protocol):
    """Who has names."""

    settings: Settings

    @property
    def live(self) -> bool:
        """Whether it still needs them, in this process."""
        ...


# By setting and name. Who is collected is out of it at once; who is not live any more
# stays, and must make room.
_owners: WeakValueDictionary[tuple[str, str], Named] = WeakValueDictionary()
_changing = _waiting.RLock()


def claim(owner: Named) -> None:
    """Take the names that an owner's settings give it: all, or none.

    Raises:
        ConfigurationInvalidError: Another live producer has one of them.
    """
    if _try(owner):
        # Garbage has no name, whether it was collected yet or not.
        gc.collect()
        if taken := _try(owner):
            raise ConfigurationInvalidError(taken)


def _try(owner: Named) -> dict[str, str]:
    """Take the names if all are free; else say of each that is not whose it is."""
    settings = owner.settings
    names = _names_of(settings)
    taken: dict[str, str] = {}
    with _changing:
        for pair in names.items():
            other = _owners.get(pair, owner)
            still = pair in _names_of(other.settings).items()
            if other is not owner and other.live and still:
                key, name = pair
                taken[key] = (
                    f"{name!r} is that of producer {other.settings.id!r}, which is not"
                    f" closed; producer {settings.id!r} needs one of its own"
                )
        if not taken:
            _owners.update(dict.fromkeys(names.items(), owner))
    return taken


def _names_of(settings: Settings) -> dict[str, str]:
    names = {"id": settings.id}
    if transactional_id := settings.transactional_id:
        names["kafka.transactional.id"] = transactional_id
    return names
