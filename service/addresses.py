"""Which network addresses are public: our own table, because ``ipaddress.is_global`` is not enough.

Knows no names, no sockets and no settings. On Python 3.11 ``is_global`` passes 64:ff9b::7f00:1,
2002:7f00:1::, ::127.0.0.1 and multicast (docs/security.md, URLs). Sources: IANA special-purpose registries,
RFC 6890, 4291, 3056 (6to4), 4380 (Teredo), 5214 (ISATAP), 6052 (NAT64).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address
Address = IPv4 | IPv6

_V4_REFUSED = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between carrier and customer; Alibaba's metadata server
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server: a public number, reached from inside only
        "169.254.0.0/16",  # link local; metadata servers of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, withdrawn
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# Of IPv6 only what has been handed out is public; everything else is refused without a list.
_V6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_V6_REFUSED = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001:2::/48",  # benchmarking
        "2001:10::/28",  # ORCHID
        "2001:20::/28",  # ORCHIDv2
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_ASSIGNMENTS = ipaddress.IPv6Network("2001::/23")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
# Interface identifiers 0000:5efe and 0200:5efe, then the IPv4 address.
_ISATAP_MARKS = (0x00005EFE, 0x02005EFE)


def is_public(address: Address) -> bool:
    """Whether an address, and every address wrapped inside it, belongs to the public internet."""
    if isinstance(address, IPv4):
        return not any(address in network for network in _V4_REFUSED)
    if address.scope_id is not None:
        return False
    if address in _MAPPED or address in _NAT64:
        # Ways to write or to reach an IPv4 address: that address alone decides.
        return is_public(_low_bits(address))
    if address in _COMPATIBLE or address in _TRANSLATED or address not in _V6_GLOBAL:
        return False
    if address in _ASSIGNMENTS and address not in _TEREDO:
        return False
    return not any(address in network for network in _V6_REFUSED) and all(map(is_public, _wrapped(address)))


def _wrapped(address: IPv6) -> Iterator[IPv4]:
    """IPv4 addresses that a tunnel would unwrap from this one."""
    value = int(address)
    if address in _SIX_TO_FOUR:
        yield IPv4(value >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield IPv4(value >> 64 & 0xFFFFFFFF)
        # The client's address is stored inverted.
        yield IPv4(~value & 0xFFFFFFFF)
    if value >> 32 & 0xFFFFFFFF in _ISATAP_MARKS:
        yield _low_bits(address)


def _low_bits(address: IPv6) -> IPv4:
    return IPv4(int(address) & 0xFFFFFFFF)
