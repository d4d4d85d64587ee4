"""What one would use instead: popularity, nearest products, ridge regression and PECOS, on a catalogue's split.

    python -m bench.plain_baselines CATALOGUE ... [--compare RUN_OR_BUNDLE] [--split test] [--out FILE] [--smoke]
                                    [--encoder FOLDER] [--pecos PYTHON]

Settings are chosen on a fifth of the training products, held out by title, never on the split that is scored; the
chosen ones are then fitted to all training products. ``--compare``: the paired difference of a run or bundle from every
baseline, of one catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix

from bench.xr_linear import XRLinear
from mufin.catalogue import Catalogue, ensure_validation, forbidden_pairs, read_catalogue
from mufin.datasets.shop import build_shop
from mufin.inputs import FloatArray, Int64Array
from mufin.metrics import RowScores, remove_from_relevance, score_rows
from mufin.rankings import open_subject
from mufin.relevance import Relevance
from mufin.significance import Bootstrap, compare, intervals
from mufin.title_words import SparseRows, fit_title_words
from mufin.training.folds import fold_numbers

FIGURES = ("P@1", "P@3", "P@5", "R@10")
_DEPTH = 10
_PARTS = 5
_MOST_PRODUCTS = 20_000
"""Ridge regression solves a system of the training products' size."""


@dataclass(frozen=True)
class Titles:
    """Titles of Q queries and N training products as two kinds of unit vectors, and what the latter are relevant to."""

    queries: csr_matrix
    """(Q, V) TF-IDF"""
    training: csr_matrix
    """(N, V)"""
    relevance: csr_matrix
    """(N, L)"""
    query_sentences: FloatArray
    """(Q, W) of a sentence encoder; W = 0 without one"""
    training_sentences: FloatArray
    """(N, W)"""

    def word_cosines(self) -> FloatArray:
        """(Q, N)"""
        return np.asarray((self.queries @ self.training.T).todense(), dtype=np.float32)

    def sentence_cosines(self) -> FloatArray:
        """(Q, N)"""
        return np.asarray(self.query_sentences @ self.training_sentences.T, dtype=np.float32)


class Baseline(Protocol):
    """A method with its settings."""

    def describe(self) -> str:
        """Name and settings."""

    def scores(self, titles: Titles) -> FloatArray:
        """(Q, L), higher is better."""


@dataclass(frozen=True)
class Popularity:
    """The labels with most training products, whatever is asked for."""

    def describe(self) -> str:
        """It has no settings."""
        return "popularity"

    def scores(self, titles: Titles) -> FloatArray:
        """The same row for every query."""
        frequency = np.asarray(titles.relevance.sum(axis=0), dtype=np.float32).ravel()
        return np.repeat(frequency[None], titles.queries.shape[0], axis=0)


Kernel = Literal["TF-IDF", "sentence", "TF-IDF + sentence"]


def _cosines(titles: Titles, kernel: Kernel) -> FloatArray:
    if kernel == "TF-IDF":
        return titles.word_cosines()
    if kernel == "sentence":
        return titles.sentence_cosines()
    return np.float32(0.5) * (titles.word_cosines() + titles.sentence_cosines())


@dataclass(frozen=True)
class NearestProducts:
    """Labels of the nearest training products, weighted exp(sharpness * cosine)."""

    kernel: Kernel
    neighbours: int
    sharpness: float

    def describe(self) -> str:
        """With its settings."""
        return f"{self.kernel} nearest products ({self.neighbours}, sharpness {self.sharpness:g})"

    def scores(self, titles: Titles) -> FloatArray:
        """Summed votes."""
        cosines = _cosines(titles, self.kernel)
        count = min(self.neighbours, cosines.shape[1])
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        own = np.take_along_axis(cosines, nearest, 1)
        weights = np.exp(self.sharpness * (own - own.max(axis=1, keepdims=True)))
        rows = np.repeat(np.arange(len(cosines)), count)
        votes = csr_matrix((weights.ravel(), (rows, nearest.ravel())), shape=cosines.shape)
        return np.asarray((votes @ titles.relevance).todense(), dtype=np.float32)


@dataclass(frozen=True)
class KernelRidge:
    """Ridge regression of relevance on titles, in its kernel form (Saunders et al. 1998)."""

    kernel: Kernel
    strength: float

    def describe(self) -> str:
        """With its settings."""
        return f"{self.kernel} kernel ridge (strength {self.strength:g})"

    def scores(self, titles: Titles) -> FloatArray:
        """K(queries, training) (K(training, training) + strength I)^-1 relevance."""
        own = replace(titles, queries=titles.training, query_sentences=titles.training_sentences)
        kernel = _cosines(own, self.kernel)
        kernel[np.diag_indices_from(kernel)] += np.float32(self.strength)
        weights = cho_solve(
            cho_factor(kernel, overwrite_a=True), np.asarray(titles.relevance.todense(), dtype=np.float32)
        )
        return np.asarray(_cosines(titles, self.kernel) @ weights, dtype=np.float32)


def families(sentences: bool, pecos: Path | None) -> tuple[tuple[Baseline, ...], ...]:
    """Every method with the settings it is tried with; ``pecos``: a Python that has libpecos."""
    near = [(count, sharp) for count in (10, 30, 100) for sharp in (5.0, 10.0, 15.0, 25.0)]
    kernels: tuple[Kernel, ...] = ("TF-IDF", "sentence", "TF-IDF + sentence") if sentences else ("TF-IDF",)
    found: list[tuple[Baseline, ...]] = [(Popularity(),)]
    found += [tuple(NearestProducts(kernel, count, sharp) for count, sharp in near) for kernel in kernels]
    found += [tuple(KernelRidge(k, own) for own in (0.3, 1.0, 3.0)) for k in kernels if k != "sentence"]
    if pecos is not None:
        found.append(tuple(XRLinear(pecos, cost) for cost in (0.1, 1.0, 10.0)))
    return tuple(found)


@dataclass(frozen=True)
class Problem:
    """What is fitted and what is scored."""

    titles: Titles
    forbidden: Relevance
    right: Relevance

    def ranking(self, baseline: Baseline) -> Int64Array:
        """(Q, 10) labels, best first, forbidden pairs left out, ties to the smaller label."""
        scores = baseline.scores(self.titles)
        rows, labels = self.forbidden.to_pairs()
        scores[rows, labels] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_DEPTH]
        return np.where(np.isfinite(np.take_along_axis(scores, order, 1)), order, -1).astype(np.int64)


def problem(
    catalogue: Catalogue, training: Int64Array, relevance: Relevance, products: Int64Array, right: Relevance,
    sentences: FloatArray | None = None,
) -> Problem:  # fmt: skip
    """Fit on catalogue rows ``training`` with their relevance, score catalogue rows ``products`` with theirs.

    sentences: (all products, W) of unit length.
    """
    words = fit_title_words([catalogue.products[int(row)].title for row in training])

    def matrix(rows: Int64Array) -> csr_matrix:
        own: SparseRows = words.rows([catalogue.products[int(row)].title for row in rows])
        return csr_matrix((own.weights, own.ids, own.indptr), shape=(len(own), len(words)))

    ones = np.ones(len(relevance.indices), dtype=np.float32)
    known = csr_matrix((ones, relevance.indices, relevance.indptr), shape=(len(training), relevance.label_count))
    forbidden = forbidden_pairs(catalogue).select(products)
    dense = np.zeros((len(catalogue.products), 0), dtype=np.float32) if sentences is None else sentences
    titles = Titles(matrix(products), matrix(training), known, dense[products], dense[training])
    return Problem(titles, forbidden, remove_from_relevance(right, forbidden))


def choose(
    catalogue: Catalogue, seed: int, sentences: FloatArray | None = None, pecos: Path | None = None
) -> list[Baseline]:
    """The best settings of every family (P@1 + P@5) on a part of the training products, fitted to the others."""
    train = catalogue.splits["train"]
    numbers = fold_numbers([catalogue.products[int(row)].title for row in train.products], _PARTS, seed)
    inside, outside = np.flatnonzero(numbers != 0), np.flatnonzero(numbers == 0)
    inner = problem(
        catalogue, train.products[inside], train.relevance.select(inside), train.products[outside],
        train.relevance.select(outside), sentences,
    )  # fmt: skip

    def worth(baseline: Baseline) -> float:
        figures = score_rows(inner.ranking(baseline), inner.right).values()
        return figures["P@1"] + figures["P@5"]

    methods = families(sentences is not None, pecos)
    return [family[0] if len(family) == 1 else max(family, key=worth) for family in methods]


def encoded_titles(catalogue: Catalogue, encoder: str, cache: Path | None = None) -> FloatArray:
    """(all products, W) sentences of unit length by a pretrained title encoder; kept in ``cache``."""
    from bench.sentences import encode_titles

    return encode_titles([item.title for item in catalogue.products], encoder, cache)


def measure(
    folder: Path, split: str | None, against: Path | None, seed: int, bootstrap: Bootstrap,
    encoder: str | None = None, pecos: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of every baseline with 95 % intervals, and the paired difference of ``against``."""
    catalogue = ensure_validation(read_catalogue(folder), 0.1, seed)
    name = split or ("test" if "test" in catalogue.splits else "valid")
    if name not in catalogue.splits:
        raise SystemExit(f"{folder}: has no split {name!r}, it has {', '.join(catalogue.splits)}: name one of them")
    train, scored = catalogue.splits["train"], catalogue.splits[name]
    if len(train.products) > _MOST_PRODUCTS:
        raise SystemExit(
            f"{folder}: has {len(train.products)} training products, ridge is solved up to {_MOST_PRODUCTS}"
        )
    sentences = None if encoder is None else encoded_titles(catalogue, encoder)
    outer = problem(catalogue, train.products, train.relevance, scored.products, scored.relevance, sentences)
    theirs: RowScores | None = None
    if against is not None:
        ranked = open_subject(against, threads=os.cpu_count() or 1).rank(catalogue, name, False, lambda *_: None)
        theirs = score_rows(ranked.allowed["fused"], outer.right)
    rows = []
    for baseline in choose(catalogue, seed, sentences, pecos):
        own = score_rows(outer.ranking(baseline), outer.right)
        found = intervals(own, bootstrap)
        row: dict[str, Any] = {"method": baseline.describe(), **{f: asdict(found[f]) for f in FIGURES}}
        if theirs is not None:
            paired = compare(theirs, own, bootstrap)
            row["compared"] = {f: asdict(paired[f]) for f in FIGURES}
        rows.append(row)
    if theirs is not None:
        found = intervals(theirs, bootstrap)
        rows.append({"method": f"mufin: {against}", **{f: asdict(found[f]) for f in FIGURES}})
    return {"catalogue": folder.name, "split": name, "products": len(outer.right.row_sizes()), "rows": rows}


def table(found: dict[str, Any]) -> str:
    """As text."""
    lines = [f"{found['catalogue']}, split {found['split']}, {found['products']} products"]
    lines.append(f"  {'':<46}" + "".join(f"{name:>24}" for name in FIGURES))
    for row in found["rows"]:
        cells = [f"{row[f]['value']:.4f} [{row[f]['low']:.3f},{row[f]['high']:.3f}]" for f in FIGURES]
        lines.append(f"  {row['method'][:46]:<46}" + "".join(f"{cell:>24}" for cell in cells))
        if "compared" in row:
            parts = [row["compared"][f] for f in FIGURES]
            cells = [f"{p['difference']:+.4f} [{p['low']:+.3f},{p['high']:+.3f}]" for p in parts]
            lines.append(f"  {'  mufin less this':<46}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every catalogue, print a table each, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("catalogues", type=Path, nargs="*", metavar="CATALOGUE")
    parser.add_argument("--compare", type=Path, metavar="RUN_OR_BUNDLE", help="of the one catalogue that is named")
    parser.add_argument("--split", help="that is scored (default: test, or valid where there is none)")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out part and the bootstrap (default 0)")
    parser.add_argument("--encoder", help="name or folder of a pretrained title encoder, for sentence features")
    parser.add_argument("--pecos", type=Path, metavar="PYTHON", help="an interpreter that has libpecos (make pecos)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a small built-in shop: whether it runs")
    options = parser.parse_args(arguments)
    if options.compare is not None and len(options.catalogues) != 1:
        parser.error(f"--compare needs one catalogue, {len(options.catalogues)} are named")
    if not options.catalogues and not options.smoke:
        parser.error("name a catalogue folder, or --smoke")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = list(options.catalogues)
        if options.smoke:
            build_shop(Path(scratch) / "shop", 200, 0)
            folders = [Path(scratch) / "shop" / "products"]
        for folder in folders:
            found = measure(
                folder, options.split, options.compare, options.seed, Bootstrap(seed=options.seed), options.encoder,
                options.pecos,
            )  # fmt: skip
            results.append(found)
            print(table(found), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
