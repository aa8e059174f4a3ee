"""librdkafka's log lines: classification and rate limit.

Each client logs about twenty lines a second while a broker is down. Each line gets a
kind, for filters and alerts. Of lines that differ only in numbers or addresses one is
logged per minute.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop._logging.log import DEBUG, ERROR, INFO, WARNING, Log
from greendrop._logging.rate_limit import RateLimiter

if TYPE_CHECKING:
    from greendrop.config.settings import Settings

# For example:
# FAIL [rdkafka#producer-1] [thrd:a:9/bootstrap]: a:9/bootstrap: Connect to ... failed
# Some lines have no thread, and some no broker.
_LINE = re.compile(
    r"(?P<facility>[A-Z0-9_]+) \[(?P<client>[^\]]*)\](?: \[thrd:(?P<thread>[^\]]*)\])?:"
    r" (?P<text>.*)",
    re.DOTALL,
)
_BROKER = re.compile(r"(?P<broker>\S+:\d+/[^\s:]+): ")
# Parts that differ from line to line: "(after 3ms in state CONNECT, 5 identical ...)".
# A host name may have IPv4 and IPv6 addresses, and one line is enough for all of them.
_CHANGING = re.compile(r"ipv[46]#\S+|\d+")

# Brokers close idle connections, and the next message opens a new one. If the broker is
# down, other lines follow.
_HUNG_UP = r".*\bdisconnected\b.*\(after \d+ms in state UP\b"

# The producer has logged a warning about such keys already.
_ONLY_CONSUMERS = "is a consumer property and will be ignored"


class Rule(NamedTuple):
    """A kind of lines: its level, and the pattern of its facility or text."""

    kind: str
    level: int
    pattern: re.Pattern[str]


def _rule(kind: str, level: int, pattern: str) -> Rule:
    return Rule(kind, level, re.compile(pattern, re.IGNORECASE | re.DOTALL))


#: Patterns for "FACILITY text", in order of precedence.
RULES = (
    _rule("fatal", ERROR, r"FATAL\b"),
    _rule("disconnected", INFO, rf"FAIL {_HUNG_UP}"),
    # A rollback drops messages, and librdkafka logs each of them as a failure.
    _rule("rolled back", INFO, r"TXNERR .*\(_PURGE_(INFLIGHT|QUEUE)\)"),
    _rule("authentication", ERROR, r".*\b(SASL\w*|authenticat\w+|OAUTHBEARER)\b"),
    _rule("tls", ERROR, r".*\b(SSL\w*|TLS|certificate)\b"),
    _rule("timeout", WARNING, r"(REQTMOUT|.*\btimed out\b)"),
    _rule("configuration", WARNING, r"CONF\w*\b"),
    _rule("connection", WARNING, r"(FAIL|ERROR|.*\bbrokers are down\b)"),
)
#: Kinds of lines that say why brokers can't be reached.
_FAILURES = frozenset({"authentication", "tls", "timeout", "connection"})
#: The kind of all other lines.
OTHER = "other"


_is_hang_up = re.compile(_HUNG_UP, re.IGNORECASE | re.DOTALL).match


def is_hang_up(text: str) -> bool:
    """Return whether an error only says that a broker closed a working connection."""
    return bool(_is_hang_up(text))


class LogLines:
    """The logger of one client's lines.

    Args:
        settings: The settings of the producer: its id, and the secrets to redact.
        log: The destination.
        rate_limiter: Limits lines of the same kind and text.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log | None = None,
        rate_limiter: RateLimiter | None = None,
    ) -> None:
        self._log = log or Log("greendrop.librdkafka", producer_id=settings.id)
        self._redact = settings.redact
        self._rate_limiter = rate_limiter or RateLimiter()
        #: Whether a line has given a reason why a broker can't be reached.
        self.has_failure = False

    def log(self, level: int, line: str) -> None:
        """Log a line, unless a similar one was logged within the last minute."""
        line = self._redact(line)
        parts = _LINE.match(line)
        facility, text = "", line
        fields: dict[str, Any] = {}
        if parts is not None:
            facility, text = parts["facility"], parts["text"]
            fields = {"facility": facility, "client": parts["client"]}
        broker = _BROKER.match(text)
        if broker is not None:
            fields["broker"] = broker["broker"]
            # Some lines name the broker twice.
            text = text[broker.end() :].removeprefix(broker[0])
        if facility == "CONFWARN" and _ONLY_CONSUMERS in text:
            return
        kind, level = classify(level, facility, text)
        similar = (kind, fields.get("broker"), _CHANGING.sub("#", text))
        # Lines at debug level are not limited: the user has asked for them.
        suppressed = self._rate_limiter.suppressed(similar) if level > DEBUG else 0
        if suppressed is None:
            return
        self.has_failure |= kind in _FAILURES and level >= WARNING
        if suppressed:
            fields["left_out"] = suppressed
        self._log.write(level, "librdkafka.line", kind=kind, text=text, **fields)


def classify(level: int, facility: str, text: str) -> tuple[str, int]:
    """Return the kind of a line, and the level to log it at.

    Lines at debug level keep it, because librdkafka logs successes in the same words.
    """
    for rule in RULES:
        if rule.pattern.match(f"{facility} {text}"):
            return rule.kind, rule.level if level > DEBUG else level
    return OTHER, level
