"""A title's words as one dense vector: latent semantic analysis of its tokens and token pairs, inside the network.

A pretrained encoder knows what words mean, and blurs which words stand there; brand and type names decide which
products go together. This vector keeps them. Knows no loss and no catalogue.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from scipy.linalg import solve_triangular
from torch import Tensor, nn

from mufin.inputs import FloatArray, Int64Array

PAIR_BUCKETS = 1 << 20
"""Pairs of tokens share a table by hash; a known pair meets an unknown one in some 2 % of the cases."""
MOST_TERMS = 50_000
"""Tokens and pairs that have a vector: the most frequent ones."""
_LEAST = 2
_MOST_TITLES = 100_000
"""Titles that the vectors are fitted on at the most; a seeded sample of more."""
_HASH = 31_337
_OVERSAMPLING, _POWER_STEPS = 32, 3


class WordVectors(nn.Module):
    """Tokens (B, T) -> (B, R): the unit-length TF-IDF vector of the title's distinct terms times a fitted (terms, R).

    Terms are tokens and pairs of neighbours; one that was not fitted counts nothing. Without a fit every title is 0.
    """

    bucket_rows: Tensor
    table: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        # Tokens hash by themselves, pairs behind them: one table of rows serves both.
        self.register_buffer("bucket_rows", torch.zeros(2 * PAIR_BUCKETS, dtype=torch.int32))
        self.register_buffer("table", torch.zeros(1, width))
        self.register_buffer("squares", torch.zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, R), at most unit length."""
        rows = self.bucket_rows[term_buckets(input_ids, attention_mask)].to(torch.int64)
        place = torch.arange(rows.shape[1], device=rows.device)
        earlier = (rows[:, :, None] == rows[:, None, :]) & (place[None, :, None] > place[None, None, :])
        once = rows * (earlier.to(torch.int64).sum(dim=2) == 0).to(torch.int64)  # a repeat becomes row 0, nothing
        length = self.squares[once].sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        return self.table[once].sum(dim=1) / length

    def load_fit(self, bucket_rows: Tensor, table: Tensor, squares: Tensor) -> None:
        """Take over what ``fit_word_vectors`` found."""
        device = self.table.device
        self.bucket_rows, self.table, self.squares = bucket_rows.to(device), table.to(device), squares.to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("table", "squares"):  # as many rows as were fitted
            if prefix + name in state_dict:
                own = getattr(self, name)
                rows = len(state_dict[prefix + name])
                setattr(self, name, torch.empty((rows, *own.shape[1:]), dtype=own.dtype, device=own.device))
        cast(Any, super())._load_from_state_dict(state_dict, prefix, *rest)


def term_buckets(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T), (B, T) -> (B, 2 T - 1) buckets of tokens and of pairs; bucket 0 where there is none.

    The first and the last token of a title are [CLS] and [SEP]: a pair with one of them says how a title begins or ends.
    """
    present = attention_mask.to(torch.int64)
    single = (input_ids % (PAIR_BUCKETS - 1) + 1) * present
    pairs = (input_ids[:, :-1] * _HASH + input_ids[:, 1:]) % (PAIR_BUCKETS - 1) + 1 + PAIR_BUCKETS
    return torch.cat([single, pairs * present[:, 1:]], dim=1)


def fit_word_vectors(
    token_ids: Int64Array, token_counts: Int64Array, width: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit on N titles (N, T), padded, with (N,) tokens each: rows of buckets, (terms + 1, R), squared idf (terms + 1,).

    Truncated SVD of the TF-IDF matrix (Deerwester et al. 1990). Small catalogues may have less than R directions: the
    rest stays 0. Deterministic for a seed on one machine.
    """
    random = np.random.default_rng([seed, 7])
    chosen = np.arange(len(token_counts))
    if len(chosen) > _MOST_TITLES:
        chosen = np.sort(random.choice(len(chosen), _MOST_TITLES, replace=False))
    ids = torch.from_numpy(np.asarray(token_ids[chosen], dtype=np.int64))
    mask = (torch.arange(ids.shape[1])[None] < torch.from_numpy(token_counts[chosen])[:, None]).to(torch.int64)
    buckets = term_buckets(ids, mask).numpy()
    rows = np.repeat(np.arange(len(buckets)), buckets.shape[1])
    counts = scipy.sparse.csr_matrix(
        (np.ones(buckets.size, dtype=np.float32), (rows, buckets.ravel())), shape=(len(buckets), 2 * PAIR_BUCKETS)
    )
    frequency = np.bincount(counts.indices, minlength=2 * PAIR_BUCKETS)
    frequency[0] = 0
    # [CLS] and [SEP] stand in every title and tell none from another.
    known = np.flatnonzero((frequency >= _LEAST) & (frequency < len(chosen)))
    known = np.sort(known[np.lexsort((known, -frequency[known]))[:MOST_TERMS]])
    idf = np.log((1.0 + len(chosen)) / (1.0 + frequency[known])) + 1.0
    once = scipy.sparse.csr_matrix(counts[:, known])
    once.data[:] = 1.0
    matrix = once @ scipy.sparse.diags(idf.astype(np.float32))
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel()
    matrix = scipy.sparse.csr_matrix(scipy.sparse.diags(1.0 / np.maximum(length, 1e-9)) @ matrix)
    table = np.zeros((len(known) + 1, width), dtype=np.float32)
    directions = min(width, min(matrix.shape) - 1)
    if directions >= 1:
        table[1:, :directions] = _right_singular_vectors(matrix, directions, random) * idf[:, None]
    bucket_rows = np.zeros(2 * PAIR_BUCKETS, dtype=np.int32)
    bucket_rows[known] = np.arange(1, len(known) + 1)
    squares = np.concatenate([[0.0], idf * idf]).astype(np.float32)
    return torch.from_numpy(bucket_rows), torch.from_numpy(table), torch.from_numpy(squares)


def _right_singular_vectors(
    matrix: scipy.sparse.csr_matrix[Any], count: int, random: np.random.Generator
) -> FloatArray:
    """(V, count), the leading ones first, by subspace iteration from a random start (Halko et al. 2011)."""
    width = min(count + _OVERSAMPLING, *matrix.shape)
    transposed = scipy.sparse.csr_matrix(matrix.T)
    space = _orthonormal(np.asarray(matrix @ random.standard_normal((matrix.shape[1], width)).astype(np.float32)))
    for _ in range(_POWER_STEPS):
        space = _orthonormal(np.asarray(matrix @ _orthonormal(np.asarray(transposed @ space))))
    projected = np.asarray(transposed @ space)
    strengths, rotation = np.linalg.eigh((projected.T @ projected).astype(np.float64))
    leading = np.argsort(-strengths)[:count]
    scale = np.sqrt(np.maximum(strengths[leading], 1e-12))
    return np.asarray(projected @ (rotation[:, leading] / scale), dtype=np.float32)


def _orthonormal(columns: FloatArray) -> FloatArray:
    """By the Cholesky factor of the Gram matrix, some ten times as fast as QR; QR where columns depend on each other."""
    own = columns.astype(np.float64)
    gram = own.T @ own
    try:
        factor = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.qr(columns)[0], dtype=np.float32)
    return np.asarray(solve_triangular(factor, own.T, lower=True).T, dtype=np.float32)
