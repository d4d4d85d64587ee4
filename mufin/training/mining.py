"""What a step trains on: balanced clusters of products, drawn positives, drawn shortlist negatives.

Knows no network and no loss. Every draw is a function of its arguments and the generator handed in.
Source: the authors' release (batches as of NGAME, module 4's sampling), with the differences of docs/network.md.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, FloatArray, Int64Array

_KMEANS_STEPS = 20
_KMEANS_TOLERANCE = 1e-4


def balanced_clusters(vectors: Tensor, largest: int, random: np.random.Generator) -> list[Int64Array]:
    """Recursive balanced 2-means: rows of vectors (N, D) in clusters of at most ``largest``.

    Every split halves its cluster (sizes differ by one at most). Centroids are unit length, vectors as they come.
    Runs on the device the vectors are on.
    """
    depth = max(0, math.ceil(math.log2(max(1, len(vectors)) / largest)))
    clusters = [np.arange(len(vectors))]
    for _ in range(depth):
        clusters = [half for cluster in clusters for half in _halve(vectors, cluster, random)]
    return clusters


def _halve(vectors: Tensor, cluster: Int64Array, random: np.random.Generator) -> list[Int64Array]:
    if len(cluster) < 2:
        return [cluster]
    # The first split is of everything in order: a copy would be as large again.
    whole = len(cluster) == len(vectors)
    own = vectors if whole else vectors[torch.from_numpy(cluster).to(vectors.device)]
    seeds = torch.from_numpy(random.choice(len(cluster), 2, replace=False)).to(vectors.device)
    centroids = F.normalize(own[seeds], dim=1)
    middle, previous = len(cluster) // 2, -torch.inf
    order = torch.arange(len(cluster), device=vectors.device)
    for _ in range(_KMEANS_STEPS):
        similarity = own @ centroids.T
        # Sorting by preference and cutting in the middle keeps both halves equal in size.
        order = torch.argsort(similarity[:, 0] - similarity[:, 1], descending=True, stable=True)
        first, second = order[:middle], order[middle:]
        objective = float(similarity[first, 0].sum() + similarity[second, 1].sum()) / len(cluster)
        if objective - previous < _KMEANS_TOLERANCE:
            break
        previous = objective
        centroids = F.normalize(torch.stack([own[first].mean(dim=0), own[second].mean(dim=0)]), dim=1)
    picked = order.cpu().numpy()
    return [cluster[np.sort(picked[:middle])], cluster[np.sort(picked[middle:])]]


def clustered_batches(clusters: list[Int64Array], batch_size: int, random: np.random.Generator) -> list[Int64Array]:
    """Clusters in random order, cut into batches of consecutive products; a rest below half a batch joins the last."""
    order = random.permutation(len(clusters))
    return _cut(np.concatenate([clusters[i] for i in order]), batch_size)


def random_batches(count: int, batch_size: int, random: np.random.Generator) -> list[Int64Array]:
    """Rows 0..count-1 shuffled and cut into batches; a rest below half a batch joins the last."""
    return _cut(random.permutation(count), batch_size)


def _cut(rows: Int64Array, batch_size: int) -> list[Int64Array]:
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    if len(batches) > 1 and len(batches[-1]) * 2 < batch_size:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def draw_labels(relevance: Relevance, rows: Int64Array, random: np.random.Generator) -> Int64Array:
    """One relevant label of each row, uniformly: (B,). Every row needs one."""
    starts, ends = relevance.indptr[rows], relevance.indptr[rows + 1]
    return np.asarray(relevance.indices[starts + (random.random(len(rows)) * (ends - starts)).astype(np.int64)])


def with_label_negatives(drawn: Int64Array, extra: int, label_count: int, random: np.random.Generator) -> Int64Array:
    """The batch's labels and ``extra`` of all, each once, ascending; all labels where ``extra`` reaches their number."""
    if extra >= label_count:
        return np.arange(label_count)
    return np.unique(np.concatenate([drawn, random.choice(label_count, extra, replace=False)]))


def draw_hard_labels(
    relevance: Relevance, rows: Int64Array, products: FloatArray, labels: FloatArray, count: int,
    random: np.random.Generator,
) -> Int64Array:  # fmt: skip
    """``count`` relevant labels of each row, drawn with weight 1.01 - cosine: (B, count).

    products (all rows, D), labels (L, D): unit vectors of the last clustering.
    """
    drawn = np.empty((len(rows), count), dtype=np.int64)
    for position, row in enumerate(rows):
        own = relevance.row(int(row))
        weights = 1.01 - labels[own] @ products[row]
        weights = np.maximum(weights.astype(np.float64), 1e-6)
        drawn[position] = random.choice(own, count, replace=len(own) < count, p=weights / weights.sum())
    return drawn


def relevance_block(relevance: Relevance, rows: Int64Array, labels: Int64Array) -> BoolArray:
    """(B, N) bool: whether label ``labels[j]`` is relevant to row ``rows[i]``; duplicates kept."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    own = relevance.select(rows)
    lows, highs = (np.searchsorted(ordered, own.indices, side) for side in ("left", "right"))
    found = highs - lows  # places of each relevant label among ``labels``
    places = np.repeat(lows - (np.cumsum(found) - found), found) + np.arange(found.sum())
    block = np.zeros((len(rows), len(labels)), dtype=np.bool_)
    block[np.repeat(np.repeat(np.arange(len(rows)), own.row_sizes()), found), order[places]] = True
    return block


def draw_candidates(
    relevance: Relevance, masked: Relevance, rows: Int64Array, shortlists: Int64Array, *,
    positives: int, negatives: int, random_negatives: int, drop_hardest: int, random: np.random.Generator,
) -> tuple[Int64Array, BoolArray, BoolArray]:  # fmt: skip
    """Module 4's labels for each row: [shortlist negatives | random negatives | positives].

    shortlists (all rows, K) best first, padded -1. Without replacement; positives need not be in the shortlist.
    ``masked`` (B, L) are labels that are never drawn as negatives (exclude pairs).
    Returns labels (B, C), which of them are relevant (B, C), and which are real draws (B, C): a row short of
    material repeats its first label there, to be left out of the loss.
    """
    width = negatives + random_negatives + positives
    labels = np.zeros((len(rows), width), dtype=np.int64)
    relevant = np.zeros((len(rows), width), dtype=np.bool_)
    real = np.zeros((len(rows), width), dtype=np.bool_)
    for position, row in enumerate(rows):
        own = relevance.row(int(row))
        labels[position] = own[0]
        known = np.concatenate([own, masked.row(position)])
        short = shortlists[row]
        short = short[short >= 0]
        wrong = short[~np.isin(short, known)][drop_hardest:]
        chosen = random.choice(wrong, min(negatives, len(wrong)), replace=False)
        labels[position, : len(chosen)], real[position, : len(chosen)] = chosen, True
        if random_negatives:
            anywhere = random.integers(0, relevance.label_count, random_negatives)
            slots = slice(negatives, negatives + random_negatives)
            labels[position, slots] = anywhere
            real[position, slots] = ~np.isin(anywhere, known)
        right = random.choice(own, min(positives, len(own)), replace=False)
        slots = slice(width - positives, width - positives + len(right))
        labels[position, slots], relevant[position, slots], real[position, slots] = right, True, True
    return labels, relevant, real
