"""Names without an underscore: each is in the API reference, or here with a reason."""

import ast
import re
from pathlib import Path

import pytest

import greendrop

PACKAGE = Path(greendrop.__file__).parent
REFERENCE = PACKAGE.parent / "docs" / "reference" / "api"


def public_modules():
    """Return the modules without an underscore in their names, by name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if "._" not in name:
            found[name] = path
    return found


MODULES = public_modules()


def exported(path):
    """Return the names in a module's `__all__`; None if it has none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if ast.unparse(targets[0]) == "__all__":
                return ast.literal_eval(node.value)
    return None


def documented():
    """Return the names in the API reference, each with its members; None for all."""
    found = {}
    for path in REFERENCE.glob("*.md"):
        text = path.read_text()
        for name in re.findall(r"`(greendrop\.[\w.]+)", text):
            found.setdefault(name.split(".")[-1], ())
        for name, options in re.findall(
            r"^\.\. auto\w+:: ([\w.]+).*\n((?:   :.*\n)*)", text, re.MULTILINE
        ):
            members = re.search(r":members:(.*)", options)
            listed = () if members is None else re.findall(r"\w+", members[1]) or None
            for each in exported(MODULES[name]) if name in MODULES else (name,):
                found[each.split(".")[-1]] = listed
    return found


DOCUMENTED = documented()

#: Classes whose attributes are described elsewhere, and where.
ELSEWHERE = {
    "Settings": "the page of settings; the rest is for the parts of a producer",
    "ProducerSettings": "the page of settings",
    "MessageFields": "the guide to messages",
    "EventSpec": "the types in the API reference",
    "GroupConsumer": "confluent-kafka",
    "ConsumedMessage": "confluent-kafka",
    "LogListener": "the table of events: the monitor calls `on_` and their names",
    "PrometheusListener": "the same",
    "StatsdListener": "the same",
    "GreendropUser": "the guide to Locust",
    "GreendropClient": "the guide to Locust",
    "Greendrop": "the guide to Flask",
}
#: Attributes that are not for users, although other modules use them.
NOT_FOR_USERS = {
    # gevent.wait and gevent.iwait call them.
    "DeliveryHandle": {"rawlink", "unlink", "ready"},
    # The core of the producer calls them, or reads them for each message.
    "DeliveryScope": {"add"},
    "Monitor": {
        *("emit", "log_callback_error", "freeze_statistics"),
        *("events", "listeners"),
    },
    "Middleware": {"run", "steps", "current_sender"},
    # Python's own.
    "GreendropError": {"args"},
}


def public_classes():
    """Return the classes that modules export, each with its definition."""
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in (exported(path) or ()):
                yield pytest.param(path, node, id=f"{name}.{node.name}")


def attributes(path, node):
    """Return the public attributes of a class, each with whether it is described."""
    lines = path.read_text().splitlines()
    text = ast.get_docstring(node) or ""
    for inner in ast.walk(node):
        name, described = "_", False
        if isinstance(inner, ast.FunctionDef) and inner in node.body:
            name, described = inner.name, bool(ast.get_docstring(inner))
        elif isinstance(inner, ast.AnnAssign) and inner in node.body:
            name = ast.unparse(inner.target)
        elif (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and ast.unparse(inner.value) == "self"
        ):
            name = inner.attr
        if not name.startswith("_"):
            comment = lines[inner.lineno - 2].strip().startswith("#:")
            listed = re.search(rf"^    {name}:", text, re.MULTILINE)
            yield name, described or comment or bool(listed)


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_export_what_the_reference_describes(name):
    """A public module has an `__all__`, and all of it is in the API reference."""
    names = exported(MODULES[name])

    if names is None:
        code = ast.parse(MODULES[name].read_text()).body
        assert all(isinstance(node, ast.Expr) for node in code), "it has no __all__"
    assert [each for each in names or () if each not in DOCUMENTED] in ([], ["main"])


@pytest.mark.parametrize(("path", "node"), list(public_classes()))
def test_attributes_of_public_classes_are_described(path, node):
    """Each attribute without an underscore is described, or listed above."""
    members = DOCUMENTED[node.name]
    described, seen = set(NOT_FOR_USERS.get(node.name, ())), set()
    for name, has_text in attributes(path, node):
        seen.add(name)
        in_docstring = re.search(
            rf"^    {name}:", ast.get_docstring(node) or "", re.MULTILINE
        )
        if in_docstring or (has_text if members is None else name in members):
            described.add(name)

    assert node.name in ELSEWHERE or seen - described == set()
    assert NOT_FOR_USERS.get(node.name, set()) <= seen


def test_exceptions_are_for_classes_that_exist():
    """The lists above name public classes only."""
    names = {parameter.values[1].name for parameter in public_classes()}

    assert set(ELSEWHERE) | set(NOT_FOR_USERS) <= names
