"""Values that can be pickled, in place of those that can't.

Errors and handles carry what programs gave greendrop: labels, causes, attributes. One
of these that does not pickle must not keep an error from reaching another process.
"""

from __future__ import annotations

import pickle
from typing import Any

# Pickle without a trial, which costs as much as the pickling itself.
_SIMPLE = frozenset({type(None), bool, int, float, str, bytes})


class PerProcess:
    """Base of objects that can't be pickled or copied.

    A copy would share a connection to Kafka with its original, or have none.
    """

    def __reduce_ex__(self, protocol: object) -> str | tuple[object, ...]:
        """Refuse it; `pickle` and `copy` ask here.

        Raises:
            TypeError: Always.
        """
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} can't be pickled or copied, because its connections belong to"
            " this process; make one in each process that needs one"
        )


def picklable(value: object) -> Any:  # noqa: ANN401 - whatever it was
    """Return a value, or its repr if the value does not survive pickling.

    Of tuples, named ones included, each element is. A class whose objects always pickle
    says so by a true `_always_pickles`.
    """
    if type(value) in _SIMPLE or getattr(type(value), "_always_pickles", False):
        return value
    if type(value) is tuple:
        return tuple(map(picklable, value))
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a `Message`, a report
        return value._make(map(picklable, value))
    return value if survives(value) else text_of(value)


def survives(value: object) -> bool:
    """Return whether a value can be pickled, and its pickle be loaded again."""
    try:
        # Of our own process, so nothing foreign is loaded.
        pickle.loads(pickle.dumps(value))  # noqa: S301
    except Exception:  # noqa: BLE001 - whatever a class of the program raises
        return False
    return True


def text_of(value: object) -> str:
    """Return the repr of a value, or its type if it has none."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a class of the program raises
        return f"<{type(value).__name__}>"
