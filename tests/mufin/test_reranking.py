"""Compiled reranking computes what numpy computes, for every number type, on any CPU and any file system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mufin.compilation import CPU_LEVELS, cpu_level
from mufin.compile_ahead import main
from mufin.errors import BundleError, ConfigError, InputError
from mufin.inputs import FloatArray
from mufin.label_records_file import RECORD_NUMBERS, RECORDS_FILE, RecordBlock, RecordFile, RecordNumber, RecordWriter
from mufin.predictor import open_predictor
from mufin.reranking import CompiledReranker, GatheredReranker, make_reranker
from mufin.scoring import CrossAttention, LabelRecords, classifier_scores, l2_normalise
from tests.bundle_factory import make_tiny_bundle

ROUNDING = 2e-6
"""Compiled against numpy on the same stored numbers: sums in another order."""

STORED: dict[RecordNumber, float] = {"float32": ROUNDING, "float16": 3e-3, "int8": 2e-2}
"""Against the numbers before they were stored: what mufin-export allows."""


def attention_of(dimension: int, random: np.random.Generator) -> CrossAttention:
    """Some cross attention, nothing in it at its start value."""
    return CrossAttention(
        query_matrix=(random.standard_normal((dimension, dimension)) / dimension).astype(np.float32),
        query_bias=(0.2 * random.standard_normal(dimension)).astype(np.float32),
        norm_weight=(1 + 0.2 * random.standard_normal(dimension)).astype(np.float32),
        norm_bias=(0.2 * random.standard_normal(dimension)).astype(np.float32),
    )


def block_of(count: int, dimension: int, slots: int, random: np.random.Generator) -> RecordBlock:
    """Labels with 1..M slots of unequal length, values off centre."""
    sizes = random.integers(1, slots + 1, count)
    bags = [np.asarray(random.standard_normal((m, dimension)) * random.uniform(0.3, 3), np.float32) for m in sizes]
    value = (random.standard_normal((dimension, dimension)) / dimension**0.5).astype(np.float32)
    values = [np.asarray(bag @ value + 0.5, dtype=np.float32) for bag in bags]
    classifiers = l2_normalise(random.standard_normal((count, dimension)).astype(np.float32))
    return RecordBlock(bags, values, classifiers, np.ones(count, dtype=np.bool_), "trained")


def record_file(folder: Path, block: RecordBlock, slots: int, number: RecordNumber) -> RecordFile:
    """``block`` as records.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder, block.classifiers.shape[1], slots, number) as writer:
        writer.append(block)
    return RecordFile(folder / RECORDS_FILE)


def unstored(block: RecordBlock, slots: int) -> LabelRecords:
    """``block`` as the reference takes it, before any number type."""
    count, dimension = block.classifiers.shape
    keys, values = (np.zeros((count, slots, dimension), dtype=np.float32) for _ in range(2))
    mask = np.zeros((count, slots), dtype=np.bool_)
    for row, (own_keys, own_values) in enumerate(zip(block.keys, block.values, strict=True)):
        keys[row, : len(own_keys)], values[row, : len(own_values)] = own_keys, own_values
        mask[row, : len(own_keys)] = True
    return LabelRecords(keys, values, mask, block.classifiers)


def product_of(size: int, dimension: int, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Slots (S, D) and embedding (D,)."""
    bag = random.standard_normal((size, dimension)).astype(np.float32)
    return bag, l2_normalise(bag.mean(axis=0))


@pytest.mark.parametrize("number", RECORD_NUMBERS)
@settings(max_examples=25)
@given(
    slots=st.integers(1, 6), size=st.integers(1, 7), dimension=st.sampled_from([4, 17, 33, 64]),
    count=st.integers(1, 12), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_scores_equal_the_reference(
    number: RecordNumber, slots: int, size: int, dimension: int, count: int, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Any bag sizes, masks and dimensions: numpy over the same stored numbers gives the same, with and without attention."""
    random = np.random.default_rng(seed)
    attention = attention_of(dimension, random)
    records = record_file(tmp_path_factory.mktemp("r"), block_of(count, dimension, slots, random), slots, number)
    bag, embedding = product_of(size, dimension, random)
    labels = random.integers(0, count, 2 * count)
    for own in (attention, None):
        [found] = CompiledReranker(records, own).rerank([bag], [embedding], [labels])
        [expected] = GatheredReranker(records.gather, own).rerank([bag], [embedding], [labels])
        np.testing.assert_allclose(found, expected, atol=ROUNDING)


@pytest.mark.parametrize("number", RECORD_NUMBERS)
@pytest.mark.parametrize("dimension", [16, 192, 768])
def test_stored_numbers_keep_the_scores(number: RecordNumber, dimension: int, tmp_path: Path) -> None:
    """Against the numbers before they were stored, within what an export allows."""
    random = np.random.default_rng(3)
    attention, block = attention_of(dimension, random), block_of(60, dimension, 6, random)
    reranker = CompiledReranker(record_file(tmp_path, block, 6, number), attention)
    bag, embedding = product_of(6, dimension, random)
    [found] = reranker.rerank([bag], [embedding], [np.arange(60)])
    expected = classifier_scores(attention, bag, unstored(block, 6))
    np.testing.assert_allclose(found, expected, atol=STORED[number])
    assert np.ptp(expected) > 0.05  # scores differ by more than is allowed


def test_int8_keeps_slots_of_very_different_length(tmp_path: Path) -> None:
    """A scale a row: a short slot beside one a thousand times as long keeps its digits."""
    random = np.random.default_rng(4)
    keys = random.standard_normal((2, 32)).astype(np.float32) * np.array([[1e-3], [1.0]], dtype=np.float32)
    block = RecordBlock([keys], [keys], l2_normalise(keys[1:]), np.ones(1, dtype=np.bool_), "trained")
    gathered = record_file(tmp_path, block, 2, "int8").gather(np.array([0]))
    for row in range(2):
        step = np.abs(keys[row]).max() / 127
        np.testing.assert_allclose(gathered.keys[0, row], keys[row], atol=0.51 * step)


def test_half_numbers_of_every_kind_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    """Largest, least normal, subnormal, zero and negative float16 through the compiled reader."""
    kinds = np.array([65504, 6.104e-5, 5.96e-8, 3e-6, 0, -3e-6, -1, 0.333], dtype=np.float16).astype(np.float32)
    block = RecordBlock([kinds[None]], [kinds[None]], kinds[None], np.ones(1, dtype=np.bool_), "trained")
    reranker = CompiledReranker(record_file(tmp_path, block, 1, "float16"), None)
    axes = np.eye(len(kinds), dtype=np.float32)
    found = reranker.rerank(list(axes[:, None]), list(axes), [np.array([0])] * len(kinds))
    assert [float(own[0]) for own in found] == kinds.tolist()


@pytest.mark.parametrize("number", RECORD_NUMBERS)
@pytest.mark.parametrize("attended", [True, False])
def test_company_changes_no_score(number: RecordNumber, attended: bool, tmp_path: Path) -> None:
    """A batch of products of all bag sizes, one without labels, equals each alone to the last bit."""
    random = np.random.default_rng(5)
    attention = attention_of(48, random) if attended else None
    reranker = CompiledReranker(record_file(tmp_path, block_of(30, 48, 4, random), 4, number), attention)
    products = [product_of(size, 48, random) for size in (6, 1, 3, 2, 5, 4)]
    labels = [random.permutation(30)[:n] for n in (30, 7, 0, 1, 12, 30)]
    together = reranker.rerank([bag for bag, _ in products], [own for _, own in products], labels)
    for (bag, embedding), own, scores in zip(products, labels, together, strict=True):
        [alone] = reranker.rerank([bag], [embedding], [own])
        np.testing.assert_array_equal(alone, scores)
        assert len(scores) == len(own)


def test_threads_share_a_reranker(tmp_path: Path) -> None:
    """Eight calls at once give what one gives: nothing is kept between calls."""
    random = np.random.default_rng(6)
    reranker = CompiledReranker(
        record_file(tmp_path, block_of(200, 64, 3, random), 3, "int8"), attention_of(64, random)
    )
    products = [product_of(4, 64, random) for _ in range(8)]
    calls = [([bag], [embedding], [random.permutation(200)]) for bag, embedding in products]
    expected = [reranker.rerank(*call)[0] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda call: reranker.rerank(*call)[0], calls * 5))
    for place, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[place % len(calls)])


def test_memory_is_read_within_the_records_only(tmp_path: Path) -> None:
    """Labels that there are not and products of another dimension are refused; an altered count stays in its record."""
    random = np.random.default_rng(7)
    records = record_file(tmp_path, block_of(5, 16, 2, random), 2, "float32")
    reranker = CompiledReranker(records, attention_of(16, random))
    bag, embedding = product_of(2, 16, random)
    for label in (-1, 5):
        with pytest.raises(InputError, match="there are 5"):
            reranker.rerank([bag], [embedding], [np.array([0, label])])
    with pytest.raises(InputError, match="dimension 16"):
        reranker.rerank([bag[:, :8]], [embedding], [np.array([0])])
    content = bytearray((tmp_path / RECORDS_FILE).read_bytes())
    fields = records.rows.dtype.fields
    assert fields is not None
    place = 64 + int(fields["count"][1])
    content[place] = 255
    (tmp_path / RECORDS_FILE).write_bytes(content)
    altered = CompiledReranker(RecordFile(tmp_path / RECORDS_FILE), attention_of(16, random))
    [scores] = altered.rerank([bag], [embedding], [np.arange(5)])
    assert np.abs(scores).max() <= 1.001


@pytest.mark.parametrize("width", [0, 3, 8])
def test_a_header_with_another_number_type_is_refused(width: int, tmp_path: Path) -> None:
    """Both values and the remedy."""
    record_file(tmp_path, block_of(2, 16, 2, np.random.default_rng(9)), 2, "int8")
    content = bytearray((tmp_path / RECORDS_FILE).read_bytes())
    content[28:32] = width.to_bytes(4, "little")
    (tmp_path / RECORDS_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=rf"numbers of {width} bytes, needs \[1, 2, 4\]: run mufin-export again"):
        RecordFile(tmp_path / RECORDS_FILE)


def test_resident_records_score_as_mapped_ones(tmp_path: Path) -> None:
    """The setting changes where the records lie, and the figures that tell."""
    bundle = make_tiny_bundle(tmp_path / "bundle", record_type="int8")
    mapped, resident = open_predictor(bundle), open_predictor(bundle, resident=True)
    bags = mapped.embed(["red shirt"], [np.zeros((0, 8, 8, 3), dtype=np.uint8)])
    found = mapped.shortlist(bags[0].embedding[None])
    np.testing.assert_array_equal(mapped.rerank(bags, found)[0], resident.rerank(bags, found)[0])
    size = (bundle / RECORDS_FILE).stat().st_size - 64
    for store, expected in ((mapped.labels, (0, size)), (resident.labels, (size, 0))):
        use = store.memory()[RECORDS_FILE]
        assert (use.resident_bytes, use.mapped_bytes) == expected


@pytest.mark.parametrize("number", RECORD_NUMBERS)
def test_kernels_answer_alike(number: RecordNumber, tmp_path: Path) -> None:
    """A bundle's scores are the same with either kernel, and the golden products pass with both."""
    bundle = make_tiny_bundle(tmp_path / "bundle", record_type=number)
    compiled, plain = open_predictor(bundle), open_predictor(bundle, kernel="numpy")
    bags = compiled.embed(["red shirt men", "blue"], [np.zeros((0, 8, 8, 3), dtype=np.uint8)] * 2)
    found = compiled.shortlist(np.stack([bag.embedding for bag in bags]))
    for one, other in zip(compiled.rerank(bags, found), plain.rerank(bags, found), strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)
    assert compiled.replay_golden().passed
    assert plain.replay_golden().passed


def test_the_kernel_is_chosen_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numba the compiled kernel is an error that names the other; an unknown one is refused."""
    random = np.random.default_rng(8)
    records = record_file(tmp_path, block_of(3, 8, 2, random), 2, "float32")
    with pytest.raises(ConfigError, match="must be one of numba, numpy"):
        make_reranker(records, None, "cuda", records.gather)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match="kernel='numpy'"):
        make_reranker(records, None, "numba", records.gather)
    assert isinstance(make_reranker(records, None, "numpy", records.gather), GatheredReranker)


SCORES = """
import json, os, sys, logging, tempfile
if os.environ.get("NOTHING_WRITABLE"):  # root may write anywhere, so numba's own trial is made to fail
    def refuse(*arguments, **options):
        raise PermissionError("read-only file system")
    tempfile.TemporaryFile = refuse
from pathlib import Path
import numpy as np
logging.basicConfig()
from mufin.predictor import open_predictor
predictor = open_predictor(Path(sys.argv[1]))
bags = predictor.embed(["red shirt men"], [np.full((1, 8, 8, 3), 200, dtype=np.uint8)])
found = predictor.shortlist(bags[0].embedding[None])
import mufin.reranking_kernels as kernels
stats = kernels.cross_attention_scores.stats
loaded = sum(stats.cache_hits.values())
print(json.dumps({"scores": predictor.rerank(bags, found)[0].tolist(), "loaded": loaded}))
"""


def scores_elsewhere(bundle: Path, **environment: str) -> tuple[list[float], int, str]:
    """Scores of one product in a fresh process, kernels it read from the cache, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SCORES, str(bundle)], capture_output=True, text=True, timeout=120, check=False,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["scores"], answer["loaded"], done.stderr


@pytest.mark.parametrize("number", RECORD_NUMBERS)
def test_other_cpus_score_alike(number: RecordNumber, tmp_path: Path) -> None:
    """Code for AVX2, and for no more than every x86-64 has, gives what this CPU's own gives."""
    if cpu_level() is None:
        pytest.skip("no x86-64 CPU")
    bundle = make_tiny_bundle(tmp_path / "bundle", record_type=number)
    own, _, _ = scores_elsewhere(bundle)
    for name in ("haswell", "x86-64"):
        found, _, _ = scores_elsewhere(bundle, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES="")
        np.testing.assert_allclose(found, own, atol=ROUNDING)


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_cache_that_cannot_be_written_costs_time_alone(folder: str, tmp_path: Path) -> None:
    """No folder at all, or an empty one nobody can write: compiled in memory, told in the log, and the same scores."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    own, _, _ = scores_elsewhere(bundle)
    if folder == "empty":
        scores_elsewhere(bundle, NUMBA_CACHE_DIR=str(tmp_path / "cache"))  # makes the folder
        for path in (tmp_path / "cache").rglob("*.nb?"):
            path.unlink()
    found, loaded, said = scores_elsewhere(bundle, NUMBA_CACHE_DIR=str(tmp_path / "cache"), NOTHING_WRITABLE="1")
    assert found == own
    assert loaded == 0
    assert "compiled" in said
    assert not list((tmp_path / "cache").rglob("*.nb?"))


def test_code_compiled_ahead_is_used_from_a_read_only_folder(tmp_path: Path) -> None:
    """Compiled ahead, then a folder nobody can write: kernels are read from it, none is compiled, and nothing is said."""
    cache = tmp_path / "cache"
    assert main([str(cache)]) == 0
    bundle = make_tiny_bundle(tmp_path / "bundle")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert len([path for path in before if path.suffix == ".nbc"]) >= len(CPU_LEVELS) * len(RECORD_NUMBERS)
    folders = [path for path in cache.rglob("*") if path.is_dir()] + [cache]
    for folder in folders:
        folder.chmod(0o555)
    try:
        own, loaded, said = scores_elsewhere(bundle, NUMBA_CACHE_DIR=str(cache), NOTHING_WRITABLE="1")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert loaded == 1
    assert not said
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    np.testing.assert_allclose(own, scores_elsewhere(bundle)[0], atol=ROUNDING)
