"""When something is left alone."""

from __future__ import annotations

from service.breaker import Breaker, BreakerGroup


def test_it_opens_after_failures_in_a_row_and_lets_one_probe_through_after_the_rest() -> None:
    """The whole life of a breaker."""
    now = 0.0
    breaker = Breaker(3, 30.0, clock=lambda: now)
    breaker.failed()
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    breaker.failed()
    assert breaker.allow()
    breaker.failed()
    assert breaker.is_open
    assert not breaker.allow()
    now = 31.0
    assert breaker.allow()
    assert not breaker.allow(), "one probe at a time"
    breaker.succeeded()
    assert breaker.allow()
    assert not breaker.is_open


def test_tries_that_fail_side_by_side_count_once() -> None:
    """A process that is held up for a moment fails all that was under way; that is no reason to rest for long."""
    now = 1.0
    breaker = Breaker(3, 30.0, clock=lambda: now)
    for _ in range(10):
        now = 1.05
        breaker.failed(began=1.0)
    assert breaker.allow()
    for began in (1.1, 1.2):
        now = began + 0.05
        breaker.failed(began)
    assert not breaker.allow()


def test_a_failed_probe_rests_again() -> None:
    """One failure after the rest is enough."""
    now = 0.0
    breaker = Breaker(1, 10.0, clock=lambda: now)
    breaker.failed()
    now = 11.0
    assert breaker.allow()
    breaker.failed()
    assert not breaker.allow()


def test_a_group_forgets_the_names_unused_longest() -> None:
    """Memory stays bounded whatever names callers make up."""
    group = BreakerGroup(1, 30.0, most_names=2)
    first = group.of("a")
    group.of("b")
    assert group.of("a") is first
    group.of("c")
    assert group.of("a") is first
    group.of("b").failed()
    assert len(group._breakers) == 2
