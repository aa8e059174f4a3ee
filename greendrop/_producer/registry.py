"""The live producers of this process: their names, and those to close at exit.

Two producers that share a `transactional.id` fence each other off. Two that share an
`id` can't be distinguished in events, logs and errors. So the names are reserved.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import sys
import weakref
from typing import TYPE_CHECKING, Protocol

from greendrop import _concurrency
from greendrop.errors import ConfigurationInvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

    from greendrop._client.client import Client
    from greendrop.config.settings import Settings


class Identified(Protocol):
    """An object whose settings contain names."""

    settings: Settings

    @property
    def is_live(self) -> bool:
        """Whether it still needs the names, in this process."""


class ClosesAtExit(Protocol):
    """A producer that may have something to lose, by its `Shutdown`."""

    @property
    def is_ours(self) -> bool:
        """Whether this process may close the producer."""

    @property
    def exit_timeout(self) -> float:
        """Seconds that closing may take when the interpreter exits."""

    def close_at_exit(self, timeout: float, report: Callable[[str], object]) -> None:
        """Close within some seconds, and report a loss in one line."""

    def discard(self, is_meant: Callable[[Client], bool], *, idle: bool) -> None:
        """Disconnect without delivering anything."""

    def reset(self) -> None:
        """Make the producer usable in a forked child."""


# Producers that are connected or have buffered messages. The references keep a producer
# with messages in flight from being garbage-collected.
_in_use: set[ClosesAtExit] = set()
# Marks the process that has registered its exit hook.
_exit_hook_marker: _concurrency.ForkMarker | None = None
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


def register(producer: ClosesAtExit) -> None:
    """Keep a producer from being garbage-collected, and close it at exit."""
    global _exit_hook_marker  # noqa: PLW0603 - once in each process
    _in_use.add(producer)
    if _exit_hook_marker is None or not _exit_hook_marker.same_process:
        _exit_hook_marker = _concurrency.fork_marker()
        _concurrency.register_multiprocessing_exit(_close_at_exit)


def unregister(producer: ClosesAtExit) -> None:
    """Undo `register`: nothing of the producer can be lost any more."""
    _in_use.discard(producer)


def close_in_use(report: Callable[[str], object], timeout: float = math.inf) -> None:
    """Close the producers that this process has in use, because the process ends.

    Args:
        report: Called with a sentence for each loss.
        timeout: Seconds for all producers together; never more than the longest
            `exit_timeout` among them.

    Blocking:
        Until everything is delivered, or the time is over. Lets other greenlets run.
    """
    ours = [each for each in _in_use if each.is_ours]
    if not ours:
        return
    seconds = min(timeout, max(each.exit_timeout for each in ours))
    deadline = _concurrency.Deadline(seconds)
    interrupt = None
    for number, each in enumerate(ours):
        # No producer may use up the time of those that come after it.
        share = deadline.remaining() / (len(ours) - number)
        try:
            each.close_at_exit(share, report)
        except (KeyboardInterrupt, SystemExit) as error:
            # The producers that are left don't wait.
            interrupt, deadline = error, _concurrency.Deadline(0)
    if interrupt is not None:
        raise interrupt


def reset_inherited() -> None:
    """Reset the producers that this process's parent used before the fork."""
    for each in [each for each in _in_use if not each.is_ours]:
        each.reset()


def discard(is_meant: Callable[[Client], bool], *, idle: bool) -> None:
    """Disconnect producers at once, and drop their messages in flight and buffers.

    For the end of a test: the producers connect again if they are used again.

    Args:
        is_meant: Returns whether a client is connected to what ends. A producer is
            disconnected if all of its clients are.
        idle: Whether the buffers of producers without a client are dropped, too.

    Blocking:
        Until the dropped messages are reported. Lets other greenlets run.
    """
    for each in list(_in_use):
        each.discard(is_meant, idle=idle)


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


def _close_at_exit() -> None:
    """Close the producers that the program left open, within a bounded time."""
    # On standard error, since logging may be shut down already.
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the process ends anyway
        close_in_use(_report_loss)


def _report_loss(loss: str) -> None:
    sys.stderr.write(f"greendrop: {loss}\n")


atexit.register(_close_at_exit)
