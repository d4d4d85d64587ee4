"""Shortlists and classifier scores of the network in torch.

Knows no optimiser, and no evidence beside the network. A bundle's figures come from ``mufin.predictor`` instead; the two are compared by the export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mufin.catalogue import Catalogue, Relevance
from mufin.errors import CheckpointError
from mufin.inputs import FloatArray, Int64Array
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import Run, hash_label_ids
from mufin.training.config import ShortlistConfig
from mufin.training.encode import EncodedItems, encode_items
from mufin.training.item_arrays import ItemArrays
from mufin.training.label_vectors import ItemEmbedder, TaughtBy, label_vectors
from mufin.training.model import Mufin
from mufin.training.shortlist import LabelSearch

_PAIRS_AT_ONCE = 4_096


@dataclass(frozen=True)
class EncodedLabels:
    """All labels, encoded and searchable."""

    items: EncodedItems
    classifiers: FloatArray
    """(L, D) unit length"""
    search: LabelSearch


@dataclass(frozen=True)
class Candidates:
    """Shortlists of N products with both scores; padded with label -1 and score -inf."""

    labels: Int64Array
    """(N, K) by falling shortlist score"""
    shortlist_scores: FloatArray
    """(N, K)"""
    classifier_scores: FloatArray
    """(N, K)"""
    combined: FloatArray | None = None
    """(N, K) scores of the learned combination, which then rule the full ranking"""


@dataclass(frozen=True)
class RankedSplit:
    """Rankings of a split's products, best first, by three scores."""

    products: Int64Array
    """(N,) rows of Catalogue.products"""
    rows: dict[str, Int64Array]
    """shortlist, classifier, full -> labels (N, K) padded -1"""
    scores: dict[str, FloatArray]
    """the same keys -> scores (N, K)"""


@torch.no_grad()
def encode_labels(
    model: Mufin, labels: ItemArrays, taught: TaughtBy, shortlist: ShortlistConfig, batch_size: int,
    device: torch.device, bags_path: Path | None = None, means: FloatArray | None = None,
) -> EncodedLabels:  # fmt: skip
    """Bags, embeddings, classifier vectors and the search index of every label; ``means``: as for ``label_vectors``."""
    model.eval()
    items = encode_items(model.encoder, labels, None, batch_size, device, bags_path=bags_path)
    classifiers = np.empty_like(items.embeddings)
    for start in range(0, len(labels), 65536):
        rows = torch.arange(start, min(start + 65536, len(labels)), device=device)
        vectors = model.classifiers(rows, torch.from_numpy(items.embeddings[start : start + 65536]).to(device))
        classifiers[start : start + 65536] = vectors.float().cpu().numpy()
    embed = ItemEmbedder(model.encoder, batch_size, device)
    found_by = label_vectors(embed, items.embeddings, labels, taught, shortlist, means)
    return EncodedLabels(items, classifiers, LabelSearch(found_by, taught.relevance.label_frequency(), shortlist))


@torch.no_grad()
def score_candidates(
    model: Mufin, products: EncodedItems, labels: EncodedLabels, forbidden: Relevance, size: int, device: torch.device,
    extra: Sequence[Int64Array] | None = None,
) -> Candidates:  # fmt: skip
    """Shortlist and rerank N encoded products; ``forbidden`` (N, L) labels are left out before the cut to ``size``.

    ``extra``: further labels of each product that are reranked, too, unless forbidden.
    """
    model.eval()
    found, scores = search_allowed(labels.search, products.embeddings, forbidden, size)
    if extra is not None:
        found, scores = _widened(found, scores, extra, forbidden, products.embeddings, labels.search)
    classifier = np.full(scores.shape, -np.inf, dtype=np.float32)
    step = max(1, _PAIRS_AT_ONCE // max(1, found.shape[1]))
    for start in range(0, len(found), step):
        block = slice(start, start + step)
        own = np.maximum(found[block], 0)
        distinct, inverse = np.unique(own, return_inverse=True)
        index = torch.from_numpy(inverse.reshape(own.shape)).to(device)
        bag = torch.from_numpy(np.asarray(products.bags[block])).to(device)
        mask = torch.from_numpy(products.mask[block]).to(device)
        label_bag = torch.from_numpy(np.asarray(labels.items.bags[distinct])).to(device)
        label_mask = torch.from_numpy(labels.items.mask[distinct]).to(device)[index]
        if model.cross_attention is None:
            adapted, _ = model.adapt(bag, mask, label_bag[index], label_mask)
        else:
            keys, values = model.cross_attention.project(label_bag)
            adapted, _ = model.adapt_projected(bag, mask, keys[index], values[index], label_mask)
        weights = torch.from_numpy(labels.classifiers[distinct]).to(device)[index]
        score = (torch.nn.functional.normalize(adapted, dim=-1) * weights).sum(dim=-1)
        classifier[block] = np.where(found[block] >= 0, score.float().cpu().numpy(), -np.inf)
    return Candidates(found, scores, classifier)


def search_allowed(
    search: LabelSearch, queries: FloatArray, forbidden: Relevance, size: int
) -> tuple[Int64Array, FloatArray]:
    """The best ``size`` labels of every query that are not forbidden (N, L), padded -1, and their scores."""
    widest = int(np.diff(forbidden.indptr).max(initial=0))
    labels, scores = search.search(queries, size + widest)
    kept_labels = np.full((len(labels), min(size, labels.shape[1])), -1, dtype=np.int64)
    kept_scores = np.full(kept_labels.shape, -np.inf, dtype=np.float32)
    for row in range(len(labels)):
        kept = np.flatnonzero((labels[row] >= 0) & ~np.isin(labels[row], forbidden.row(row)))[:size]
        kept_labels[row, : len(kept)], kept_scores[row, : len(kept)] = labels[row, kept], scores[row, kept]
    return kept_labels, kept_scores


def _widened(
    found: Int64Array, scores: FloatArray, extra: Sequence[Int64Array], forbidden: Relevance, queries: FloatArray,
    search: LabelSearch,
) -> tuple[Int64Array, FloatArray]:  # fmt: skip
    """Shortlists (N, K) with ``extra`` labels among them, by falling cosine, padded -1."""
    added = [
        np.setdiff1d(np.setdiff1d(own, row), forbidden.row(i)) for i, (own, row) in enumerate(zip(extra, found, strict=True))
    ]  # fmt: skip
    width = max((len(own) for own in added), default=0)
    more = np.full((len(found), width), -1, dtype=np.int64)
    cosines = np.full((len(found), width), -np.inf, dtype=np.float32)
    for row, own in enumerate(added):
        more[row, : len(own)] = own
        cosines[row, : len(own)] = search.cosines(queries[row], own)
    ordered = order_by(np.concatenate([scores, cosines], axis=1), np.concatenate([found, more], axis=1))
    used = int((ordered[0] >= 0).sum(axis=1).max(initial=0))
    return ordered[0][:, :used], ordered[1][:, :used]


def order_by(scores: FloatArray, labels: Int64Array) -> tuple[Int64Array, FloatArray]:
    """Labels of every row by falling score, ties by label index, padding (-1) last."""
    order = np.lexsort((labels, -np.where(labels >= 0, scores, -np.inf)))
    return np.take_along_axis(labels, order, 1), np.take_along_axis(scores, order, 1)


def rank_candidates(candidates: Candidates, products: Int64Array, spec: ScoreSpec) -> RankedSplit:
    """The three rankings of scored candidates."""
    alpha = np.float32(spec.fusion_weight)
    with np.errstate(invalid="ignore"):
        fused = alpha * candidates.classifier_scores + (np.float32(1) - alpha) * candidates.shortlist_scores
    if candidates.combined is not None:
        fused = candidates.combined
    fused = np.where(candidates.labels >= 0, fused, -np.inf).astype(np.float32)
    by = {"shortlist": candidates.shortlist_scores, "classifier": candidates.classifier_scores, "full": fused}
    ordered = {name: order_by(scores, candidates.labels) for name, scores in by.items()}
    return RankedSplit(products, {n: o[0] for n, o in ordered.items()}, {n: o[1] for n, o in ordered.items()})


def check_labels(run: Run, catalogue: Catalogue) -> None:
    """Refuse a catalogue whose labels are not those the run was trained on, in order."""
    digest = hash_label_ids([label.id for label in catalogue.labels])
    if digest != run.facts.label_ids_sha256:
        raise CheckpointError(
            f"{catalogue.folder} has {len(catalogue.labels)} labels (ids {digest[:12]}), the run was trained on "
            f"{run.facts.label_count} (ids {run.facts.label_ids_sha256[:12]}): use the catalogue of the run, "
            "or train again"
        )
