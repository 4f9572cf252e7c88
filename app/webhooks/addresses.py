"""Which addresses a webhook may have.

Without this check the owner of a webhook could send requests to addresses that only the service can reach: its own
ports, its internal network, or the metadata service of its cloud with the credentials of the machine (SSRF).
"""

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address
from typing import Any

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Google, Azure, and most others
        "169.254.170.2",  # AWS, containers
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure, a public address that is routed to the host of the virtual machine
    )
)
SITE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""Private networks: RFC 1918, RFC 6598, RFC 4193."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
"""The allocated part of global IPv6 unicast addresses."""


Address = IPv4Address | IPv6Address
LOOPBACK, PRIVATE = "a loopback address", "a private address"


def _is_special(address: Address) -> bool:
    if isinstance(address, IPv6Address) and (address not in UNICAST or address.sixtofour or address.teredo):
        return True
    return not address.is_global


KINDS: tuple[tuple[str, Callable[[Address], bool]], ...] = (
    ("a cloud's metadata service", lambda a: a in METADATA),
    (LOOPBACK, lambda a: a.is_loopback),
    ("a link-local address", lambda a: a.is_link_local),
    ("not an address of a host", lambda a: a.is_multicast or a.is_unspecified or a.is_reserved),
    (PRIVATE, lambda a: any(a in network for network in SITE)),
    ("a special address", _is_special),
)


def refusal(text: str, *, private: bool) -> str | None:
    """What a rejected address is, as in "it is a loopback address"; None if the address is allowed.

    ``private`` allows private and loopback addresses, but no other special addresses.
    """
    address = _embedded(ipaddress.ip_address(text))
    kind = next((name for name, matches in KINDS if matches(address)), None)
    return None if private and kind in (LOOPBACK, PRIVATE) else kind


def literal(host: str) -> list[str]:
    """The addresses of ``host`` without name resolution: an IP address in any notation, or localhost."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return _addresses(
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        )
    except (OSError, UnicodeError):
        return []


def resolve(host: str, port: int, timeout: float) -> list[str]:
    """The addresses of a host, in the order in which to try them. Raises OSError, which includes TimeoutError, or
    UnicodeError.

    The system's look-up has no time limit of its own choice, so it runs in a thread that is left alone at ``timeout``.
    """
    found: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            found.set_result(_addresses(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=look_up, name=f"look-up of {host}", daemon=True).start()
    return found.result(timeout)


def _addresses(answers: Sequence[tuple[Any, ...]]) -> list[str]:
    """The distinct addresses, in order."""
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _embedded(address: Address) -> Address:
    """The IPv4 address in an IPv4-mapped, IPv4-compatible or NAT64 address; any other address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    number = int(address)
    if address in NAT64 or 1 < number < 2**32:
        return IPv4Address(number & (2**32 - 1))
    return address
