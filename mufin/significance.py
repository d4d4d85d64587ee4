"""Bootstrap intervals of figures, and the paired comparison of two rankings of the same products.

Knows no rankings: only the sums over products that ``mufin.metrics`` kept apart.
Source: Efron and Tibshirani 1993, percentile intervals; products are drawn, pairs of one product stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mufin.metrics import Float64Array, RowScores, ratio

_BLOCK_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How often and how products are drawn."""

    replicates: int = 1000
    seed: int = 0
    confidence: float = 0.95
    """Share of replicates inside an interval."""

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates is {self.replicates}, needs at least 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}, must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where it might have come out with other products."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Ours less theirs, in one figure."""

    difference: float
    low: float
    high: float
    share_above_zero: float
    """Of the replicates: those in which ours is strictly better."""


def intervals(scores: RowScores, bootstrap: Bootstrap | None = None) -> dict[str, Interval]:
    """Every figure with its interval; NaN where nothing was scored."""
    how = bootstrap or Bootstrap()
    drawn = _replicates([scores], how)[0]
    low, high = _bounds(drawn, how)
    values = scores.values()
    return {name: Interval(values[name], float(low[i]), float(high[i])) for i, name in enumerate(scores.names)}


def compare(ours: RowScores, theirs: RowScores, bootstrap: Bootstrap | None = None) -> dict[str, Difference]:
    """Every figure both have, on the same draws of products. Raises ValueError when the products differ."""
    if ours.row_count != theirs.row_count or not np.array_equal(ours.rows, theirs.rows):
        raise ValueError(
            f"{len(ours.rows)} of {ours.row_count} products were scored here, {len(theirs.rows)} of "
            f"{theirs.row_count} there: a paired comparison needs the same products and relevance"
        )
    how = bootstrap or Bootstrap()
    names = [name for name in ours.names if name in theirs.names]
    columns = [[scores.names.index(name) for name in names] for scores in (ours, theirs)]
    here, there = _replicates([ours, theirs], how)
    drawn = here[:, columns[0]] - there[:, columns[1]]
    low, high = _bounds(drawn, how)
    own, other = ours.values(), theirs.values()
    above = (drawn > 0).mean(axis=0) if len(ours.rows) else np.full(len(names), np.nan)
    return {
        name: Difference(own[name] - other[name], float(low[i]), float(high[i]), float(above[i]))
        for i, name in enumerate(names)
    }


def _replicates(sets: list[RowScores], how: Bootstrap) -> list[Float64Array]:
    """(replicates, m) figures of each set, all on the same draws."""
    parts: list[list[Float64Array]] = [[] for _ in sets]
    for counts in _draws(len(sets[0].rows), how):
        for part, scores in zip(parts, sets, strict=True):
            part.append(ratio(counts @ scores.numerators, counts @ scores.denominators))
    return [np.concatenate(part) for part in parts]


def _draws(products: int, how: Bootstrap) -> Iterator[Float64Array]:
    """Blocks of rows, each how often every product was drawn; the blocks' height changes memory, not the draws."""
    random = np.random.default_rng(how.seed)
    height = max(1, _BLOCK_BYTES // (8 * max(1, products)))
    for start in range(0, how.replicates, height):
        block = np.zeros((min(height, how.replicates - start), products))
        for row in block:
            if products:
                row[:] = np.bincount(random.integers(0, products, products), minlength=products)
        yield block


def _bounds(drawn: Float64Array, how: Bootstrap) -> tuple[Float64Array, Float64Array]:
    outside = (1.0 - how.confidence) / 2.0
    low, high = np.quantile(drawn, [outside, 1.0 - outside], axis=0)
    return low, high
