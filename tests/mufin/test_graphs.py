"""Which graphs run where, and whether an item's company in a batch may change its vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from mufin.errors import ConfigError
from mufin.graphs import EncoderGraphs, require_device
from mufin.inputs import Uint8Array
from mufin.manifest import EncoderPrecision, Encoders
from mufin.predictor import open_predictor
from tests.bundle_factory import DIMENSION, SIDE, make_tiny_bundle

INT8 = EncoderPrecision("int8")
IMAGES_INT8 = Encoders(image=INT8)
HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose images are encoded in int8."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "int8", encoders=IMAGES_INT8)


def pictures() -> Uint8Array:
    """Four dim ones and a glaring one, whose activations are the largest."""
    random = np.random.default_rng(0)
    dim = random.integers(110, 146, (4, SIDE, SIDE, 3))
    return np.concatenate([dim, random.integers(0, 2, (1, SIDE, SIDE, 3)) * 255]).astype(np.uint8)


def test_int8_graphs_run_where_the_bundle_says_so(int8: Path) -> None:
    """Near fp32, but not equal; the fp32 graphs of the same folder still run."""
    own = EncoderGraphs(int8, DIMENSION, encoders=IMAGES_INT8).images(pictures())
    fp32 = EncoderGraphs(int8, DIMENSION).images(pictures())
    assert not np.array_equal(own, fp32)
    np.testing.assert_allclose(own, fp32, atol=0.1 * np.abs(fp32).max())


def test_items_run_one_by_one_where_the_bundle_says_so(int8: Path) -> None:
    """A glaring companion changes vectors in a batch; with the flag, every vector is that of the item alone."""
    in_batch = EncoderGraphs(int8, DIMENSION, encoders=IMAGES_INT8)
    alone = np.concatenate([in_batch.images(pictures()[i : i + 1]) for i in range(5)])
    assert not np.array_equal(in_batch.images(pictures()), alone)
    one_by_one = EncoderGraphs(int8, DIMENSION, encoders=Encoders(image=EncoderPrecision("int8", True)))
    np.testing.assert_array_equal(one_by_one.images(pictures()), alone)
    assert one_by_one.images(pictures()[:0]).shape == (0, DIMENSION)


def test_golden_products_are_replayed_by_cosine(int8: Path) -> None:
    """An int8 bundle passes although its images differ by more than fp32 may; its titles are still held to fp32's."""
    parity = open_predictor(int8).replay_golden()
    assert parity.passed, parity.table()
    measures = {stage.stage: stage.measure for stage in parity.stages}
    assert (measures["image"], measures["title"], measures["embedding"]) == ("1 - cosine", "largest", "1 - cosine")


def test_no_cache_mixes_precisions(int8: Path, tmp_path: Path) -> None:
    """int8 has its own encoder_id; the fp32 graphs of an int8 bundle share that of the fp32 bundle."""
    fp32 = open_predictor(make_tiny_bundle(tmp_path / "fp32"))
    predictor = open_predictor(int8)
    assert predictor.encoder_id != fp32.encoder_id
    assert predictor.with_graphs(EncoderGraphs(int8, DIMENSION)).encoder_id == fp32.encoder_id


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_a_device_that_is_not_there_is_refused(int8: Path) -> None:
    """With what was asked for, what there is, and the remedy; so is one nobody knows."""
    with pytest.raises(ConfigError, match=r"needs CUDAExecutionProvider.*CPUExecutionProvider.*onnxruntime-gpu"):
        open_predictor(int8, device="cuda")
    with pytest.raises(ConfigError, match="must be cpu or cuda"):
        require_device("tpu")  # type: ignore[arg-type]


@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a GPU")
def test_cuda_runs_the_fp32_graphs_of_an_int8_bundle(int8: Path) -> None:
    """Golden products within fp32's tolerances."""
    predictor = open_predictor(int8, device="cuda")
    parity = predictor.replay_golden()
    assert parity.passed, parity.table()
    assert {stage.measure for stage in parity.stages} == {"largest"}
    assert predictor.encoder_id != open_predictor(int8).encoder_id
