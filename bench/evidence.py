"""What evidence and the learned combination cost a product: alone and in a batch, compiled and numpy, in turns.

    python -m bench.evidence [--products 8000 50000 100000] [--listed 100000 500000] [--labels 20000] [--out bench/results/NAME.json]

Made-up catalogues: titles of eight words by Zipf's law, three labels a product, embeddings of 256 and sentences of 384
numbers in families of some 200 (cosine .8 with their centre). One thread; medians; a batch is of 16 products. ``--listed``: compared
with the products of near lists, as catalogues of so many are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.pictures import in_turns
from mufin.candidate_arithmetic import arithmetic
from mufin.combination import FEATURES, Combination, candidate_features
from mufin.compilation import KERNELS
from mufin.evidence import WIDE, Evidence, ProductEvidence, ProductLists
from mufin.evidence_file import stored
from mufin.inputs import FloatArray, Int64Array
from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.title_ridge import MOST_PRODUCTS, TitleRidge
from mufin.title_words import SparseRow, fit_title_words
from mufin.training.related import related_labels
from mufin.training.vector_lists import fit_lists
from mufin.vector_rows import VectorRows

DIMENSION, WIDTH, WORDS_A_TITLE, LABELS_A_PRODUCT, HIDDEN = 256, 384, 8, 3, 32
BATCH = 16


def in_families(random: np.random.Generator, count: int, width: int) -> FloatArray:
    """(count, width) unit vectors, every one at a cosine of some .8 from the centre of its family."""
    centres = l2_normalise(random.normal(size=(max(1, count // 200), width)).astype(np.float32))
    own = centres[random.integers(0, len(centres), count)]
    own += 0.75 * l2_normalise(random.normal(size=(count, width)).astype(np.float32))
    return l2_normalise(own)


def make_evidence(products: int, labels: int, listed: bool = False, seed: int = 0) -> Evidence:
    """Of a made-up catalogue; ridge classifiers where one of its size has them; with lists where asked for."""
    random = np.random.default_rng(seed)

    def titles(count: int) -> list[str]:
        words = np.minimum(random.zipf(1.3, (count, WORDS_A_TITLE)), 20_000)
        return [" ".join(f"w{word}" for word in row) for row in words.tolist()]

    own, named = titles(products), titles(labels)
    words = fit_title_words(own)
    rows = np.repeat(np.arange(products), LABELS_A_PRODUCT)
    relevance = Relevance.from_pairs(rows, random.integers(0, labels, len(rows)), products, labels)
    label_words, label_sentences = words.rows(named), in_families(random, labels, WIDTH)
    ridge = None
    if products <= MOST_PRODUCTS:
        ridge = TitleRidge(label_words, VectorRows.of(in_families(random, labels, WIDTH)), len(words))
    related = related_labels(label_words, label_sentences, len(words), relevance)
    vectors, sentences = (VectorRows.of(in_families(random, products, width)) for width in (DIMENSION, WIDTH))
    lists = ProductLists(*(fit_lists(rows, WIDE[0], seed) for rows in (vectors, sentences))) if listed else None
    return stored(
        Evidence(
            words, vectors, relevance, words.rows(own), label_words, sentences, VectorRows.of(label_sentences), ridge,
            related, lists,
        )
    )  # fmt: skip


def random_combination(seed: int = 0) -> Combination:
    """Of the size that is learned."""
    random = np.random.default_rng(seed)
    shapes = (len(FEATURES),), (len(FEATURES), HIDDEN), (HIDDEN,), (HIDDEN,)
    mean, weight, bias, last = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return Combination(mean, np.ones(len(FEATURES), np.float32), weight, bias, last, 0.0)


class Asked:
    """Products that nobody has seen, and what the service does with each."""

    def __init__(self, evidence: Evidence, count: int) -> None:
        random = np.random.default_rng(1)
        rows = random.integers(0, len(evidence.products), count)
        self.evidence, self.combination = evidence, random_combination()
        self.titles: list[SparseRow | None] = [evidence.product_words.row(int(row)) for row in rows]
        self.embeddings = _beside(random, evidence.products, rows)
        self.sentences: list[FloatArray | None] = list(_beside(random, evidence.sentences, rows))

    def compare(self, evidence: Evidence) -> list[ProductEvidence]:
        """All of them in one call."""
        return evidence.of(self.embeddings, self.titles, self.sentences)

    def combine(self, known: list[ProductEvidence], labels: list[Int64Array]) -> list[FloatArray]:
        """The features of each one's candidates, and their scores."""
        scores = [np.linspace(1, 0, len(own)).astype(np.float32) for own in labels]
        return [
            self.combination(
                candidate_features(own, score, score, evidence, self.evidence.frequency, True, False)
            )
            for own, score, evidence in zip(labels, scores, known, strict=True)
        ]  # fmt: skip


def _beside(random: np.random.Generator, vectors: VectorRows, rows: Int64Array) -> FloatArray:
    """(n, D) at a cosine of some .9 from the vectors of (n,) rows."""
    away = l2_normalise(random.normal(size=(len(rows), vectors.dimension)).astype(np.float32))
    return l2_normalise(vectors.values[rows].astype(np.float32) + 0.5 * away)


def candidates_of(known: list[ProductEvidence]) -> list[Int64Array]:
    """What each speaks for."""
    return [own.candidates() for own in known]


def found_by_lists(evidence: Evidence) -> dict[str, Any]:
    """Lists, how many a product looks at, what share of the training products stands in those."""
    assert evidence.lists is not None
    asked = Asked(evidence, 64)
    said = [own for own in asked.sentences if own is not None]
    found: dict[str, Any] = {}
    for name, lists, queries in (
        ("embedding", evidence.lists.by_embedding, list(asked.embeddings)), ("sentence", evidence.lists.by_sentence, said),
    ):  # fmt: skip
        near = [len(lists.near(query, arithmetic("numba"))) for query in queries]
        found[name] = {
            "lists": len(lists.centres),
            "looked_at": lists.probes,
            "share": round(float(np.mean(near)) / len(lists), 4),
        }
    return found


def measure(products: int, labels: int, turns: int, listed: bool = False) -> dict[str, Any]:
    """Milliseconds of one thread for a product."""
    began = time.monotonic()
    evidence = make_evidence(products, labels, listed)
    by_kernel = {kernel: evidence.with_kernel(kernel) for kernel in KERNELS}
    found: dict[str, Any] = {
        "products": products,
        "labels": labels,
        "ridge": evidence.ridge is not None,
        "listed": listed,
    }
    if listed:
        found["made_seconds"], found["lists"] = round(time.monotonic() - began), found_by_lists(evidence)
    for count in (1, BATCH):
        asked = Asked(evidence, count)
        ways: dict[str, Callable[[], object]] = {
            kernel: partial(asked.compare, own) for kernel, own in by_kernel.items()
        }
        found[f"compare_{count}_ms"] = in_turns(ways, turns, count)
        nearest = np.random.default_rng(2).permutation(labels)[:100]
        more: dict[str, Callable[[], object]] = {}
        for kernel, own in by_kernel.items():
            known = asked.compare(own)
            shortlists = [np.union1d(each.candidates(), nearest) for each in known]
            more[f"candidates, {kernel}"] = partial(candidates_of, known)
            more[f"combine, {kernel}"] = partial(asked.combine, known, shortlists)
        found[f"after_{count}_ms"] = in_turns(more, turns, count)
        speaks = candidates_of(asked.compare(evidence))
        found["candidates"] = round(float(np.mean([len(np.union1d(own, nearest)) for own in speaks])))
    print(found, flush=True)
    return found


def main() -> int:
    """Measure every size, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--products", type=int, nargs="+", default=[8_000, 50_000, 100_000])
    parser.add_argument("--listed", type=int, nargs="*", default=[100_000, 500_000])
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a small catalogue, a turn: whether it runs")
    options = parser.parse_args()
    points = [(count, False) for count in options.products] + [(count, True) for count in options.listed]
    points, labels, turns = ([(300, False), (300, True)], 50, 1) if options.smoke else (points, options.labels, 40)
    measured = [measure(count, labels, turns, listed) for count, listed in points]
    result = {"dimension": DIMENSION, "width": WIDTH, "points": measured}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
