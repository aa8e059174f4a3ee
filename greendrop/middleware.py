"""Steps that each message goes through before it is checked and sent.

Runs in the caller. Knows nothing of producers but that one of them sends: who that
is, the steps may ask (`Producer.current_variant`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from greendrop import _concurrency
from greendrop.errors import MiddlewareError
from greendrop.message import Message, detached

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What takes a message, and gives the message to go on with.
Step: TypeAlias = Callable[[Message], Message]
_S = TypeVar("_S", bound=Step)

# Whose messages are going through whose steps in this greenlet, innermost last: a step
# may itself send by another producer, which has steps, too.
_running: ContextVar[tuple[tuple[Middleware, object], ...]] = ContextVar(
    "greendrop_middleware", default=()
)


class Middleware:
    """The steps of one producer, in order. May be changed at any time, by any thread.

    A message that is going through the steps meanwhile goes through the old ones.
    """

    __slots__ = ("_lock", "steps")

    def __init__(self) -> None:
        #: Replaced as a whole, never changed.
        self.steps: tuple[Step, ...] = ()
        self._lock = _concurrency.new_lock()

    def append(self, step: _S) -> _S:
        """Add a step after all others; gives it back, so it works as a decorator.

        Args:
            step: Takes a `Message`, and gives the `Message` to go on with: the same,
                or another, as `_replace` makes one. It may change the headers that it
                is given: they are a copy.

        Raises:
            TypeError: That can't be called.
        """
        _check_callable(step)
        with self._lock:
            self.steps = (*self.steps, step)
        return step

    def prepend(self, step: _S) -> _S:
        """Add a step before all others; else as `append`."""
        _check_callable(step)
        with self._lock:
            self.steps = (step, *self.steps)
        return step

    def remove(self, step: Step) -> None:
        """Take a step out, wherever it is; an unknown one is ignored."""
        with self._lock:
            self.steps = tuple(each for each in self.steps if each != step)

    def run(self, message: Message, sender: object) -> Message:
        """Have a message go through all steps.

        Args:
            message: As the caller wrote it; never changed.
            sender: Who sends it; `sender_now` tells the steps.

        Raises:
            MiddlewareError: A step raised, or gave something that is no message.
        """
        message = detached(message)
        token = _running.set((*_running.get(), (self, sender)))
        try:
            for step in self.steps:
                message = _result_of(step, message)
        finally:
            _running.reset(token)
        return message

    def sender_now(self) -> Any:  # noqa: ANN401 - whoever `run` was given
        """Give the sender of the message that goes through these steps, else None."""
        running: Iterable[tuple[Middleware, object]] = reversed(_running.get())
        return next((sender for owner, sender in running if owner is self), None)


def _result_of(step: Step, message: Message) -> Message:
    name = getattr(step, "__qualname__", type(step).__qualname__)
    try:
        result: object = step(message)
    except Exception as error:
        text = f"middleware step {name!r} raised {type(error).__name__}; nothing was"
        raise MiddlewareError(f"{text} sent", step=name) from error
    if not isinstance(result, Message):
        text = (
            f"middleware step {name!r} gave {type(result).__name__}, not a Message;"
            " nothing was sent"
        )
        raise MiddlewareError(text, step=name)
    return result


def _check_callable(step: object) -> None:
    if not callable(step):
        raise TypeError(f"a step needs to be callable, not {type(step).__name__}")
