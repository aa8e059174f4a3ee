"""Interruptions at a chosen place: at the entry of a function of greendrop.

Signals arrive at random places. A trace function finds the same place each time, and
raises a signal there, or does by itself what the signal's handler would do.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import greendrop
from greendrop._librdkafka.bindings import exhaust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


def interrupt() -> None:
    """Raise KeyboardInterrupt like Python's own handler of Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def at_entry(
    function: Callable[..., Any], action: Callable[[], object]
) -> Iterator[list[int]]:
    """Call `action` once, at the next entry of a function in this thread.

    An exception of the action is raised in that function.

    Yields:
        A list that has one element once the action was called.
    """
    code = inspect.unwrap(function).__code__
    calls: list[int] = []

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is code and not calls:
            calls.append(1)
            sys.settrace(None)
            action()

    sys.settrace(trace)
    try:
        yield calls
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def at_nth_entry(
    number: int, action: Callable[[], object], folder: str
) -> Iterator[list[str]]:
    """Call `action` at the nth entry of a function of a folder in this thread.

    An exception of the action is raised in that function.

    Args:
        number: Counted from 1.
        action: What to call.
        folder: A sub-package of greendrop.

    Yields:
        A list that has the function's name once the action was called.
    """
    files = str(Path(greendrop.__file__).parent / folder)
    entries = 0
    called: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> None:
        nonlocal entries
        if event != "call" or not frame.f_code.co_filename.startswith(files):
            return
        entries += 1
        if entries == number:
            called.append(frame.f_code.co_name)
            sys.settrace(None)
            action()

    sys.settrace(trace)
    try:
        yield called
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def at_return(
    is_place: Callable[[Any], bool], action: Callable[[], object]
) -> Iterator[list[int]]:
    """Call `action` once, when a function in C has returned in this thread.

    An exception of the action replaces the result, as one of a signal handler does.

    Args:
        is_place: Whether a function in C is the chosen one.
        action: What to call.

    Yields:
        A list that has one element once the action was called.
    """
    with _at_event("c_return", is_place, action) as calls:
        yield calls


@contextlib.contextmanager
def at_call(
    is_place: Callable[[Any], bool], action: Callable[[], object]
) -> Iterator[list[int]]:
    """Call `action` once, before a function in C is called in this thread.

    Args:
        is_place: Whether a function in C is the chosen one.
        action: What to call.

    Yields:
        A list that has one element once the action was called.
    """
    with _at_event("c_call", is_place, action) as calls:
        yield calls


@contextlib.contextmanager
def _at_event(
    wanted: str, is_place: Callable[[Any], bool], action: Callable[[], object]
) -> Iterator[list[int]]:
    calls: list[int] = []

    def profile(_: FrameType, event: str, function: Any) -> None:
        if event == wanted and not calls and is_place(function):
            calls.append(1)
            sys.setprofile(None)
            action()

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def is_hand_over(function: object) -> bool:
    """Return whether a function in C gives messages to librdkafka, one or a batch."""
    return function is exhaust or getattr(function, "__name__", "") == "produce"


@contextlib.contextmanager
def signals_every(seconds: float, number: int) -> Iterator[None]:
    """Send this process a signal again and again, at no particular moments.

    From a thread: the timer of the process belongs to pytest-timeout.
    """
    stopped = threading.Event()

    def send() -> None:
        while not stopped.wait(seconds):
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stopped.set()
        sender.join()


@contextlib.contextmanager
def signal_after(seconds: float, number: int) -> Iterator[None]:
    """Send this process a signal once, while the block runs or at its end.

    The block runs without the garbage collector: hypothesis has a callback there, and
    Python drops what a signal handler raises in such a callback.
    """
    sender = threading.Timer(seconds, signal.raise_signal, (number,))
    gc.disable()
    try:
        sender.start()
        try:
            yield
        finally:
            sender.join()
    finally:
        gc.enable()


@contextlib.contextmanager
def handling(
    number: int, handler: Callable[[], object]
) -> Iterator[Callable[[], None]]:
    """Handle a signal; yields a function that raises it in this process."""
    before = signal.signal(number, lambda *_: handler())
    try:
        yield lambda: signal.raise_signal(number)
    finally:
        signal.signal(number, before)
