"""librdkafka's log lines: their kinds, and the limit on repeated ones."""

import logging

import pytest
import structlog

from greendrop import Producer
from greendrop._librdkafka.log_lines import LogLines, classify
from greendrop._logging.log import ERROR, INFO, WARNING, Log
from greendrop._logging.rate_limit import RateLimiter
from greendrop.config.settings import build_settings
from tests.golden import expected, given
from tests.tasks import sleep


class Lines:
    """A structlog logger that keeps the lines it was given."""

    def __init__(self):
        self.lines = []

    def bind(self, **_):
        """Return the logger itself."""
        return self

    def __getattr__(self, level):
        return lambda event, **facts: self.lines.append((level, event, facts))


@pytest.fixture
def collected_lines():
    """Collect log lines in a list: level, event and keywords."""
    logger = Lines()
    now = [0.0]
    repeats = RateLimiter(60.0)
    repeats._clock = lambda: now[0]
    settings = build_settings({"bootstrap.servers": "localhost:9092"}, {"id": "p"})
    lines = LogLines(settings, log_to(logger), repeats)
    return lines, logger.lines, now


def log_to(logger):
    """Make a logger that keeps its lines."""
    return Log("greendrop", logger)


def test_lines_have_kinds_and_keywords(collected_lines):
    """Each line has the kind, broker and level of the golden file."""
    lines, logged, _ = collected_lines
    # As librdkafka 2.16 writes them, each after its level.
    for line in given("librdkafka_lines.in.txt"):
        lines.log(int(line[:2]), line[3:])

    written = [
        f"{level:<8}{event} " + " ".join(f"{k}={v!r}" for k, v in facts.items())
        for level, event, facts in logged
    ]
    assert written == expected("librdkafka_lines.txt", written)


@pytest.mark.parametrize(
    ("facility", "text", "kind", "level"),
    [
        ("FAIL", "Disconnected (after 5ms in state UP)", "disconnected", INFO),
        (
            "TXNERR",
            "Current transaction failed: Local: Purged in flight (_PURGE_INFLIGHT)",
            "rolled back",
            INFO,
        ),
        (
            "FAIL",
            "Disconnected (after 5ms in state APIVERSION_QUERY)",
            "connection",
            30,
        ),
        ("SASL", "anything", "authentication", ERROR),
        ("BRKMAIN", "OAUTHBEARER token expired", "authentication", ERROR),
        ("SSL", "error", "tls", ERROR),
        ("REQTMOUT", "x", "timeout", WARNING),
        ("CONFWARN", "x", "configuration", WARNING),
        ("WHATEVER", "x", "other", 17),
    ],
)
def test_lines_are_classified(facility, text, kind, level):
    """The kind of a line is derived from its facility or from its text."""
    assert classify(17, facility, text) == (kind, level)


def test_lines_that_differ_in_numbers_only_are_logged_once_a_minute(collected_lines):
    """Of a hundred failures one is logged; a minute later, the number of others."""
    lines, logged, now = collected_lines
    for number in range(100):
        lines.log(40, f"FAIL [c] [thrd:a:9/1]: a:9/1: refused (after {number}ms)")
    now[0] = 61.0
    lines.log(40, "FAIL [c] [thrd:a:9/1]: a:9/1: refused (after 9ms)")

    assert ["left_out" in facts for _, _, facts in logged] == [False, True]
    assert logged[1][2]["left_out"] == 99


def test_each_broker_has_a_line(collected_lines):
    """Two brokers that are down cause two lines."""
    lines, logged, _ = collected_lines
    for port in (1, 2):
        lines.log(40, f"FAIL [c] [thrd:x]: a:{port}/bootstrap: refused")

    assert [facts["broker"] for _, _, facts in logged] == [
        "a:1/bootstrap",
        "a:2/bootstrap",
    ]


def test_every_line_is_logged_at_debug_level(collected_lines):
    """With `debug` every line is logged, and none above the debug level."""
    lines, logged, _ = collected_lines
    for number in range(5):
        lines.log(10, f"SASL [c] [thrd:x]: a:9/1: Sent {number} bytes")

    assert [(level, facts["kind"]) for level, _, facts in logged] == (
        [("debug", "authentication")] * 5
    )


def test_memory_for_kinds_is_bounded():
    """The memory for kinds of lines is bounded."""
    limiter = RateLimiter(60.0)
    limiter._clock = lambda: 0.0
    for number in range(10_000):
        assert limiter.suppressed(number) == 0

    assert len(limiter._kinds) <= 500


@pytest.mark.slow
def test_a_dead_broker_does_not_fill_the_log(hub, caplog):
    """A second of reconnecting to two dead brokers writes two lines."""
    kafka = {
        "bootstrap.servers": "127.0.0.1:9,127.0.0.1:10",
        "reconnect.backoff.ms": 10,
        "reconnect.backoff.max.ms": 20,
    }
    with caplog.at_level(logging.INFO, "greendrop"):
        producer = Producer(kafka, id="p")
        producer.produce_async(topic="t", payload=b"x")
        sleep(1.0)
        producer.close(force=True)

    lines = [r for r in caplog.records if r.getMessage().startswith("librdkafka.line")]
    assert len(lines) == 2
    assert {record.greendrop["kind"] for record in lines} == {"connection"}
    assert all("producer_id=p kind=connection" in r.getMessage() for r in lines)


@pytest.mark.slow
def test_lines_go_to_structlog_where_that_is_configured(hub):
    """Where structlog is configured, it gets librdkafka's lines with keywords."""
    producer = Producer({"bootstrap.servers": "127.0.0.1:9"}, id="p")
    structlog.configure()
    try:
        with structlog.testing.capture_logs() as lines:
            producer.produce_async(topic="t", payload=b"x")
            sleep(0.3)
    finally:
        structlog.reset_defaults()
        producer.close(force=True)

    (line,) = (line for line in lines if line["event"] == "librdkafka.line")
    assert line["log_level"] == "warning"
    assert line["producer_id"] == "p"
    assert line["broker"] == "127.0.0.1:9/bootstrap"
