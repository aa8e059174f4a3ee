"""Secrets of a configuration never appear in errors, reprs, events or logs."""

import pytest
import trustme

from greendrop import GreendropError, Producer
from greendrop._librdkafka.check import properties
from greendrop.config.redaction import is_secret
from greendrop.config.settings import build_settings
from greendrop.events import EVENTS
from greendrop.listeners.log import LogListener
from greendrop.testing import trigger_fatal_error
from tests.security.output import check
from tests.tasks import await_true, sleep

DEAD = {"bootstrap.servers": "127.0.0.1:1", "reconnect.backoff.max.ms": 50}

#: All keys of librdkafka whose values are secrets, and some misspelt ones.
KEYS = sorted(
    {k for k, row in properties().items() if row.scope != "C" and is_secret(k, "")}
    | {"sasl.jaas.config", "sasl.pasword", "ssl.key.pasword", "sasl.oauthbearer.tokn"}
)

JAAS = (
    'org.apache.kafka.common.security.scram.ScramLoginModule required username="shop"'
    ' password="{}";'
)


def secret(key):
    """Give a key a unique secret."""
    text = "S3cr3t" + "".join(letter for letter in key if letter.isalpha())
    return JAAS.format(text) if "jaas" in key else text


def make(out, kafka, **settings):
    """Make a producer with listeners for every event."""
    producer = Producer()
    out.listen_to(producer.monitor, EVENTS)
    producer.monitor.subscribe(LogListener(log_messages=True))
    try:
        producer.setup({"debug": "all", **kafka}, **settings)
    except GreendropError as error:
        out.collect(error)
    out.collect(producer)
    return producer


def use(out, producer, seconds=0.3):
    """Send until an error, purge and close."""
    try:
        handle = producer.produce_async(topic="t", payload=b"x")
        sleep(seconds)
        producer.purge()
        out.collect(handle)
        handle.wait(5)
    except GreendropError as error:
        out.collect(error)
    out.collect(producer)
    producer.close(force=True)


# -- single keys ----------------------------------------------------------------------


def test_all_secret_keys_are_tried():
    """All of librdkafka's secret keys are tried, and some misspelt ones."""
    assert {"sasl.password", "ssl.key.password", "ssl.key.pem"} <= set(KEYS)
    assert {"sasl.username", "sasl.oauthbearer.client.secret"} <= set(KEYS)
    assert len(KEYS) > 20


@pytest.mark.parametrize("key", KEYS)
def test_secret_is_hidden_in_valid_and_invalid_configurations(out, key):
    """A secret in a valid or an invalid configuration appears nowhere."""
    value = secret(key)
    login = {"security.protocol": "plaintext"}
    bad = {"security.protocol": "ssl", "ssl.ca.location": "/none"}
    for kafka in ({}, login, {"no.such.key": 1}, {"acks": 17}, bad):
        make(out, {**DEAD, **kafka, key: value}).close()

    check(out, "S3cr3t")


def test_secret_of_a_wrong_type_is_hidden(out):
    """A secret given as bytes, with a NUL or under the wrong key appears nowhere."""
    for value in (b"S3cr3t", "S3cr3t\0", ["S3cr3t"], {"a": "S3cr3t"}):
        make(out, {**DEAD, "sasl.password": value})
    for settings in ({"password": "S3cr3t"}, {"sasl_password": "S3cr3t"}):
        make(out, DEAD, **settings)

    check(out, "S3cr3t")


def test_user_in_an_address_is_hidden(out):
    """The password in a proxy's address appears nowhere."""
    make(out, {**DEAD, "https.proxy": "http://me:S3cr3t@proxy:3128"}).close()
    make(out, {**DEAD, "no.such.key": "http://me:S3cr3t@proxy:3128"})

    check(out, "S3cr3t")


# -- when connecting fails ------------------------------------------------------------


@pytest.fixture(scope="module")
def identity():
    """A certificate and its key, as PEM."""
    issued = trustme.CA().issue_cert("localhost")
    return (
        issued.cert_chain_pems[0].bytes().decode(),
        issued.private_key_pem.bytes().decode(),
    )


SASL = {
    mechanism: {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": mechanism,
        "sasl.username": "S3cr3tUser",
        "sasl.password": "S3cr3tPassword",
    }
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
}


@pytest.mark.slow
@pytest.mark.parametrize("dead", [True, False], ids=["dead broker", "wrong broker"])
@pytest.mark.parametrize("mechanism", SASL)
def test_failing_logins_reveal_no_secret(hub, out, mock_cluster, mechanism, dead):
    """With debug=all librdkafka logs everything, but not the password."""
    brokers = DEAD if dead else {"bootstrap.servers": mock_cluster.bootstrap_servers}
    producer = make(out, {**brokers, **SASL[mechanism]})

    use(out, producer)

    check(out, "S3cr3tPassword", "S3cr3tUser")


@pytest.mark.slow
def test_failing_tls_reveals_no_secret(hub, out, mock_cluster, identity):
    """Neither the key nor its password appears when a broker does not speak TLS."""
    certificate, key = identity
    brokers = {"bootstrap.servers": mock_cluster.bootstrap_servers}
    pems = {"ssl.certificate.pem": certificate, "ssl.key.pem": key}
    passwords = {"ssl.key.password": "S3cr3tKey", "ssl.ca.pem": certificate}
    for kafka in (pems, {**pems, **passwords}, {"ssl.key.pem": f"{key[:200]}\n{key}"}):
        producer = make(out, {**brokers, "security.protocol": "SSL", **kafka})
        if producer.status != "initial":
            use(out, producer)

    check(out, key, certificate.splitlines()[1], "S3cr3tKey")


@pytest.mark.slow
def test_recovery_reveals_no_secret(hub, out, mock_cluster):
    """A listener that changes the configuration sees secrets replaced.

    A value that stays replaced keeps its secret; a changed value takes effect.
    """
    kafka = {
        "bootstrap.servers": mock_cluster.bootstrap_servers,
        "enable.idempotence": True,
        "security.protocol": "plaintext",
        "sasl.password": "S3cr3tPassword",
        "sasl.username": "S3cr3tUser",
    }
    producer = make(
        out,
        kafka,
        reload_on_idempotent_fatal_error=True,
        wait_backoff_on_idempotent_fatal_error=0.0,
    )
    seen = []

    @producer.monitor.subscribe("producer.reload")
    def change(event):
        seen.append(dict(event["kafka"]))
        event["kafka"]["sasl.username"] = "S3cr3tOther"

    producer.produce_sync(topic="t", payload=b"x")
    trigger_fatal_error(producer)
    producer.produce_sync(topic="t", payload=b"x")
    await_true(lambda: producer._slot.settings.kafka["sasl.username"] == "S3cr3tOther")

    assert seen[0]["sasl.password"] == seen[0]["sasl.username"] == "[hidden]"
    assert producer._slot.settings.kafka["sasl.password"] == "S3cr3tPassword"
    producer.close()
    check(out, "S3cr3tPassword", "S3cr3tUser", "S3cr3tOther")


# -- redaction of texts ---------------------------------------------------------------


def redacted(text, **kafka):
    """Redact a text as a broker might write it."""
    kafka = {key.replace("_", "."): value for key, value in kafka.items()}
    kafka["security.protocol"] = "plaintext"
    return build_settings({**DEAD, **kafka}, {}).redact(text)


def test_credentials_are_redacted_anywhere():
    """Credentials are redacted within words too."""
    text = redacted("login=me:hunter22&x", sasl_password="hunter22")

    assert text == "login=me:[hidden]&x"


def test_names_of_users_are_redacted_as_words_only():
    """A user `shop` is not redacted in the topic `shop-orders`."""
    text = redacted("user shop may not write to shop-orders", sasl_username="shop")

    assert text == "user [hidden] may not write to shop-orders"


@pytest.mark.parametrize("value", ["true", "60000", "kafka", "abc"])
def test_common_values_are_not_redacted(value):
    """Numbers, booleans, defaults and very short values are not redacted."""
    kafka = {"sasl_kerberos_service_name": value}

    assert redacted(f"x {value} y", **kafka) == f"x {value} y"


def test_lines_of_a_key_are_redacted(identity):
    """Single lines of a key in PEM are redacted."""
    _, key = identity
    line = key.splitlines()[1]

    assert line not in redacted(f"bad line: {line}", ssl_key_pem=key)


def test_users_in_addresses_are_redacted_in_the_log():
    """A user in an address is redacted under every key."""
    assert redacted("to http://a:b@c:1/d") == "to http://[hidden]@c:1/d"
