"""Which addresses count as public."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.addresses import is_public

REFUSED = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1", "2001:10::1",
    "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2606:4700::1%1", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
    "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "169.253.1.1", "223.255.255.1",
    "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
    "2606:4700::5efe:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    """Special-purpose ranges, and addresses that unwrap to one, are refused."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    """The table does not eat into its neighbours."""
    assert is_public(ipaddress.ip_address(address))


@given(st.integers(0, 2**32 - 1))
def test_wrapping_never_makes_an_address_public(value: int) -> None:
    """However an IPv4 address is wrapped, the wrapping is public only if the address is."""
    inner = ipaddress.IPv4Address(value)
    wrapped = [
        (0xFFFF << 32) | value,
        (0x64FF9B << 96) | value,
        (0x2002 << 112) | (value << 80),
        (0x2606 << 112) | (0x5EFE << 32) | value,
        (0x2001 << 112) | (0x08080808 << 64) | (value ^ 0xFFFFFFFF),
        (0x2001 << 112) | (value << 64) | (0x08080808 ^ 0xFFFFFFFF),
    ]
    for outer in wrapped:
        assert is_public(inner) or not is_public(ipaddress.IPv6Address(outer))


@given(st.integers(0, 2**32 - 1))
def test_the_table_is_stricter_than_the_standard_library(value: int) -> None:
    """What the standard library calls not global is never public here, relays of AS112 and multicast aside."""
    address = ipaddress.IPv4Address(value)
    assert address.is_global or not is_public(address)
