"""Errors without the frames whose local variables hold secrets.

A traceback refers to the frames that an error has passed, and a frame to its local
variables. Sentry reports these variables, and pytest and rich show them on request.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from greendrop.errors import GreendropError

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")


def concealed(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have errors leave a function without its frame and those below it.

    For functions that get a configuration or a token: the tracebacks of greendrop's
    errors, and of a `TypeError` or `ValueError`, begin with the caller then.
    """

    @functools.wraps(function)
    def conceal(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (GreendropError, TypeError, ValueError) as error:
            failure: Exception = error
        # This frame stays in the traceback.
        del args, kwargs
        _remove_frames(failure)
        raise failure

    return conceal


def _remove_frames(error: BaseException) -> None:
    """Remove the frames of an error, its causes, and what was handled meanwhile."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        left += (each.__cause__, each.__context__)
        each.__traceback__ = None
