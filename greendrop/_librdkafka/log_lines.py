"""librdkafka's own log lines: their kinds, and their rate.

Every client logs a broker that is down some twenty times a second. Here each line gets
a kind to filter and to alert by, and of lines that differ only in numbers or addresses
one is written per minute.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from greendrop._logging.log import DEBUG, ERROR, INFO, WARNING, Log
from greendrop._logging.rate_limit import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

# Such as
# FAIL [rdkafka#producer-1] [thrd:a:9/bootstrap]: a:9/bootstrap: Connect to ... failed
# The part about a thread is missing in some, and so is the broker.
_LINE = re.compile(
    r"(?P<facility>[A-Z0-9_]+) \[(?P<client>[^\]]*)\](?: \[thrd:(?P<thread>[^\]]*)\])?:"
    r" (?P<text>.*)",
    re.DOTALL,
)
_BROKER = re.compile(r"(?P<broker>\S+:\d+/[^\s:]+): ")
# What differs each time: "(after 3ms in state CONNECT, 5 identical error(s) ...)".
# A name such as localhost has addresses of both kinds: one line tells of all of them.
_CHANGING = re.compile(r"ipv[46]#\S+|\d+")


# Brokers close idle connections; the next message opens a new one. If the broker itself
# is gone, other lines follow.
_HUNG_UP = r".*\bdisconnected\b.*\(after \d+ms in state UP\b"


# Of a key that the producer's constructor has warned of.
_ONLY_CONSUMERS = "is a consumer property and will be ignored"


class Rule(NamedTuple):
    """A kind of lines: its level, and the facility or text to know it by."""

    kind: str
    level: int
    pattern: re.Pattern[str]


def _rule(kind: str, level: int, pattern: str) -> Rule:
    return Rule(kind, level, re.compile(pattern, re.IGNORECASE | re.DOTALL))


#: The first that fits counts. Matched against "FACILITY text".
RULES = (
    _rule("fatal", ERROR, r"FATAL\b"),
    _rule("disconnected", INFO, rf"FAIL {_HUNG_UP}"),
    # Rolling back drops messages, and librdkafka takes each of them for a failure.
    _rule("rolled back", INFO, r"TXNERR .*\(_PURGE_(INFLIGHT|QUEUE)\)"),
    _rule("authentication", ERROR, r".*\b(SASL\w*|authenticat\w+|OAUTHBEARER)\b"),
    _rule("tls", ERROR, r".*\b(SSL\w*|TLS|certificate)\b"),
    _rule("timeout", WARNING, r"(REQTMOUT|.*\btimed out\b)"),
    _rule("configuration", WARNING, r"CONF\w*\b"),
    _rule("connection", WARNING, r"(FAIL|ERROR|.*\bbrokers are down\b)"),
)
#: Kinds that say why brokers can't be reached.
_FAILURES = frozenset({"authentication", "tls", "timeout", "connection"})
#: All other lines.
OTHER = "other"


_is_hang_up = re.compile(_HUNG_UP, re.IGNORECASE | re.DOTALL).match


def is_hang_up(text: str) -> bool:
    """Tell whether an error of librdkafka only says that a broker hung up."""
    return bool(_is_hang_up(text))


class LogLines:
    """Writes the lines of one client to the log.

    Args:
        producer_id: Goes into each line.
        censor: Returns a text with the secrets cut out.
        log: Where the lines go.
        repeats: Limits lines of the same kind and text.
    """

    def __init__(
        self,
        producer_id: str,
        censor: Callable[[str], str],
        log: Log | None = None,
        repeats: RateLimiter | None = None,
    ) -> None:
        self._log = log or Log("greendrop.librdkafka", producer_id=producer_id)
        self._redact = censor
        self._repeats = repeats or RateLimiter()
        #: Whether a line has said why a broker can't be reached.
        self.has_failure = False

    def log(self, level: int, line: str) -> None:
        """Write a line, unless one like it was written within the last minute."""
        line = self._redact(line)
        parts = _LINE.match(line)
        facility, text = "", line
        facts: dict[str, Any] = {}
        if parts is not None:
            facility, text = parts["facility"], parts["text"]
            facts = {"facility": facility, "client": parts["client"]}
        broker = _BROKER.match(text)
        if broker is not None:
            facts["broker"] = broker["broker"]
            # Some lines name it twice.
            text = text[broker.end() :].removeprefix(broker[0])
        if facility == "CONFWARN" and _ONLY_CONSUMERS in text:
            return
        kind, level = classified(level, facility, text)
        repeated = (kind, facts.get("broker"), _CHANGING.sub("#", text))
        # Lines of `debug` are wanted all.
        left_out = self._repeats.left_out(repeated) if level > DEBUG else 0
        if left_out is None:
            return
        self.has_failure |= kind in _FAILURES and level >= WARNING
        if left_out:
            facts["left_out"] = left_out
        self._log.write(level, "librdkafka.line", kind=kind, text=text, **facts)


def classified(level: int, facility: str, text: str) -> tuple[str, int]:
    """Return the kind of a line, and the level to write it at.

    Lines at debug level stay there: librdkafka logs successes by the same words.
    """
    for rule in RULES:
        if rule.pattern.match(f"{facility} {text}"):
            return rule.kind, rule.level if level > DEBUG else level
    return OTHER, level
