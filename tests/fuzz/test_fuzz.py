"""A short run of every fuzz target, and that the targets' own judges know inside from outside."""

from __future__ import annotations

import ipaddress

import pytest

from tests.fuzz import TARGETS
from tests.fuzz.urls import is_inside, numeric_addresses

CASES = 2000


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", TARGETS)
def test_no_mutant_breaks_a_rule(name: str) -> None:
    """Stated errors only, nothing inside allowed, no hang; and enough mutants are good for that to mean something."""
    assert CASES // 50 < TARGETS[name](CASES, 1) < 2 * CASES


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "017700000001", "127.1", "::1", "127.0.0.1."])
def test_the_judge_reads_hosts_as_a_resolver_does(host: str) -> None:
    """Every spelling of loopback is seen through, or the fuzzing would prove nothing."""
    addresses = numeric_addresses(host)
    assert addresses
    assert all(is_inside(address) for address in addresses)


@pytest.mark.parametrize(
    ("address", "inside"),
    [("8.8.8.8", False), ("2606:4700::1", False), ("::ffff:8.8.8.8", False), ("64:ff9b::808:808", False),
     ("10.0.0.1", True), ("::ffff:10.0.0.1", True), ("64:ff9b::a00:1", True), ("2002:a00:1::", True),
     ("2606:4700::5efe:a00:1", True), ("2606:4700::200:5efe:a00:1", True), ("::7f00:1", True), ("ff0e::1", True),
     ("2001:0:808:808:0:0:f5ff:fffe", True)],
)  # fmt: skip
def test_the_judge_knows_inside_from_outside(address: str, inside: bool) -> None:
    """By the standard library, wrapped addresses included."""
    assert is_inside(ipaddress.ip_address(address)) == inside
