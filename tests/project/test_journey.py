"""The journey of one message, traced: its length, and its drawing in the docs."""

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

    assert len(journey) <= 32
    assert len(set(files)) <= 11
    assert changes <= 22


@pytest.mark.slow
@pytest.mark.patched
def test_the_design_page_shows_the_journey(journey):
    """The drawing in docs/design.md names the files of the journey, and no others."""
    drawing = re.search(r"```text\n( caller.*?)```", DESIGN.read_text(), re.DOTALL)[1]

    drawn = set(re.findall(r"[\w/]+\.py", drawing))

    assert drawn == {file for file, _ in journey}
