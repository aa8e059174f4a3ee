"""Traced paths: the journey of one message, with its drawing, and one `close`."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DESIGN = ROOT / "docs" / "design.md"

TRACED = """
    import os
    import sys

    import gevent
    import greendrop

    package = os.path.dirname(greendrop.__file__)
    producer = greendrop.Producer({"bootstrap.servers": servers})
    gevent.sleep(0)
    for _ in range(3):
        producer.produce_sync(topic="events", key=b"k", payload=b"x")
    gevent.sleep(0.5)  # until the poller is idle
    calls = []

    def trace(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            name = getattr(code, "co_qualname", code.co_name)
            calls.append(f"{os.path.relpath(code.co_filename, package)} {name}")

    sys.setprofile(trace)
    producer.produce_sync(topic="events", key=b"k", payload=b"x")
    sys.setprofile(None)
    print("\\n".join(calls))
    producer.close()
"""

#: Prints each stack of functions of the package, outside of `_concurrency`, at whose
#: end a call begins. A function that runs on a native thread stands below its starter.
CLOSED = """
    import os
    import sys

    import gevent
    import greendrop
    from greendrop._concurrency.threads import ThreadCall

    package = os.path.dirname(greendrop.__file__)
    started = ThreadCall.__init__.__code__
    producer = greendrop.Producer({"bootstrap.servers": servers})
    gevent.sleep(0)
    producer.produce_async(topic="events", payload=b"x")
    stacks = []

    def trace(frame, event, _):
        if event != "call":
            return
        stack = [frame.f_locals["function"].__name__] if frame.f_code is started else []
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(package) and "_concurrency" not in path:
                stack.append(frame.f_code.co_name)
            frame = frame.f_back
        stacks.append(stack[::-1])

    sys.setprofile(trace)
    producer.close()
    sys.setprofile(None)
    print("\\n".join(" ".join(stack) for stack in stacks if stack))
"""


@pytest.fixture
def journey(mock_cluster, run_script):
    """Trace one `produce_sync` in a hub; return file and function of each call."""
    ended = run_script(TRACED, "unpatched", servers=mock_cluster.bootstrap_servers)
    return [line.split() for line in ended.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.patched
def test_the_journey_of_a_message_is_short(journey):
    """One `produce_sync` on an idle client makes few calls, in few files.

    More calls than this cost each message time, and the reader an overview.
    """
    files = [file for file, _ in journey]
    changes = sum(one != other for one, other in itertools.pairwise(files))
    print("\n".join(" ".join(call) for call in journey))

    assert len(journey) <= 30
    assert len(set(files)) <= 10
    assert changes <= 20


@pytest.mark.slow
@pytest.mark.patched
def test_the_design_page_shows_the_journey(journey):
    """The drawing in docs/design.md names the files of the journey, and no others."""
    drawing = re.search(r"```text\n( caller.*?)```", DESIGN.read_text(), re.DOTALL)[1]

    drawn = set(re.findall(r"[\w/]+\.py", drawing))

    assert drawn == {file for file, _ in journey}


@pytest.mark.slow
@pytest.mark.patched
def test_close_takes_a_straight_path(mock_cluster, run_script):
    """From `close` to the end of librdkafka's producer there are at most 6 levels.

    What is sent before that takes the path of any message.
    """
    servers = mock_cluster.bootstrap_servers
    ended = run_script(CLOSED, "unpatched", servers=servers)
    stacks = [line.split() for line in ended.stdout.splitlines()]

    (path,) = {tuple(stack) for stack in stacks if stack[-1] == "tear_down"}

    print(" > ".join(path))
    assert path[0] == "close"
    assert len(path) <= 6
