"""Word vectors: TF-IDF of distinct tokens and pairs, reduced; the same in torch, in a state dict and in ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mufin.training.word_vectors import WordVectors, fit_word_vectors, term_buckets

CLS, SEP = 2, 3


def titles(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids with [CLS] and [SEP], padded, and their mask."""
    longest = max(len(r) for r in rows) + 2
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(rows):
        ids[row, : len(own) + 2] = torch.tensor([CLS, *own, SEP])
        mask[row, : len(own) + 2] = 1
    return ids, mask


def fitted(width: int = 64) -> tuple[WordVectors, torch.Tensor, torch.Tensor]:
    """On 40 titles of few words."""
    random = np.random.default_rng(0)
    ids, mask = titles([random.integers(10, 30, size=random.integers(2, 7)).tolist() for _ in range(40)])
    words = WordVectors(width)
    words.load_fit(*fit_word_vectors(ids.numpy(), mask.sum(dim=1).numpy(), width, seed=1))
    return words.eval(), ids, mask


def test_with_enough_directions_products_are_tfidf_cosines() -> None:
    """Nothing is lost where R reaches the rank: the Gram matrix is that of TF-IDF, term by term."""
    words, ids, mask = fitted(64)
    buckets = term_buckets(ids, mask).numpy()
    sets = [set(row[row > 0].tolist()) for row in buckets]
    frequency = {term: sum(term in own for own in sets) for term in set().union(*sets)}
    known = sorted(term for term, n in frequency.items() if 2 <= n < 40)
    dense = np.zeros((40, len(known)))
    for row, own in enumerate(sets):
        for column, term in enumerate(known):
            if term in own:
                dense[row, column] = np.log(41 / (1 + frequency[term])) + 1
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    found = words(ids, mask).numpy()
    np.testing.assert_allclose(found @ found.T, dense @ dense.T, atol=0.05)
    assert np.abs(found @ found.T - dense @ dense.T).mean() < 0.005


def test_padding_repeats_and_company_change_nothing() -> None:
    """A title alone is the same as in a batch of longer ones; a word said twice counts once."""
    words, _, _ = fitted()
    alone = words(*titles([[11, 12, 13]]))
    batch = words(*titles([[11, 12, 13], [10, 11, 12, 13, 14, 15, 16, 17]]))
    torch.testing.assert_close(alone[0], batch[0])
    repeated = words(*titles([[11, 11]]))
    assert float(repeated.norm()) <= 1.0001


def test_small_catalogues_fill_the_rest_with_zeros() -> None:
    """Forty titles have no more than 39 directions; unknown words none at all."""
    words, ids, mask = fitted(64)
    found = words(ids, mask)
    assert found.shape == (40, 64) and not found[:, 40:].any() and found[:, :5].any()
    assert not words(*titles([[5000, 6000]])).any()


def test_without_a_fit_it_is_silent_and_a_saved_fit_comes_back() -> None:
    """A new module takes as many rows as were saved."""
    words, ids, mask = fitted(16)
    fresh = WordVectors(16)
    assert not fresh(ids, mask).any()
    fresh.load_state_dict(words.state_dict())
    torch.testing.assert_close(fresh(ids, mask), words(ids, mask), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        WordVectors(8).load_state_dict(words.state_dict())
