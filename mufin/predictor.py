"""From titles and pixels to ranked labels: the one inference path of evaluation, export, benchmarks and service.

Knows no network, no request and no file layout. Each stage is public and batched; ``rank`` joins them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mufin.bundle import Bundle, Verify, open_bundle
from mufin.combination import COSINE_WORTH, candidate_features
from mufin.compilation import Kernel
from mufin.errors import InputError
from mufin.evidence import ProductEvidence
from mufin.golden import GoldenResults, Parity, Ranked, compare, read_golden
from mufin.graphs import Device, EncoderGraphs
from mufin.inputs import BoolArray, FloatArray, InputSpec, Int64Array, TokenBatch, Uint8Array, normalise_title
from mufin.item_encoder import EncoderPool, ItemEncoder, open_encoder
from mufin.label_files import Label, LabelSource
from mufin.label_store import BundleLabelStore, MemoryUse
from mufin.reranking import Reranker
from mufin.scoring import (
    CrossAttention,
    LabelRecords,
    ScoreSpec,
    as_trained,
    cross_attend,
    fuse,
    top_k,
)
from mufin.stages import ProductBag, Ranking, Shortlist
from mufin.title_words import SparseRow

__all__ = [
    "EncoderPool",
    "Label",
    "LabelSource",
    "LabelStore",
    "MemoryUse",
    "Predictor",
    "ProductBag",
    "Ranking",
    "Shortlist",
    "open_predictor",
]


_NOTHING = Shortlist(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


class LabelStore(Protocol):
    """Where labels come from; the predictor's one boundary (docs/architecture.md). Implementations are thread-safe."""

    size: int
    """L"""

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        """(B, D) -> the k nearest allowed labels (B, k), best first, padded with -1, and scores padded with -inf.

        Ties go to the smaller label. Fewer than k come back only when fewer are allowed.
        """

    def records(self, labels: Int64Array) -> LabelRecords:
        """What reranking and ``attention_weights`` need of (N,) labels, in their order, as plain arrays."""

    def reranker(self, attention: CrossAttention | None) -> Reranker:
        """What scores shortlists against products; asked for once, at opening, and warm when it comes back.

        A store that has its records at hand reads them in place; any other returns
        ``GatheredReranker(self.records, attention)`` of mufin.reranking.
        """

    def untrained(self, labels: Int64Array) -> BoolArray | None:
        """(N,) bool of (N,) labels: which were added without training; None: there is no such label at all."""

    def removed(self, labels: Int64Array) -> BoolArray:
        """(N,) bool of (N,) labels: which are never returned any more."""

    def memory(self) -> Mapping[str, MemoryUse]:
        """Bytes of each large part, by its name."""

    def embeddings(self, labels: Int64Array) -> FloatArray:
        """(N, D) unit length, in the order of ``labels``."""

    def bag_layout(self, index: int) -> tuple[int, bool]:
        """Images in a label's bag, and whether its title follows them: the slots of ``attention_weights``."""

    def describe(self, labels: Int64Array) -> list[Label]:
        """What an answer says of (N,) labels, in their order."""

    def index_of(self, label_id: str) -> int | None:
        """Position of a label, or None when there is no such id."""

    def excluded(self, product_id: str) -> Int64Array:
        """Labels never recommended to a product: its exclude pairs, and the label with the same id."""

    @property
    def filter_keys(self) -> tuple[str, ...]:
        """Metadata keys that ``allowed_by`` takes."""

    def allowed_by(self, filters: Mapping[str, Any]) -> BoolArray:
        """(L,) bool: labels that a filter on metadata lets through (docs/bundle.md, Filtering).

        Raises InputError for a key no label has.
        """


class Predictor:
    """The stages over one bundle. Thread-safe."""

    def __init__(
        self, encoder: ItemEncoder, labels: LabelStore, bundle: Bundle, reranker: Reranker | None = None
    ) -> None:
        """``reranker``: that of ``labels`` for the bundle's cross-attention, where it was made before."""
        self.encoder, self._bundle = encoder, bundle
        self._graphs = encoder.graphs
        self.labels = labels
        self.input_spec: InputSpec = encoder.input_spec
        self.score_spec: ScoreSpec = bundle.manifest.score_spec
        self.tokenizer = encoder.tokenizer
        self.dimension = encoder.dimension
        """D"""
        self.title_width = encoder.title_width
        """Numbers of a title's vector: D, and W of its sentence behind them where a learned combination looks at it"""
        self.bundle_id = bundle.manifest.bundle_id
        self.name = bundle.manifest.name
        self.score_unit = 1.0 if bundle.combination is None else COSINE_WORTH
        """What of a score weighs as much as a cosine of 1, where the two meet (diversity)"""
        self._attention: CrossAttention | None = bundle.cross_attention
        self._reranker = reranker or labels.reranker(self._attention)

    @property
    def encoder_id(self) -> str:
        """Equal for predictors whose items have equal vectors here."""
        return self.encoder.encoder_id

    def with_graphs(self, graphs: EncoderGraphs) -> Predictor:
        """The same bundle and labels behind other graphs, to compare precisions; not for answers."""
        return Predictor(ItemEncoder(graphs, self._bundle), self.labels, self._bundle, self._reranker)

    def encode_titles(self, titles: Sequence[str]) -> FloatArray:
        """(B, title_width): ItemEncoder.encode_titles."""
        return self.encoder.encode_titles(titles)

    def encode_tokens(self, tokens: TokenBatch) -> FloatArray:
        """(B, T) ids and mask -> (B, title_width): ItemEncoder.encode_tokens."""
        return self.encoder.encode_tokens(tokens)

    def encode_images(self, pixels: Uint8Array) -> FloatArray:
        """(N, side, side, 3) uint8 -> (N, D): ItemEncoder.encode_images."""
        return self.encoder.encode_images(pixels)

    def memory(self) -> dict[str, MemoryUse]:
        """Bytes of each large part, by its file; those of the encoder are shared by all that encode alike."""
        return {**self.encoder.memory, **self.labels.memory()}

    def bag(
        self, image_vectors: Sequence[FloatArray], title_vectors: Sequence[FloatArray | None],
        titles: Sequence[str] | None = None,
    ) -> list[ProductBag]:  # fmt: skip
        """Vectors of B products -> their bags, in one call.

        image_vectors: (I, D) each; title_vectors: (title_width,) each, None for a product without a title.

        ``titles``: the same as text, for the words that a learned combination looks at. Raises InputError for a product with neither.
        """
        if not image_vectors:
            return []
        counts = [len(own) for own in image_vectors]
        has_title = [vector is not None for vector in title_vectors]
        most, any_title = max(counts), any(has_title)
        # Images first, the title last (layout_bags); a title slot that nobody fills is not worth computing.
        bag = np.zeros((len(counts), most + any_title, self.dimension), dtype=np.float32)
        mask = np.zeros(bag.shape[:2], dtype=np.bool_)
        for row, (images, title) in enumerate(zip(image_vectors, title_vectors, strict=True)):
            count = counts[row]
            if title is not None:
                bag[row, most], mask[row, most] = title[: self.dimension], True
            elif not count:
                raise InputError(f"product {row} of the batch has neither title nor image")
            if count:
                bag[row, :count], mask[row, :count] = images, True
        attended, embeddings = self._graphs.bags(bag, mask)
        words = self._title_words(has_title, titles)
        sentences = [self._sentence(title) for title in title_vectors]
        return [
            ProductBag(
                slots if count + titled == len(slots) else slots[own], embeddings[row], titled, words[row],
                sentences[row],
            )
            for row, (slots, own, count, titled) in enumerate(zip(attended, mask, counts, has_title, strict=True))
        ]  # fmt: skip

    def _sentence(self, title: FloatArray | None) -> FloatArray | None:
        return None if title is None or self.title_width == self.dimension else title[self.dimension :]

    def _title_words(self, has_title: Sequence[bool], titles: Sequence[str] | None) -> list[SparseRow | None]:
        evidence = self._bundle.evidence
        if evidence is None or titles is None:
            return [None] * len(has_title)
        pairs = zip(has_title, titles, strict=True)
        return [evidence.words.row(title) if present else None for present, title in pairs]

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
        return self.bag(self._encode_image_lists(used), title_vectors, titles)

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
        found = zip(labels, scores, strict=True)
        return [Shortlist(row, own) if row[-1] >= 0 else Shortlist(row[row >= 0], own[row >= 0]) for row, own in found]

    def rerank(self, bags: Sequence[ProductBag], shortlists: Sequence[Shortlist]) -> list[FloatArray]:
        """Classifier scores (n,) of each product's shortlist, in its order; all products in one call."""
        return self._reranker.rerank(
            [bag.slots for bag in bags], [bag.embedding for bag in bags], [own.labels for own in shortlists]
        )

    def attention_weights(self, bag: ProductBag, labels: Int64Array) -> FloatArray | None:
        """(n, S, M): how much each slot of the product attended to each slot of a label; None without cross-attention.

        Label slots, too, are images first, title last, then unused ones with weight 0.
        """
        if self._attention is None:
            return None
        return cross_attend(self._attention, bag.slots, self.labels.records(labels))[1]

    def fuse(self, bag: ProductBag, shortlist: Shortlist, classifier: FloatArray, k: int) -> Ranking:
        """One product's shortlist and its classifier scores -> the k best by the fused score.

        Raises ValueError where the bundle has a combination and the shortlist, not of ``shortlist_without``, no evidence.
        """
        fused = self._fused(bag, shortlist, classifier)
        untrained = self.labels.untrained(shortlist.labels)
        if untrained is not None:
            same_item = self._bundle.manifest.sizes.encoders.same_item
            fused = as_trained(self.score_spec, bag.modality, fused, shortlist.scores, untrained, same_item)
        best = top_k(fused, shortlist.labels, k)
        return Ranking(
            labels=shortlist.labels[best],
            scores=fused[best],
            probabilities=self.score_spec.calibration(bag.modality).probability(fused[best]),
            shortlist_scores=shortlist.scores[best],
            classifier_scores=classifier[best],
        )

    def _fused(self, bag: ProductBag, shortlist: Shortlist, classifier: FloatArray) -> FloatArray:
        evidence, combination = self._bundle.evidence, self._bundle.combination
        if combination is None or evidence is None:
            return fuse(self.score_spec, classifier, shortlist.scores)
        if shortlist.evidence is None:
            raise ValueError(
                "the bundle combines scores with evidence, and the shortlist has none: shortlist_without adds it"
            )
        features = candidate_features(
            shortlist.labels, shortlist.scores, classifier, shortlist.evidence, evidence.frequency, bag.has_title,
            len(bag.slots) > bag.has_title,
        )  # fmt: skip
        return combination(features)

    def rank(
        self, bags: Sequence[ProductBag], k: int, allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Ranking]:  # fmt: skip
        """Shortlist, rerank, fuse. ``excluded``: label indices that one product must not get.

        k results come back whenever k labels exist that are allowed and not excluded.
        """
        shortlists = self.shortlist_without(bags, k, allowed, excluded)
        scores = self.rerank(bags, shortlists)
        found = zip(bags, shortlists, scores, strict=True)
        return [self.fuse(bag, own, classifier, k) for bag, own, classifier in found]

    def shortlist_without(
        self, bags: Sequence[ProductBag], k: int | Sequence[int], allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Shortlist]:  # fmt: skip
        """Shortlists of full length after each product's own exclusions, never shorter than k (one for all, or each
        product's own) where k exist. What one product wants or excludes changes no other's.
        """
        if not bags:
            return []
        dropped = list(excluded) if excluded is not None else [np.zeros(0, dtype=np.int64)] * len(bags)
        wanted = [
            max(own, self.score_spec.shortlist_size) for own in (k if isinstance(k, Sequence) else [k] * len(bags))
        ]
        # An approximate index finds others when it is asked for more, so only products that ask for as many share a call.
        groups: dict[int, list[int]] = {}
        for row, (size, drop) in enumerate(zip(wanted, dropped, strict=True)):
            groups.setdefault(size + _surplus(len(drop)), []).append(row)
        kept: list[Shortlist] = [_NOTHING] * len(bags)
        for size, rows in groups.items():
            found = self.shortlist(np.stack([bags[row].embedding for row in rows]), allowed, size)
            for row, own in zip(rows, found, strict=True):
                kept[row] = own.without(dropped[row], wanted[row])
        if self._bundle.evidence is None:
            return kept
        evidence = self._bundle.evidence.of(
            np.stack([bag.embedding for bag in bags]), [bag.words for bag in bags], [bag.sentence for bag in bags]
        )
        return [self._with_evidence(*own, allowed) for own in zip(bags, kept, evidence, dropped, strict=True)]

    def _with_evidence(
        self, bag: ProductBag, shortlist: Shortlist, evidence: ProductEvidence, dropped: Int64Array,
        allowed: BoolArray | None,
    ) -> Shortlist:  # fmt: skip
        """The labels that evidence speaks for among those of the shortlist, by falling cosine."""
        more = np.setdiff1d(np.setdiff1d(evidence.candidates(), shortlist.labels), dropped)
        more = more[~self.labels.removed(more)]
        if allowed is not None:
            more = more[allowed[more]]
        if not len(more):
            return replace(shortlist, evidence=evidence)
        labels = np.concatenate([shortlist.labels, more])
        scores = np.concatenate([shortlist.scores, self.labels.embeddings(more) @ bag.embedding])
        order = np.lexsort((labels, -scores))
        return Shortlist(labels[order], scores[order].astype(np.float32), evidence)

    def replay_golden(self) -> Parity:
        """Run the bundle's golden products through every stage and compare with what torch computed at export."""
        golden = read_golden(self._bundle.folder)
        tokens = self.tokenizer.encode([golden.titles[i] for i in range(len(golden.titles))])
        titles = self.encode_titles(golden.titles)
        images = self.encode_images(golden.pixels)
        title_vectors = [titles[i] if golden.has_title[i] else None for i in range(len(titles))]
        bags = self.bag(np.split(images, golden.image_offsets[1:-1]), title_vectors, golden.titles)
        shortlists = self.shortlist_without(bags, 1)
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
        manifest = self._bundle.manifest
        stretch = self.score_spec.untrained_stretch if manifest.sizes.untrained else 1.0
        return compare(
            golden, results, manifest.tolerances, self._graphs.encoders, manifest.int8_sums_may_overflow, stretch
        )


def _surplus(dropped: int) -> int:
    """How many more are asked for where so many fall out: few different numbers, so that most products share a call."""
    return 0 if not dropped else 1 << (dropped - 1).bit_length()


def open_predictor(
    path: Path, verify: Verify = "full", intra_op_threads: int = 1, device: Device = "cpu", *,
    kernel: Kernel = "numba", resident: bool = False, encoders: EncoderPool | None = None,
) -> Predictor:  # fmt: skip
    """Open a bundle and its graphs and index. Raises BundleError for one that must not be opened.

    ``intra_op_threads``: threads of one graph call and of one label search. ``device``: where the graphs run; cuda runs
    the fp32 graphs of any bundle and raises ConfigError where ONNX Runtime cannot. ``kernel``: compiled reranking and
    comparing with training products, or numpy's, some ten and three times slower, which needs no numba. ``resident``: label records in memory, never read from disk later.
    ``encoders``: where bundles that encode alike find each other's sessions; None: sessions of its own.
    """
    bundle = open_bundle(path, verify)
    opened = open_encoder if encoders is None else encoders.open
    with ThreadPoolExecutor(1, thread_name_prefix="mufin-graphs") as beside:
        # Optimising graphs needs no Python lock, reading compiled code hardly lets go of it: a second each at full size.
        encoder = beside.submit(opened, bundle, intra_op_threads, device)
        if bundle.evidence is not None:
            bundle = replace(bundle, evidence=bundle.evidence.with_kernel(kernel))
        labels = BundleLabelStore(bundle, intra_op_threads, kernel, resident)
        reranker = labels.reranker(bundle.cross_attention)
        return Predictor(encoder.result(), labels, bundle, reranker)
