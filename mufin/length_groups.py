"""Which titles share an encoder call: all of a call are padded to its longest, and every call has a cost of its own.

Knows no encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def cheapest_calls(lengths: Sequence[int], call_cost: float, most: int) -> list[tuple[int, int]]:
    """Ascending ``lengths`` of N items to the calls that cost least together: (start, end) of each, in order.

    A call of n items costs ``call_cost`` and n times its longest length. Dynamic programming over the distinct lengths:
    items of one length stay together. ``most``: items of a call; a group of more is cut into as few as that allows,
    which is reckoned with as if all were as long as its longest.
    """
    runs = [(length, len(list(own))) for length, own in groupby(lengths)]
    least, begins = [0.0], [0]
    for end, (longest, _) in enumerate(runs, 1):
        items, best, begin = 0, float("inf"), 0
        for start in range(end - 1, -1, -1):
            items += runs[start][1]
            cost = least[start] + call_cost * -(-items // most) + items * longest
            if cost < best:
                best, begin = cost, start
        least.append(best)
        begins.append(begin)
    return _split(runs, begins, most)


def _split(runs: Sequence[tuple[int, int]], begins: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Calls of the runs, of which the one that ends with run i begins with run ``begins[i + 1]``."""
    calls: list[tuple[int, int]] = []
    last = len(runs)
    stop = sum(items for _, items in runs)
    while last:
        first = begins[last]
        begin = stop - sum(items for _, items in runs[first:last])
        calls += reversed([(start, min(start + most, stop)) for start in range(begin, stop, most)])
        last, stop = first, begin
    return calls[::-1]
