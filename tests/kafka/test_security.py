"""Credentials that are good, wrong, expired, and replaced while a producer runs."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone

import pytest
import trustme
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from greendrop import DeliveryError, Producer
from tests.kafka.test_servers import mtls, plain, scram, tls
from tests.security.output import check

pytestmark = pytest.mark.slow

#: Seconds. Long enough for a login, and for its refusal.
QUICK = {"message.timeout.ms": 3_000, "reconnect.backoff.max.ms": 100}


@pytest.fixture
def secure(kafka_secure):
    """Return the addresses and credentials of the secure listeners."""
    return kafka_secure.secure_listeners


@pytest.mark.parametrize("way_in", [plain, scram, tls, mtls])
def test_good_credentials_deliver(world, secure, topic, way_in):
    """Each way to log in delivers, with a hub and without one."""
    with Producer(kafka=way_in(secure)) as producer:
        assert producer.produce_sync(topic=topic, payload=b"x").offset is not None


def expired(secure, folder):
    """Issue a certificate that has expired."""
    return secure.issue_client_certificate(
        "expired", datetime.now(timezone.utc) - timedelta(days=1)
    )


def of_a_stranger(secure, folder):
    """Issue a certificate of an authority that the broker does not know."""
    issued = trustme.CA().issue_cert("client.greendrop.test")
    certificate, key = folder / "stranger-cert.pem", folder / "stranger-key.pem"
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.mark.parametrize("bad", [expired, of_a_stranger])
def test_a_bad_certificate_is_replaced_without_a_restart(
    secure, topic, tmp_path, out, bad
):
    """Its messages fail with the reason; after `disconnect` the new files are read."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(files):
        for source, target in zip(files, (certificate, key), strict=True):
            shutil.copy(source, target)

    install(bad(secure, tmp_path))
    bad_key = key.read_text()
    kafka = mtls(secure) | {
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    with Producer(kafka=kafka | QUICK) as producer:
        with pytest.raises(DeliveryError) as raised:
            producer.produce_sync(topic=topic, payload=b"refused")
        install((secure.client_cert_file, secure.client_key_file))
        assert producer.disconnect()
        report = producer.produce_sync(topic=topic, payload=b"accepted")

    assert report.offset == 0
    assert "certificate" in str(raised.value)
    out.collect(raised.value)
    check(out, bad_key, key.read_text())


def test_a_replaced_password_is_needed_by_new_connections(
    world, kafka_secure, secure, topic, out
):
    """A producer that has logged in goes on; a new one needs the new password."""
    set_password(kafka_secure, "rotating", "S3cr3tOld")
    login = scram(secure) | QUICK | {"sasl.username": "rotating"}
    old, new = ({"sasl.password": each} for each in ("S3cr3tOld", "S3cr3tNew"))

    with Producer(kafka=login | old) as producer:
        producer.produce_sync(topic=topic, payload=b"before")
        set_password(kafka_secure, "rotating", "S3cr3tNew")
        producer.produce_sync(topic=topic, payload=b"still connected")
    with (
        Producer(kafka=login | old) as late,
        pytest.raises(DeliveryError, match="invalid credentials") as raised,
    ):
        late.produce_sync(topic=topic, payload=b"refused")
    with Producer(kafka=login | new) as right:
        right.produce_sync(topic=topic, payload=b"after")

    out.collect(raised.value)
    check(out, "S3cr3tOld", "S3cr3tNew")


def set_password(kafka, user, password):
    """Set the password of a user, and wait until the broker has it."""
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    change = UserScramCredentialUpsertion(user, info, password.encode())
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    for result in admin.alter_user_scram_credentials([change]).values():
        result.result(20)
