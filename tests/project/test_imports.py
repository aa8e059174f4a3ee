"""The layers of the package: imports run downward, and libraries have one owner."""

import ast
import sys
from pathlib import Path

import pytest

import greendrop

PACKAGE = Path(greendrop.__file__).parent
FILES = {
    path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__") for name in FILES.values()}

#: From the top to the bottom, as in docs/project/design.md: a module imports only from
#: its own layer and from those below it.
LAYERS = (
    {"cli", "contrib", "listeners", "testing", "__main__", "__init__"},
    {"producer", "pool", "transaction"},
    {"_producer"},
    {"_transactions"},
    {"_connections"},
    {"_client"},
    {"_librdkafka"},
    {
        *("events", "interceptors", "middleware", "config"),
        *("delivery", "_logging", "_interception", "_validation"),
    },
    {
        *("message", "oauth", "errors", "_concurrency", "_pickling", "_wording"),
        *("_hints", "_typed_event", "_frames"),
    },
)
LEAVES = LAYERS[0]

#: The only packages that may import these libraries, beside the leaves.
OWNERS = {
    "gevent": {"_concurrency"},
    "greenlet": {"_concurrency"},
    "threading": set(),
    "_thread": {"_concurrency"},
    "concurrent": set(),
    "asyncio": {"_concurrency"},
    "ctypes": {"_librdkafka"},
    "confluent_kafka": {"_librdkafka"},
}


def imports(path, *, of_types):
    """Return the modules that a file imports, at any depth.

    Args:
        path: The file.
        of_types: Whether imports that only type checkers see count, too.
    """
    tree = ast.parse(path.read_text())
    if not of_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports don't say where they lead"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def part(module):
    """Return the folder, or the module, directly below the package."""
    inner = module.removeprefix("greendrop").removeprefix(".")
    return inner.split(".")[0] or "__init__"


def layer(module):
    """Return the number of a module's layer; 0 is the top."""
    numbers = [number for number, parts in enumerate(LAYERS) if part(module) in parts]
    assert numbers, f"{module} is new: add it to LAYERS"
    return numbers[0]


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_run_downward(path):
    """A module imports only from its own layer and from lower ones, also for types."""
    for imported in imports(path, of_types=True):
        if imported.split(".")[0] == "greendrop":
            assert layer(imported) >= layer(FILES[path]), imported
            # The version is in the package itself.
            inside = part(FILES[path]) not in LEAVES
            assert imported != "greendrop" or not inside, "import it from its module"


def test_no_two_modules_need_each_other():
    """Modules of one layer don't import each other in a circle, not even for types."""
    left = {
        name.removesuffix(".__init__"): {
            imported for imported in imports(path, of_types=True) if imported in MODULES
        }
        for path, name in FILES.items()
    }
    while left:
        free = {name for name, needed in left.items() if not needed & left.keys()}
        assert free, f"a circle in {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_libraries_have_owners(path):
    """One package waits, and one calls librdkafka."""
    owner = part(FILES[path])
    if owner in LEAVES:
        return
    for imported in imports(path, of_types=False):
        owners = OWNERS.get(imported.split(".")[0], {owner})
        assert owner in owners, f"{FILES[path]} imports {imported}"


@pytest.mark.patched
@pytest.mark.slow
def test_import_loads_no_vendors(run_script):
    """`import greendrop` is cheap: no gevent, no test helpers, no optional libraries.

    Except for the imports of confluent-kafka itself, a program that uses none of these
    finds none of them among its modules.
    """
    run_script(
        """
        import sys
        import confluent_kafka
        theirs = set(sys.modules)
        import greendrop

        unwanted = {
            "gevent", "greenlet", "structlog", "asyncio", "flask", "django", "celery",
            "locust", "prometheus_client", "statsd", "datadog", "opentelemetry",
            "unittest", "subprocess", "greendrop.testing", "greendrop.listeners",
            "greendrop.contrib",
        }
        found = unwanted & (set(sys.modules) - theirs)
        assert not found, found
        """,
        "none",
    )


@pytest.mark.patched
@pytest.mark.slow
def test_listeners_load_their_vendors_when_used(run_script):
    """Metrics can be imported without any vendor; StatsD's never needs one."""
    run_script(
        """
        import sys
        from greendrop.listeners import prometheus, statsd

        class Client:
            incr = gauge = print

        statsd.StatsdListener(Client())
        unwanted = {"prometheus_client", "statsd", "datadog", "opentelemetry"}
        assert not unwanted & set(sys.modules)
        prometheus.PrometheusListener()
        assert "prometheus_client" in sys.modules
        """,
        "none",
    )


@pytest.mark.patched
@pytest.mark.slow
def test_import_starts_nothing(run_script):
    """Importing opens no descriptor and starts no thread."""
    run_script(
        """
        import os

        def open_now():
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        import confluent_kafka.cimpl, ctypes  # libffi may open its own file
        before = open_now()
        import greendrop
        assert open_now() == before, (before, open_now())
        """,
        "none",
    )


def test_every_public_name_is_listed():
    """`__all__` has each name that a user may import, and no other."""
    namespace = {}
    exec("from greendrop import *", namespace)
    # Names with @ are pytest's, which rewrites the modules of its plugins.
    public = {name for name in vars(greendrop) if name[0] not in "_@"}

    assert set(greendrop.__all__) <= namespace.keys()
    assert public - set(greendrop.__all__) <= {
        name.removeprefix("greendrop.") for name in sys.modules
    }
    assert sorted(greendrop.__all__) == greendrop.__all__
