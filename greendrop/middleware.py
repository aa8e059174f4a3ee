"""Middleware: steps that change each message before it is validated and sent.

Steps run in the caller. `Producer.current_variant` is the producer or variant
that sends the message.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from greendrop import _concurrency
from greendrop._validation import snapshot
from greendrop.errors import MiddlewareError
from greendrop.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Middleware", "Step"]

#: A function that takes a message and returns the message to continue with.
Step: TypeAlias = Callable[[Message], Message]
_S = TypeVar("_S", bound=Step)

# The middleware that is running in this greenlet, with the sender of its message;
# innermost last. A step may itself send with another producer, which has steps, too.
_running: ContextVar[tuple[tuple[Middleware, object], ...]] = ContextVar(
    "greendrop_middleware", default=()
)


class Middleware:
    """The middleware steps of one producer, in order.

    Steps may be added and removed at any time, from any thread. Changes apply to the
    next message, not to one that is being processed.

    Args:
        hooks: Holds the middleware while it has steps: see `Core.hooks`.
    """

    __slots__ = ("_hooks", "_lock", "steps")

    def __init__(self, hooks: set[object]) -> None:
        #: Copied on write.
        self.steps: tuple[Step, ...] = ()
        self._hooks = hooks
        self._lock = _concurrency.new_lock()

    def append(self, step: _S) -> _S:
        """Add a step after all others and return it, so that it works as a decorator.

        Args:
            step: Takes a `Message` and returns the `Message` to continue with: the same
                one, or another, such as one made by `_replace`. It may change the
                headers in place: they are a copy.

        Raises:
            TypeError: `step` is not callable.
        """
        _check_callable(step)
        with self._lock:
            self._hooks.add(self)
            self.steps = (*self.steps, step)
        return step

    def prepend(self, step: _S) -> _S:
        """Add a step before all others; otherwise like `append`."""
        _check_callable(step)
        with self._lock:
            self._hooks.add(self)
            self.steps = (step, *self.steps)
        return step

    def remove(self, step: Step) -> None:
        """Remove a step; an unknown one is ignored."""
        with self._lock:
            self.steps = tuple(each for each in self.steps if each != step)
            if not self.steps:
                self._hooks.discard(self)

    def run(self, message: Message, sender: object) -> Message:
        """Run all steps on a message and return the result.

        Args:
            message: The caller's message; never changed.
            sender: The producer or variant that sends it, for `current_sender`.

        Raises:
            MiddlewareError: A step raised, or returned something else than a message.
        """
        message = snapshot(message)
        token = _running.set((*_running.get(), (self, sender)))
        try:
            for step in self.steps:
                message = _result_of(step, message)
        finally:
            _running.reset(token)
        return message

    def current_sender(self) -> Any:  # noqa: ANN401 - whatever `run` was given
        """Return the sender of the message in these steps, or None outside of them."""
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
            f"middleware step {name!r} returned {type(result).__name__}, not a Message;"
            " nothing was sent"
        )
        raise MiddlewareError(text, step=name)
    return result


def _check_callable(step: object) -> None:
    if not callable(step):
        raise TypeError(f"a step needs to be callable, not {type(step).__name__}")
