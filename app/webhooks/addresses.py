"""Which addresses a webhook may lead to.

Otherwise whoever may make a webhook could have the service reach what only the service can reach: its own ports, the
network behind it, a cloud's metadata with the machine's credentials.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
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
        "168.63.129.16",  # Azure, a public address that leads to the host of the machine
    )
)
SITE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""Networks of one's own: RFC 1918, RFC 6598, RFC 4193."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out to the public."""


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
    ("no address of a host", lambda a: a.is_multicast or a.is_unspecified or a.is_reserved),
    (PRIVATE, lambda a: any(a in network for network in SITE)),
    ("a special address", _is_special),
)


def refusal(text: str, *, private: bool) -> str | None:
    """Why an address is refused, in words that follow "is", or None if it may be reached.

    ``private`` lets private and loopback addresses through, and nothing else that is special.
    """
    address = _embedded(ipaddress.ip_address(text))
    what = next((words for words, fits in KINDS if fits(address)), None)
    return None if private and what in (LOOPBACK, PRIVATE) else what


def literal(host: str) -> list[str]:
    """The addresses that ``host`` stands for without asking a name server: a number in any notation, or localhost."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return _addresses(
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        )
    except (OSError, UnicodeError):
        return []


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order in which to try them. Raises OSError, UnicodeError."""
    return _addresses(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _addresses(answers: Sequence[tuple[Any, ...]]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does: mapped, compatible, or translated by NAT64."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    number = int(address)
    if address in NAT64 or 1 < number < 2**32:
        return IPv4Address(number & (2**32 - 1))
    return address
