"""The warning about brokers that don't answer at all.

librdkafka logs a refused connection at once. A firewall that drops packets, or a port
that accepts connections and stays silent, it reports after 10 to 30 s; until then a
program that waits for its first message would not know why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greendrop import _concurrency, _wording
from greendrop._librdkafka.bindings import has_metadata
from greendrop._logging.log import WARNING, Log

if TYPE_CHECKING:
    from greendrop._client.reports import ReportDispatcher
    from greendrop._librdkafka.errors import ErrorTranslator
    from greendrop.config.settings import Settings

#: Seconds. A connection with TLS and SASL to another continent takes less.
PATIENCE = 1.5

_NO_ERROR = "none so far; a wrong port, or a firewall that drops packets?"


class SilenceWatch:
    """Watches a new client until a broker has answered, and warns once if none does.

    Args:
        settings: The client's.
        errors: The last errors of the client's brokers.
        dispatcher: Knows whether librdkafka has logged the reason.
        log: Where the warning goes.
    """

    def __init__(
        self,
        settings: Settings,
        errors: ErrorTranslator,
        dispatcher: ReportDispatcher,
        log: Log | None = None,
    ) -> None:
        self._settings = settings
        self._errors = errors
        self._dispatcher = dispatcher
        self._log = log or Log("greendrop", producer_id=settings.id)
        self._started: float | None = None

    def is_over(self, producer: object) -> bool:
        """Look once; True when there is nothing to watch for any more.

        Args:
            producer: The client as `has_metadata` takes it. A task waits for it.
        """
        if self._errors.has_delivered or self._dispatcher.has_logged_failure:
            return True
        now = _concurrency.monotonic()
        if self._started is None:
            self._started = now
        if now - self._started < PATIENCE:
            return False
        if has_metadata(producer) is False:
            self._log.write(
                WARNING,
                "brokers.silent",
                brokers=self._settings.bootstrap_servers,
                text=f"no answer within {_wording.seconds(PATIENCE)}; still trying",
                error=self._errors.last_error or _NO_ERROR,
            )
        return True
