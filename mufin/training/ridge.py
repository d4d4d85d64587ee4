"""Fitting the ridge classifiers of ``mufin.title_ridge``.

Kernel ridge regression (Saunders et al. 1998) with the mean of two cosines, of title words and of sentences, solved in
the dual and turned into one weight a word and a number of the sentence. Knows no network.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch

from mufin.inputs import FloatArray
from mufin.relevance import Relevance
from mufin.title_ridge import MOST_LABELS, MOST_PRODUCTS, TitleRidge, label_weights
from mufin.title_words import SparseRows
from mufin.vector_rows import VectorRows

PENALTY = 0.5
"""lambda, beside a kernel whose diagonal is 1; between .3 and 1 the real catalogues do alike."""
_LABELS_AT_ONCE = 512


def fit_title_ridge(
    words: SparseRows, sentences: FloatArray, vocabulary: int, relevance: Relevance
) -> TitleRidge | None:
    """Of N titles as words and as sentences (N, W), and what they are relevant to (N, L).

    None where there are more products or labels than it is made for.
    """
    count, labels = relevance.row_count, relevance.label_count
    if count > MOST_PRODUCTS or labels > MOST_LABELS:
        return None
    sparse = scipy.sparse.csr_matrix((words.weights, words.ids, words.indptr), shape=(count, vocabulary))
    kernel = 0.5 * (np.asarray((sparse @ sparse.T).todense(), dtype=np.float32) + sentences @ sentences.T)
    kernel[np.diag_indices(count)] += np.float32(PENALTY)
    inverted = labels > count // 2  # where it is faster, as measured: then a label costs little, which has few products
    solved = torch.linalg.cholesky(torch.from_numpy(kernel))
    del kernel  # 1.6 GB of the largest catalogue, as each of the two here
    if inverted:
        solved = torch.cholesky_inverse(solved).T  # symmetric, and LAPACK's order: SciPy would copy it for every block
    targets = scipy.sparse.csc_matrix(
        (np.ones(len(relevance.indices), dtype=np.float32), relevance.indices, relevance.indptr), shape=(labels, count)
    )  # CSR of (N, L), read as CSC of (L, N)
    columns = targets.tocsr()
    kept: list[SparseRows] = []
    dense = np.zeros((labels, sentences.shape[1]), dtype=np.float32)
    transposed = sparse.T.tocsr()
    for start in range(0, labels, _LABELS_AT_ONCE):
        block = slice(start, start + _LABELS_AT_ONCE)
        if inverted:
            dual = _transposed(0.5 * np.asarray(columns[block] @ solved.numpy(), dtype=np.float32))
        else:
            wanted = torch.from_numpy(columns[block].toarray().T.copy())
            dual = (0.5 * torch.cholesky_solve(wanted, solved)).contiguous().numpy()
        dense[block] = dual.T @ sentences
        kept.append(label_weights(_transposed(np.asarray(transposed @ dual))))
    return TitleRidge(_joined(kept), VectorRows.of(dense), vocabulary)


def _transposed(matrix: FloatArray) -> FloatArray:
    """Row by row in memory, as those want it who read it: torch copies by tiles, NumPy element by element."""
    found: FloatArray = torch.from_numpy(matrix).T.contiguous().numpy()
    return found


def _joined(parts: list[SparseRows]) -> SparseRows:
    offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
    indptr = [np.zeros(1, dtype=np.int64)]
    indptr += [part.indptr[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return SparseRows(
        np.concatenate(indptr), np.concatenate([p.ids for p in parts]), np.concatenate([p.weights for p in parts])
    )
