"""Titles that share a call."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mufin.length_groups import cheapest_calls


def _cost(lengths: list[int], calls: list[tuple[int, int]], call_cost: float) -> float:
    return sum(call_cost + (end - start) * lengths[end - 1] for start, end in calls)


@pytest.mark.parametrize(
    ("lengths", "call_cost", "calls"),
    [
        ([], 5.0, []),
        ([7], 5.0, [(0, 1)]),
        ([3, 3, 3], 5.0, [(0, 3)]),
        ([3, 4, 4], 5.0, [(0, 3)]),  # one token of padding, or a call
        ([3, 3, 3, 6, 6], 5.0, [(0, 3), (3, 5)]),  # nine tokens of padding, or a call
        ([3, 3, 3, 6, 6], float("inf"), [(0, 5)]),
        ([3, 6, 30], 0.0, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_a_call_is_begun_where_it_costs_less_than_padding(
    lengths: list[int], call_cost: float, calls: list[tuple[int, int]]
) -> None:
    """By hand."""
    assert cheapest_calls(lengths, call_cost, 64) == calls


def test_no_call_is_longer_than_allowed() -> None:
    """Those of one length are cut, too, and what a cut costs is reckoned with."""
    assert cheapest_calls([5] * 7, 3.0, 3) == [(0, 3), (3, 6), (6, 7)]
    assert cheapest_calls([5] * 3 + [6] * 3, 3.0, 3) == [(0, 3), (3, 6)]


@given(st.lists(st.integers(1, 9), max_size=9), st.sampled_from([0.0, 1.0, 4.0, 9.5, 40.0]))
def test_no_other_calls_cost_less(lengths: list[int], call_cost: float) -> None:
    """Against every way to cut nine items; and all of them are encoded once."""
    lengths.sort()
    calls = cheapest_calls(lengths, call_cost, 64)
    assert [place for start, end in calls for place in range(start, end)] == list(range(len(lengths)))
    if not lengths:
        return
    ways = [cuts for count in range(len(lengths)) for cuts in combinations(range(1, len(lengths)), count)]
    costs = [_cost(lengths, list(zip((0, *cuts), (*cuts, len(lengths)), strict=True)), call_cost) for cuts in ways]
    assert _cost(lengths, calls, call_cost) == pytest.approx(min(costs))
