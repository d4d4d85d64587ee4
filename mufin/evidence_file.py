"""evidence.npz: evidence as arrays.

Knows how it is laid out and checks that it fits; what is made of it stands in ``mufin.evidence``.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.errors import BundleError
from mufin.evidence import Evidence, ProductLists
from mufin.inputs import FloatArray, Int64Array
from mufin.label_filters import write_arrays
from mufin.related_labels import LabelNeighbours, RelatedLabels
from mufin.relevance import Relevance
from mufin.title_ridge import TitleRidge
from mufin.title_words import SparseRows, TitleWords
from mufin.vector_lists import VectorLists
from mufin.vector_rows import VectorRows

EVIDENCE_FILE = "evidence.npz"


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence.npz. Vectors and ridge weights are kept as float16, which moves a cosine by some 1e-4."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "words": evidence.words.pack(), "idf": evidence.words.idf,
        "products": evidence.products.values, "sentences": evidence.sentences.values,
        "label_sentences": evidence.label_sentences.values,
        "relevance_indptr": evidence.relevance.indptr, "relevance_indices": evidence.relevance.indices.astype(np.int32),
        "labels": np.asarray(evidence.relevance.label_count, dtype=np.int64),
    }  # fmt: skip
    tables = [("product_words", evidence.product_words), ("label_words", evidence.label_words)]
    if evidence.ridge is not None:
        arrays["ridge_sentences"] = evidence.ridge.sentences.values
        tables.append(("ridge_words", evidence.ridge.words))
    if evidence.related is not None:
        for name, own in (("like", evidence.related.like), ("companions", evidence.related.companions)):
            arrays |= {f"{name}_labels": own.labels.astype(np.int32), f"{name}_weights": own.weights}
    if evidence.lists is not None:
        arrays |= _packed("embedding", evidence.lists.by_embedding)
        arrays |= _packed("sentence", evidence.lists.by_sentence)
    for name, rows in tables:
        arrays |= {f"{name}_indptr": rows.indptr, f"{name}_ids": rows.ids.astype(np.int32)}
        arrays[f"{name}_weights"] = rows.weights.astype(np.float16 if name == "ridge_words" else np.float32)
    write_arrays(path, arrays)


def _packed(name: str, lists: VectorLists) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{name}_centres": lists.centres.values, f"{name}_first": lists.first,
        f"{name}_rows": lists.rows.astype(np.int32), f"{name}_probes": np.asarray(lists.probes, dtype=np.int64),
    }  # fmt: skip


def read_evidence(path: Path, dimension: int, labels: int) -> Evidence:
    """Read evidence.npz of a bundle with (L,) ``labels``, at least as many as it had when trained.

    Raises BundleError naming both values when it cannot be read or does not belong to the bundle.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known = int(arrays["labels"])
            if known > labels or arrays["products"].shape[1] != dimension:
                raise BundleError(
                    f"{path}: is of {known} labels and dimension {arrays['products'].shape[1]}, the bundle has "
                    f"{labels} and {dimension}: export again"
                )
            indices = arrays["relevance_indices"].astype(np.int64)
            relevance = Relevance(_pointers(path, arrays, "relevance_indptr", len(indices)), indices, labels)
            if len(indices) and (indices.min() < 0 or indices.max() >= known):
                raise BundleError(f"{path}: names label {indices.max()}, it was made for {known}: export again")
            words = TitleWords.unpack(arrays["words"], arrays["idf"])
            ridge = None
            if "ridge_sentences" in arrays:
                ridge = TitleRidge(
                    _rows(path, arrays, "ridge_words"), VectorRows.of(arrays["ridge_sentences"]), len(words)
                )
            related = None
            if "like_labels" in arrays:
                related = RelatedLabels(_neighbours(arrays, "like"), _neighbours(arrays, "companions"))
            lists = None
            if "embedding_rows" in arrays:
                lists = ProductLists(_lists(arrays, "embedding"), _lists(arrays, "sentence"))
            found = Evidence(
                words, VectorRows.of(arrays["products"]), relevance, _rows(path, arrays, "product_words"),
                _rows(path, arrays, "label_words"), VectorRows.of(arrays["sentences"]),
                VectorRows.of(arrays["label_sentences"]),
                ridge, related, lists,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read ({error}): export again") from error
    _check(path, found, known)
    return found


def _rows(path: Path, arrays: Any, name: str) -> SparseRows:
    ids, weights = arrays[f"{name}_ids"].astype(np.int64), arrays[f"{name}_weights"].astype(np.float32)
    if ids.shape != weights.shape or ids.ndim != 1:
        raise BundleError(f"{path}: {name} has ids of shape {ids.shape}, weights of {weights.shape}: export again")
    return SparseRows(_pointers(path, arrays, f"{name}_indptr", len(ids)), ids, weights)


def _pointers(path: Path, arrays: Any, name: str, entries: int) -> Int64Array:
    """Where each row begins among so many entries; compiled code reads wherever they point."""
    found = arrays[name]
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise BundleError(
            f"{path}: {name} holds {found.dtype} of shape {found.shape}, needs a row of integers: export again"
        )
    own: Int64Array = found.astype(np.int64)
    if own[0] != 0 or own[-1] != entries or (own[1:] < own[:-1]).any():
        raise BundleError(
            f"{path}: {name} runs from {own[0]} to {own[-1]} with values of {own.min()} to {own.max()} between, needs to "
            f"rise from 0 to {entries}: export again"
        )
    return own


def _neighbours(arrays: Any, name: str) -> LabelNeighbours:
    return LabelNeighbours(arrays[f"{name}_labels"].astype(np.int64), _floats(arrays[f"{name}_weights"]))


def _lists(arrays: Any, name: str) -> VectorLists:
    first, rows = arrays[f"{name}_first"].astype(np.int64), arrays[f"{name}_rows"].astype(np.int64)
    return VectorLists(VectorRows.of(arrays[f"{name}_centres"]), first, rows, int(arrays[f"{name}_probes"]))


def _floats(array: npt.NDArray[Any]) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _check(path: Path, found: Evidence, known: int) -> None:
    products = [len(found.products), found.relevance.row_count, len(found.product_words), len(found.sentences)]
    labels = [len(found.label_words), len(found.label_sentences)]
    if found.ridge is not None:
        labels += [len(found.ridge.words), len(found.ridge.sentences)]
    beside = [] if found.related is None else [found.related.like, found.related.companions]
    labels += [len(own) for own in beside]
    if len(set(products)) > 1 or set(labels) != {known} or not products[0]:
        raise BundleError(
            f"{path}: has {products[0]} embeddings, {products[1]} rows of relevance, {products[2]} product titles and "
            f"{products[3]} sentences, and {labels} rows of {known} labels: export again"
        )
    for own in beside:
        lowest, highest = int(own.labels.min(initial=0)), int(own.labels.max(initial=0))
        if own.labels.shape != own.weights.shape or lowest < 0 or highest >= known:
            raise BundleError(
                f"{path}: has neighbours {lowest} to {highest} of {known} labels, {own.labels.shape} of them with "
                f"{own.weights.shape} weights: export again"
            )
    if found.lists is not None:
        _check_lists(path, found.lists.by_embedding, found.products)
        _check_lists(path, found.lists.by_sentence, found.sentences)
    widths = [found.sentences.dimension, found.label_sentences.dimension]
    tables = [found.product_words, found.label_words]
    if found.ridge is not None:
        widths.append(found.ridge.sentences.dimension)
        tables.append(found.ridge.words)
    if len(set(widths)) > 1:
        raise BundleError(f"{path}: sentences have {widths} numbers: export again")
    for rows in tables:
        lowest, highest = int(rows.ids.min(initial=0)), int(rows.ids.max(initial=-1))
        if lowest < 0 or highest >= len(found.words):
            raise BundleError(f"{path}: names words {lowest} to {highest} of {len(found.words)}: export again")


def _check_lists(path: Path, lists: VectorLists, vectors: VectorRows) -> None:
    """Each vector stands in one list; compiled code reads wherever a list tells it to."""
    whole = len(lists.first) == len(lists.centres) + 1 and lists.first[0] == 0 and lists.first[-1] == len(lists.rows)
    if (
        not whole or (np.diff(lists.first) < 0).any() or lists.centres.dimension != vectors.dimension
        or not np.array_equal(np.sort(lists.rows), np.arange(len(vectors))) or not 1 <= lists.probes <= len(lists.centres)
    ):  # fmt: skip
        raise BundleError(
            f"{path}: has {len(lists.rows)} entries in {len(lists.centres)} lists of dimension {lists.centres.dimension}, "
            f"{lists.probes} of them looked at, for {len(vectors)} vectors of dimension {vectors.dimension}: export again"
        )


def stored(evidence: Evidence) -> Evidence:
    """As it would be read back: what float16 makes of it, so that training and serving see the same numbers."""

    def half(array: FloatArray) -> FloatArray:
        return array.astype(np.float16).astype(np.float32)

    ridge = evidence.ridge
    if ridge is not None:
        ridge = replace(ridge, words=replace(ridge.words, weights=half(ridge.words.weights)))
    return replace(evidence, ridge=ridge)
