"""Golden products' shortlists with the labels that evidence speaks for, as the predictor makes them.

Knows neither torch nor bundle: whoever asks says where embeddings come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mufin.evidence import ProductEvidence
from mufin.inputs import FloatArray, Int64Array


def with_candidates(
    found: Int64Array, cosines: FloatArray, evidence: Sequence[ProductEvidence], queries: FloatArray,
    embeddings: Callable[[Int64Array], FloatArray], removed: Int64Array,
) -> tuple[Int64Array, FloatArray]:  # fmt: skip
    """Shortlists (G, K) of ``queries`` (G, D), and what evidence adds, by falling cosine, padded with -1 and 0.

    ``embeddings``: (n,) labels -> (n, D); ``removed``: labels that nothing may bring back, ascending.
    """
    rows = []
    for own, near, query, seen in zip(found, cosines, queries, evidence, strict=True):
        more = np.setdiff1d(np.setdiff1d(seen.candidates(), own), removed)
        names = np.concatenate([own, more])
        scores = np.concatenate([near, np.asarray(embeddings(more)) @ query]).astype(np.float32)
        order = np.lexsort((names, -scores))
        rows.append((names[order], scores[order]))
    width = max(len(names) for names, _ in rows)
    padded = np.full((len(rows), width), -1, dtype=np.int64), np.zeros((len(rows), width), dtype=np.float32)
    for place, (names, scores) in enumerate(rows):
        padded[0][place, : len(names)], padded[1][place, : len(scores)] = names, scores
    return padded
