"""Checks of `greendrop doctor` that need no broker: versions, process, concurrency."""

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
from greendrop import _concurrency
from greendrop._concurrency.wakeup import WakeupFd
from greendrop._librdkafka import bindings
from greendrop.cli._finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A requirement of the package, with the lowest version that it accepts.
_NEEDED = re.compile(r"^([\w.-]+)\s*(?:>=\s*([\w.]+))?\s*$")


def versions() -> Iterator[Finding]:
    """Check the installed versions."""
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    where = f"{platform.system()} {platform.machine()}"
    yield Finding("versions", "Python", "ok", f"{python} on {where}, {sys.executable}")
    yield Finding("versions", "greendrop", "ok", greendrop.__version__)
    for name, lowest in _needed():
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Finding(
                "versions",
                name,
                "failed",
                "is not installed",
                f"python -m pip install {name}",
            )
            continue
        if lowest and _numbers(installed) < _numbers(lowest):
            yield Finding(
                "versions",
                name,
                "failed",
                f"{installed} is too old",
                f"greendrop needs {lowest} or newer",
            )
        else:
            yield Finding("versions", name, "ok", installed)
    import confluent_kafka

    yield Finding("versions", "librdkafka", "ok", confluent_kafka.libversion()[0])


def _needed() -> Iterator[tuple[str, str]]:
    try:
        requirements = requires("greendrop") or []
    except PackageNotFoundError:  # run from a checkout
        requirements = ["confluent-kafka", "gevent", "greenlet", "structlog"]
    for requirement in requirements:
        if match := _NEEDED.match(requirement):
            yield match[1], match[2] or ""


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def process() -> Iterator[Finding]:
    """Check the process: threads, forks, uWSGI."""
    method = multiprocessing.get_start_method(allow_none=True)
    method = method or multiprocessing.get_all_start_methods()[0]
    yield Finding(
        "process",
        "fork",
        "ok",
        f"pid {os.getpid()}; multiprocessing starts processes by {method}",
    )
    alive = threading.active_count()
    yield Finding("process", "threads", "ok", f"{alive} of Python")
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None:
        if uwsgi.opt.get("enable-threads") or uwsgi.opt.get("threads"):
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
    """Check how greendrop would wait in this process, and why."""
    gevent: Any = sys.modules.get("gevent")
    monkey: Any = sys.modules.get("gevent.monkey")
    saved = () if monkey is None else monkey.saved
    patched = sorted(name for name in saved if not name.startswith("_gevent"))
    if gevent is None:
        text = "not imported, so waits block the thread (--gevent checks with gevent)"
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
            "without patched threading, a wait for a thread blocks all greenlets",
        )
    hub = _concurrency.current_hub()
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
    yield _poller(in_hub=hub is not None)


def _poller(*, in_hub: bool) -> Finding:
    obstacle = _obstacle()
    if not in_hub:
        text = "thread: without a hub a native thread polls librdkafka"
    elif not obstacle:
        text = "fd: librdkafka signals a file descriptor in the hub's own loop"
    else:
        text = f"thread, although there is a hub: {obstacle}"
        advice = "it works, and is a little slower"
        return Finding("waiting", "poller", "note", text, advice)
    if obstacle:
        text += f" (in a hub too: {obstacle})"
    return Finding("waiting", "poller", "ok", text)


def _obstacle() -> str:
    """Return why librdkafka can't signal a file descriptor, or an empty text."""
    from confluent_kafka import cimpl

    if bindings.load_library() is None:
        return "ctypes can't reach confluent-kafka's librdkafka"
    # Tracing agents put subclasses there, which the library does not use either. A
    # producer without brokers connects to nothing.
    producer = bindings.extension_class(cimpl.Producer)({"log_level": 0})
    queue = bindings.MainQueue.of(producer)
    if queue is None:
        return "this build of confluent-kafka has an unknown memory layout"
    signal = WakeupFd()
    try:
        works = queue.signal_on(signal.write_fd)
    finally:
        queue.release()
        signal.close()
    return "" if works else "librdkafka does not signal"
