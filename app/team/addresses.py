"""Which hosts are this machine itself."""

import ipaddress


def is_address(host: str) -> bool:
    """Whether this is a number, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can be reached from this machine alone."""
    if not is_address(host):
        return host == "localhost"
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
