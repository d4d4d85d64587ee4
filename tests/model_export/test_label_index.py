"""The label index is exact while L is small, and of measured recall beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from model_export.label_index import IndexSettings, LabelIndex, build_index, write_index
from mufin.bundle import HEAD_FILE, INDEX_FILE
from mufin.errors import ConfigError
from mufin.inputs import FloatArray
from mufin.scoring import l2_normalise

LABELS, DIMENSION, SHORTLIST = 3000, 24, 50


@pytest.fixture(scope="module")
def embeddings() -> FloatArray:
    """Clustered unit vectors."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((60, DIMENSION))
    return l2_normalise(
        (centres[random.integers(0, 60, LABELS)] + 0.4 * random.standard_normal((LABELS, DIMENSION))).astype(np.float32)
    )


@pytest.fixture(scope="module")
def approximate(embeddings: FloatArray) -> LabelIndex:
    """Above the threshold; labels 0..9 are frequent."""
    frequency = np.where(np.arange(LABELS) < 10, 5000, 1)
    return build_index(embeddings, frequency, SHORTLIST, IndexSettings(exact_labels=1000))


def test_small_label_sets_are_searched_exactly(embeddings: FloatArray) -> None:
    """No head list is needed then."""
    found = build_index(embeddings, np.full(LABELS, 5000), SHORTLIST, IndexSettings())
    assert (found.kind, found.recall, len(found.head_labels)) == ("exact", 1.0, 0)


def test_the_recorded_recall_is_the_measured_one(approximate: LabelIndex, embeddings: FloatArray) -> None:
    """On queries of another seed the index reaches the target, within three points."""
    assert approximate.kind == "hnsw-sq8"
    assert approximate.recall == approximate.curve[-1][1] >= 0.95
    assert approximate.head_labels.tolist() == list(range(10))
    random = np.random.default_rng(77)
    queries = l2_normalise(embeddings[:100] + 0.1 * random.standard_normal((100, DIMENSION)).astype(np.float32))
    scores = queries @ embeddings.T
    worst = -np.sort(-scores, axis=1)[:, SHORTLIST - 1]
    _, labels = approximate.index.search(queries, SHORTLIST)
    right = np.take_along_axis(scores, labels, 1) >= worst[:, None] - 1e-6
    assert right.mean() >= 0.92


def test_building_twice_writes_equal_bytes(approximate: LabelIndex, embeddings: FloatArray, tmp_path: Path) -> None:
    """The graph is built by one thread with fixed seeds; effort and head labels are stored."""
    frequency = np.where(np.arange(LABELS) < 10, 5000, 1)
    again = build_index(embeddings, frequency, SHORTLIST, IndexSettings(exact_labels=1000))
    for folder, index in ((tmp_path / "a", approximate), (tmp_path / "b", again)):
        folder.mkdir()
        write_index(folder, index)
    for name in (INDEX_FILE, HEAD_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    stored: Any = faiss.read_index(str(tmp_path / "a" / INDEX_FILE))
    assert stored.hnsw.efSearch == approximate.curve[-1][0]


def test_an_unreachable_target_is_refused_with_the_figures() -> None:
    """Hundreds of nearly equal labels defeat 8 bits; the error names recall, target and remedy."""
    random = np.random.default_rng(0)
    crowd = l2_normalise((1 + 1e-4 * random.standard_normal((2000, 8))).astype(np.float32))
    with pytest.raises(ConfigError, match=r"the target is 1\.0: lower target_recall, or raise exact_labels to 2000"):
        build_index(crowd, np.ones(2000, np.int64), 20, IndexSettings(exact_labels=100, target_recall=1.0))


@pytest.mark.parametrize("values", [{"target_recall": 0.0}, {"target_recall": 1.5}, {"exact_labels": -1}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    """At construction, naming the value."""
    with pytest.raises(ConfigError, match=next(iter(values))):
        IndexSettings(**values)  # type: ignore[arg-type]
