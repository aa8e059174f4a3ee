"""Bounds on what hides from a reader which code a name leads to."""

import pytest

from tests.project.measure_code import measure


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        # A lambda has no name to search for, and no docstring.
        ("lambdas", 15),
        # mypy checks nothing of an `Any`.
        ("Any", 120),
        # "Go to definition" ends at a function that a caller has passed in: pass the
        # object that has it, or a small protocol.
        ("callables in constructors", 10),
    ],
)
def test_code_hides_little(name, bound):
    """There are few lambdas, few uses of `Any`, and few callables in constructors."""
    assert measure()[name] < bound
