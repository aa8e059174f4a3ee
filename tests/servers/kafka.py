"""A real Apache Kafka: one node or three, killed, paused and started at will.

Its settings are in `_broker`, its jars in `_jars`. A child process (`_keeper`) owns the
Java processes and the folder with their data; this module sends requests to it, and
polls the brokers' metadata until all are there. Needs Java 17+, and Maven once. Run as
a program, it is a broker for developers::

    python -m tests.servers.kafka --nodes 3
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.servers import _broker, _ports
from tests.servers._broker import Login
from tests.servers._child import Child
from tests.servers._jars import (
    KafkaUnavailableError,
    kafka_jars,
    unavailable_reason,
)
from tests.servers.proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from confluent_kafka.admin._metadata import ClusterMetadata

__all__ = [
    "Kafka",
    "KafkaCluster",
    "KafkaNode",
    "KafkaStartError",
    "KafkaUnavailableError",
    "Login",
    "SecureListeners",
    "unavailable_reason",
]

#: Seconds for one step (all nodes up, a process gone, a topic known). Three nodes take
#: some 10 s on two idle cores.
_STEP_TIMEOUT = 90.0

#: Seconds between two polls.
_LOOK_INTERVAL = 0.02

#: Seconds for one answer of one broker, before it is asked again.
_METADATA_TIMEOUT = 2.0

#: Attempts to start a cluster while other programs take its ports.
_ATTEMPTS = 3


class KafkaStartError(Exception):
    """A broker did not start; the text holds the end of its log."""


class _PortTakenError(KafkaStartError):
    """Another program took one of the ports after it was found to be free."""


@dataclass(frozen=True)
class SecureListeners:
    """Addresses and credentials of the listeners with a password or a certificate."""

    #: SASL without TLS: PLAIN, SCRAM-SHA-256 and OAUTHBEARER with unsecured tokens.
    sasl_bootstrap_servers: str
    #: TLS; the server has a certificate.
    tls_bootstrap_servers: str
    #: TLS; both sides have certificates.
    mtls_bootstrap_servers: str
    #: The user for PLAIN.
    plain: Login
    #: The user for SCRAM-SHA-256.
    scram: Login
    #: The authority that certified the server and the client (PEM).
    ca_file: Path
    client_cert_file: Path
    #: The client's private key, PKCS#8 without a password.
    client_key_file: Path
    #: Makes another certificate of a client; see `_broker.Certificates.issue`.
    issue_client_certificate: Callable[..., tuple[Path, Path]]
    #: Replaces that of the server; see `_broker.Certificates.install_for_server`.
    install_server_certificate: Callable[..., None]

    def oauth_token(
        self, subject: str = "greendrop", lifetime: float = 3600.0
    ) -> tuple[str, float]:
        """Return a token and its expiry (seconds since 1970), as `oauth_cb` does.

        Args:
            subject: The claimed identity; the broker believes it.
            lifetime: Seconds.
        """
        now = time.time()
        claims = {"sub": subject, "iat": now, "exp": now + lifetime}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in ({"alg": "none"}, claims)
        ]
        return ".".join([*parts, ""]), now + lifetime


class Kafka:
    """A Kafka to work against, wherever it runs.

    Args:
        bootstrap_servers: Addresses of a plaintext listener.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._bootstrap_servers!r}>"

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of a plaintext listener."""
        return self._bootstrap_servers

    def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replication_factor: int = -1,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Create a topic, and wait until the brokers know the leaders.

        Args:
            name: Of the topic.
            partitions: How many.
            replication_factor: How many brokers have each partition; -1 leaves that
                to the brokers' own setting.
            config: Settings of the topic, such as `{"max.message.bytes": "1000"}`.

        Raises:
            confluent_kafka.KafkaException: The brokers refuse.
            TimeoutError: The leaders are not known in time.
        """
        topic = NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=replication_factor,
            config=dict(config or {}),
        )
        admin = _admin(self.bootstrap_servers)
        admin.create_topics([topic])[name].result(_STEP_TIMEOUT)
        waiting = self._answering()

        def known() -> bool:
            while waiting and _leaders(waiting[0], name) == partitions:
                del waiting[0]
            return not waiting

        _await(f"{waiting} know the leaders of {name!r}", known)

    def delete_topic(self, name: str) -> None:
        """Delete a topic, and wait until the brokers have forgotten it.

        Raises:
            confluent_kafka.KafkaException: The brokers refuse.
            TimeoutError: They still know it after a while.
        """
        admin = _admin(self.bootstrap_servers)
        admin.delete_topics([name])[name].result(_STEP_TIMEOUT)
        waiting = self._answering()

        def gone() -> bool:
            while waiting and not _knows(waiting[0], name):
                del waiting[0]
            return not waiting

        _await(f"{waiting} have forgotten {name!r}", gone)

    def _answering(self) -> list[str]:
        """Return the addresses of the brokers that can be asked, one by one."""
        return [self.bootstrap_servers]


class KafkaNode:
    """One node of a cluster, a broker and a controller at once.

    `KafkaCluster` makes them.
    """

    def __init__(
        self,
        keeper: Child,
        node_id: int,
        address: str,
        command: list[str],
        log_file: Path,
    ) -> None:
        self.node_id = node_id
        #: Host and port of the plaintext listener.
        self.address = address
        #: The log of the node, over all of its starts.
        self.log_file = log_file
        self._command = command
        self._keeper = keeper
        self._process: _Process | None = None
        self._paused = False

    def __repr__(self) -> str:
        return f"<KafkaNode {self.node_id} {self.address}>"

    @property
    def pid(self) -> int | None:
        """Id of the process last started; None before the first."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self._process is not None and self._process.exit_code() is None

    @property
    def paused(self) -> bool:
        """Whether the process is stopped by `pause`."""
        return self._paused

    def start(self, *, wait: bool = True) -> None:
        """Start the node with its data and ports. Does nothing if it runs.

        Args:
            wait: Until it answers and counts itself in. Without a majority of the
                nodes it never does: start them all before waiting for one.

        Raises:
            KafkaStartError: It ended during the wait.
            TimeoutError: It does not answer in time.
        """
        if not self.running:
            self._process = _Process(self._keeper, self._command, self.log_file)
        if wait:
            _wait_until_ready([self])

    def kill(self) -> None:
        """End the node at once (SIGKILL), paused or not; its data stays."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut the node down: it hands its partitions over first.

        Raises:
            TimeoutError: It has not ended in time; `kill` ends it.
        """
        self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP); its connections stay open."""
        if self._process and self.running:
            self._process.signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Continue a paused node. After 3 s it needs a moment to be counted in."""
        if self._process and self._paused:
            self._process.signal(signal.SIGCONT)
            self._paused = False

    def sees(self, node_ids: set[int]) -> bool:
        """Ask the node whether it counts these nodes in. No answer means no."""
        metadata = _metadata(self.address)
        return metadata is not None and node_ids <= metadata.brokers.keys()

    def check(self) -> None:
        """Raise a `KafkaStartError` if the node has ended."""
        if not self.running:
            raise _start_error(f"node {self.node_id} has ended", self.log_file)

    def _end(self, number: signal.Signals) -> None:
        if self._process and self.running:
            self._process.signal(number)
            self._process.wait()
        self._paused = False


class KafkaCluster(Kafka):
    """Apache Kafka on this machine, for as long as this process lives at most.

    A context manager. However this process ends, the nodes end too and their data is
    removed.

    Args:
        nodes: 1 or 3. Of three, any one may be missing.
        secure: Adds listeners with SASL and TLS: `secure_listeners`. One node only.
        proxied: Adds a listener to each node that is reached through one of `proxies`.
        for_benchmarks: Has Java compile as in production: it starts slower, and is
            fast only after some load.
        port: The port of the plaintext listener; without it a free one. One node only.
        broker_config: Broker settings, before those made here.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        secure: bool = False,
        proxied: bool = False,
        for_benchmarks: bool = False,
        port: int | None = None,
        broker_config: Mapping[str, object] | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise ValueError(f"nodes must be 1 or 3, not {nodes!r}")
        if nodes != 1 and (secure or port):
            raise ValueError("secure and port are for one node, use nodes=1")
        super().__init__("")
        #: In the order of `node_id`, which counts from 1. Empty before `start`.
        self.nodes: list[KafkaNode] = []
        #: The networks before the proxied listeners, in the order of `nodes`. Empty
        #: before `start`, and without `proxied=True`.
        self.proxies: list[TcpProxy] = []
        #: The folder with all data, logs and certificates. None before `start`.
        self.directory: Path | None = None
        self._count = nodes
        self._secure = secure
        self._proxied = proxied
        self._for_benchmarks = for_benchmarks
        self._port = port
        self._broker_config = dict(broker_config or {})
        self._keeper: Child | None = None
        self._secure_listeners: SecureListeners | None = None

    def __enter__(self) -> KafkaCluster:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def proxy(self) -> TcpProxy:
        """The network before the proxied listener of a single node."""
        if len(self.proxies) != 1:
            raise RuntimeError(f"{len(self.proxies)} proxies, not one")
        return self.proxies[0]

    @property
    def proxied_bootstrap_servers(self) -> str:
        """The addresses that lead through `proxies`, now and after the bootstrap."""
        if not self.proxies:
            raise RuntimeError("no proxies: not started, or without proxied=True")
        return ",".join(proxy.address for proxy in self.proxies)

    @property
    def secure_listeners(self) -> SecureListeners:
        """Addresses and credentials for SASL and TLS. Needs `secure=True`."""
        if self._secure_listeners is None:
            raise RuntimeError("no listeners: not started, or without secure=True")
        return self._secure_listeners

    def start(self) -> None:
        """Start all nodes, and wait until each of them counts all of them in.

        Raises:
            KafkaUnavailableError: The jars can't be fetched.
            KafkaStartError: A node ended at once; the text holds the end of its log.
            TimeoutError: They don't answer in time; the same.

        Blocking:
            Some seconds; the first time ever some more, for fetching the jars.
        """
        if self._keeper is not None:
            raise RuntimeError("already started")
        jars = kafka_jars()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._start(jars)
            except _PortTakenError:
                self.close()
                if attempt == _ATTEMPTS:
                    raise
            except BaseException:
                self.close()
                raise
            else:
                return

    def close(self) -> None:
        """Kill all nodes and remove all data. Repeated calls do nothing."""
        # A shutdown in good order takes seconds, and the data is not read again.
        if self._keeper is not None:
            self._keeper.close()
        for proxy in self.proxies:
            proxy.close()
        self._keeper = self._secure_listeners = self.directory = None
        self._bootstrap_servers = ""
        self.nodes = []
        self.proxies = []

    def wait_until_ready(self) -> None:
        """Wait until the nodes that run and aren't paused count each other in.

        Raises:
            KafkaStartError: One of them ended meanwhile.
            TimeoutError: They don't in time.
        """
        _wait_until_ready(
            [node for node in self.nodes if node.running and not node.paused]
        )

    def restore(self) -> None:
        """Undo all faults: all nodes run, and the proxies pass everything on.

        Raises:
            KafkaStartError: A node does not start.
            TimeoutError: They don't count each other in in time.
        """
        for proxy in self.proxies:
            proxy.resume()
            proxy.round_trip = 0.0
            proxy.set_garbage(0.0)
        disturbed = [node for node in self.nodes if node.paused or not node.running]
        for node in disturbed:
            node.resume()
            node.start(wait=False)
        if disturbed:
            _wait_until_ready(self.nodes)

    def _start(self, jars: Path) -> None:
        """Start all nodes once; `close` removes what a failure leaves behind."""
        self._keeper = Child("_keeper.py")
        self.directory = Path(str(self._keeper.ask("directory")))
        java = _broker.java_command(
            jars, self.directory, for_benchmarks=self._for_benchmarks
        )
        addresses = [_broker.Addresses.free(self._port) for _ in range(self._count)]
        certificates = None
        if self._secure:
            certificates = _broker.make_certificates(self.directory / "tls")
            self._secure_listeners = _secure_listeners(addresses[0], certificates)
        if self._proxied:
            for each in addresses:
                host, port = each.proxied.split(":")
                self.proxies.append(TcpProxy(host, int(port)))
        cluster_config = _broker.cluster_config(addresses)
        format_arguments = ["format", "-t", _broker.cluster_id()]
        if self._secure:
            format_arguments += _broker.scram_arguments()
        formats = []
        for node_id, own in enumerate(addresses, 1):
            home = self.directory / f"node-{node_id}"
            home.mkdir()
            config = {
                **cluster_config,
                **_broker.node_config(
                    node_id,
                    own,
                    home / "data",
                    certificates=certificates,
                    proxy_address=(
                        self.proxies[node_id - 1].address if self._proxied else None
                    ),
                ),
                **self._broker_config,
            }
            properties = home / "server.properties"
            properties.write_text("".join(f"{k}={v}\n" for k, v in config.items()))
            log_file = home / "kafka.log"
            command = [*java, "kafka.tools.StorageTool", *format_arguments]
            command += ["-c", str(properties)]
            formats.append(_Process(self._keeper, command, log_file))
            command = [*java, "kafka.Kafka", str(properties)]
            node = KafkaNode(self._keeper, node_id, own.plaintext, command, log_file)
            self.nodes.append(node)
        self._bootstrap_servers = ",".join(node.address for node in self.nodes)
        for node, process in zip(self.nodes, formats, strict=True):
            if process.wait() != 0:
                raise _start_error(
                    f"node {node.node_id} can't format its folder", node.log_file
                )
        for node in self.nodes:
            node.start(wait=False)
        _wait_until_ready(self.nodes)

    def _answering(self) -> list[str]:
        return [each.address for each in self.nodes if each.running and not each.paused]


class _Process:
    """A process that the keeper has started."""

    def __init__(self, keeper: Child, command: list[str], output: Path) -> None:
        answer = keeper.ask("start", arguments=[*command], output=str(output))
        self.pid = int(str(answer))
        self._keeper = keeper

    def signal(self, number: signal.Signals) -> None:
        self._keeper.ask("signal", pid=self.pid, number=int(number))

    def exit_code(self, seconds: float = 0.0) -> int | None:
        """Wait briefly; return the exit code, or None if it still runs."""
        answer = self._keeper.ask("wait", pid=self.pid, seconds=seconds)
        return None if answer is None else int(str(answer))

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        deadline = time.monotonic() + _STEP_TIMEOUT
        while (code := self.exit_code(1.0)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not ended in time")
        return code


def _secure_listeners(
    addresses: _broker.Addresses, certificates: _broker.Certificates
) -> SecureListeners:
    return SecureListeners(
        sasl_bootstrap_servers=addresses.sasl,
        tls_bootstrap_servers=addresses.tls,
        mtls_bootstrap_servers=addresses.mtls,
        plain=_broker.PLAIN,
        scram=_broker.SCRAM,
        ca_file=certificates.ca_file,
        client_cert_file=certificates.client_cert_file,
        client_key_file=certificates.client_key_file,
        issue_client_certificate=certificates.issue,
        install_server_certificate=certificates.install_for_server,
    )


def _wait_until_ready(nodes: Iterable[KafkaNode]) -> None:
    """Wait until each of these nodes counts all of them in."""
    nodes = list(nodes)
    node_ids = {node.node_id for node in nodes}
    waiting = list(nodes)

    def ready() -> bool:
        # All of them each time: the node that has just ended may be one that the asked
        # node is waiting for.
        for node in nodes:
            node.check()
        while waiting and waiting[0].sees(node_ids):
            del waiting[0]
        return not waiting

    try:
        _await(f"{nodes} count each other in", ready)
    except TimeoutError as error:
        text = f"{error}; log of {waiting[0]}:\n{_tail(waiting[0].log_file)}"
        raise TimeoutError(text) from None


def _start_error(what: str, log_file: Path) -> KafkaStartError:
    tail = _tail(log_file)
    taken = "Address already in use" in tail
    return (_PortTakenError if taken else KafkaStartError)(f"{what}, log:\n{tail}")


def _tail(file: Path, lines: int = 60) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def _await(what: str, condition: Callable[[], bool]) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + _STEP_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_STEP_TIMEOUT:.0f} s: {what}")
        time.sleep(_LOOK_INTERVAL)


def _admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient(
        {
            "bootstrap.servers": bootstrap_servers,
            # A broker that is starting refuses connections; that is expected, and its
            # end should be noticed soon.
            "log_level": 0,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 100,
        }
    )


def _metadata(address: str) -> ClusterMetadata | None:
    """Return a broker's metadata of the cluster; None if it does not answer."""
    # A new client for each question: one that has learnt of other brokers would ask any
    # of them.
    try:
        return _admin(address).list_topics(timeout=_METADATA_TIMEOUT)
    except KafkaException:
        return None


def _knows(address: str, topic: str) -> bool:
    """Return whether a broker knows a topic. No answer means that it may."""
    metadata = _metadata(address)
    return metadata is None or topic in metadata.topics


def _leaders(address: str, topic: str) -> int:
    """Return how many partitions of a topic have a leader, according to one broker."""
    metadata = _metadata(address)
    found = metadata.topics.get(topic) if metadata else None
    if found is None:
        return 0
    return sum(partition.leader >= 0 for partition in found.partitions.values())


def main() -> None:
    """Run brokers until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers.kafka", description=main.__doc__
    )
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--port", type=int, help="of one node; otherwise a free port")
    parser.add_argument("--secure", action="store_true", help="SASL and TLS as well")
    parser.add_argument(
        "--for-benchmarks", action="store_true", help="Java compiles as in production"
    )
    arguments = parser.parse_args()
    if (arguments.secure or arguments.port) and arguments.nodes != 1:
        parser.error("--secure and --port are for one node")
    if arguments.port and not _ports.is_free(arguments.port):
        parser.exit(1, f"port {arguments.port} is in use; choose another --port\n")
    if reason := unavailable_reason():
        parser.exit(1, f"Apache Kafka can't run here: {reason}\n")
    # Both end in KeyboardInterrupt, also in the middle of starting.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with KafkaCluster(
            arguments.nodes,
            secure=arguments.secure,
            for_benchmarks=arguments.for_benchmarks,
            port=arguments.port,
        ) as cluster:
            _describe(cluster)
            while True:
                for node in cluster.nodes:
                    node.check()
                time.sleep(1.0)
    except KeyboardInterrupt:
        print("stopped", flush=True)


def _describe(cluster: KafkaCluster) -> None:
    print(f"Apache Kafka at {cluster.bootstrap_servers}, until Ctrl-C")
    print(f"data and logs in {cluster.directory}")
    if cluster._secure:
        secure = cluster.secure_listeners
        print(f"SASL at {secure.sasl_bootstrap_servers}")
        print(f"    PLAIN as {secure.plain.user} with {secure.plain.password}")
        print(f"    SCRAM-SHA-256 as {secure.scram.user} with {secure.scram.password}")
        print("    OAUTHBEARER with unsecured tokens")
        print(f"TLS at {secure.tls_bootstrap_servers}, by {secure.ca_file}")
        print(f"TLS both ways at {secure.mtls_bootstrap_servers}, with")
        print(f"    {secure.client_cert_file}")
        print(f"    {secure.client_key_file}")
    print("in another terminal, for tests and examples:")
    print(f"    export GREENDROP_BOOTSTRAP_SERVERS={cluster.bootstrap_servers}")
    print(end="", flush=True)


if __name__ == "__main__":
    main()
