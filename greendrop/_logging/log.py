"""The log: structlog if the program has configured it, else `logging`.

greendrop configures neither of them, and does not import structlog: a program that has
not imported it can't have configured it. Without any configuration, warnings and errors
go to standard error by Python's handler of last resort, so that a program that reaches
no broker shows the reason. Nothing goes to stdout, where structlog prints by default.
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

# All loggers that structlog can create have these methods.
_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
# A text that needs no quotes.
_PLAIN = re.compile(r"[^\s\"'=]+")


class Log:
    """A logger of lines that have an event name and fields.

    Args:
        name: The name of the logger in `logging`, and the argument of
            `structlog.get_logger`.
        logger: A logger of structlog to use instead.
        **bound: Fields of all lines.
    """

    __slots__ = ("_bound", "_given", "_logger", "_standard")

    def __init__(self, name: str, logger: Any = None, **bound: object) -> None:  # noqa: ANN401
        self._standard = logging.getLogger(name)
        self._given = logger
        # A proxy of structlog. It reads the configuration at each use, unless the
        # program has configured structlog to cache loggers.
        self._logger = logger.bind(**bound) if logger is not None else None
        self._bound = bound

    def write(
        self,
        level: int,
        event: str,
        exc_info: BaseException | None = None,
        **fields: object,
    ) -> None:
        """Log a line. An exception of a logger is logged and not raised.

        Args:
            level: A level of `logging`.
            event: The name of the event, in dotted words.
            exc_info: An exception to log with its traceback.
            **fields: Fields with other names than `event`, `level`, `logger` and
                `timestamp`.
        """
        try:
            logger = self._logger if self._given is not None else self._structlog()
            if logger is None:
                self._write_standard(level, event, exc_info, fields)
            elif exc_info is None:
                getattr(logger, _METHODS[level])(event, **fields)
            else:
                getattr(logger, _METHODS[level])(event, exc_info=exc_info, **fields)
        except Exception as error:  # noqa: BLE001 - logging must not break sending
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
        fields: dict[str, object],
    ) -> None:
        if not self._standard.isEnabledFor(level):
            return
        fields = {**self._bound, **fields}
        text = " ".join(
            [event, *(f"{key}={_format_value(fields[key])}" for key in fields)]
        )
        # All fields are below one name, because `logging` refuses the names of its own
        # attributes.
        extra = {"greendrop": {"event": event, **fields}}
        self._standard.log(level, "%s", text, exc_info=exc_info, extra=extra)


def _format_value(value: object) -> str:
    text = str(value)
    if isinstance(value, str) and not _PLAIN.fullmatch(text):
        return repr(value)
    return text
