"""librdkafka's own log lines: what each is about, and not the same over and over.

A broker that is down is told of some twenty times a second, by every client. Here each
line gets a kind, by which one can filter and alert; of lines that differ only in
numbers one goes out in a minute.
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


# Brokers close connections that nobody uses; the next message opens one. If it is the
# broker that is gone, other lines follow.
_HUNG_UP = r".*\bdisconnected\b.*\(after \d+ms in state UP\b"


# Of a key that the producer's constructor has warned of.
_ONLY_CONSUMERS = "is a consumer property and will be ignored"


class Rule(NamedTuple):
    """Which lines are of a kind, by their facility or by what they say."""

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
    """Tells the lines of one client.

    Args:
        producer_id: The producer's.
        censor: Takes secrets out of a text.
        log: Where to.
        repeats: What was told lately.
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
            # Some lines tell it twice.
            text = text[broker.end() :].removeprefix(broker[0])
        if facility == "CONFWARN" and _ONLY_CONSUMERS in text:
            return
        kind, level = classified(level, facility, text)
        repeated = (kind, facts.get("broker"), _CHANGING.sub("#", text))
        # Who has turned on `debug` wants to see everything.
        left_out = self._repeats.left_out(repeated) if level > DEBUG else 0
        if left_out is None:
            return
        self.has_failure |= kind in _FAILURES and level >= WARNING
        if left_out:
            facts["left_out"] = left_out
        self._log.write(level, "librdkafka.line", kind=kind, text=text, **facts)


def classified(level: int, facility: str, text: str) -> tuple[str, int]:
    """Tell the kind of a line, and the level that it deserves.

    At debug level librdkafka tells what goes well, too; these stay there.
    """
    for rule in RULES:
        if rule.pattern.match(f"{facility} {text}"):
            return rule.kind, rule.level if level > DEBUG else level
    return OTHER, level
