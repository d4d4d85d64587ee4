"""Run by an interpreter that has libpecos: fit XR-Linear on a folder's matrices and score its queries.

    python xr_linear_worker.py FOLDER COST DEPTH

FOLDER holds training.npz (N, V), relevance.npz (N, L) and queries.npz (Q, V); scores.npz (Q, L) is written there.
"""

import sys
from pathlib import Path

import scipy.sparse as sparse
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear.model import XLinearModel


def main() -> None:
    """Fit and score; every label without a training product keeps score 0."""
    folder, cost, depth = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    training, relevance, queries = (
        sparse.csr_matrix(sparse.load_npz(folder / f"{name}.npz"), dtype="float32")
        for name in ("training", "relevance", "queries")
    )
    kept = relevance.sum(axis=0).A1.nonzero()[0]  # a label without products has no place in the tree
    known = sparse.csc_matrix(relevance[:, kept], dtype="float32")
    features = LabelEmbeddingFactory.create(known.tocsr(), training, method="pifa")
    tree = Indexer.gen(features, indexer_type="hierarchicalkmeans", max_leaf_size=100, seed=0)
    model = XLinearModel.train(training, known, C=tree, Cp=cost, Cn=cost, threshold=1e-3)
    found = sparse.coo_matrix(model.predict(queries, beam_size=50, only_topk=depth))
    scores = sparse.csr_matrix((found.data, (found.row, kept[found.col])), shape=(queries.shape[0], relevance.shape[1]))
    sparse.save_npz(folder / "scores.npz", scores)


main()
