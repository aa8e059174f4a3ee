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

#: From the bottom to the top, as docs/design.md has it. A module imports only from
#: lines above its own; leaves are imported by nobody.
ROOMS = (
    {"errors"},
    {
        "_event_names",
        "_logging",
        "_secrets",
        "_placeholders",
        "_threads",
        "_deadline",
        "_addresses",
    },
    {"_kafka_checks"},
    {"oauth", "_waiting", "_process", "_signal"},
    {"_librdkafka", "_repeats", "_joins"},
    {"_error_names"},
    {"_error_translator"},
    {"config", "message", "events", "_log_lines", "_statistics", "_stalls"},
    {"middleware", "_names", "_task_lock", "_commands"},
    {"delivery", "_gather", "_serving", "_outstanding", "_mock_cluster"},
    {"_recorder"},
    {"_batches", "interception"},
    {"_buffer"},
    {"_partitioners", "_backend"},
    {"_settling", "_kafka_handle", "scope", "_routing"},
    {"_memory_log", "_memory_queue"},
    {"_attendant", "_memory_producer", "_reading"},
    {"_client"},
    {"_slot", "_idle", "_tokens", "_no_effect"},
    {"_recovery", "_connections"},
    {"_transactional_clients"},
    {"_transactions"},
    {"_disconnecting", "_shutdown"},
    {"_memory"},
    {"_core", "transaction"},
    {"producer"},
    {"pool", "testing"},
)
LEAVES = {"listeners", "contrib", "cli", "__main__"}

#: Who alone may import what is not ours.
OWNERS = {
    "gevent": {"_waiting"},
    "greenlet": {"_waiting"},
    "threading": set(),
    "_thread": {"_threads"},
    "concurrent": set(),
    "asyncio": set(),
    "ctypes": {"_librdkafka", "_mock_cluster"},
    "confluent_kafka": {"_backend", "_kafka_handle", "_reading"},
}


def imports(path, *, of_types):
    """Name the modules that a file imports, at any depth.

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


def room(module):
    """Tell how high a module of ours is; leaves and the package itself are on top."""
    part = module.removeprefix("greendrop").removeprefix(".").split(".")[0]
    if part in LEAVES or not part or part == "__init__":
        return len(ROOMS)
    heights = [height for height, names in enumerate(ROOMS) if part in names]
    assert heights, f"{module} is new: give it a place in ROOMS"
    return heights[0]


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_run_downward(path):
    """A module knows only what is below it, or of its own kind; also for types."""
    for imported in imports(path, of_types=True):
        if imported.split(".")[0] == "greendrop":
            assert room(imported) <= room(FILES[path]), imported
            # The version is in the package itself.
            inside = room(FILES[path]) < len(ROOMS)
            assert imported != "greendrop" or not inside, "import it from where it is"


def test_no_two_modules_need_each_other():
    """Modules of one height don't import each other in a circle, not even for types."""
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
def test_world_outside_has_owners(path):
    """One module waits, one calls librdkafka by ctypes, one uses confluent-kafka."""
    module = FILES[path].removeprefix("greendrop.")
    if module.split(".")[0] in LEAVES:
        return
    for imported in imports(path, of_types=False):
        owners = OWNERS.get(imported.split(".")[0], {module})
        assert module in owners, f"{module} imports {imported}"


@pytest.mark.patched
@pytest.mark.slow
def test_import_brings_in_no_vendors(run_script):
    """`import greendrop` is cheap: no gevent, no test helpers, nobody's client.

    Except what confluent-kafka brings, a program that uses none of these finds none of
    them among its modules.
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
            "unittest", "subprocess", "greendrop.testing", "greendrop.testing._native_mock_cluster",
            "greendrop.listeners", "greendrop.contrib",
        }
        found = unwanted & (set(sys.modules) - theirs)
        assert not found, found
        """,
        "none",
    )


@pytest.mark.patched
@pytest.mark.slow
def test_listeners_bring_in_their_vendors_when_used(run_script):
    """Metrics can be imported where no vendor is; StatsD's never needs one."""
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

        import confluent_kafka.cimpl
        before = open_now()
        import greendrop
        assert open_now() == before, (before, open_now())
        """,
        "none",
    )


def test_every_public_name_is_told():
    """`__all__` has each name that a user may import, and no other."""
    namespace = {}
    exec("from greendrop import *", namespace)
    # Those with @ are pytest's, which rewrites what comes with a plugin for it.
    public = {name for name in vars(greendrop) if name[0] not in "_@"}

    assert set(greendrop.__all__) <= namespace.keys()
    assert public - set(greendrop.__all__) <= {
        name.removeprefix("greendrop.") for name in sys.modules
    }
    assert sorted(greendrop.__all__) == greendrop.__all__
