"""What the doctor finds without a broker: versions, the process, how it would wait."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import sys
import threading
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

import greendrop
from greendrop import _librdkafka, _waiting
from greendrop._signal import Signal
from greendrop.cli._finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the package asks for, with the lowest version that will do.
_NEEDED = re.compile(r"^([\w.-]+)\s*(?:>=\s*([\w.]+))?\s*$")


def versions() -> Iterator[Finding]:
    """Look at what is installed."""
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    where = f"{platform.system()} {platform.machine()}"
    yield Finding("versions", "Python", "ok", f"{python} on {where}, {sys.executable}")
    yield Finding("versions", "greendrop", "ok", greendrop.__version__)
    for name, lowest in _needed():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(
                "versions",
                name,
                "failed",
                "is not installed",
                f"python -m pip install {name}",
            )
            continue
        if lowest and _numbers(found) < _numbers(lowest):
            yield Finding(
                "versions",
                name,
                "failed",
                f"{found} is too old",
                f"greendrop needs {lowest} or newer",
            )
        else:
            yield Finding("versions", name, "ok", found)
    import confluent_kafka

    yield Finding("versions", "librdkafka", "ok", confluent_kafka.libversion()[0])


def _needed() -> Iterator[tuple[str, str]]:
    try:
        wanted = requires("greendrop") or []
    except PackageNotFoundError:  # run from a checkout
        wanted = ["confluent-kafka", "gevent", "greenlet", "structlog"]
    for each in wanted:
        if found := _NEEDED.match(each):
            yield found[1], found[2] or ""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def process() -> Iterator[Finding]:
    """Look at the process: threads, forks, uWSGI."""
    method = multiprocessing.get_start_method(allow_none=True)
    method = method or multiprocessing.get_all_start_methods()[0]
    yield Finding(
        "process",
        "fork",
        "ok",
        f"pid {os.getpid()}; multiprocessing starts processes by {method}",
    )
    alive = threading.active_count()
    yield Finding("process", "threads", "ok", f"{alive} of Python's")
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None:
        on = bool(uwsgi.opt.get("enable-threads") or uwsgi.opt.get("threads"))
        if on:
            yield Finding("process", "uWSGI", "ok", "threads are enabled")
        else:
            yield Finding(
                "process",
                "uWSGI",
                "failed",
                "threads are off",
                "start it with --enable-threads",
            )


def waiting() -> Iterator[Finding]:
    """Look at how greendrop would wait here, and why."""
    gevent: Any = sys.modules.get("gevent")
    monkey: Any = sys.modules.get("gevent.monkey")
    saved = () if monkey is None else monkey.saved
    patched = sorted(name for name in saved if not name.startswith("_gevent"))
    if gevent is None:
        text = "not imported, so waits are those of threads (--gevent checks with it)"
        yield Finding("waiting", "gevent", "ok", text)
    elif not patched:
        yield Finding("waiting", "gevent", "ok", "imported; nothing is patched")
    elif "threading" in patched:
        yield Finding("waiting", "gevent", "ok", f"patched: {', '.join(patched)}")
    else:
        yield Finding(
            "waiting",
            "gevent",
            "note",
            f"patched only: {', '.join(patched)}",
            "with threading left out, threads of the program block their greenlets",
        )
    hub = _waiting.current_hub()
    if hub is None:
        yield Finding("waiting", "hub", "ok", "none in this thread")
    else:
        loop = type(hub.loop)
        yield Finding(
            "waiting",
            "hub",
            "ok",
            f"in this thread; loop {loop.__module__}.{loop.__qualname__}",
        )
    yield _driver(in_hub=hub is not None)


def _driver(*, in_hub: bool) -> Finding:
    obstacle = _obstacle()
    if not in_hub:
        text = "thread: without a hub a native thread serves delivery reports"
    elif not obstacle:
        text = "fd: librdkafka signals a descriptor in the hub's own loop"
    else:
        text = f"thread, although there is a hub: {obstacle}"
        return Finding(
            "waiting",
            "driver",
            "note",
            text,
            "it works, and is a little slower; tell us which build that is",
        )
    if obstacle:
        text += f" (in a hub too: {obstacle})"
    return Finding("waiting", "driver", "ok", text)


def _obstacle() -> str:
    """Tell why librdkafka can't signal a descriptor here; nothing if it can."""
    from confluent_kafka import cimpl

    if _librdkafka.load_library() is None:
        return "ctypes can't reach confluent-kafka's librdkafka"
    producer = cimpl.Producer({"log_level": 0})  # no brokers: connects to nothing
    queue = _librdkafka.MainQueue.of(producer)
    if queue is None:
        return "this build of confluent-kafka is laid out in another way"
    signal = Signal()
    try:
        works = queue.signal_on(signal.write_fd)
    finally:
        queue.release()
        signal.close()
    return "" if works else "librdkafka does not signal"
