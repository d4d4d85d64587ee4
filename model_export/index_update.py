"""Further labels into an index that is there: the same kind, the same search effort, nothing built anew.

Knows no records and no text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from model_export.label_index import write_vectors
from mufin.bundle import INDEX_FILE, VECTORS_FILE, Bundle
from mufin.inputs import FloatArray
from mufin.label_search import EXACT

# FAISS's own stubs know neither its numpy overloads nor its search parameters.
faiss: Any = _faiss


def extend_index(bundle: Bundle, folder: Path, embeddings: FloatArray) -> None:
    """Write the bundle's index with (n, D) unit-length embeddings behind its own, and their vectors beside it.

    On one thread: several insert in an order that differs from run to run.
    """
    index = faiss.read_index(str(bundle.path(INDEX_FILE)))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(np.ascontiguousarray(embeddings, dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(folder / INDEX_FILE))
    if bundle.manifest.sizes.index != EXACT:
        old = np.load(bundle.path(VECTORS_FILE), mmap_mode="r", allow_pickle=False)
        write_vectors(folder / VECTORS_FILE, embeddings, old)
