"""Configuration of a broker: its settings, its Java, its security.

Only text and files: nothing is started here. Each number has its source beside it.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.servers import _ports
from tests.servers._jars import java

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import trustme

#: Settings of a broker, or lines of its properties file.
Config = dict[str, object]

_LOG4J = """\
<Configuration status="WARN">
  <Appenders>
    <Console name="console" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %p %c: %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""

_JAAS = "org.apache.kafka.common.security"
_PLAIN_MODULE = f"{_JAAS}.plain.PlainLoginModule"
_SCRAM_MODULE = f"{_JAAS}.scram.ScramLoginModule"
_OAUTH = f"{_JAAS}.oauthbearer"
_OAUTH_MODULE = f"{_OAUTH}.OAuthBearerLoginModule"
_OAUTH_CALLBACK = (
    f"{_OAUTH}.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
)


class Login(NamedTuple):
    """A user that a broker knows."""

    user: str
    password: str


PLAIN = Login("plain-user", "plain-password")
SCRAM = Login("scram-user", "scram-password")


class Addresses(NamedTuple):
    """Host and port of each listener that a node may have."""

    plaintext: str
    controller: str
    sasl: str
    tls: str
    mtls: str
    proxied: str

    @classmethod
    def free(cls, plaintext: int | None = None) -> Addresses:
        """Return addresses that are free now; all of them, used or not.

        Args:
            plaintext: The port of the plaintext listener, if it is not any free one.
        """
        ports = _ports.free_ports(len(cls._fields))
        if plaintext is not None:
            ports[cls._fields.index("plaintext")] = plaintext
        return cls(*(f"{_ports.LOOPBACK}:{port}" for port in ports))


@dataclass(frozen=True)
class Certificates:
    """An authority, and the PEM files of its certificates."""

    ca_file: Path
    #: Key and certificate chain in one file, as brokers want them.
    server_file: Path
    client_cert_file: Path
    client_key_file: Path
    #: Of trustme.
    ca: trustme.CA

    def issue(self, name: str, not_after: datetime | None = None) -> tuple[Path, Path]:
        """Make another certificate of a client.

        Args:
            name: Of its files.
            not_after: When it expires; late if omitted.

        Returns:
            The files of the certificate and of its key.
        """
        client = self.ca.issue_cert("client.greendrop.test", not_after=not_after)
        folder = self.ca_file.parent
        cert_file, key_file = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
        cert_file.write_bytes(_chain(client))
        key_file.write_bytes(_key(client))
        return cert_file, key_file

    def install_for_server(
        self, ca: trustme.CA | None = None, not_after: datetime | None = None
    ) -> None:
        """Give the server another certificate, which it reads when it starts.

        Args:
            ca: The authority that issues it; that of the client if omitted.
            not_after: When it expires; late if omitted.
        """
        issuer = ca or self.ca
        server = issuer.issue_cert(_ports.LOOPBACK, "localhost", not_after=not_after)
        self.server_file.write_bytes(_key(server) + _chain(server))


def make_certificates(directory: Path) -> Certificates:
    """Create an authority, and certificates for 127.0.0.1 and for a client."""
    # Imported late: only clusters with TLS need trustme.
    import trustme  # noqa: PLC0415

    directory.mkdir()
    ca = trustme.CA()
    certificates = Certificates(
        ca_file=directory / "ca.pem",
        server_file=directory / "server.pem",
        client_cert_file=directory / "client-cert.pem",
        client_key_file=directory / "client-key.pem",
        ca=ca,
    )
    certificates.ca_file.write_bytes(ca.cert_pem.bytes())
    certificates.install_for_server()
    certificates.issue("client")
    return certificates


def _key(certificate: trustme.LeafCert) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    # Java reads PKCS#8 only, trustme writes elliptic curve keys as SEC1.
    return serialization.load_pem_private_key(
        certificate.private_key_pem.bytes(), password=None
    ).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(each.bytes() for each in certificate.cert_chain_pems)


def cluster_config(addresses: list[Addresses]) -> Config:
    """Return the settings that all nodes of a cluster share."""
    count = len(addresses)
    voters = (f"{node}@{each.controller}" for node, each in enumerate(addresses, 1))
    # Any one of three nodes may be missing.
    in_sync = 2 if count > 1 else 1
    return {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "num.partitions": 4,
        "auto.create.topics.enable": "true",
        "default.replication.factor": count,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": count,
        "transaction.state.log.replication.factor": count,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": count,
        "share.coordinator.state.topic.min.isr": in_sync,
        # Not 50: creating and loading so many partitions delays the first transaction.
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.num.partitions": 4,
        # No waiting for more members of a consumer group.
        "group.initial.rebalance.delay.ms": 0,
        # A killed node's partitions get other leaders soon, and it may come back soon.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
    }


def node_config(
    node_id: int,
    addresses: Addresses,
    data: Path,
    *,
    certificates: Certificates | None,
    proxy_address: str | None,
) -> Config:
    """Return the settings of one node.

    Args:
        node_id: From 1.
        addresses: The addresses of its listeners.
        data: Its folder.
        certificates: For the secure listeners, None for none.
        proxy_address: The advertised address of the proxied listener, None for no such
            listener.
    """
    protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
    listeners = {
        "PLAINTEXT": addresses.plaintext,
        "CONTROLLER": addresses.controller,
    }
    config: Config = {"node.id": node_id, "log.dirs": data}
    if certificates:
        protocols |= {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "MTLS": "SSL"}
        listeners |= {
            "SASL": addresses.sasl,
            "TLS": addresses.tls,
            "MTLS": addresses.mtls,
        }
        config |= _sasl_config() | _tls_config(certificates)
    if proxy_address:
        protocols["PROXIED"] = "PLAINTEXT"
        listeners["PROXIED"] = addresses.proxied
    # Clients continue at the advertised address, so that is the proxy.
    advertised = {**listeners, "PROXIED": proxy_address}
    return config | {
        "listeners": ",".join(f"{name}://{at}" for name, at in listeners.items()),
        "advertised.listeners": ",".join(
            f"{name}://{advertised[name]}" for name in listeners if name != "CONTROLLER"
        ),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}" for name, protocol in protocols.items()
        ),
    }


def scram_arguments() -> list[str]:
    """Return the arguments of the format step that make the SCRAM user."""
    return [
        "--add-scram",
        f"SCRAM-SHA-256=[name={SCRAM.user},password={SCRAM.password}]",
    ]


def cluster_id() -> str:
    """Return a new id in Kafka's format: 16 bytes in base64, no padding."""
    # The zero makes it start with a letter. With a dash, it would be an option.
    number = b"\0" + secrets.token_bytes(15)
    return base64.urlsafe_b64encode(number).rstrip(b"=").decode()


def java_command(jars: Path, directory: Path, *, for_benchmarks: bool) -> list[str]:
    """Return the beginning of a command; a main class and its arguments follow.

    Args:
        jars: The folder with the class path.
        directory: The folder for the settings of the log.
        for_benchmarks: Whether Java compiles as in production.
    """
    log4j = directory / "log4j2.xml"
    log4j.write_text(_LOG4J)
    # The broker's own scripts give it 1 GB. Tests need the fastest start.
    options = (
        ["-Xms1g", "-Xmx1g"]
        if for_benchmarks
        else ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    )
    return [
        str(java()),
        *options,
        f"-Dlog4j2.configurationFile={log4j}",
        f"-Dkafka.logs.dir={directory}",
        "-cp",
        # The star is for Java itself.
        f"{jars}/*",
    ]


def _sasl_config() -> Config:
    of = "listener.name.sasl"
    return {
        f"{of}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,OAUTHBEARER",
        f"{of}.plain.sasl.jaas.config": (
            f'{_PLAIN_MODULE} required username="{PLAIN.user}"'
            f' password="{PLAIN.password}" user_{PLAIN.user}="{PLAIN.password}";'
        ),
        f"{of}.scram-sha-256.sasl.jaas.config": f"{_SCRAM_MODULE} required;",
        f"{of}.oauthbearer.sasl.jaas.config": (
            f'{_OAUTH_MODULE} required unsecuredLoginStringClaim_sub="broker";'
        ),
        f"{of}.oauthbearer.sasl.server.callback.handler.class": _OAUTH_CALLBACK,
        # Connections end with the token that they began with, or get a new one.
        f"{of}.oauthbearer.connections.max.reauth.ms": 3_600_000,
    }


def _tls_config(certificates: Certificates) -> Config:
    config: Config = {"listener.name.mtls.ssl.client.auth": "required"}
    for of in ("listener.name.tls.ssl", "listener.name.mtls.ssl"):
        config |= {
            f"{of}.keystore.type": "PEM",
            f"{of}.keystore.location": certificates.server_file,
            f"{of}.truststore.type": "PEM",
            f"{of}.truststore.location": certificates.ca_file,
        }
    return config
