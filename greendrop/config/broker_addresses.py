"""The check of broker addresses: the value of `bootstrap.servers`.

librdkafka accepts almost any text, and then fails to resolve or to connect until each
message times out: a port above 65535 wraps around, and an unknown scheme leaves no
broker at all. So greendrop checks addresses before it creates a client.
"""

from __future__ import annotations

import re

__all__: list[str] = []

_HIGHEST_PORT = 65_535

_SCHEME = re.compile(r"(?P<scheme>[^/\s]*)://(?P<rest>.*)", re.DOTALL)
# A name, an IPv4 address, or an IPv6 address in brackets. Names of containers may have
# underscores. Letters beyond ASCII are left to the resolver.
_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?\]")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+")
_PORT = re.compile(r"[0-9]{1,5}")

#: Schemes that librdkafka accepts, if they match `security.protocol`.
_PROTOCOLS = frozenset({"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"})
_WITH_TLS = frozenset({"https", "kafkas", "kafka+ssl", "kafka+tls", "tls", "ssl"})


def split_addresses(text: str) -> list[str]:
    """Split a list of addresses at its commas, and strip blanks around each address."""
    return [address.strip() for address in text.split(",")]


def find_mistake(addresses: list[str], protocol: str) -> str | None:
    """Describe the first mistake in a list of addresses, or return None.

    Args:
        addresses: The result of `split_addresses`.
        protocol: The `security.protocol` of the same configuration, in lower case.
    """
    for number, address in enumerate(addresses, 1):
        mistake = _mistake(address, protocol)
        if mistake is not None:
            position = f"address {number} of {len(addresses)}"
            return f"{repr(address[:80]) if address else position} {mistake}"
    return None


def _mistake(address: str, protocol: str) -> str | None:
    if not address:
        return "is empty; write HOST:PORT,HOST:PORT"
    if ";" in address or any(character.isspace() for character in address):
        return "contains a separator other than a comma; write HOST:PORT,HOST:PORT"
    parts = _SCHEME.fullmatch(address)
    if parts is not None:
        scheme = parts["scheme"].lower()
        if scheme not in _PROTOCOLS or scheme != protocol:
            return _scheme_mistake(scheme, parts["rest"], protocol)
        address = parts["rest"]
    host, port = _host_and_port(address)
    return _host_mistake(address, host, port) or _port_mistake(port)


def _scheme_mistake(scheme: str, rest: str, protocol: str) -> str:
    if scheme in _PROTOCOLS:
        meant = scheme
    else:
        meant = "ssl" if scheme in _WITH_TLS else "plaintext"
    hint = "" if meant == protocol else f" and set security.protocol to {meant!r}"
    reason = f"begins with the scheme '{scheme}://'"
    if scheme in _PROTOCOLS:
        reason += f", but security.protocol is {protocol!r}"
    return f"{reason}; write {rest.rstrip('/') or 'HOST:PORT'!r}{hint}"


def _host_and_port(address: str) -> tuple[str, str | None]:
    """Split an address into host and port; the port may be missing."""
    head, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return address, None
    return head, port


def _host_mistake(address: str, host: str, port: str | None) -> str | None:
    if not host:
        return "has no host; write HOST:PORT"
    if ":" in host and not host.startswith("["):
        if _IPV6.fullmatch(address):
            return "is ambiguous; write an IPv6 address in brackets, as [::1]:9092"
        return "has more than one colon; write HOST:PORT,HOST:PORT"
    if not _HOST.fullmatch(host):
        return f"has no valid host: {host[:80]!r}; write HOST:PORT"
    if host.isdecimal() and port is None:
        return f"has no host; did you mean 'localhost:{host}'?"
    return None


def _port_mistake(port: str | None) -> str | None:
    if port is None or (_PORT.fullmatch(port) and 0 < int(port) <= _HIGHEST_PORT):
        return None
    if not port:
        return "has no port after its colon"
    if port.isdecimal():
        return f"has a port that is not between 1 and {_HIGHEST_PORT}"
    return f"has a port that is not a number: {port[:80]!r}"
