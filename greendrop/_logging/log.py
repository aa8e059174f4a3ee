"""Where log lines go: to structlog if the program has configured it, else to `logging`.

Neither is configured here, and structlog is not imported for a program that did not:
it can't have configured it. Without any configuration warnings and errors go to
standard error by Python's own handler of last resort, so that a program that can reach
no broker says so; nothing goes to stdout, which is where structlog prints by itself.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

DEBUG = logging.DEBUG
INFO = logging.INFO
WARNING = logging.WARNING
ERROR = logging.ERROR

# Any logger that structlog can make has these.
_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
# What need not be quoted.
_PLAIN = re.compile(r"[^\s\"'=]+")


class Log:
    """A place for log lines: an event's name, and facts by keywords.

    Args:
        name: The logger's, in `logging`, and the argument of `structlog.get_logger`.
        logger: A logger of structlog to use instead.
        **bound: Facts of each line.
    """

    __slots__ = ("_bound", "_given", "_logger", "_standard")

    def __init__(self, name: str, logger: Any = None, **bound: object) -> None:  # noqa: ANN401
        self._standard = logging.getLogger(name)
        self._given = logger
        # A proxy of structlog, which looks at the configuration each time that it is
        # used, unless the program told structlog to have it cached.
        self._logger = logger.bind(**bound) if logger is not None else None
        self._bound = bound

    def write(
        self,
        level: int,
        event: str,
        exc_info: BaseException | None = None,
        **facts: object,
    ) -> None:
        """Write a line. Never raises: what a logger raises is logged.

        Args:
            level: One of `logging`.
            event: What happened, as dotted words.
            exc_info: An exception to show with its traceback.
            **facts: Not named `event`, `level`, `logger` or `timestamp`.
        """
        try:
            logger = self._logger if self._given is not None else self._structlog()
            if logger is None:
                self._write_standard(level, event, exc_info, facts)
            elif exc_info is None:
                getattr(logger, _METHODS[level])(event, **facts)
            else:
                getattr(logger, _METHODS[level])(event, exc_info=exc_info, **facts)
        except Exception as error:  # noqa: BLE001 - a log line is worth no failure
            text = "a log line about %s could not be written"
            self._standard.error(text, event, exc_info=error)

    def _structlog(self) -> Any:  # noqa: ANN401
        structlog: Any = sys.modules.get("structlog")
        is_configured = getattr(structlog, "is_configured", None)
        if is_configured is None or not is_configured():
            return None
        if self._logger is None:
            self._logger = structlog.get_logger(self._standard.name, **self._bound)
        return self._logger

    def _write_standard(
        self,
        level: int,
        event: str,
        exc_info: BaseException | None,
        facts: dict[str, object],
    ) -> None:
        if not self._standard.isEnabledFor(level):
            return
        facts = {**self._bound, **facts}
        text = " ".join([event, *(f"{key}={_shown(facts[key])}" for key in facts)])
        # All of them under one name: `logging` refuses names that its records have.
        extra = {"greendrop": {"event": event, **facts}}
        self._standard.log(level, "%s", text, exc_info=exc_info, extra=extra)


def _shown(value: object) -> str:
    text = str(value)
    if isinstance(value, str) and not _PLAIN.fullmatch(text):
        return repr(value)
    return text
