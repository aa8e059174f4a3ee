"""The check of librdkafka's keys against each other: missing and ineffective keys.

librdkafka notices a missing SASL mechanism only when it creates a client, and silently
ignores credentials while `security.protocol` is `plaintext`. Values of single keys are
checked in `kafka` and by librdkafka itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from greendrop.config.redaction import is_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__: list[str] = []

#: A reason, and the keys that have no effect for this reason.
NoEffect = tuple[str, tuple[str, ...]]

_MECHANISM = ("sasl.mechanisms", "sasl.mechanism")
_PASSWORDS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_MECHANISMS = f"{', '.join(_PASSWORDS)}, OAUTHBEARER or GSSAPI (Kerberos)"
_PROTOCOLS = frozenset({"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"})
#: Prefixes of keys, and the mechanisms that read such keys. All others ignore them.
_READ_BY = (
    (("sasl.username", "sasl.password"), _PASSWORDS),
    (("sasl.oauthbearer.", "enable.sasl.oauthbearer."), ("OAUTHBEARER",)),
    (("sasl.kerberos.",), ("GSSAPI",)),
)
# Read with any `sasl.oauthbearer.method`.
_ANY_METHOD = ("sasl.oauthbearer.method", "sasl.oauthbearer.config")

#: Keys whose value names a file.
_FILES = (
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
    "https.ca.location",
    "sasl.kerberos.keytab",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
)
#: As the value of `ssl.ca.location` or `https.ca.location`, it makes librdkafka search
#: the usual places.
_PROBE = "probe"


def find_errors(kafka: Mapping[str, str]) -> dict[str, str]:
    """Return missing keys and missing files, each with a text that says what to do."""
    if _mock_brokers(kafka):
        return {}  # mock brokers use neither TLS nor SASL
    given = {key for key, value in kafka.items() if value}
    sasl, tls = sorted(filter(_is_sasl, given)), sorted(filter(_is_tls, given))
    errors: dict[str, str] = {}
    if "security.protocol" not in kafka and (sasl or tls):
        protocols = "SASL_SSL" if sasl else "SSL"
        if sasl and not tls:
            protocols += ", or SASL_PLAINTEXT if the connection needs no encryption"
        errors["security.protocol"] = (
            f"this key is required: librdkafka ignores {', '.join(sasl or tls)} without"
            f" it; set it to {protocols}"
        )
    if protocol_of(kafka).startswith("sasl_") and not _mechanism_of(kafka):
        errors[_MECHANISM[0]] = (
            f"this key is required with security.protocol={kafka['security.protocol']};"
            f" set it to {_MECHANISMS}"
        )
    ignored = {key for _, keys in find_no_effect(kafka) for key in keys}
    for key in _FILES:
        path = kafka.get(key)
        if path and key not in ignored and path != _PROBE and not _exists(path):
            errors[key] = _missing_file(key, path)
    return errors


def find_no_effect(kafka: Mapping[str, str]) -> list[NoEffect]:
    """Return the keys that librdkafka will ignore, grouped by reason."""
    given = sorted(key for key, value in kafka.items() if value)
    found: list[NoEffect] = []
    if _mock_brokers(kafka):
        ignored = [key for key in given if key in _ADDRESSES]
        reason = "with test.mock.num.brokers librdkafka starts brokers of its own"
        found.append((reason, tuple(ignored)))
    else:
        found += _no_effect_on_connections(kafka, given)
    if not kafka.get("transactional.id"):
        ignored = [key for key in given if key == "transaction.timeout.ms"]
        found.append(("there is no transactional.id", tuple(ignored)))
    return [(reason, keys) for reason, keys in found if keys]


_ADDRESSES = ("bootstrap.servers", "metadata.broker.list")


def _no_effect_on_connections(
    kafka: Mapping[str, str], given: list[str]
) -> Iterator[NoEffect]:
    protocol, mechanism = protocol_of(kafka), _mechanism_of(kafka)
    if protocol not in _PROTOCOLS or "security.protocol" not in kafka:
        return  # librdkafka or `find_errors` refuses the configuration
    if not protocol.endswith("ssl"):
        reason = f"security.protocol={protocol} does not encrypt; see SSL and SASL_SSL"
        yield reason, tuple(filter(_is_tls, given))
    if not protocol.startswith("sasl_"):
        reason = f"security.protocol={protocol} does not log in; see SASL_SSL"
        yield reason, tuple(filter(_is_sasl, given))
        return
    for names, readers in _READ_BY:
        if mechanism and mechanism.upper() not in readers:
            reason = f"sasl.mechanisms={mechanism} does not use it"
            yield reason, tuple(key for key in given if key.startswith(names))
    method = kafka.get("sasl.oauthbearer.method", "default").lower()
    # confluent-kafka itself reads these keys for the metadata service of a cloud.
    cloud = kafka.get("sasl.oauthbearer.metadata.authentication.type", "none").lower()
    if mechanism.upper() == "OAUTHBEARER" and method != "oidc" and cloud == "none":
        prefix = "sasl.oauthbearer."
        oidc = (k for k in given if k.startswith(prefix) and k not in _ANY_METHOD)
        yield "sasl.oauthbearer.method is not oidc", tuple(oidc)


def protocol_of(kafka: Mapping[str, str]) -> str:
    """Return the `security.protocol` of a configuration, in lower case."""
    return kafka.get("security.protocol", "plaintext").strip().lower()


def _mechanism_of(kafka: Mapping[str, str]) -> str:
    return next((kafka[key] for key in _MECHANISM if kafka.get(key)), "")


def _is_sasl(key: str) -> bool:
    return key.startswith(("sasl.", "enable.sasl."))


def _is_tls(key: str) -> bool:
    return key.startswith(("ssl.", "enable.ssl."))


def _mock_brokers(kafka: Mapping[str, str]) -> bool:
    return kafka.get("test.mock.num.brokers", "0").strip() not in {"", "0"}


def _missing_file(key: str, path: str) -> str:
    shown = "of that name" if is_secret(key, path) else repr(path[:200])
    home = "; librdkafka doesn't expand '~'" if path.startswith("~") else ""
    return f"there is no file {shown}{home}"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # for example a directory without permission to search it
        return False
