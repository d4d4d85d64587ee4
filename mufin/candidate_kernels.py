"""What ``mufin.candidate_arithmetic`` computes, compiled: the same functions of the same arrays.

Imports numba, so it is imported only where ``kernel="numba"`` was asked for. Nothing is checked: rows, labels and
neighbours lie within their arrays, which reading a bundle has made sure of.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mufin.kernel_parts import compiled

_ZERO, _ONE = np.float32(0), np.float32(1)
_TINY = np.float32(1e-6)


@compiled
def add_weights(ids: Any, own: Any, first: Any, rows: Any, weights: Any, scores: Any) -> None:
    """Of each id the weights of its rows, times its own, added to theirs."""
    for place in range(len(ids)):
        weight = own[place]
        for entry in range(first[ids[place]], first[ids[place] + 1]):
            scores[rows[entry]] += weight * weights[entry]


@compiled
def best(scores: Any, most: Any, above_zero: Any) -> Any:
    """A list of the highest so far, falling, into which few of many scores ever come."""
    rows, kept = np.empty(most, np.int64), np.empty(most, np.float32)
    count = 0
    for row in range(len(scores)):
        score = scores[row]
        if (above_zero and not score > _ZERO) or (count == most and not score > kept[most - 1]):
            continue
        place = min(count, most - 1)
        while place > 0 and kept[place - 1] < score:
            kept[place], rows[place] = kept[place - 1], rows[place - 1]
            place -= 1
        kept[place], rows[place] = score, row
        count = min(count + 1, most)
    return rows[:count].copy()


@compiled
def votes(rows: Any, cosines: Any, first: Any, labels: Any, near: Any, near_sharpness: Any, wide_sharpness: Any) -> Any:
    """By sorting the voters' labels; shares are summed in double precision, as bincount does."""
    count = 0
    for row in rows:
        count += first[row + 1] - first[row]
    voted, voter = np.empty(count, np.int64), np.empty(count, np.int64)
    position = 0
    for place in range(len(rows)):
        for entry in range(first[rows[place]], first[rows[place] + 1]):
            voted[position], voter[position] = labels[entry], place
            position += 1
    near_weights, wide_weights = np.zeros(len(rows), np.float32), np.empty(len(rows), np.float32)
    near_total, wide_total = _ZERO, _ZERO
    for place in range(len(rows)):
        beside = cosines[place] - cosines[0]
        wide_weights[place] = np.float32(math.exp(wide_sharpness * beside))
        wide_total += wide_weights[place]
        if place < near:
            near_weights[place] = np.float32(math.exp(near_sharpness * beside))
            near_total += near_weights[place]
    order = np.argsort(voted)
    found = np.empty(count, np.int64)
    shares = np.zeros((2, count), np.float64)
    size = 0
    for entry in order:
        if size == 0 or found[size - 1] != voted[entry]:
            found[size] = voted[entry]
            size += 1
        shares[0, size - 1] += near_weights[voter[entry]] / near_total
        shares[1, size - 1] += wide_weights[voter[entry]] / wide_total
    return found[:size].copy(), shares[0, :size].astype(np.float32), shares[1, :size].astype(np.float32)


@compiled
def own_products(labels: Any, first: Any, rows: Any, cosines: Any) -> Any:
    """One pass over each label's products."""
    found = np.zeros((3, len(labels)), np.float32)
    for place in range(len(labels)):
        label = labels[place]
        if label >= len(first) - 1 or first[label] == first[label + 1]:
            continue
        highest, second, total = np.float32(-2), np.float32(-2), 0.0
        for entry in range(first[label], first[label + 1]):
            cosine = cosines[rows[entry]]
            total += cosine
            if cosine > highest:
                highest, second = cosine, highest
            else:
                second = max(second, cosine)
        size = first[label + 1] - first[label]
        found[0, place], found[2, place] = highest, np.float32(total / size)
        if size > 1:
            found[1, place] = second
    return found


@compiled
def spread(labels: Any, scores: Any, neighbours: Any, weights: Any) -> Any:
    """Neighbour by neighbour."""
    found = np.zeros(len(labels), np.float32)
    for place in range(len(labels)):
        label = labels[place]
        if label < len(neighbours):
            total = _ZERO
            for rank in range(neighbours.shape[1]):
                total += weights[label, rank] * scores[neighbours[label, rank]]
            found[place] = total
    return found


@compiled
def _before(falling: Any, wanted: Any) -> Any:
    """How many of ascending numbers lie below ``wanted``; written without a branch that a CPU could guess wrongly."""
    first, size = 0, len(falling)
    while size > 1:
        half = size // 2
        first += half if falling[first + half - 1] < wanted else 0
        size -= half
    return first + (1 if size == 1 and falling[first] < wanted else 0)


@compiled
def standings(scores: Any, falling: Any, leading: Any, widest: Any, same: Any) -> Any:
    """Scorer by scorer; ``falling`` holds each one's negated scores, sorted."""
    count = scores.shape[1]
    found = np.empty((count, 4 * len(scores)), np.float32)
    used = min(leading, count)
    for scorer in range(len(scores)):
        own, ordered = scores[scorer], falling[scorer]
        total = 0.0
        for place in range(used):
            total -= ordered[place]
        mean = total / used
        squares = 0.0
        for place in range(used):
            squares += (-ordered[place] - mean) ** 2
        spread_of, middle = np.float32(math.sqrt(squares / used)) + _TINY, np.float32(mean)
        top = max(abs(ordered[0]), _TINY)
        for place in range(count):
            score = own[place]
            before = _before(ordered, -score - same * top)
            found[place, 4 * scorer] = score
            found[place, 4 * scorer + 1] = score / top
            found[place, 4 * scorer + 2] = _ONE / np.float32(math.sqrt(1.0 + before))
            found[place, 4 * scorer + 3] = min(max((score - middle) / spread_of, -widest), widest)
    return found


KERNELS = (add_weights, best, votes, own_products, spread, standings)
