"""Everything that greendrop lets out, as text, to search it for secrets."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import greendrop
from greendrop import Producer
from greendrop.events import PROCESS_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from greendrop.events import Event, Monitor

_PACKAGE = str(Path(greendrop.__file__).parent)


class Out:
    """All output of the producers: logs, what is printed, and what `collect` gets."""

    def __init__(self, caplog: Any, capfd: Any) -> None:
        self._caplog = caplog
        self._capfd = capfd
        self._collected: list[str] = []
        self._listeners: list[Monitor] = []

    def listen_to(self, monitor: Monitor, names: Iterable[str] | Mapping) -> None:
        """Collect everything that events contain, in each representation."""
        for name in names:
            monitor.subscribe(name, self._keep)
        self._listeners.append(monitor)

    def _keep(self, event: Event) -> None:
        self._collected.append(repr(event))
        for value in event.payload.values():
            self.collect(value)

    def collect(self, value: object) -> None:
        """Collect each representation of a value."""
        self._collected += [repr(value), str(value)]
        if isinstance(value, BaseException):
            self._collected += traceback.format_exception(value)
            self._collected += _locals(value)
            self._collected.append(repr(vars(value)))
            pickled = pickle.dumps(value)
            self._collected.append(pickled.decode("latin-1"))
            self._collected.append(repr(vars(pickle.loads(pickled))))
        if isinstance(value, Producer):
            self._collected.append(repr(value._core.settings if value._core else None))
            self._collected.append(repr(dict(value.settings)))

    def text(self) -> str:
        """Return all collected text, including what was logged and printed."""
        for record in self._caplog.records:
            self._collected += [record.getMessage(), repr(vars(record))]
        printed = self._capfd.readouterr()
        more = self._caplog.text, printed.out, printed.err
        return "\n".join([*self._collected, *more])

    def close(self) -> None:
        """Stop listening."""
        for monitor in self._listeners:
            monitor.unsubscribe(self._keep)


def _locals(error: BaseException) -> list[str]:
    """Return the local variables of greendrop's frames, as Sentry reports them."""
    found: list[str] = []
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        left += [each.__cause__, each.__context__]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename.startswith(_PACKAGE):
                found.append(f"{frame.f_code.co_name}: {frame.f_locals!r}")
    return found


@pytest.fixture
def out(caplog: Any, capfd: Any) -> Iterator[Out]:
    """Collect all output during a test, at the most detailed level."""
    caplog.set_level(1, "greendrop")
    everything = Out(caplog, capfd)
    everything.listen_to(greendrop.monitor, PROCESS_EVENTS)
    yield everything
    everything.close()


def check(out: Out, *secrets: str) -> None:
    """Assert that the output is not empty and contains no part of the secrets."""
    text = out.text()
    assert len(text) > 100
    for value in secrets:
        # Each part of a secret that would identify it.
        long_lines = (line for line in value.splitlines() if len(line) > 20)
        for fragment in (value, *long_lines):
            where = max(text.find(fragment) - 300, 0)
            assert fragment not in text, text[where : where + 600]
