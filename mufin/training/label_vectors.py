"""What labels are found by in training: their own embeddings, or what ``shortlist``'s options put in place or beside.

Knows no search. For comparison: the index of a bundle holds one vector a label, its own embedding.
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
    embed: ItemEmbedder, embeddings: FloatArray, labels: ItemArrays, taught: TaughtBy, config: ShortlistConfig
) -> LabelVectors:
    """By the config's options; ``embeddings`` (L, D) of the labels. Training products are held in memory, N x D."""
    if not config.more_than_embeddings:
        return LabelVectors.own(embeddings)
    vectors, owners = [embeddings], [np.arange(len(embeddings))]
    if config.prototype_weight or config.product_vectors:
        products = embed(taught.products, taught.rows) if len(taught.rows) else np.zeros_like(embeddings[:0])
        means, having = _means(products, taught.relevance)
        weight = np.float32(config.prototype_weight)
        vectors[0] = embeddings.copy()
        vectors[0][having] = l2_normalise((1 - weight) * embeddings[having] + weight * means)
        if config.product_vectors:
            centroids, of = _centroids(products, taught.relevance, config.product_vectors)
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


def _means(products: FloatArray, relevance: Relevance) -> tuple[FloatArray, Int64Array]:
    """(m, D) unit means of the products (N, D) of each label that has any, and those labels."""
    own = _by_label(relevance)
    having = np.flatnonzero(own.row_sizes())
    means = np.zeros((len(having), products.shape[1]), dtype=np.float32)
    for place, label in enumerate(having):
        means[place] = products[own.row(int(label))].mean(axis=0)
    return l2_normalise(means), having


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
