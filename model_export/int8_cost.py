"""What int8 encoders cost on validation products: vectors, their company in a batch, and the whole predictor's figures.

Knows neither how graphs are quantised nor what is decided from the figures. Labels stay as the bundle holds them: torch
embedded them in fp32 once, and only what comes in goes through int8.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import Catalogue, forbidden_pairs
from mufin.graphs import EncoderGraphs
from mufin.inputs import FloatArray, InputSpec, Int64Array, TitleTokenizer, TokenBatch
from mufin.metrics import DEPTH, RowScores, remove_from_relevance, score_rows
from mufin.predictor import Predictor
from mufin.relevance import Relevance
from mufin.significance import compare
from mufin.training.item_arrays import ItemArrays, Progress, prepare

MOST_PRODUCTS = 5000
FIGURES = ("P@1", "P@5", "R@10")
BATCH_SIZES = (8, 64)
"""Sizes in which an item's company is tried; the predictor puts no more into a call."""

_PROBES = 128
_PAIR_PROBES = 16
_TIMED_RUNS = 20
_PRODUCTS_AT_ONCE = 64


@dataclass(frozen=True)
class Sample:
    """N validation products, and what is right for them."""

    arrays: ItemArrays
    relevance: Relevance
    """(N, L), without forbidden pairs"""
    forbidden: Relevance
    """(N, L) labels never recommended to a product"""
    titles: list[str]
    """N, for the words that a learned combination looks at"""

    def tokens(self, rows: Int64Array | None = None) -> TokenBatch:
        """Titles of ``rows`` (default: all), padded to the longest."""
        chosen = np.arange(len(self.arrays)) if rows is None else rows
        counts = np.asarray(self.arrays.token_counts[chosen])
        length = int(counts.max(initial=1))
        ids = np.asarray(self.arrays.token_ids[chosen, :length], dtype=np.int64)
        return TokenBatch(ids, (np.arange(length)[None] < counts[:, None]).astype(np.int64))


@dataclass(frozen=True)
class Vectors:
    """Encoded titles and distinct images of a sample."""

    titles: FloatArray
    """(N, D)"""
    images: FloatArray
    """(U, D)"""


@dataclass(frozen=True)
class Company:
    """How much an item's vector depends on what shares its batch."""

    cosines: dict[str, float]
    """Least cosine between alone and in a batch: by batch size, and with the worst companion found"""

    @property
    def least(self) -> float:
        """Over all batches."""
        return min(self.cosines.values(), default=1.0)


@dataclass(frozen=True)
class Ranked:
    """How a sample is ranked with some graphs."""

    scores: RowScores
    embeddings: FloatArray
    """(N, D)"""


def validation_sample(
    catalogue: Catalogue, split: str, spec: InputSpec, tokenizer: TitleTokenizer, scratch: Path, progress: Progress,
    most: int = MOST_PRODUCTS,
) -> Sample:  # fmt: skip
    """At most ``most`` products of a split, evenly spread over it; pixels and tokens lie in ``scratch``."""
    own = catalogue.splits[split]
    chosen = np.unique(np.linspace(0, len(own.products) - 1, min(most, len(own.products))).astype(np.int64))
    rows = own.products[chosen]
    forbidden = forbidden_pairs(catalogue).select(rows)
    # No labels here: they are in the bundle, and decoding their images again would not stop at ``most``.
    small = replace(catalogue, products=[catalogue.products[row] for row in rows], labels=[], products_are_labels=False)
    arrays, _ = prepare(small, spec, tokenizer, scratch, progress)
    relevance = remove_from_relevance(own.relevance.select(chosen), forbidden)
    return Sample(arrays, relevance, forbidden, [item.title for item in small.products])


def encode(predictor: Predictor, sample: Sample) -> Vectors:
    """In the predictor's own batches."""
    return Vectors(predictor.encode_tokens(sample.tokens()), predictor.encode_images(sample.arrays.pixels))


def rank(predictor: Predictor, sample: Sample, vectors: Vectors) -> Ranked:
    """Shortlist, rerank and fuse every product as the service does, from vectors encoded before."""
    arrays, number = sample.arrays, len(sample.arrays)
    labels = np.full((number, DEPTH), -1, dtype=np.int64)
    embeddings = np.zeros((number, predictor.dimension), dtype=np.float32)
    for start in range(0, number, _PRODUCTS_AT_ONCE):
        rows = range(start, min(number, start + _PRODUCTS_AT_ONCE))
        images = [
            vectors.images[arrays.image_rows[arrays.image_offsets[r] : arrays.image_offsets[r + 1]]] for r in rows
        ]
        titles = [vectors.titles[r] if arrays.has_title[r] else None for r in rows]
        bags = predictor.bag(images, titles, [sample.titles[r] for r in rows])
        rankings = predictor.rank(bags, DEPTH, excluded=[sample.forbidden.row(r) for r in rows])
        for row, bag, ranking in zip(rows, bags, rankings, strict=True):
            labels[row, : len(ranking.labels)] = ranking.labels
            embeddings[row] = bag.embedding
    return Ranked(score_rows(labels, sample.relevance), embeddings)


def cost_of(ours: Ranked, fp32: Ranked) -> dict[str, Any]:
    """Figures of int8, and what they lost against fp32 in points, with the paired bootstrap interval of P@1."""
    figures, base = ours.scores.values(), fp32.scores.values()
    difference = compare(ours.scores, fp32.scores)["P@1"]
    return {
        "figures": {name: figures[name] for name in FIGURES},
        "points_lost": {name: 100.0 * (base[name] - figures[name]) for name in FIGURES},
        "points_lost_P@1_interval": [0.0 - 100.0 * difference.high, 0.0 - 100.0 * difference.low],
        "embedding_cosine": cosine_summary(ours.embeddings, fp32.embeddings),
    }


def cosine_summary(ours: FloatArray, fp32: FloatArray) -> dict[str, float]:
    """Mean and least cosine of vectors (n, D), row by row; empty where there are none."""
    if not len(ours):
        return {}
    found = _cosines(ours, fp32)
    return {"mean": float(found.mean()), "least": float(found.min())}


def company_of(graphs: EncoderGraphs, sample: Sample) -> tuple[Company, Company]:
    """Of titles and of images. ``graphs`` must run whole batches."""

    def titles(rows: Int64Array) -> FloatArray:
        return graphs.titles(sample.tokens(rows))

    def images(rows: Int64Array) -> FloatArray:
        return graphs.images(np.asarray(sample.arrays.pixels[rows]))

    return find_company(titles, np.flatnonzero(sample.arrays.has_title)), find_company(
        images, np.arange(sample.arrays.image_count)
    )


def find_company(run: Callable[[Int64Array], FloatArray], rows: Int64Array) -> Company:
    """Alone, in mixed batches, and in batches that hold the item that disturbs the others most."""
    if not len(rows):
        return Company({})
    spread = np.unique(np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(np.int64))
    probes = np.random.default_rng(0).permutation(rows[spread])
    alone = np.concatenate([run(probes[i : i + 1]) for i in range(len(probes))])
    worst = _worst_companion(run, probes, alone)
    cosines = {}
    for size in BATCH_SIZES:
        mixed = [_cosines(run(probes[s : s + size]), alone[s : s + size]) for s in range(0, len(probes), size)]
        cosines[f"batch of {size}"] = float(np.concatenate(mixed).min())
        disturbed = [
            _cosines(run(np.append(probes[s : s + size - 1], worst))[:-1], alone[s : s + size - 1])
            for s in range(0, len(probes), size - 1)
        ]
        cosines[f"batch of {size} with the worst companion"] = float(np.concatenate(disturbed).min())
    return Company(cosines)


def _worst_companion(run: Callable[[Int64Array], FloatArray], probes: Int64Array, alone: FloatArray) -> int:
    """The probe beside which the first few probes change most."""
    few = probes[:_PAIR_PROBES]
    changed = [_cosines(run(np.append(few, other))[:-1], alone[: len(few)]).mean() for other in probes]
    return int(probes[int(np.argmin(changed))])


def _cosines(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    here, there = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    return np.asarray((here * there).sum(axis=1) / np.maximum(lengths, 1e-30))


def milliseconds(graphs: EncoderGraphs, sample: Sample) -> dict[str, float]:
    """Shortest of a few calls with one title and with one image; for the report alone, as times are chance."""
    arrays, found = sample.arrays, {}
    if arrays.has_title.any():
        tokens = sample.tokens(np.flatnonzero(arrays.has_title)[:1])
        found["one title"] = _shortest(lambda: graphs.titles(tokens))
    if arrays.image_count:
        pixels = np.asarray(arrays.pixels[:1])
        found["one image"] = _shortest(lambda: graphs.images(pixels))
    return found


def _shortest(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(1000.0 * min(times), 4)
