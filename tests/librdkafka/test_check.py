"""The check of a configuration by librdkafka itself."""

import sys

import pytest

from greendrop._librdkafka import bindings
from greendrop._librdkafka.check import (
    check_configuration,
    find_consumer_properties,
    properties,
)
from greendrop.config.settings import build_settings
from tests.interpreter import run

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def check(**kafka):
    """Check a configuration as a producer does; dots are written as `__`."""
    named = {key.replace("__", "."): value for key, value in kafka.items()}
    built = build_settings({"bootstrap.servers": "localhost:1", **named}, {})
    return check_configuration(built.kafka, built.secret_keys)


@pytest.mark.parametrize(
    "kafka",
    [
        {},
        {"acks": "all", "compression__type": "zstd", "linger__ms": 5},
        {"enable__idempotence": True},
        {"transactional__id": "t"},
        {"transactional__id": "t", "message__timeout__ms": 300_000},
        {"transactional__id": "t", "transaction__timeout__ms": 60_000},
        {"security__protocol": "ssl"},
        {"security__protocol": "sasl_plaintext", "sasl__mechanism": "OAUTHBEARER"},
        {
            "security__protocol": "SASL_SSL",
            "sasl__mechanisms": "SCRAM-SHA-512",
            "sasl__username": "me",
            "sasl__password": "hunter2",
        },
    ],
)
def test_good_configurations_pass(kafka):
    """A valid configuration has no problems, alone and with greendrop's defaults."""
    assert check(**kafka) == {}


def test_unknown_keys_are_reported_with_a_hint():
    """An unknown key is named, with the property that was probably meant."""
    found = check(**{"linger_ms": 5, "ackz": "all", "quite.unlike.any": 1})

    assert set(found) == {"linger_ms", "ackz", "quite.unlike.any"}
    assert "did you mean 'linger.ms'" in found["linger_ms"]
    assert "did you mean 'acks'" in found["ackz"]
    assert "did you mean" not in found["quite.unlike.any"]


def test_hints_name_properties_of_producers_only():
    """Properties of consumers are not suggested."""
    assert "did you mean" not in check(auto__offset__rest="earliest").get(
        "auto.offset.rest", ""
    )


def test_bad_values_are_reported_all_at_once():
    """Each bad value is reported under the user's key, with the value."""
    found = check(acks="some", linger__ms=-1, compression__type="zap", retries="many")

    assert set(found) == {"acks", "linger.ms", "compression.type", "retries"}
    assert "'some'" in found["acks"]


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("queue.buffering.max.messages", "1e+06", "1"),
        ("queue.buffering.max.messages", "100k", "100"),
        ("batch.size", "1M", "1"),
        ("batch.size", "1.5", "1"),
        ("batch.size", "1_000", "1"),
        ("retries", "3x", "3"),
        ("retries", " 3", "3"),
        ("retries", "010", "8"),
        ("retries", "0x10", "16"),
        ("retries", "4294967297", "1"),
        ("acks", "1a", "1"),
        ("compression.level", "3x", "3"),
        ("linger.ms", "5s", "5"),
        ("linger.ms", "1,5", "1"),
        ("linger.ms", "0x5", "5"),
    ],
)
def test_numbers_are_not_misread(key, value, got):
    """A value that librdkafka would read as another number is refused."""
    assert f"librdkafka would read it as {got} " in check(**{key: value})[key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("acks", "all"),
        ("acks", "-1"),
        ("acks", -1),
        ("retries", "0"),
        ("retries", 2_147_483_647),
        ("compression.level", "-1"),
        ("linger.ms", "0.5"),
        ("linger.ms", 0.00001),
        ("linger.ms", "1e1"),
        ("linger.ms", "5."),
        ("client.id", "100k"),
        ("broker.version.fallback", "0.10.0"),
    ],
)
def test_plain_numbers_and_names_pass(key, value):
    """A text that begins like a number is accepted where a text is expected."""
    assert check(**{key: value}) == {}


def test_every_number_of_librdkafka_is_checked():
    """A number with a unit is refused for every numeric property."""
    table = properties()
    numbers = [
        name
        for name, row in table.items()
        if row.type in {"integer", "float"} and row.scope != "C"
    ]
    assert len(numbers) >= 40
    assert {row.type for row in table.values()} <= {
        "integer",
        "float",
        "string",
        "boolean",
        "enum value",
        "CSV flags",
        "pattern list",
        "see dedicated API",
        "",
    }

    found = check_configuration(dict.fromkeys(numbers, "1000 k"), ())

    assert found.keys() == set(numbers)


def test_kerberos_needs_a_librdkafka_that_has_it():
    """The wheels lack GSSAPI, and would fail with the first message."""
    found = check(security__protocol="sasl_ssl", sasl__mechanism="GSSAPI")

    assert bindings.load_library() is not None
    assert list(found) in ([], ["sasl.mechanisms"])
    assert "Kerberos" in found.get("sasl.mechanisms", "Kerberos")


def test_keys_of_consumers_are_known():
    """A table in librdkafka names the properties that only consumers have."""
    kafka = {
        "group.id": "g",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": "false",
        "client.rack": "r",
        "acks": "all",
        "no.such.key": "x",
    }

    assert find_consumer_properties(kafka) == (
        "group.id",
        "auto.offset.reset",
        "enable.auto.commit",
    )


@pytest.mark.parametrize(
    ("kafka", "key"),
    [
        ({"enable__idempotence": True, "acks": 1}, "acks"),
        ({"transactional__id": "t", "enable__idempotence": False}, None),
        ({"linger__ms": 200_000}, "message.timeout.ms"),
        (
            {
                "transactional__id": "t",
                "message__timeout__ms": 70_000,
                "transaction__timeout__ms": 60_000,
            },
            "message.timeout.ms",
        ),
        (
            {"security__protocol": "ssl", "ssl__ca__location": __file__},
            "ssl.ca.location",
        ),
        (
            {"security__protocol": "sasl_ssl", "sasl__mechanism": "PLAIN"},
            "sasl.username",
        ),
        (
            {"security__protocol": "sasl_ssl", "sasl__mechanism": "NONE"},
            "sasl.mechanisms",
        ),
        (
            {
                "security__protocol": "sasl_ssl",
                "sasl__mechanism": "OAUTHBEARER",
                "ssl__ca__location": __file__,
            },
            "ssl.ca.location",
        ),
    ],
)
def test_conflicting_keys_are_reported(kafka, key):
    """Conflicts that librdkafka finds when it makes a client are reported before."""
    found = check(**kafka)

    assert len(found) == 1
    assert key is None or list(found) == [key]


SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    "kafka",
    [
        {"ssl__key__password": SECRET, "ssl__key__location": "/etc/hostname"},
        {"ssl__key__pem": SECRET},
        {"ssl__certificate__pem": SECRET},
        {"ssl__keystore__password": SECRET, "ssl__keystore__location": "/etc/hostname"},
        {"sasl__mechanism": "PLAIN", "sasl__username": SECRET},
        {"sasl__mechanism": "PLAIN", "sasl__password": SECRET},
    ],
)
def test_secrets_are_not_in_the_texts(kafka):
    """A problem with a secret does not contain the secret."""
    protocol = "sasl_ssl" if "sasl__mechanism" in kafka else "ssl"
    found = check(security__protocol=protocol, **kafka)

    assert found
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("zap", 'Invalid value "[hidden]" for'),
        ("a", 'Invalid value "[hidden]" for'),
        ("value", 'Invalid [hidden] "[hidden]" for'),
    ],
)
def test_secrets_are_redacted_in_librdkafkas_texts(secret, text):
    """A value that librdkafka quotes is redacted; a short one only as a whole word."""
    found = check_configuration({"compression.type": secret}, {"compression.type"})

    assert text in found["compression.type"]


#: Counts descriptors and threads; a thread ends a moment after its work.
COUNT_OPEN = """
import os, time

def count_open():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def await_open(expected):
    deadline = time.monotonic() + 10
    while count_open() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count_open() == expected, (count_open(), expected)
"""


@linux
def test_check_leaves_nothing_behind():
    """No connection, mock broker or thread is left after the check."""
    run(
        COUNT_OPEN
        + """
from greendrop._librdkafka.check import check_configuration

before = count_open()
for kafka in (
    {"acks": "1"},
    {"bootstrap.servers": "127.0.0.1:1", "debug": "all"},
    {"bootstrap.servers": "127.0.0.1:1", "transactional.id": "t"},
    {"test.mock.num.brokers": "3"},
    {"acks": "1", "enable.idempotence": "true"},
):
    check_configuration(kafka, ())
await_open(before)
""",
        "none",
    )


@linux
def test_interrupted_checks_leave_nothing_behind():
    """A signal handler that raises during the check leaves no client of librdkafka."""
    run(
        COUNT_OPEN
        + """
import signal, sys
from greendrop import Producer

def interrupt(*_):
    raise KeyboardInterrupt

def make():
    Producer(kafka={"bootstrap.servers": "127.0.0.1:1"})
    time.sleep(0.01)

make()
before = count_open()
sys.unraisablehook = lambda _: None  # an interrupted destructor
signal.signal(signal.SIGALRM, interrupt)
interrupts = 0
for number in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, 20e-6 * (number + 1))
        make()
    except KeyboardInterrupt:
        interrupts += 1
assert interrupts
await_open(before)
""",
        "none",
    )


def test_check_writes_nothing(capfd):
    """Problems are returned, not logged to standard error."""
    check(enable__idempotence=True, acks=1)
    check(group__id="x", ssl__ca__location="x", security__protocol="plaintext")
    check(debug="all")

    assert capfd.readouterr() == ("", "")


def test_plugins_are_not_loaded():
    """The check does not run a plugin's code; its problems are reported later."""
    kafka = {"plugin.library.paths": "/no/such.so", "acks": "some"}

    assert check_configuration(kafka, ()) == {}
