"""What one would use instead: popularity, nearest products and ridge regression on title words, on a catalogue's split.

    python -m bench.plain_baselines CATALOGUE ... [--compare RUN_OR_BUNDLE] [--split test] [--out FILE] [--smoke]

Settings are chosen on a fifth of the training products, held out by title, never on the split that is scored; the
chosen ones are then fitted to all training products. ``--compare``: the paired difference of a run or bundle from every
baseline, of one catalogue. The sentence encoder's neighbours and PECOS are not here yet.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix

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


class Baseline(Protocol):
    """A method with its settings."""

    def describe(self) -> str:
        """Name and settings."""

    def scores(self, queries: csr_matrix, training: csr_matrix, relevance: csr_matrix) -> FloatArray:
        """Unit TF-IDF rows of Q queries and N training products, relevance (N, L) -> (Q, L), higher is better."""


@dataclass(frozen=True)
class Popularity:
    """The labels with most training products, whatever is asked for."""

    def describe(self) -> str:
        """It has no settings."""
        return "popularity"

    def scores(self, queries: csr_matrix, training: csr_matrix, relevance: csr_matrix) -> FloatArray:
        """The same row for every query."""
        frequency = np.asarray(relevance.sum(axis=0), dtype=np.float32).ravel()
        return np.repeat(frequency[None], queries.shape[0], axis=0)


@dataclass(frozen=True)
class NearestProducts:
    """Labels of the nearest training products by title words, weighted exp(sharpness * cosine)."""

    neighbours: int
    sharpness: float

    def describe(self) -> str:
        """With its settings."""
        return f"TF-IDF nearest products ({self.neighbours}, sharpness {self.sharpness:g})"

    def scores(self, queries: csr_matrix, training: csr_matrix, relevance: csr_matrix) -> FloatArray:
        """Summed votes."""
        cosines = np.asarray((queries @ training.T).todense(), dtype=np.float32)
        count = min(self.neighbours, cosines.shape[1])
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        own = np.take_along_axis(cosines, nearest, 1)
        weights = np.exp(self.sharpness * (own - own.max(axis=1, keepdims=True)))
        rows = np.repeat(np.arange(len(cosines)), count)
        votes = csr_matrix((weights.ravel(), (rows, nearest.ravel())), shape=cosines.shape)
        return np.asarray((votes @ relevance).todense(), dtype=np.float32)


@dataclass(frozen=True)
class KernelRidge:
    """Ridge regression of relevance on title words, in its kernel form (Saunders et al. 1998)."""

    strength: float

    def describe(self) -> str:
        """With its settings."""
        return f"TF-IDF kernel ridge (strength {self.strength:g})"

    def scores(self, queries: csr_matrix, training: csr_matrix, relevance: csr_matrix) -> FloatArray:
        """K(queries, training) (K(training, training) + strength I)^-1 relevance."""
        kernel = np.asarray((training @ training.T).todense(), dtype=np.float32)
        kernel[np.diag_indices_from(kernel)] += np.float32(self.strength)
        weights = np.linalg.solve(kernel, np.asarray(relevance.todense(), dtype=np.float32))
        return np.asarray(queries @ training.T @ weights, dtype=np.float32)


FAMILIES: tuple[tuple[Baseline, ...], ...] = (
    (Popularity(),),
    tuple(NearestProducts(count, sharp) for count in (10, 30, 100) for sharp in (5.0, 10.0, 15.0, 25.0)),
    tuple(KernelRidge(strength) for strength in (0.3, 1.0, 3.0, 10.0)),
)


@dataclass(frozen=True)
class Problem:
    """What is fitted and what is scored, as matrices."""

    training: csr_matrix
    relevance: csr_matrix
    queries: csr_matrix
    forbidden: Relevance
    right: Relevance

    def ranking(self, baseline: Baseline) -> Int64Array:
        """(Q, 10) labels, best first, forbidden pairs left out, ties to the smaller label."""
        scores = baseline.scores(self.queries, self.training, self.relevance)
        rows, labels = self.forbidden.to_pairs()
        scores[rows, labels] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_DEPTH]
        return np.where(np.isfinite(np.take_along_axis(scores, order, 1)), order, -1).astype(np.int64)


def problem(
    catalogue: Catalogue, training: Int64Array, relevance: Relevance, products: Int64Array, right: Relevance
) -> Problem:
    """Fit on catalogue rows ``training`` with their relevance, score catalogue rows ``products`` with theirs."""
    words = fit_title_words([catalogue.products[int(row)].title for row in training])

    def matrix(rows: Int64Array) -> csr_matrix:
        own: SparseRows = words.rows([catalogue.products[int(row)].title for row in rows])
        return csr_matrix((own.weights, own.ids, own.indptr), shape=(len(own), len(words)))

    ones = np.ones(len(relevance.indices), dtype=np.float32)
    known = csr_matrix((ones, relevance.indices, relevance.indptr), shape=(len(training), relevance.label_count))
    forbidden = forbidden_pairs(catalogue).select(products)
    return Problem(matrix(training), known, matrix(products), forbidden, remove_from_relevance(right, forbidden))


def choose(catalogue: Catalogue, seed: int) -> list[Baseline]:
    """The best settings of every family (P@1 + P@5) on a part of the training products, fitted to the others."""
    train = catalogue.splits["train"]
    numbers = fold_numbers([catalogue.products[int(row)].title for row in train.products], _PARTS, seed)
    inside, outside = np.flatnonzero(numbers != 0), np.flatnonzero(numbers == 0)
    inner = problem(
        catalogue, train.products[inside], train.relevance.select(inside), train.products[outside],
        train.relevance.select(outside),
    )  # fmt: skip

    def worth(baseline: Baseline) -> float:
        figures = score_rows(inner.ranking(baseline), inner.right).values()
        return figures["P@1"] + figures["P@5"]

    return [family[0] if len(family) == 1 else max(family, key=worth) for family in FAMILIES]


def measure(folder: Path, split: str | None, against: Path | None, seed: int, bootstrap: Bootstrap) -> dict[str, Any]:
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
    outer = problem(catalogue, train.products, train.relevance, scored.products, scored.relevance)
    theirs: RowScores | None = None
    if against is not None:
        ranked = open_subject(against, threads=os.cpu_count() or 1).rank(catalogue, name, False, lambda *_: None)
        theirs = score_rows(ranked.allowed["fused"], outer.right)
    rows = []
    for baseline in choose(catalogue, seed):
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
            found = measure(folder, options.split, options.compare, options.seed, Bootstrap(seed=options.seed))
            results.append(found)
            print(table(found), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
