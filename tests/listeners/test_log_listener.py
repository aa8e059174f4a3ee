"""The log listener: the lines it writes, and their destinations."""

import logging
from types import SimpleNamespace

import pytest
import structlog

from greendrop import (
    BrokerError,
    DeliveryError,
    Message,
    ProduceManyError,
    QueueFullError,
)
from greendrop._logging.log import ERROR, INFO, Log
from greendrop.events import EVENTS, Monitor
from greendrop.listeners.log import LogListener
from tests.golden import expected

MESSAGE = Message(
    "orders", b"payload of an order", key="order-5", headers={"token": "s"}, partition=3
)
BATCH = [MESSAGE, Message("bills", "text"), Message("bills", None)]
CONSUMED = SimpleNamespace(
    topic=lambda: "in", partition=lambda: 1, offset=lambda: 41, value=lambda: b"read"
)


def caused(error, code, name):
    """Give an error the cause that librdkafka would."""
    error.__cause__ = BrokerError("text of the broker", code=code, name=name)
    return error


TIMED_OUT = caused(DeliveryError("a message was not delivered"), -192, "_MSG_TIMED_OUT")
FULL = caused(QueueFullError("the queue is full"), -184, "_QUEUE_FULL")
DOWN = BrokerError("2/2 brokers are down", code=-187, name="_ALL_BROKERS_DOWN")
FENCED = BrokerError("fenced", code=-144, name="_FENCED", fatal=True)
HUNG_UP = BrokerError(
    "a:1/1: Disconnected: connection closed by peer: receive 0 after POLLIN (after"
    " 600004ms in state UP) (_TRANSPORT, -195)",
    code=-195,
    name="_TRANSPORT",
)
MANY = ProduceManyError("message 1 was not queued", dispatched=[1], failed_index=1)

T = {"time": 0.0012345678}
#: Events with their contents, in the order in which a producer emits them.
EMITTED = [
    ("producer.connected", {}),
    ("message.produced_sync", {"message": MESSAGE, **T}),
    ("message.produced_async", {"message": MESSAGE, **T}),
    ("messages.produced_sync", {"messages": BATCH, **T}),
    ("messages.produced_async", {"messages": BATCH, **T}),
    ("message.buffered", {"message": MESSAGE, "buffer": BATCH, **T}),
    ("messages.buffered", {"messages": BATCH, "buffer": BATCH, **T}),
    ("buffer.flushed_sync", {"messages": BATCH, **T}),
    ("buffer.flushed_async", {"messages": [], **T}),
    ("buffer.purged", T),
    ("message.acknowledged", {"topic": "t", "partition": 0, "offset": 5}),
    ("message.purged", {"topic": "t", "partition": 0}),
    ("statistics.emitted", {"statistics": {}}),
    ("transaction.started", T),
    (
        "transaction.marked_as_consumed",
        {"message": CONSUMED, "offset_metadata": None, **T},
    ),
    ("transaction.committed", T),
    ("transaction.aborted", T),
    ("transaction.finished", {"outcome": "committed", **T}),
    ("producer.reload", {"error": FENCED, "attempt": 1, "kafka": {}}),
    ("producer.reloaded", {"attempt": 1, **T}),
    ("producer.disconnecting", {}),
    ("producer.disconnected", T),
    ("hub.stalled", {"seconds": 1.5, "stack": "  File ...\n    time.sleep(2)"}),
    (
        "error.occurred",
        {"type": "message.produce_sync", "error": TIMED_OUT, "message": MESSAGE},
    ),
    (
        "error.occurred",
        {
            "type": "librdkafka.dispatch_error",
            "error": TIMED_OUT,
            "topic": "t",
            "partition": None,
            "offset": None,
            "label": "label",
            "delivery_report": None,
        },
    ),
    (
        "error.occurred",
        {
            "type": "messages.produce_many_sync",
            "error": MANY,
            "messages": BATCH,
            "dispatched": [1],
        },
    ),
    *[
        (
            "error.occurred",
            {"type": "message.produce_async", "error": FULL, "message": MESSAGE},
        )
    ]
    * 3,
    *[("error.occurred", {"type": "librdkafka.error", "error": DOWN})] * 3,
    ("error.occurred", {"type": "librdkafka.error", "error": FENCED}),
    ("error.occurred", {"type": "librdkafka.error", "error": HUNG_UP}),
    ("error.occurred", {"type": "listener.error", "error": ValueError("x")}),
    (
        "error.occurred",
        {"type": "buffer.flush", "error": ValueError("quotes a payload")},
    ),
    ("producer.closing", {}),
    ("producer.closed", T),
]


def emit_all(listener, events=EMITTED):
    """Emit all events to a listener, as producer `p`."""
    monitor = Monitor({**EVENTS, **dict.fromkeys(name for name, _ in EMITTED)})
    monitor.subscribe(listener)
    for name, facts in events:
        monitor.emit(name, {"producer_id": "p", **facts})


@pytest.fixture
def configured():
    """Configure structlog to keep its lines in a list, as text."""
    lines = []
    renderer = structlog.processors.KeyValueRenderer()

    def keep(_, method, facts):
        lines.append(f"{method:<8}{facts.pop('event')} {renderer(None, method, facts)}")
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    yield lines
    structlog.reset_defaults()


# -- lines ----------------------------------------------------------------------------


def test_every_event_is_either_logged_or_left_out():
    """A new event needs a decision, here in `EMITTED` and in the golden files."""
    assert set(EVENTS) <= {name for name, _ in EMITTED} | {"oauthbearer.token_refresh"}


def test_lines_are_as_in_the_golden_file(configured):
    """Names, levels and facts match; messages only appear with `log_messages`."""
    emit_all(LogListener())

    assert configured == expected("log_listener.txt", configured)
    assert not [line for line in configured if line.startswith("debug")]


def test_messages_are_logged_on_request(configured):
    """Messages are logged at debug level, in lines of their own."""
    emit_all(LogListener(log_messages=True))

    debug = [line for line in configured if line.startswith("debug")]
    assert debug == expected("log_listener_messages.txt", debug)
    without = [line for line in configured if line not in debug]
    assert without == expected("log_listener.txt", without)


def test_messages_are_truncated(configured):
    """Only the beginning of a long payload, or of a long batch, is logged."""
    long = Message("t", b"\xff" + b"x" * 1000, key="k" * 30)
    listener = LogListener(log_messages=True, limit=10)

    emit_all(listener, [("messages.produced_sync", {"messages": [long] * 25, **T})])

    (line,) = (line for line in configured if line.startswith("debug"))
    assert line.count("\ufffdxxxxxxxxx... (991 more)") == 10
    assert line.count("kkkkkkkkkk... (20 more)") == 10
    assert "more=15" in line


def test_values_of_headers_are_never_logged(configured):
    """Header values are often credentials; only names are logged."""
    headers = [("authorization", b"SECRET"), ("trace", None)]
    message = Message("t", b"x", headers=headers)

    emit_all(
        LogListener(log_messages=True),
        [("message.produced_sync", {"message": message, **T})],
    )

    assert "SECRET" not in "".join(configured)
    assert "['authorization', 'trace']" in configured[-1]


def test_methods_may_be_overridden(configured):
    """A subclass chooses what it logs for an event."""

    class Quiet(LogListener):
        def on_message_produced_sync(self, event):
            """Log nothing."""

        def on_message_acknowledged(self, event):
            self.write(INFO, event, offset=event["offset"])

    emit_all(Quiet())

    assert not [line for line in configured if "message.produced_sync p" in line]
    assert "info    message.acknowledged producer_id='p' offset=5" in configured


def test_closed_producers_are_forgotten():
    """The listener keeps no state of a producer after its end."""
    listener = LogListener()
    emit_all(listener)

    assert listener._logs == {}


# -- destinations ---------------------------------------------------------------------


def test_lines_go_to_logging_when_structlog_is_not_configured(caplog):
    """Lines are text, with the facts as an attribute for JSON formatters."""
    with caplog.at_level(logging.DEBUG, "greendrop"):
        emit_all(LogListener(log_messages=True))

    lines = [
        f"{record.levelname:<8}{record.name} {record.getMessage()}"
        for record in caplog.records
    ]
    assert lines == expected("log_listener_standard.txt", lines)
    assert caplog.records[0].greendrop == {
        "event": "message.produced_sync",
        "producer_id": "p",
        "topic": "orders",
        "duration": 0.001235,
    }


def test_only_problems_are_written_by_default(run_script):
    """Without any configuration of logging only stderr is written to.

    Python's own handler writes warnings and errors there. structlog by itself would
    print to stdout, as soon as any module imports it.
    """
    ended = run_script(
        """
        import sys
        from greendrop import Producer
        from greendrop.listeners.log import LogListener
        from tests.tasks import sleep

        assert "structlog" not in sys.modules
        for name in ("one", "two"):
            producer = Producer({"bootstrap.servers": "127.0.0.1:9"}, id=name)
            producer.monitor.subscribe(LogListener(log_messages=True))

            @producer.monitor.subscribe("message.produced_async")
            def failing(event):
                raise ValueError

            producer.produce_async(topic="t", payload=b"x")
            sleep(0.3)
            producer.close(force=True)
            import structlog
        assert not structlog.is_configured()
        """,
        "unpatched",
        fails=True,
    )

    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert "listener.error producer_id=one" in ended.stderr
    assert "Connection refused" in ended.stderr
    assert "message.produced_async producer_id" not in ended.stderr


def test_configuration_may_come_late(configured, caplog):
    """The destination is chosen for each line."""
    structlog.reset_defaults()
    listener = LogListener()
    with caplog.at_level(logging.INFO, "greendrop"):
        emit_all(listener, [("buffer.purged", T)])
        structlog.configure(processors=[lambda *_: "line"])
        with structlog.testing.capture_logs() as lines:
            emit_all(listener, [("buffer.purged", T)])

    assert len(caplog.records) == 1
    assert [line["event"] for line in lines] == ["buffer.purged"]


def test_logger_of_the_program_is_used(caplog):
    """Values bound to the program's logger are in the lines.

    Structlog stays unconfigured.
    """
    lines = []
    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[lambda _, __, facts: lines.append(facts) or "done"],
        service="shop",
    )

    emit_all(LogListener(logger), [("buffer.purged", T)])

    assert lines == [
        {
            "service": "shop",
            "producer_id": "p",
            "duration": 0.001235,
            "event": "buffer.purged",
        }
    ]
    assert not caplog.records


def test_lines_go_through_structlog_to_logging(caplog):
    """Programs may have structlog prepare the records of `logging`."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.render_to_log_kwargs,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        with caplog.at_level(logging.ERROR, "greendrop"):
            emit_all(LogListener())
    finally:
        structlog.reset_defaults()
        logging.setLoggerClass(logging.Logger)  # structlog's factory sets its own

    assert {record.name for record in caplog.records} == {"greendrop"}
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert caplog.records[0].producer_id == "p"
    assert caplog.records[0].code == "_MSG_TIMED_OUT"


def test_other_loggers_are_refused():
    """A logger of `logging` takes no facts, so it is refused at once."""
    with pytest.raises(TypeError, match="needs to be a structlog logger, not "):
        LogListener(logging.getLogger("mine"))


def test_logger_that_raises_disturbs_no_caller(configured, caplog):
    """The error of a processor is logged by `logging`, and goes no further."""

    def broken(*_):
        raise ValueError("processor's mistake")

    structlog.configure(processors=[broken])

    Log("greendrop").write(ERROR, "an.event", fact=1)

    (record,) = caplog.records
    assert record.getMessage() == "a log line about an.event could not be written"
    assert "processor's mistake" in caplog.text


def test_facts_do_not_collide_with_the_names_of_loggers():
    """Names that structlog adds, or that records of `logging` have, are never used.

    With structlog's `render_to_log_kwargs` such a name would be an error.
    """
    seen = set()

    class Facts(LogListener):
        def write(self, _level, _event, **facts):
            seen.update(facts)

    emit_all(Facts(log_messages=True))

    assert "topic" in seen
    record = logging.LogRecord("", 0, "", 0, "", (), None)
    assert not seen & {"event", "level", "logger", "timestamp", "message", "asctime"}
    assert not seen & vars(record).keys()


def test_log_listener_imports_no_structlog(run_script):
    """A program that logs by `logging` alone does not load it."""
    run_script(
        """
        import sys
        import greendrop.listeners.log
        assert "structlog" not in sys.modules
        """,
        "none",
    )
