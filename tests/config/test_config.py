import enum
import re
import sys
from dataclasses import fields
from types import MappingProxyType

import pytest

from greendrop import Message, MessageFields, ProducerSettings
from greendrop.config.settings import SETTINGS, Settings, build_settings
from greendrop.errors import ConfigurationInvalidError
from tests.interpreter import run

KAFKA = MappingProxyType({"bootstrap.servers": "localhost:9092"})

SECONDS = {
    "max_wait_timeout",
    "wait_timeout_on_queue_full",
    "max_serve_time",
    "exit_timeout",
    "wait_backoff_on_idempotent_fatal_error",
    "stall_alarm",
    "wait_backoff_on_transaction_command",
    "wait_backoff_on_transaction_fatal_error",
    "wait_timeout_on_transaction_abort",
}
BOOLEANS = {
    "wait_on_queue_full",
    "instrument_on_wait_queue_full",
    "reload_on_idempotent_fatal_error",
    "reload_on_transaction_fatal_error",
}
#: Settings with a rule of their own.
OTHERS = {
    "id",
    "max_payload_size",
    "idle_disconnect_timeout",
    "max_attempts_on_idempotent_fatal_error",
    "max_attempts_on_transaction_command",
    "max_attempts_on_transaction_fatal_error",
    "non_reloadable_errors",
    "statistics_deltas",
    "oauth_token_provider",  # in test_oauth.py
}


def settings(kafka=None, **options):
    """Build settings from a minimal configuration and further keys."""
    return build_settings({**KAFKA, **(kafka or {})}, options)


def problems(kafka=None, **options):
    """Return what is wrong with a configuration, by key."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        settings(kafka, **options)
    return raised.value.errors


# -- greendrop's own settings -------------------------------------------------------


def test_defaults_are_those_of_the_table():
    """A setting that is not given has the default in the table of settings."""
    built = settings()

    for setting in SETTINGS:
        if setting.name != "id":
            assert setting.default == getattr(built, setting.name)


def test_defaults_are_waterdrops_in_seconds():
    """Defaults carried over from WaterDrop have the same value, in seconds."""
    built = settings()

    assert built.max_payload_size == 1_000_012
    assert built.max_wait_timeout == 180.0
    assert built.wait_on_queue_full is True
    assert built.wait_timeout_on_queue_full == 10.0
    assert built.instrument_on_wait_queue_full is True
    assert built.idle_disconnect_timeout == 0.0
    assert built.reload_on_idempotent_fatal_error is False
    assert built.wait_backoff_on_idempotent_fatal_error == 5.0
    assert built.max_attempts_on_idempotent_fatal_error == 5
    assert built.non_reloadable_errors == ("fenced",)


def test_every_setting_has_unit_rule_and_reason():
    """Each setting in the table has a unit, a rule and a reason."""
    assert [each for each in SETTINGS if each.unit and each.rule and each.why] == [
        *SETTINGS
    ]


def test_type_checkers_know_every_setting():
    """`ProducerSettings` has the names and types of the table.

    A setting that is stored as a tuple may be given as any iterable.
    """
    typed = {
        name: annotation.__forward_arg__
        for name, annotation in ProducerSettings.__annotations__.items()
    }
    table = {each.name: each.type for each in fields(Settings) if each.metadata}

    assert typed == {
        name: "Iterable[str]" if kind == "tuple[str, ...]" else kind
        for name, kind in table.items()
    }


def test_type_checkers_know_every_field_of_a_message():
    """`MessageFields` has the names and types of `Message`, and requires the same."""
    assert MessageFields.__annotations__.keys() == Message.__annotations__.keys()
    for name, annotation in MessageFields.__annotations__.items():
        kind = Message.__annotations__[name]
        assert annotation.__forward_arg__ == kind.__forward_arg__
    assert MessageFields.__optional_keys__ == Message._field_defaults.keys()


def test_every_setting_is_tested_here():
    """This test fails for a new setting until its limits are tested."""
    assert {each.name for each in SETTINGS} == (SECONDS | BOOLEANS | OTHERS)


def test_statistics_deltas_is_a_list_of_keys():
    """Any list of texts is accepted, also an empty one; a text is not a list."""
    assert settings().statistics_deltas == ("tx", "txretries", "txerrs", "rxerrs")
    assert settings(statistics_deltas=["msg_cnt"]).statistics_deltas == ("msg_cnt",)
    assert settings(statistics_deltas=()).statistics_deltas == ()
    for wrong in ("tx", 5, [5], None):
        assert problems(statistics_deltas=wrong).keys() == {"statistics_deltas"}


def test_id_is_generated():
    """Without a given id, each producer gets a unique one."""
    one, other = settings().id, settings().id

    assert re.fullmatch("greendrop-[0-9a-f]{12}", one)
    assert one != other


def test_id_may_be_any_text():
    """A given id is used unchanged."""
    assert settings(id="x").id == "x"


@pytest.mark.parametrize("value", ["", None, 7, b"x"])
def test_id_needs_text(value):
    """An id that is empty or not text is refused."""
    assert list(problems(id=value)) == ["id"]


@pytest.mark.parametrize("value", [1, 1_000_012, 2**40])
def test_max_payload_size_accepts_whole_numbers_from_1(value):
    """Any size from one byte on is accepted."""
    assert settings(max_payload_size=value).max_payload_size == value


@pytest.mark.parametrize("value", [0, -1, 1.5, 10.0, True, "10", None])
def test_max_payload_size_accepts_nothing_else(value):
    """Sizes below one byte, fractions and booleans are refused."""
    assert list(problems(max_payload_size=value)) == ["max_payload_size"]


@pytest.mark.parametrize("name", sorted(SECONDS))
@pytest.mark.parametrize("value", [0.001, 1, 86_400])
def test_durations_are_seconds(name, value):
    """Whole and fractional seconds up to a day are accepted."""
    assert getattr(settings(**{name: value}), name) == float(value)


@pytest.mark.parametrize("name", sorted(SECONDS - {"max_serve_time"}))
def test_durations_may_be_zero(name):
    """Zero means not waiting at all, and is accepted."""
    assert getattr(settings(**{name: 0}), name) == 0.0


def test_max_serve_time_must_not_be_zero():
    """Zero is refused, since then no report would ever be handled."""
    assert list(problems(max_serve_time=0)) == ["max_serve_time"]


@pytest.mark.parametrize("name", sorted(SECONDS))
@pytest.mark.parametrize(
    "value", [-0.001, float("inf"), float("nan"), True, "1", None, 86_400.1]
)
def test_durations_are_finite_and_not_negative(name, value):
    """A value that is not a finite number of seconds is refused."""
    assert list(problems(**{name: value})) == [name]


@pytest.mark.parametrize("value", [0, 30, 30.0, 86_400])
def test_idle_time_is_none_or_half_a_minute(value):
    """None disables the setting; otherwise reconnecting must be worthwhile."""
    built = settings(idle_disconnect_timeout=value)

    assert built.idle_disconnect_timeout == float(value)


@pytest.mark.parametrize("value", [0.1, 29.999, -1, 300_000, True, "30", None])
def test_shorter_idle_times_are_refused(value):
    """Values below half a minute are refused, also milliseconds, WaterDrop's unit."""
    assert list(problems(idle_disconnect_timeout=value)) == ["idle_disconnect_timeout"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5", None])
def test_attempts_are_counted_from_1(value):
    """Whole numbers below 1 and fractions are refused."""
    name = "max_attempts_on_idempotent_fatal_error"

    assert getattr(settings(**{name: 1}), name) == 1
    assert list(problems(**{name: value})) == [name]


@pytest.mark.parametrize("value", [(), ["fenced"], ("a", "b"), {"x"}])
def test_errors_are_given_by_name(value):
    """Any list of names is accepted, also an empty one."""
    assert settings(non_reloadable_errors=value).non_reloadable_errors == tuple(value)


@pytest.mark.parametrize("value", ["fenced", None, 47, [47], [None]])
def test_errors_are_given_by_name_only(value):
    """A single name that is not in a list is refused, and so is a number."""
    assert list(problems(non_reloadable_errors=value)) == ["non_reloadable_errors"]


def test_values_in_milliseconds_are_refused_with_a_hint():
    """The error for WaterDrop's 180_000 says that the unit is seconds."""
    text = problems(max_wait_timeout=180_000)["max_wait_timeout"]

    assert "milliseconds" in text
    assert "did you mean 180.0" in text


@pytest.mark.parametrize("name", sorted(BOOLEANS))
@pytest.mark.parametrize("value", [True, False])
def test_switches_accept_booleans(name, value):
    """True and False are accepted."""
    assert getattr(settings(**{name: value}), name) is value


@pytest.mark.parametrize("name", sorted(BOOLEANS))
@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_switches_accept_nothing_else(name, value):
    """Truthy and falsy values that are not booleans are refused."""
    assert list(problems(**{name: value})) == [name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_wait_time", "did you mean 'max_wait_timeout'"),
        ("bootstrap_servers", "kafka={...}"),
        ("wait_backoff_on_queue_full", "there is no backoff"),
    ],
)
def test_unknown_settings_get_a_hint(name, hint):
    """An unknown setting is refused, with the setting that was probably meant."""
    assert hint in problems(**{name: 1})[name]


def test_all_problems_are_reported_at_once():
    """One error names every bad key; librdkafka's keys have a prefix."""
    found = problems(
        {"client.id": None, "linger.ms": []}, max_payload_size=0, max_wait_timeout=-1
    )

    assert set(found) == {
        "kafka.client.id",
        "kafka.linger.ms",
        "max_payload_size",
        "max_wait_timeout",
    }


def test_settings_do_not_change():
    """Built settings and their mapping are read-only."""
    built = settings()

    with pytest.raises(AttributeError):
        built.max_wait_timeout = 1.0
    with pytest.raises(TypeError):
        built.kafka["acks"] = "1"


# -- kafka={...} --------------------------------------------------------------------


@pytest.mark.parametrize("kafka", [None, {}, [], "localhost", [("a", "b")]])
def test_kafka_needs_a_mapping_with_something_in_it(kafka):
    """A missing or empty mapping is refused."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        build_settings(kafka, {})

    assert list(raised.value.errors) == ["kafka"]


@pytest.mark.parametrize(
    "brokers",
    [
        {"bootstrap.servers": "a:1"},
        {"metadata.broker.list": "a:1"},
        {"test.mock.num.brokers": 1},
        {"bootstrap.servers": "", "test.mock.num.brokers": "1"},
    ],
)
def test_brokers_may_be_named_in_each_of_librdkafkas_ways(brokers):
    """Either name of the bootstrap list is accepted, and so are mock brokers."""
    assert (
        build_settings(brokers, {}).kafka.items()
        >= {key: str(value) for key, value in brokers.items()}.items()
    )


@pytest.mark.parametrize(
    ("kafka", "key"),
    [
        ({"acks": "all"}, "kafka.bootstrap.servers"),
        ({"bootstrap.servers": ""}, "kafka.bootstrap.servers"),
        ({"metadata.broker.list": ""}, "kafka.metadata.broker.list"),
        ({"test.mock.num.brokers": 0}, "kafka.bootstrap.servers"),
        ({"bootstrap.servers": None}, "kafka.bootstrap.servers"),
    ],
)
def test_a_configuration_needs_brokers(kafka, key):
    """A configuration without any broker is refused, with one problem."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        build_settings(kafka, {})

    assert list(raised.value.errors) == [key]


@pytest.mark.parametrize("value", ["30s", "1 minute", 0.5, "", True, "99999999999"])
def test_milliseconds_are_whole(value):
    """The number of mock brokers is read as librdkafka reads it."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        build_settings({**KAFKA, "message.timeout.ms": value, "linger.ms": 0.5}, {})

    assert list(raised.value.errors) == ["kafka.message.timeout.ms"]
    assert "whole milliseconds" in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "bootstrap_servers",
        "BOOTSTRAP.SERVERS",
        "BOOTSTRAP_SERVERS",
        "bootstrap-servers",
        "metadata_broker_list",
    ],
)
def test_another_spelling_of_the_addresses_key_is_pointed_out(key):
    """The error names the spelling of kafka-python or of an environment variable."""
    with pytest.raises(ConfigurationInvalidError, match=f"'{key}' is not librdkafka's"):
        build_settings({key: "a:1"}, {})


@pytest.mark.parametrize(
    "addresses",
    [
        "a",
        "a:1",
        "a-b.c_d:65535",
        "10.0.0.1:9092,b:1",
        "[::1]:9092",
        "[::1]",
        "[fe80::1%eth0]:1",
        "plaintext://a:1",
        "PLAINTEXT://a:1",
    ],
)
def test_addresses_of_brokers_are_accepted(addresses):
    """Names, IPv4 and bracketed IPv6 are accepted, with and without a port."""
    assert settings({"bootstrap.servers": addresses}).kafka["bootstrap.servers"] == (
        addresses
    )


@pytest.mark.parametrize(
    ("addresses", "hint"),
    [
        ("localhost:99999", "'localhost:99999' has a port that is not between 1 and"),
        ("a:0", "between 1 and 65535"),
        ("a:1,b:70000", "'b:70000' has a port"),
        ("a:port", "not a number: 'port'"),
        ("a:1/path", "not a number: '1/path'"),
        ("a:", "no port after its colon"),
        (":9092", "has no host"),
        ("9092", "did you mean 'localhost:9092'?"),
        (",", "address 1 of 2 is empty"),
        ("a:1,,b:1", "address 2 of 3 is empty"),
        ("a:1,", "address 2 of 2 is empty"),
        ("a:1;b:1", "write HOST:PORT,HOST:PORT"),
        ("a:1 b:1", "write HOST:PORT,HOST:PORT"),
        ("a:1|b:1", "write HOST:PORT,HOST:PORT"),
        ("::1", "in brackets, as [::1]:9092"),
        ("::1:9092", "in brackets, as [::1]:9092"),
        ("[a]:1", "has no valid host: '[a]'"),
        ("http://a:8082", "write 'a:8082'"),
        ("https://a/", "write 'a' and set security.protocol to 'ssl'"),
        ("kafka+ssl://a:1", "write 'a:1' and set security.protocol to 'ssl'"),
        ("SASL_SSL://a:1", "security.protocol is 'plaintext'; write 'a:1' and set"),
        ("   ", "must not be empty"),
        ([], "must not be empty"),
        (["a:1", 5], "5 is of type int"),
        (["a:1", "b"], None),
        ({"a": 1}, "not dict"),
        (9092, "not int"),
    ],
)
@pytest.mark.parametrize("key", ["bootstrap.servers", "metadata.broker.list"])
def test_addresses_that_lead_to_no_broker_are_refused(key, addresses, hint):
    """The error for an unusable address says what to write instead."""
    if hint is None:
        build_settings({key: addresses}, {})
        return
    with pytest.raises(ConfigurationInvalidError) as raised:
        build_settings({key: addresses}, {})

    assert list(raised.value.errors) == [f"kafka.{key}"]
    assert hint in raised.value.errors[f"kafka.{key}"]


@pytest.mark.parametrize("given", [["a:1", "b:2"], ("a:1", "b:2"), " a:1 , b:2\n"])
def test_addresses_may_be_a_list(given):
    """A list of addresses is joined to librdkafka's text, without blanks."""
    assert settings({"bootstrap.servers": given}).kafka["bootstrap.servers"] == (
        "a:1,b:2"
    )


# -- keys that require each other ---------------------------------------------------


@pytest.mark.parametrize("protocol", ["SASL_SSL", "sasl_plaintext"])
def test_login_needs_a_mechanism(protocol):
    """Without a mechanism librdkafka assumes GSSAPI and fails at the first message."""
    kafka = {"security.protocol": protocol, "sasl.username": "u", "sasl.password": "p"}

    assert "PLAIN, SCRAM-SHA-256" in problems(kafka)["kafka.sasl.mechanisms"]


@pytest.mark.parametrize(
    ("key", "protocol"),
    [
        ("sasl.username", "SASL_SSL, or SASL_PLAINTEXT"),
        ("sasl.mechanism", "SASL_SSL, or SASL_PLAINTEXT"),
        ("ssl.cipher.suites", "SSL"),
        ("enable.ssl.certificate.verification", "SSL"),
    ],
)
def test_login_and_encryption_need_a_protocol(key, protocol):
    """Without `security.protocol` librdkafka would connect in plaintext."""
    text = problems({key: "false"})["kafka.security.protocol"]

    assert f"librdkafka ignores {key} without it; set it to {protocol}" in text


def test_empty_values_count_as_not_given():
    """An empty value, as from an empty environment variable, counts as not given."""
    assert settings({"sasl.username": "", "ssl.ca.location": ""}).no_effect == ()


@pytest.mark.parametrize(
    "key", ["ssl.ca.location", "ssl.key.location", "ssl.certificate.location"]
)
def test_files_must_exist(key, tmp_path):
    """The error names a missing file, where OpenSSL would only give a number."""
    kafka = {"security.protocol": "ssl", key: str(tmp_path / "none.pem")}

    assert "there is no file" in problems(kafka)[f"kafka.{key}"]
    assert "none.pem" in problems(kafka)[f"kafka.{key}"]
    assert "expand '~'" in problems({**kafka, key: "~/ca.pem"})[f"kafka.{key}"]
    settings({**kafka, key: str(tmp_path)})


def test_location_of_certificates_may_be_probed():
    """`probe` means the usual locations to librdkafka; it is not a file."""
    settings({"security.protocol": "ssl", "ssl.ca.location": "probe"})


PLAIN = {"security.protocol": "SASL_SSL", "sasl.mechanisms": "PLAIN"}
TOKENS = {**PLAIN, "sasl.mechanisms": "OAUTHBEARER"}


@pytest.mark.parametrize(
    ("kafka", "options", "names"),
    [
        ({"security.protocol": "ssl", "sasl.username": "u"}, {}, "kafka.sasl.username"),
        (
            {"security.protocol": "plaintext", "ssl.ca.location": "/none"},
            {},
            "kafka.ssl.ca.location",
        ),
        (
            {**PLAIN, "sasl.kerberos.keytab": "/none"},
            {},
            "kafka.sasl.kerberos.keytab",
        ),
        ({**TOKENS, "sasl.username": "u"}, {}, "kafka.sasl.username"),
        (
            {**TOKENS, "sasl.oauthbearer.scope": "u"},
            {},
            "kafka.sasl.oauthbearer.scope",
        ),
        ({"transaction.timeout.ms": 1}, {}, "kafka.transaction.timeout.ms"),
        ({"test.mock.num.brokers": 1}, {}, "kafka.bootstrap.servers"),
        (
            {},
            {"wait_backoff_on_transaction_command": 2.0},
            "wait_backoff_on_transaction_command",
        ),
        (
            {"enable.idempotence": True},
            {"max_attempts_on_idempotent_fatal_error": 2},
            "max_attempts_on_idempotent_fatal_error",
        ),
        (
            {"transactional.id": "t"},
            {"reload_on_idempotent_fatal_error": True},
            "reload_on_idempotent_fatal_error",
        ),
        (
            {},
            {"wait_on_queue_full": False, "wait_timeout_on_queue_full": 1.0},
            "wait_timeout_on_queue_full",
        ),
        (
            {"statistics.interval.ms": 0},
            {"statistics_deltas": ["tx"]},
            "statistics_deltas",
        ),
    ],
)
def test_ineffective_settings_are_found(kafka, options, names):
    """A setting that other settings make ineffective is found, with the reason."""
    [(reason, found)] = settings(kafka, **options).no_effect

    assert found == (names,)
    assert reason


@pytest.mark.parametrize(
    ("kafka", "options"),
    [
        ({}, {}),
        ({**PLAIN, "sasl.username": "u", "sasl.password": "p"}, {}),
        ({**TOKENS, "sasl.oauthbearer.config": "x"}, {}),
        (
            {
                **TOKENS,
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.client.id": "x",
            },
            {},
        ),
        (
            {
                **TOKENS,
                "sasl.oauthbearer.metadata.authentication.type": "aws_iam",
                "sasl.oauthbearer.scope": "x",
            },
            {},
        ),
        ({"security.protocol": "ssl", "ssl.cipher.suites": "x"}, {}),
        ({"transactional.id": "t", "transaction.timeout.ms": 1}, {}),
        (
            {"enable.idempotence": True},
            {
                "reload_on_idempotent_fatal_error": True,
                "max_attempts_on_idempotent_fatal_error": 2,
            },
        ),
        ({}, {"wait_backoff_on_transaction_command": 0.5}),
    ],
)
def test_effective_settings_cause_no_warning(kafka, options):
    """Effective settings and settings with their default value cause no warning."""
    assert settings(kafka, **options).no_effect == ()


def test_warning_of_ineffective_settings_is_logged_once():
    """Two producers log each reason once, by Python's handler of last resort."""
    ended = run(
        """
        import greendrop

        for _ in range(2):
            greendrop.Producer(
                kafka={
                    "bootstrap.servers": "localhost:1",
                    "group.id": "g",
                    "auto.offset.reset": "earliest",
                    "transaction.timeout.ms": 1000,
                },
                id="p",
            )
        """,
        "none",
        fails=True,
    )

    lines = sorted(ended.stderr.splitlines())
    assert (ended.returncode, len(lines)) == (0, 2), ended.stderr
    assert "kafka.group.id, kafka.auto.offset.reset" in lines[0]
    assert "kafka.transaction.timeout.ms" in lines[1]


@pytest.mark.parametrize("key", ["bootstrap.servers", "metadata.broker.list"])
def test_address_with_a_user_is_refused(key):
    """A user in an address has no effect in librdkafka, which shows its password."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        build_settings({key: "a:1,SASL_SSL://me:hunter2@b:1"}, {})

    assert list(raised.value.errors) == [f"kafka.{key}"]
    assert "hunter2" not in str(raised.value)


def test_users_mapping_is_not_changed():
    """A frozen mapping is accepted, and the given mapping is not changed."""
    mine = {"bootstrap.servers": "a:1", "acks": "all"}

    built = build_settings(MappingProxyType(mine), {})

    assert mine == {"bootstrap.servers": "a:1", "acks": "all"}
    assert built.kafka["client.id"] == "greendrop"


def test_later_changes_of_the_users_mapping_have_no_effect():
    """The mapping is copied."""
    mine = {"bootstrap.servers": "a:1"}
    built = build_settings(mine, {})

    mine["bootstrap.servers"] = "b:1"

    assert built.kafka["bootstrap.servers"] == "a:1"


class Codec(str, enum.Enum):
    """A text whose own str() is not the text."""

    ZSTD = "zstd"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        ("", ""),
        (5, "5"),
        (-1, "-1"),
        (0.5, "0.5"),
        (5.0, "5"),
        (True, "true"),
        (False, "false"),
        (Codec.ZSTD, "zstd"),
    ],
)
def test_values_become_librdkafkas_text(value, text):
    """Text, numbers and booleans are converted to the text that librdkafka reads."""
    built = settings({"compression.type": value})

    assert text == built.kafka["compression.type"]
    assert type(built.kafka["compression.type"]) is str


@pytest.mark.parametrize(
    "value",
    [None, b"x", [], {}, object(), float("nan"), float("inf"), "a\0b", "\ud800"],
)
def test_other_values_are_refused(value):
    """A value that librdkafka can't read completely is refused."""
    assert list(problems({"client.id": value})) == ["kafka.client.id"]


@pytest.mark.parametrize("key", [1, b"acks", None, "a\0b"])
def test_keys_are_text(key):
    """Keys that are not text are refused."""
    assert list(problems({key: "x"})) == [f"kafka.{key}"]


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("error_cb", "'error.occurred'"),
        ("stats_cb", "'statistics.emitted'"),
        ("throttle_cb", "'statistics.emitted'"),
        ("on_delivery", "'message.acknowledged'"),
        ("dr_cb", "'message.acknowledged'"),
        ("dr_msg_cb", "'message.acknowledged'"),
        ("logger", "'error.occurred'"),
        ("log_cb", "'error.occurred'"),
        ("oauth_cb", "'oauthbearer.token_refresh'"),
        ("background_event_cb", "producer.monitor.subscribe(...)"),
        ("partitioner_callback", "partition"),
        ("default.topic.config", "kafka={...}"),
    ],
)
def test_callbacks_are_refused_with_what_to_use_instead(key, instead):
    """Callbacks of the C library are reserved; the error names the alternative."""
    assert instead in problems({key: print})[f"kafka.{key}"]


@pytest.mark.parametrize("value", [True, "true", "T", "1", 1])
def test_reports_of_errors_only_are_refused(value):
    """Without reports of delivered messages no handle would resolve."""
    key = "delivery.report.only.error"

    assert "never resolve" in problems({key: value})[f"kafka.{key}"]


@pytest.mark.parametrize("value", [False, "false", 0])
def test_reports_of_all_messages_may_be_requested(value):
    """The default may be given explicitly."""
    settings({"delivery.report.only.error": value})


# -- defaults -----------------------------------------------------------------------


def test_defaults_serve_a_waiting_program():
    """A key that is not given gets greendrop's default."""
    assert settings().kafka == {
        **KAFKA,
        "client.id": "greendrop",
        "statistics.interval.ms": "5000",
        "message.timeout.ms": "150000",
        "socket.nagle.disable": "true",
        "linger.ms": "0",
        "sticky.partitioning.linger.ms": "10",
    }


def test_given_values_override_defaults():
    """A given value is kept."""
    mine = {
        "client.id": "mine",
        "statistics.interval.ms": "0",
        "message.timeout.ms": "9000",
        "socket.nagle.disable": "false",
        "linger.ms": "7",
    }

    assert settings(mine).kafka == {**KAFKA, **mine}


def test_aliases_count_as_given():
    """A default does not override a value under librdkafka's alias for its key."""
    mine = {"delivery.timeout.ms": "9000", "queue.buffering.max.ms": "7"}
    built = settings(mine)

    assert not built.kafka.keys() & {"message.timeout.ms", "linger.ms"}


def test_final_report_comes_before_the_wait_ends():
    """By default a message ends in librdkafka before the wait for it ends."""
    built = settings()

    assert int(built.kafka["message.timeout.ms"]) / 1000 < built.max_wait_timeout


@pytest.mark.parametrize(
    ("mine", "message", "transaction"),
    [
        ({}, "150000", "165000"),
        ({"message.timeout.ms": "300000"}, "300000", "300000"),
        ({"message.timeout.ms": "1000"}, "1000", "165000"),
        ({"transaction.timeout.ms": "60000"}, "60000", "60000"),
        ({"transaction.timeout.ms": "600000"}, "150000", "600000"),
    ],
)
def test_timeouts_of_a_transactional_producer_fit(mine, message, transaction):
    """A default timeout does not contradict the timeout that is given."""
    built = settings({"transactional.id": "t", **mine})

    assert built.kafka["message.timeout.ms"] == message
    assert built.kafka["transaction.timeout.ms"] == transaction


# -- derived values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kafka", "users"),
    [
        ({}, False),
        ({"linger.ms": 0}, False),
        ({"linger.ms": "0.0"}, False),
        ({"linger.ms": 5}, True),
        ({"linger.ms": 0.5}, True),
        ({"queue.buffering.max.ms": "5"}, True),
    ],
)
def test_linger_is_the_users_when_above_zero(kafka, users):
    """Only a linger above 0 means that the user wants librdkafka's batching."""
    assert settings(kafka).user_sets_linger is users


@pytest.mark.parametrize(
    ("value", "limit"), [(None, 100_000), ("1", 1), (10, 10), (0, sys.maxsize)]
)
def test_queue_limit_is_librdkafkas(value, limit):
    """The limit is librdkafka's; its value 0 means no limit."""
    kafka = {} if value is None else {"queue.buffering.max.messages": value}

    assert limit == settings(kafka).queue_limit


@pytest.mark.parametrize(
    ("kafka", "idempotent", "transactional"),
    [
        ({}, False, False),
        ({"enable.idempotence": True}, True, False),
        ({"enable.idempotence": "t"}, True, False),
        ({"enable.idempotence": "TRUE"}, True, False),
        ({"enable.idempotence": 1}, True, False),
        ({"enable.idempotence": "false"}, False, False),
        ({"enable.idempotence": 0}, False, False),
        ({"transactional.id": "t"}, True, True),
        ({"transactional.id": ""}, False, False),
    ],
)
def test_guarantees_are_read_as_by_librdkafka(kafka, idempotent, transactional):
    """Transactions imply idempotence; booleans have several spellings.

    The guarantees are read once, when the settings are built.
    """
    built = settings(kafka)

    assert (idempotent, transactional) == (built.idempotent, built.transactional)


SECRETS = {
    "sasl.password": "hunter2",
    "sasl.username": "me",
    "sasl.oauthbearer.client.secret": "hunter2",
    "sasl.oauthbearer.config": "hunter2",
    "ssl.key.password": "hunter2",
    "ssl.key.pem": "hunter2",
    "ssl.certificate.pem": "hunter2",
    "ssl.keystore.password": "hunter2",
}


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_secrets_are_not_shown(key):
    """Values of secret keys are neither in the repr nor in the displayed settings."""
    built = settings({key: "hunter2", "security.protocol": "plaintext"})

    assert key in built.secret_keys
    assert "hunter2" not in repr(built)
    assert "hunter2" not in str(built.redacted())
    assert built.redacted()["kafka"][key] == "[hidden]"


@pytest.mark.parametrize(
    "key", ["ssl.key.location", "sasl.mechanism", "sasl.mechanisms", "ssl.ca.location"]
)
def test_names_of_files_and_mechanisms_are_shown(key):
    """Names of files and mechanisms are not secret."""
    kafka = {key: "visible", "security.protocol": "plaintext"}

    assert settings(kafka).redacted()["kafka"][key] == "visible"


def test_secrets_are_not_in_errors():
    """An error about a secret key does not contain its value."""
    with pytest.raises(ConfigurationInvalidError) as raised:
        settings({"sasl.password": ["hunter2"], "ssl.key.pem": "hunter2\0"})

    assert "hunter2" not in str(raised.value)
