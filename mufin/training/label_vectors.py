"""What labels are found by: their own embeddings, or what ``shortlist``'s options put in place or beside.

Knows no search. The index of a bundle holds one vector a label: its embedding, or its prototype.
Sources: label prototypes as in PRIME (Dahiya et al. 2024), there learned in training, here means of what was learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from mufin.inputs import FloatArray, Int64Array
from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.training.config import ShortlistConfig
from mufin.training.encode import embed_items
from mufin.training.item_arrays import ItemArrays
from mufin.training.mining import balanced_clusters
from mufin.training.model import ItemEncoder


@dataclass(frozen=True)
class LabelVectors:
    """V vectors of L labels."""

    vectors: FloatArray
    """(V, D) unit length"""
    labels: Int64Array
    """(V,) ascending: whose each is; every label has one at least"""

    @classmethod
    def own(cls, embeddings: FloatArray) -> LabelVectors:
        """Each label by its own embedding (L, D)."""
        return cls(embeddings, np.arange(len(embeddings)))


@dataclass(frozen=True)
class TaughtBy:
    """Training products and what they are relevant to."""

    products: ItemArrays
    rows: Int64Array
    """(N,) of ``products``"""
    relevance: Relevance
    """(N, L)"""


@dataclass(frozen=True)
class ItemEmbedder:
    """An encoder as it is now, and how it is run."""

    encoder: ItemEncoder
    batch_size: int
    device: torch.device

    def __call__(self, items: ItemArrays, rows: Int64Array | None = None) -> FloatArray:
        """(N, D) of ``rows`` (None: all), unit length."""
        return embed_items(self.encoder, items, rows, self.batch_size, self.device)


def label_vectors(
    embed: ItemEmbedder, embeddings: FloatArray, labels: ItemArrays, taught: TaughtBy, config: ShortlistConfig,
    means: FloatArray | None = None,
) -> LabelVectors:  # fmt: skip
    """By the config's options; ``embeddings`` (L, D) of the labels. Training products are held in memory, N x D.

    ``means``: those of a run that kept them; None: made now.
    """
    if not config.more_than_embeddings:
        return LabelVectors.own(embeddings)
    vectors, owners = [embeddings], [np.arange(len(embeddings))]
    if config.prototype_weight:
        means = label_means(embed, taught) if means is None else means
        vectors[0] = prototypes(embeddings, means, config.prototype_weight)
    if not config.several_vectors:
        return LabelVectors.own(vectors[0])
    if config.product_vectors:
        centroids, of = _centroids(_embedded(embed, taught), taught.relevance, config.product_vectors)
        vectors.append(centroids)
        owners.append(of)
    if config.modality_vectors:
        both = np.flatnonzero(labels.has_title & (np.diff(labels.image_offsets) > 0))
        for alone in (labels.without_images(), labels.without_titles()) if len(both) else ():
            vectors.append(embed(alone, both))
            owners.append(both)
    joined, whose = np.concatenate(vectors), np.concatenate(owners)
    order = np.argsort(whose, kind="stable")
    return LabelVectors(joined[order], whose[order])


def _by_label(relevance: Relevance) -> Relevance:
    """(L, N) of (N, L)"""
    rows, labels = relevance.to_pairs()
    return Relevance.from_pairs(labels, rows, relevance.label_count, relevance.row_count)


def label_means(embed: ItemEmbedder, taught: TaughtBy) -> FloatArray:
    """(L, D) means of each label's training products, unit length; 0 for a label that has none."""
    own, products = _by_label(taught.relevance), _embedded(embed, taught)
    means = np.zeros((own.row_count, products.shape[1]), dtype=np.float32)
    for label in np.flatnonzero(own.row_sizes()):
        means[label] = products[own.row(int(label))].mean(axis=0)
    return l2_normalise(means)


def prototypes(embeddings: FloatArray, means: FloatArray, weight: float) -> FloatArray:
    """(n, D) of unit length: labels' embeddings (n, D) and means (n, D) weighted; the embedding where the mean is 0."""
    own = np.float32(weight)
    return np.where(
        (means != 0).any(axis=1, keepdims=True), l2_normalise((1 - own) * embeddings + own * means), embeddings
    )


def _embedded(embed: ItemEmbedder, taught: TaughtBy) -> FloatArray:
    """(N, D) training products."""
    if not len(taught.rows):
        return embed(taught.products, np.zeros(1, dtype=np.int64))[:0]
    return embed(taught.products, taught.rows)


def _centroids(products: FloatArray, relevance: Relevance, most: int) -> tuple[FloatArray, Int64Array]:
    """Unit centroids of balanced clusters of each label's products, ``most`` or fewer, and whose each is."""
    own, found, whose = _by_label(relevance), list[FloatArray](), list[int]()
    for label in range(relevance.label_count):
        vectors = products[own.row(label)]
        if not len(vectors):
            continue
        largest = math.ceil(len(vectors) / 2 ** int(math.log2(most)))
        clusters = balanced_clusters(torch.from_numpy(vectors), largest, np.random.default_rng(label))
        found += [vectors[cluster].mean(axis=0) for cluster in clusters]
        whose += [label] * len(clusters)
    if not found:
        return products[:0], np.zeros(0, dtype=np.int64)
    return l2_normalise(np.stack(found)), np.asarray(whose, dtype=np.int64)
