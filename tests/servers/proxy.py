"""A network between a client and a server that is slow, silent or broken on demand.

Runs in a process of its own, because the tested process may hold its only thread for
as long as it likes. Knows nothing of Kafka; `kafka.KafkaCluster(proxied=True)` puts
one before a broker that advertises the proxy's address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.servers import _ports
from tests.servers._child import Child

if TYPE_CHECKING:
    from types import TracebackType


class TcpProxy:
    """A TCP proxy on a free loopback port.

    Works from the constructor on; `close` it, or use it as a context manager.

    Args:
        target_host: The target of the connections.
        target_port: The target's port. Need not be open yet: a connection that can't be
            passed on is closed.
        round_trip: Seconds added to a round trip, half of it in each direction.
            Setting up a connection takes no longer than without the proxy.
    """

    def __init__(
        self, target_host: str, target_port: int, *, round_trip: float = 0.0
    ) -> None:
        self._round_trip = round_trip
        with _ports.listen() as listener:
            self.host: str
            self.port: int
            self.host, self.port = listener.getsockname()
            self._child = Child(
                "_relay.py",
                str(listener.fileno()),
                target_host,
                str(target_port),
                str(round_trip),
                pass_fds=(listener.fileno(),),
            )

    def __repr__(self) -> str:
        return f"<TcpProxy {self.address} round_trip={self._round_trip}>"

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The address for clients."""
        return f"{self.host}:{self.port}"

    @property
    def round_trip(self) -> float:
        """Seconds added to a round trip. Can be set; applies to later chunks."""
        return self._round_trip

    @round_trip.setter
    def round_trip(self, seconds: float) -> None:
        self.set_round_trip(seconds)

    def set_round_trip(self, seconds: float) -> None:
        """Set `round_trip`."""
        self._child.ask("set_round_trip", seconds=seconds)
        self._round_trip = seconds

    def pause(self) -> None:
        """Pass nothing on until `resume`; connections stay, nothing is lost."""
        self._child.ask("pause")

    def hold_answers(self) -> None:
        """Pass requests on, and hold the answers until `resume`.

        A `cut` loses the held answers: the server has executed the requests, and the
        client never learns of it.
        """
        self._child.ask("hold_answers")

    def half_open(self) -> None:
        """Drop all connections and each new one until `resume`; clients don't notice.

        What they send gets lost, and no answer comes, as after a crash of a machine
        behind a firewall. These connections stay so, also after `resume`.
        """
        self._child.ask("half_open")

    def set_garbage(self, share: float) -> None:
        """Replace this share of the chunks, in both directions, with random bytes.

        Args:
            share: From 0.0 to 1.0. Applies to later chunks.
        """
        self._child.ask("set_garbage", share=share)

    def cut(self) -> None:
        """Reset all connections, and each new one until `resume`."""
        self._child.ask("cut")

    def resume(self) -> None:
        """End a `pause`, a `hold_answers`, a `half_open` or a `cut`."""
        self._child.ask("resume")

    def close(self) -> None:
        """End the proxy and its connections."""
        self._child.close()
