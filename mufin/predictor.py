"""From titles and pixels to ranked labels: the one inference path of evaluation, export, benchmarks and service.

Knows no network, no request and no file layout. Each stage is public and batched; ``rank`` joins them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mufin.bundle import Bundle, Verify, open_bundle
from mufin.errors import InputError
from mufin.golden import GoldenResults, Parity, Ranked, compare, read_golden
from mufin.graphs import EncoderGraphs
from mufin.inputs import (
    BoolArray,
    FloatArray,
    InputSpec,
    Int64Array,
    TitleTokenizer,
    TokenBatch,
    Uint8Array,
    layout_bags,
    normalise_title,
)
from mufin.label_files import Label, LabelSource
from mufin.label_store import BundleLabelStore
from mufin.scoring import (
    CrossAttention,
    LabelRecords,
    ScoreSpec,
    classifier_scores,
    cross_attend,
    fuse,
    probability,
    top_k,
)

__all__ = [
    "Label",
    "LabelSource",
    "LabelStore",
    "Predictor",
    "ProductBag",
    "Ranking",
    "Shortlist",
    "open_predictor",
]

_TITLES_AT_ONCE = 64
_IMAGES_AT_ONCE = 16


class LabelStore(Protocol):
    """Where labels come from; the predictor's one boundary (architecture.md). Implementations are thread-safe."""

    size: int
    """L"""

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        """(B, D) -> the k nearest allowed labels (B, k), best first, padded with -1, and scores padded with -inf.

        Ties go to the smaller label. Fewer than k come back only when fewer are allowed.
        """

    def records(self, labels: Int64Array) -> LabelRecords:
        """What reranking needs of (N,) labels, in their order."""

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length, in the order of ``labels``."""

    def bag_layout(self, index: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them: the slots of ``attention_weights``."""

    def label(self, index: int) -> Label:
        """What an answer says of a label."""

    def index_of(self, label_id: str) -> int | None:
        """Position of a label, or None when there is no such id."""

    def excluded(self, product_id: str) -> Int64Array:
        """Labels never recommended to a product: its exclude pairs, and the label with the same id."""

    @property
    def filter_keys(self) -> tuple[str, ...]:
        """Metadata keys that ``allowed_by`` takes."""

    def allowed_by(self, filters: Mapping[str, Any]) -> BoolArray:
        """(L,) bool: labels that a filter on metadata lets through (semantics: serving.md).

        Raises InputError for a key no label has.
        """


@dataclass(frozen=True, slots=True)
class ProductBag:
    """One product, encoded."""

    slots: FloatArray
    """(S, D): real slots only, after self-attention; images first, title last"""
    embedding: FloatArray
    """(D,) unit length"""
    has_title: bool


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The nearest labels of one product."""

    labels: Int64Array
    """(n,) best first"""
    scores: FloatArray
    """(n,) cosines"""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one product, best first; five arrays of one length n."""

    labels: Int64Array
    scores: FloatArray
    """fused; the order, ties by label index"""
    probabilities: FloatArray
    """calibrated, of the fused score"""
    shortlist_scores: FloatArray
    classifier_scores: FloatArray


class Predictor:
    """The stages over one bundle. Thread-safe."""

    def __init__(self, graphs: EncoderGraphs, labels: LabelStore, bundle: Bundle) -> None:
        self._graphs, self._bundle = graphs, bundle
        self.labels = labels
        self.input_spec: InputSpec = bundle.manifest.input_spec
        self.score_spec: ScoreSpec = bundle.manifest.score_spec
        self.tokenizer = TitleTokenizer(bundle.tokenizer_definition, self.input_spec.max_title_tokens)
        self.dimension = bundle.manifest.sizes.dimension
        """D"""
        self.encoder_id = bundle.manifest.encoder_id
        self.bundle_id = bundle.manifest.bundle_id
        self.name = bundle.manifest.name
        self._attention: CrossAttention | None = bundle.cross_attention

    def encode_titles(self, titles: Sequence[str]) -> FloatArray:
        """(B, D). A title that tokenises to nothing still has [CLS] and [SEP]; callers leave empty titles out."""
        return self.encode_tokens(self.tokenizer.encode(titles))

    def encode_tokens(self, tokens: TokenBatch) -> FloatArray:
        """(B, T) ids and mask -> (B, D); titles of like length share a call, padded to its longest."""
        vectors = np.zeros((len(tokens.ids), self.dimension), dtype=np.float32)
        lengths = tokens.mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _TITLES_AT_ONCE):
            rows = order[start : start + _TITLES_AT_ONCE]
            longest = int(lengths[rows].max())
            part = TokenBatch(
                np.ascontiguousarray(tokens.ids[rows, :longest]), np.ascontiguousarray(tokens.mask[rows, :longest])
            )
            vectors[rows] = self._graphs.titles(part)
        return vectors

    def encode_images(self, pixels: Uint8Array) -> FloatArray:
        """(N, side, side, 3) uint8 -> (N, D)"""
        side = self.input_spec.image_side_pixels
        if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3) or pixels.dtype != np.uint8:
            raise InputError(
                f"pixels are {pixels.shape} {pixels.dtype}, this bundle needs (N, {side}, {side}, 3) uint8"
            )
        vectors = np.zeros((len(pixels), self.dimension), dtype=np.float32)
        for start in range(0, len(pixels), _IMAGES_AT_ONCE):
            block = slice(start, start + _IMAGES_AT_ONCE)
            vectors[block] = self._graphs.images(np.ascontiguousarray(pixels[block]))
        return vectors

    def bag(self, image_vectors: Sequence[FloatArray], title_vectors: Sequence[FloatArray | None]) -> list[ProductBag]:
        """Vectors of B products -> their bags, in one call. image_vectors: (I, D) each; a title may be None.

        Raises InputError for a product with neither.
        """
        if not image_vectors:
            return []
        has_title = [vector is not None for vector in title_vectors]
        slots, mask = layout_bags([len(v) for v in image_vectors], has_title)
        if not mask.any(axis=1).all():
            raise InputError(f"product {int(np.argmin(mask.any(axis=1)))} of the batch has neither title nor image")
        bag = np.zeros((len(mask), slots, self.dimension), dtype=np.float32)
        for row, (images, title) in enumerate(zip(image_vectors, title_vectors, strict=True)):
            bag[row, : len(images)] = images
            if title is not None:
                bag[row, -1] = title
        used = mask.any(axis=0)  # a title slot that nobody fills is not worth computing
        bag, mask = np.ascontiguousarray(bag[:, used]), np.ascontiguousarray(mask[:, used])
        attended, embeddings = self._graphs.bags(bag, mask)
        return [ProductBag(attended[i][mask[i]], embeddings[i], has_title[i]) for i in range(len(mask))]

    def embed(self, titles: Sequence[str], pixels: Sequence[Uint8Array]) -> list[ProductBag]:
        """Titles ("" for none) and pixels (I, side, side, 3) of B products -> their bags.

        At most ``input_spec.max_images`` of a product are used. Raises InputError for a product with neither.
        """
        rows = [row for row, title in enumerate(titles) if normalise_title(title)]
        encoded = self.encode_titles([titles[row] for row in rows])
        title_vectors: list[FloatArray | None] = [None] * len(titles)
        for position, row in enumerate(rows):
            title_vectors[row] = encoded[position]
        used = [own[: self.input_spec.max_images] for own in pixels]
        return self.bag(self._encode_image_lists(used), title_vectors)

    def _encode_image_lists(self, pixels: Sequence[Uint8Array]) -> list[FloatArray]:
        counts = [len(own) for own in pixels]
        if not any(counts):
            return [np.zeros((0, self.dimension), dtype=np.float32) for _ in counts]
        vectors = self.encode_images(np.concatenate([own for own in pixels if len(own)]))
        return np.split(vectors, np.cumsum(counts)[:-1])

    def shortlist(
        self, embeddings: FloatArray, allowed: BoolArray | None = None, k: int | None = None
    ) -> list[Shortlist]:
        """(B, D) -> the k (default: the bundle's shortlist size) nearest allowed labels of each, in one search."""
        labels, scores = self.labels.search(embeddings, k or self.score_spec.shortlist_size, allowed)
        return [Shortlist(row[row >= 0], own[row >= 0]) for row, own in zip(labels, scores, strict=True)]

    def rerank(self, bags: Sequence[ProductBag], shortlists: Sequence[Shortlist]) -> list[FloatArray]:
        """Classifier scores (n,) of each product's shortlist, in its order."""
        return [self._rerank_one(bag, own.labels) for bag, own in zip(bags, shortlists, strict=True)]

    def _rerank_one(self, bag: ProductBag, labels: Int64Array) -> FloatArray:
        if len(labels) == 0:
            return np.zeros(0, dtype=np.float32)
        records = self.labels.records(labels)
        if self._attention is None:
            return np.asarray(records.classifiers @ bag.embedding, dtype=np.float32)
        return classifier_scores(self._attention, bag.slots, records)

    def attention_weights(self, bag: ProductBag, labels: Int64Array) -> FloatArray | None:
        """(n, S, M): how much each slot of the product attended to each slot of a label; None without cross-attention.

        Label slots, too, are images first, title last, then unused ones with weight 0.
        """
        if self._attention is None:
            return None
        return cross_attend(self._attention, bag.slots, self.labels.records(labels))[1]

    def fuse(self, shortlist: Shortlist, classifier: FloatArray, k: int) -> Ranking:
        """One product's shortlist and its classifier scores -> the k best by the fused score."""
        fused = fuse(self.score_spec, classifier, shortlist.scores)
        best = top_k(fused, shortlist.labels, k)
        return Ranking(
            labels=shortlist.labels[best],
            scores=fused[best],
            probabilities=probability(self.score_spec, fused[best]),
            shortlist_scores=shortlist.scores[best],
            classifier_scores=classifier[best],
        )

    def rank(
        self, bags: Sequence[ProductBag], k: int, allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Ranking]:  # fmt: skip
        """Shortlist, rerank, fuse. ``excluded``: label indices that one product must not get.

        k results come back whenever k labels exist that are allowed and not excluded.
        """
        shortlists = self.shortlist_without(bags, k, allowed, excluded)
        scores = self.rerank(bags, shortlists)
        return [self.fuse(own, classifier, k) for own, classifier in zip(shortlists, scores, strict=True)]

    def shortlist_without(
        self, bags: Sequence[ProductBag], k: int, allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Shortlist]:  # fmt: skip
        """Shortlists of full length after each product's own exclusions, never shorter than k where k exist."""
        if not bags:
            return []
        size = max(k, self.score_spec.shortlist_size)
        dropped = list(excluded) if excluded is not None else [np.zeros(0, dtype=np.int64)] * len(bags)
        longest = max(len(own) for own in dropped)
        found = self.shortlist(np.stack([bag.embedding for bag in bags]), allowed, size + longest)
        return [_without(own, drop, size) for own, drop in zip(found, dropped, strict=True)]

    def replay_golden(self) -> Parity:
        """Run the bundle's golden products through every stage and compare with what torch computed at export."""
        golden = read_golden(self._bundle.folder)
        tokens = self.tokenizer.encode([golden.titles[i] for i in range(len(golden.titles))])
        titles = self.encode_titles(golden.titles)
        images = self.encode_images(golden.pixels)
        title_vectors = [titles[i] if golden.has_title[i] else None for i in range(len(titles))]
        bags = self.bag(np.split(images, golden.image_offsets[1:-1]), title_vectors)
        shortlists = self.shortlist(np.stack([b.embedding for b in bags]))
        expected = [Shortlist(row[row >= 0], own[row >= 0]) for row, own in zip(*golden.shortlist, strict=True)]
        results = GoldenResults(
            token_ids=tokens.ids,
            title_vectors=titles,
            image_vectors=images,
            slots=[b.slots for b in bags],
            embeddings=np.stack([b.embedding for b in bags]),
            shortlists=[Ranked(own.labels, own.scores) for own in shortlists],
            classifier=self.rerank(bags, expected),
            rankings=[Ranked(own.labels, own.scores) for own in self.rank(bags, golden.k)],
        )
        return compare(golden, results, self._bundle.manifest.tolerances)


def _without(shortlist: Shortlist, dropped: Int64Array, size: int) -> Shortlist:
    if len(dropped) == 0:
        return Shortlist(shortlist.labels[:size], shortlist.scores[:size])
    kept = np.flatnonzero(~np.isin(shortlist.labels, dropped))[:size]
    return Shortlist(shortlist.labels[kept], shortlist.scores[kept])


def open_predictor(path: Path, verify: Verify = "full", intra_op_threads: int = 1) -> Predictor:
    """Open a bundle and its graphs and index. Raises BundleError for one that must not be opened.

    ``intra_op_threads``: threads of one graph call and of one label search.
    """
    bundle = open_bundle(path, verify)
    graphs = EncoderGraphs(path, bundle.manifest.sizes.dimension, intra_op_threads)
    return Predictor(graphs, BundleLabelStore(bundle, intra_op_threads), bundle)
