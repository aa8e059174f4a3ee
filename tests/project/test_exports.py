"""Types in public signatures can be imported from `greendrop`."""

import ast
import builtins
import collections.abc
import inspect
import textwrap
import types
import typing

import pytest

import greendrop

#: Names of Python and typing_extensions, one that only checks of messages use, and the
#: one of arguments that don't exist.
OTHERS = {"Self", "Unpack", "TracebackType", "datetime", "SizeLimit", "NoFields"}
#: Made by greendrop, not by users.
OURS_TO_MAKE = {"DeliveryHandle", "DeliveryScope", "Transaction"}

CLASSES = [
    getattr(greendrop, name)
    for name in greendrop.__all__
    if inspect.isclass(getattr(greendrop, name))
]


def names_in_signatures(cls):
    """Return all names in the annotations of a class's public methods."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        is_made = function.name == "__init__" and cls.__name__ not in OURS_TO_MAKE
        if function.name.startswith("_") and not is_made:
            continue
        arguments = function.args
        every = [*arguments.args, *arguments.kwonlyargs, arguments.kwarg]
        annotations = [each.annotation for each in every if each is not None]
        for annotation in filter(None, [*annotations, function.returns]):
            yield from (n.id for n in ast.walk(annotation) if isinstance(n, ast.Name))


def is_known(name):
    """Return whether users can import a name, from greendrop or from Python."""
    places = (builtins, typing, collections.abc, types)
    variable = name.startswith("_")  # a type variable, filled in by the caller
    return (
        variable
        or name in OTHERS
        or name in greendrop.__all__
        or any(hasattr(place, name) for place in places)
    )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_types_in_public_signatures_are_exported(cls):
    """`greendrop` exports each type that a public method takes or returns."""
    if cls.__module__.split(".")[0] != "greendrop":
        pytest.skip("an alias of a class of Python")
    assert {name for name in names_in_signatures(cls) if not is_known(name)} == set()
