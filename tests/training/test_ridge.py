"""Ridge classifiers: the primal form scores as the dual does, and large catalogues go without."""

from __future__ import annotations

import numpy as np
import pytest

from mufin.relevance import Relevance
from mufin.scoring import l2_normalise
from mufin.title_words import fit_title_words
from mufin.training import ridge as ridge_module
from mufin.training.ridge import PENALTY, fit_title_ridge

N, W = 60, 5


@pytest.mark.parametrize("labels", [9, 45])
def test_it_scores_as_kernel_ridge_regression_does(labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against numpy's dual on dense kernels, for titles never seen, over several blocks of labels: few and many of them,
    which are solved for in two ways."""
    monkeypatch.setattr(ridge_module, "_LABELS_AT_ONCE", 4)
    random = np.random.default_rng(2)
    titles = [f"kind{i % 7} colour{i % 5} size{i % 3}" for i in range(N + 5)]
    words = fit_title_words(titles[:N])
    rows = words.rows(titles)
    dense = np.zeros((N + 5, len(words)))
    for i in range(N + 5):
        dense[i, rows.row(i).ids] = rows.row(i).weights
    sentences = l2_normalise(random.normal(size=(N + 5, W)).astype(np.float32))
    relevance = Relevance.from_pairs(np.arange(2 * N) // 2, random.integers(0, labels, 2 * N), N, labels)
    targets = np.zeros((N, labels))
    targets[np.repeat(np.arange(N), relevance.row_sizes()), relevance.indices] = 1
    kernel = 0.5 * (dense @ dense[:N].T + sentences @ sentences[:N].T)
    expected = kernel[N:] @ np.linalg.solve(kernel[:N] + PENALTY * np.eye(N), targets)
    fitted = fit_title_ridge(rows.select(np.arange(N)), sentences[:N], len(words), relevance)
    assert fitted is not None
    found = fitted.scores([rows.row(N + i) for i in range(5)], sentences[N:])
    rounding = np.abs(sentences[N:]) @ np.abs(fitted.sentences.wide).T * 2.0**-11  # they are kept as float16
    assert (np.abs(found - expected) <= 1e-4 + rounding).all()


@pytest.mark.parametrize("limit", ["MOST_PRODUCTS", "MOST_LABELS"])
def test_a_large_catalogue_has_none(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dual would not fit, or a request would be scored against too many."""
    monkeypatch.setattr(ridge_module, limit, 3)
    titles = fit_title_words(["a b", "a c", "b c", "a b c"])
    relevance = Relevance.from_pairs(np.arange(4), np.arange(4), 4, 4)
    sentences = np.zeros((4, W), np.float32)
    rows = titles.rows(["a", "b", "c", "a b"])
    assert fit_title_ridge(rows, sentences, len(titles), relevance) is None
