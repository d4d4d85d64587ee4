"""A tiny model in memory: the stages of ``mufin.predictor`` over a handful of labels, deterministic numpy.

Knows no files. Titles are bags of hashed words, images their mean colour: enough for order to mean something.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mufin.errors import InputError
from mufin.inputs import BoolArray, FloatArray, InputSpec, Int64Array, Uint8Array, normalise_title
from mufin.label_files import Label
from mufin.predictor import MemoryUse, ProductBag, Ranking, Shortlist
from mufin.reranking import GatheredReranker, Reranker
from mufin.scoring import (
    Calibration,
    CrossAttention,
    LabelRecords,
    ScoreSpec,
    classifier_scores,
    cross_attend,
    fuse,
    l2_normalise,
    top_k,
)

DIMENSION = 32
SIDE_PIXELS = 16


def word_vector(word: str) -> FloatArray:
    """A unit vector that depends on the word alone."""
    seed = int.from_bytes(hashlib.sha256(word.casefold().encode()).digest()[:8], "big")
    return l2_normalise(np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32))


def title_vector(title: str) -> FloatArray:
    """Mean of the words' vectors, unit length."""
    return l2_normalise(np.mean([word_vector(word) for word in normalise_title(title).split() or ["-"]], axis=0))


def image_vector(pixels: Uint8Array) -> FloatArray:
    """By the image's nearest plain colour."""
    red, green, blue = (int(channel > 127) for channel in pixels.reshape(-1, 3).mean(axis=0))
    return title_vector(f"colour {red}{green}{blue}")


class MemoryLabels:
    """A LabelStore over label titles, searched exactly."""

    def __init__(self, labels: Sequence[Label], exclude: Mapping[str, Sequence[str]]) -> None:
        self.size = len(labels)
        self._labels = list(labels)
        self._by_id = {label.id: label.index for label in labels}
        self._exclude = exclude
        self._vectors = np.stack([title_vector(label.title) for label in labels])

    def search(self, queries: FloatArray, k: int, allowed: BoolArray | None = None) -> tuple[Int64Array, FloatArray]:
        found = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        labels = np.arange(self.size) if allowed is None else np.flatnonzero(allowed)
        for row, query in enumerate(queries):
            own = self._vectors[labels] @ query
            best = top_k(own, labels, k)
            found[row, : len(best)], scores[row, : len(best)] = labels[best], own[best]
        return found, scores

    def records(self, labels: Int64Array) -> LabelRecords:
        bags = self._vectors[labels][:, None, :]
        return LabelRecords(bags, bags, np.ones((len(labels), 1), dtype=np.bool_), self._vectors[labels])

    def untrained(self, labels: Int64Array) -> BoolArray | None:
        """All are trained."""
        return None

    def reranker(self, attention: CrossAttention | None) -> Reranker:
        return GatheredReranker(self.records, attention)

    def removed(self, labels: Int64Array) -> BoolArray:
        return np.zeros(len(labels), dtype=np.bool_)

    def memory(self) -> dict[str, MemoryUse]:
        return {"vectors": MemoryUse(self._vectors.nbytes, 0)}

    def embeddings(self, labels: Int64Array) -> FloatArray:
        return self._vectors[labels]

    def bag_layout(self, index: int) -> tuple[int, bool]:
        return 0, True

    def describe(self, labels: Int64Array) -> list[Label]:
        return [self._labels[index] for index in labels.tolist()]

    def index_of(self, label_id: str) -> int | None:
        return self._by_id.get(label_id)

    def excluded(self, product_id: str) -> Int64Array:
        ids = [*self._exclude.get(product_id, ()), product_id]
        return np.asarray([self._by_id[own] for own in ids if own in self._by_id], dtype=np.int64)

    @property
    def filter_keys(self) -> tuple[str, ...]:
        return tuple(sorted({key for label in self._labels for key in label.metadata}))

    def allowed_by(self, filters: Mapping[str, Any]) -> BoolArray:
        unknown = set(filters) - set(self.filter_keys)
        if unknown:
            raise InputError(f"unknown filter keys {unknown}")
        return np.asarray([all(_passes(label, *item) for item in filters.items()) for label in self._labels])


def _passes(label: Label, key: str, wanted: Any) -> bool:
    value = label.metadata.get(key)
    values = value if isinstance(value, list) else [value]
    if isinstance(wanted, Mapping):
        low, high = wanted.get("gte", -np.inf), wanted.get("lte", np.inf)
        return any(isinstance(own, (int, float)) and low <= own <= high for own in values)
    return any(own in (wanted if isinstance(wanted, list) else [wanted]) for own in values)


@dataclass(frozen=True)
class MemoryReplay:
    """What a golden replay found."""

    passed: bool = True
    advice: str = ""

    def table(self) -> str:
        return "golden items"


@dataclass
class MemoryModel:
    """Implements ``service.bundles.Model``."""

    labels: MemoryLabels
    encoder_id: str = "sha256:encoder"
    bundle_id: str = "sha256:bundle"
    name: str = "products"
    dimension: int = DIMENSION
    score_unit: float = 1.0
    title_width: int = DIMENSION
    input_spec: InputSpec = field(default_factory=lambda: InputSpec(image_side_pixels=SIDE_PIXELS, max_images=3))
    score_spec: ScoreSpec = field(
        default_factory=lambda: ScoreSpec(shortlist_size=20, calibration_both=Calibration(4.0))
    )
    golden_passes: bool = True
    advice: str = ""
    title_seconds: float = 0.0
    """Makes encoding a title slow."""
    rerank_seconds: float = 0.0
    """Makes reranking slow."""
    rank_breaker: str = "\0"
    """A word of titles that break where bags are made."""
    title_batches: list[int] = field(default_factory=list)
    image_batches: list[int] = field(default_factory=list)
    titles_seen: list[str] = field(default_factory=list)
    """As text, where bags are made."""

    def __post_init__(self) -> None:
        identity = np.eye(DIMENSION, dtype=np.float32) / np.float32(DIMENSION**0.5)
        ones, zeros = np.ones(DIMENSION, dtype=np.float32), np.zeros(DIMENSION, dtype=np.float32)
        self._attention = CrossAttention(identity, zeros, ones, zeros)

    @property
    def encoder(self) -> MemoryModel:
        """This model encodes, too."""
        return self

    def memory(self) -> dict[str, MemoryUse]:
        return self.labels.memory()

    def encode_titles(self, titles: Sequence[str]) -> FloatArray:
        if any("explode" in title for title in titles):
            raise RuntimeError("this title breaks the encoder")
        if any("exit" in title for title in titles):
            raise SystemExit(3)
        time.sleep(self.title_seconds)
        self.title_batches.append(len(titles))
        return np.stack([title_vector(title) for title in titles])

    def encode_counted(self, titles: Sequence[str]) -> tuple[FloatArray, list[tuple[int, int]]]:
        """Words of letters are known, all others are not."""
        known = [sum(word.isalpha() for word in title.split()) for title in titles]
        counts = [(own, len(title.split()) - own) for own, title in zip(known, titles, strict=True)]
        return self.encode_titles(titles), counts

    def encode_images(self, pixels: Uint8Array) -> FloatArray:
        self.image_batches.append(len(pixels))
        return np.stack([image_vector(own) for own in pixels])

    def bag(
        self,
        image_vectors: Sequence[FloatArray],
        title_vectors: Sequence[FloatArray | None],
        titles: Sequence[str] | None = None,
    ) -> list[ProductBag]:
        if any(self.rank_breaker in title for title in titles or []):
            raise RuntimeError("this title breaks ranking")
        self.titles_seen += titles or []
        bags = []
        for images, title in zip(image_vectors, title_vectors, strict=True):
            slots = np.concatenate([images, title[None]]) if title is not None else images
            bags.append(ProductBag(slots, l2_normalise(slots.mean(axis=0)), title is not None))
        return bags

    def shortlist_without(
        self,
        bags: Sequence[ProductBag],
        k: int | Sequence[int],
        allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Shortlist]:
        sizes = [max(own, self.score_spec.shortlist_size) for own in ([k] * len(bags) if isinstance(k, int) else k)]
        labels, scores = self.labels.search(np.stack([bag.embedding for bag in bags]), self.labels.size, allowed)
        found = []
        for row in range(len(bags)):
            drop = excluded[row] if excluded is not None else np.zeros(0, dtype=np.int64)
            kept = np.flatnonzero((labels[row] >= 0) & ~np.isin(labels[row], drop))[: sizes[row]]
            found.append(Shortlist(labels[row][kept], scores[row][kept]))
        return found

    def rerank(self, bags: Sequence[ProductBag], shortlists: Sequence[Shortlist]) -> list[FloatArray]:
        time.sleep(self.rerank_seconds)
        return [
            classifier_scores(self._attention, bag.slots, self.labels.records(own.labels))
            if len(own.labels)
            else np.zeros(0, dtype=np.float32)
            for bag, own in zip(bags, shortlists, strict=True)
        ]

    def fuse(self, bag: ProductBag, shortlist: Shortlist, classifier: FloatArray, k: int) -> Ranking:
        fused = fuse(self.score_spec, classifier, shortlist.scores)
        best = top_k(fused, shortlist.labels, k)
        return Ranking(
            shortlist.labels[best],
            fused[best],
            self.score_spec.calibration(bag.modality).probability(fused[best]),
            shortlist.scores[best],
            classifier[best],
        )

    def attention_weights(self, bag: ProductBag, labels: Int64Array) -> FloatArray | None:
        return cross_attend(self._attention, bag.slots, self.labels.records(labels))[1]

    def replay_golden(self) -> MemoryReplay:
        return MemoryReplay(self.golden_passes, self.advice)


TITLES = (
    "red leather handbag",
    "blue leather handbag",
    "red running shoes",
    "blue running shoes",
    "green running shoes",
    "red cotton jersey",
    "blue cotton jersey",
    "jersey cotton blue",
    "black leather belt",
    "black leather wallet",
    "colour 100",
    "colour 001",
)


def shop() -> MemoryLabels:
    """Twelve labels with a kind, colours, a price and a stock flag; p1 must never get l1."""
    labels = [
        Label(
            index,
            f"l{index}",
            title,
            (f"https://shop.example/{index}.jpg",),
            {"kind": title.split()[-1], "colours": title.split()[:1], "price": 10.0 * index, "stock": index % 2 == 0},
            "trained" if index % 2 else "encoder",
        )
        for index, title in enumerate(TITLES)
    ]
    return MemoryLabels(labels, {"p1": ["l1"]})
