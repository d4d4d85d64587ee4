"""Finding the lists of ``mufin.vector_lists``: centres by k-means, and how many lists a query has to look at.

Knows nothing of what the vectors are of.
"""

from __future__ import annotations

import math

import faiss
import numpy as np

from mufin.candidate_arithmetic import arithmetic
from mufin.inputs import FloatArray, Int64Array
from mufin.vector_lists import VectorLists
from mufin.vector_rows import VectorRows

RECALL = 0.95
"""Share of a vector's true neighbours that the lists it looks at must hold, in the mean"""
_LISTS_BY_ROOT = 4
"""Lists: so many times the square root of the vectors, which balances looking at centres and at vectors."""
_ITERATIONS = 10
_LEARNED_FROM = 32
"""Vectors a centre is learned from, at the most"""
_ASKED = 256
_ASSIGNED_AT_ONCE = 65_536


def fit_lists(vectors: VectorRows, neighbours: int, seed: int) -> VectorLists:
    """Lists of N vectors (N, D) of unit length, of which RECALL of a vector's ``neighbours`` nearest are found.

    Vectors of length 0 lie in some list, too. Deterministic for a seed on one machine and thread count.
    """
    count, dimension = vectors.values.shape
    lists = max(1, min(count // 2, round(_LISTS_BY_ROOT * math.sqrt(count))))
    random = np.random.default_rng([seed, 17])
    learned = np.sort(random.choice(count, min(count, lists * _LEARNED_FROM), replace=False))
    # Spherical: what is compared by inner product is assigned by it.
    clustering = faiss.Kmeans(
        dimension, lists, niter=_ITERATIONS, spherical=True, seed=seed % 2**31, min_points_per_centroid=1,
        max_points_per_centroid=_LEARNED_FROM,
    )  # fmt: skip
    clustering.train(vectors.values[learned].astype(np.float32))
    assert clustering.centroids is not None
    centres = VectorRows.of(clustering.centroids, vectors.kernel)
    own = _assigned(vectors, centres)
    rows = np.argsort(own, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=lists))]).astype(np.int64)
    probes = _probes(vectors, centres, own, neighbours, random)
    return VectorLists(centres, first, rows, probes)


def _assigned(vectors: VectorRows, centres: VectorRows) -> Int64Array:
    """(N,) the nearest centre of each."""
    index = faiss.IndexFlatIP(centres.dimension)
    index.add(centres.wide)
    parts = []
    for start in range(0, len(vectors), _ASSIGNED_AT_ONCE):
        block = vectors.values[start : start + _ASSIGNED_AT_ONCE].astype(np.float32)
        parts.append(index.search(block, 1)[1][:, 0])
    # A vector that is no number has no nearest centre; it is kept where it is never asked for by anyone else.
    return np.maximum(np.concatenate(parts).astype(np.int64), 0)


def _probes(
    vectors: VectorRows, centres: VectorRows, own: Int64Array, neighbours: int, random: np.random.Generator
) -> int:
    """The fewest lists in which the nearest of some vectors, other than themselves, are found."""
    asked = np.sort(random.choice(len(vectors), min(len(vectors), _ASKED), replace=False))
    best = arithmetic(vectors.kernel).best
    wanted = min(neighbours, len(vectors) - 1)
    counted = np.zeros(len(centres), dtype=np.int64)
    for row in asked.tolist():
        query: FloatArray = vectors.values[row : row + 1].astype(np.float32)
        nearest = best(vectors.products(query)[0], wanted + 1, False)
        nearest = nearest[nearest != row][:wanted]
        place = np.empty(len(centres), dtype=np.int64)
        place[np.argsort(-centres.products(query)[0], kind="stable")] = np.arange(len(centres))
        counted += np.bincount(place[own[nearest]], minlength=len(centres))
    found = np.cumsum(counted) / max(1, wanted * len(asked))
    return int(np.searchsorted(found, RECALL)) + 1 if wanted else 1
