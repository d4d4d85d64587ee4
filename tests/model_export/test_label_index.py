"""The label index is exact while L is small, and the cheapest kind of measured recall beyond."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from model_export.index_kinds import APPROXIMATE_KINDS, get_effort
from model_export.label_index import IndexSettings, LabelIndex, build_index, write_index
from mufin.bundle import HEAD_FILE, INDEX_FILE, VECTORS_FILE
from mufin.errors import ConfigError
from mufin.inputs import FloatArray
from mufin.label_search import LabelSearch
from mufin.label_vectors import VECTOR_UNIT
from mufin.scoring import l2_normalise

LABELS, DIMENSION, SHORTLIST = 3000, 24, 50


def clustered() -> FloatArray:
    """Unit vectors in clusters."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((60, DIMENSION))
    return l2_normalise(
        (centres[random.integers(0, 60, LABELS)] + 0.4 * random.standard_normal((LABELS, DIMENSION))).astype(np.float32)
    )


@pytest.fixture(scope="module")
def embeddings() -> FloatArray:
    """The same for all tests."""
    return clustered()


@pytest.fixture(scope="module")
def frequency() -> Any:
    """Labels 0..9 are frequent."""
    return np.where(np.arange(LABELS) < 10, 5000, 1)


def build(kind: str, embeddings: FloatArray, frequency: Any, **settings: Any) -> LabelIndex:
    """One kind, above the threshold."""
    return build_index(embeddings, frequency, SHORTLIST, IndexSettings(exact_labels=1000, kinds=(kind,), **settings))


def test_small_label_sets_are_searched_exactly(embeddings: FloatArray) -> None:
    """No head list is needed then, and nothing beside the index."""
    found = build_index(embeddings, np.full(LABELS, 5000), SHORTLIST, IndexSettings())
    assert (found.kind, found.recall, len(found.head_labels), found.curve) == ("exact", 1.0, 0, ())


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
@pytest.mark.parametrize("target", [0.9, 0.97])
def test_the_recorded_recall_is_the_measured_one(
    kind: str, target: float, embeddings: FloatArray, frequency: Any
) -> None:
    """On queries of another seed the index reaches the target within three points, by comparison with all labels."""
    found = build(kind, embeddings, frequency, target_recall=target)
    assert found.kind == kind
    chosen = [point for point in found.curve if point["recall"] == round(found.recall, 5)]
    assert found.recall >= target
    effort = get_effort(found.index, APPROXIMATE_KINDS[kind])
    own = {"kind": kind, "nprobe" if "ivf" in kind else "efSearch": effort, "candidates": found.candidates}
    assert own in [point["parameters"] for point in chosen]
    assert found.head_labels.tolist() == list(range(10))
    random = np.random.default_rng(77)
    queries = l2_normalise(embeddings[100:300] + 0.1 * random.standard_normal((200, DIMENSION)).astype(np.float32))
    search = LabelSearch(found.index, kind, embeddings, head=found.head_labels, candidates=found.candidates)
    labels, _ = search.search(queries, SHORTLIST)
    scores = queries @ embeddings.T
    worst = -np.sort(-scores, axis=1)[:, SHORTLIST - 1]
    right = np.take_along_axis(scores, labels, 1) >= worst[:, None] - 1e-6
    assert right.mean() >= target - 0.03


def test_the_cheapest_kind_by_its_work_is_chosen(embeddings: FloatArray, frequency: Any) -> None:
    """Kinds are compared on a sample and recorded; the first by estimated cost is built over all labels."""
    settings = IndexSettings(exact_labels=1000, sample_labels=2000)
    found = build_index(embeddings, frequency, SHORTLIST, settings)
    assert [point["parameters"]["kind"] for point in found.compared] == list(APPROXIMATE_KINDS)
    estimates = {point["parameters"]["kind"]: point["estimated_ms"] for point in found.compared}
    assert found.kind == min(estimates, key=lambda kind: estimates[kind])
    assert found.index.ntotal == LABELS
    assert {point["parameters"]["kind"] for point in found.curve} == {found.kind}


def test_a_kind_that_misses_the_target_is_not_chosen() -> None:
    """A target that one bit a number cannot reach on these labels is reached by eight."""
    random = np.random.default_rng(0)
    crowd = l2_normalise((1 + 0.3 * random.standard_normal((2000, 16))).astype(np.float32))
    settings = IndexSettings(exact_labels=100, target_recall=0.99, kinds=("ivf-rabitq", "ivf-sq8"))
    found = build_index(crowd, np.ones(2000, np.int64), 20, settings)
    assert found.kind == "ivf-sq8"
    assert found.recall >= 0.99
    assert "estimated_ms" not in found.compared[0], "it met the target"


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
def test_building_twice_writes_equal_bytes(kind: str, embeddings: FloatArray, frequency: Any, tmp_path: Path) -> None:
    """Effort, head labels and vectors are stored; the number of threads changes nothing."""
    for threads in (1, 2):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_index(folder, build(kind, embeddings, frequency, threads=threads))
    for name in (INDEX_FILE, HEAD_FILE, VECTORS_FILE):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    stored: Any = faiss.read_index(str(tmp_path / "1" / INDEX_FILE))
    found = build(kind, embeddings, frequency)
    assert get_effort(stored, APPROXIMATE_KINDS[kind]) == get_effort(found.index, APPROXIMATE_KINDS[kind])


def test_two_processes_choose_and_write_alike(tmp_path: Path) -> None:
    """The whole choice in two fresh interpreters with different numbers of threads: nothing depends on the clock."""
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from tests.model_export.test_label_index import clustered, SHORTLIST\n"
        "from model_export.label_index import IndexSettings, build_index, write_index\n"
        "found = build_index(clustered(), np.ones(3000, np.int64), SHORTLIST, IndexSettings(exact_labels=1000))\n"
        "write_index(Path(sys.argv[1]), found)\n"
        "print(found.kind, found.candidates, found.recall)\n"
    )
    said = []
    for threads in ("1", "2"):
        (tmp_path / threads).mkdir()
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / threads)],
            env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.append(run.stdout)
    assert said[0] == said[1]
    for name in (INDEX_FILE, HEAD_FILE, VECTORS_FILE):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_embeddings_may_be_a_map(embeddings: FloatArray, frequency: Any, tmp_path: Path) -> None:
    """Read-only, as an export hands them over: the same index, and vectors within half a unit."""
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    for name, own in (("map", mapped), ("array", embeddings)):
        (tmp_path / name).mkdir()
        write_index(tmp_path / name, build("ivf-sq8", own, frequency))
    for name in (INDEX_FILE, VECTORS_FILE):
        assert (tmp_path / "map" / name).read_bytes() == (tmp_path / "array" / name).read_bytes()
    stored = np.load(tmp_path / "map" / VECTORS_FILE)
    assert np.abs(stored / VECTOR_UNIT - embeddings).max() <= 0.51 / VECTOR_UNIT


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
def test_an_unreachable_target_is_refused_with_the_figures(kind: str) -> None:
    """Hundreds of nearly equal labels among a few others defeat 8 bits; the error names recall, target and remedy."""
    random = np.random.default_rng(0)
    crowd = l2_normalise((1 + 1e-4 * random.standard_normal((2000, 8))).astype(np.float32))
    crowd[::100] = l2_normalise(random.standard_normal((20, 8)).astype(np.float32))
    settings = IndexSettings(exact_labels=100, target_recall=1.0, kinds=(kind,))
    with pytest.raises(
        ConfigError,
        match=rf"{kind} finds 0\.\d+ .*the target is 1\.0: lower target_recall, or raise exact_labels to 2000",
    ):
        build_index(crowd, np.ones(2000, np.int64), 20, settings)


def test_limits_are_kept_and_named(embeddings: FloatArray, frequency: Any) -> None:
    """Kinds beyond a limit are not built; when none is left the error says what each would take."""
    small = build_index(embeddings, frequency, SHORTLIST, IndexSettings(exact_labels=1000, max_bytes_a_label=60))
    assert [point["parameters"]["kind"] for point in small.compared] == ["ivf-sq8", "ivf-pq", "ivf-rabitq"]
    with pytest.raises(ConfigError, match=r"hnsw-sq8 takes \d+ bytes a label, max_bytes_a_label is 10; ivf-sq8 takes"):
        build_index(embeddings, frequency, SHORTLIST, IndexSettings(exact_labels=1000, max_bytes_a_label=10))
    slow = IndexSettings(exact_labels=1000, max_build_seconds=1e-3, kinds=("hnsw-sq8",))
    with pytest.raises(ConfigError, match=r"hnsw-sq8 takes some \d+ s, max_build_seconds is 0.001"):
        build_index(embeddings, frequency, SHORTLIST, slow)
    odd = np.ascontiguousarray(embeddings[:, :23])
    with pytest.raises(ConfigError, match="ivf-pq needs a dimension divisible by 8, it is 23"):
        build_index(odd, frequency, SHORTLIST, IndexSettings(exact_labels=1000, kinds=("ivf-pq",)))


@pytest.mark.parametrize("kind", APPROXIMATE_KINDS)
def test_what_an_index_takes_is_known_beforehand(kind: str, embeddings: FloatArray, frequency: Any) -> None:
    """The estimate that the limit is compared with lies within a half of the bytes written."""
    found = build(kind, embeddings, frequency)
    written = len(faiss.serialize_index(found.index)) / LABELS
    assert APPROXIMATE_KINDS[kind].bytes_a_label(LABELS, DIMENSION) == pytest.approx(written, rel=0.5)


def test_the_curve_is_plain_json(embeddings: FloatArray, frequency: Any) -> None:
    """Parameters, recall and milliseconds of every point tried, for the report."""
    found = build("ivf-pq", embeddings, frequency)
    for point in json.loads(json.dumps(found.curve)):
        assert set(point) == {"parameters", "recall", "ms"}
        assert 0 < point["recall"] <= 1
        assert point["ms"] > 0


@pytest.mark.parametrize(
    "values",
    [
        {"target_recall": 0.0}, {"target_recall": 1.5}, {"exact_labels": -1}, {"kinds": ()}, {"kinds": ("annoy",)},
        {"max_bytes_a_label": 0}, {"max_build_seconds": 0.0}, {"sample_labels": 0}, {"threads": -1},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    """At construction, naming the value."""
    with pytest.raises(ConfigError, match=next(iter(values))):
        IndexSettings(**values)
