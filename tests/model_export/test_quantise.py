"""int8 encoders: taken within the tolerance, refused with the figures beyond it, equal bytes each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_export import quantise
from model_export.__main__ import main
from model_export.export import ExportSettings, export
from model_export.int8_report import PrecisionSettings
from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from model_export.quantise import quantise_graph
from mufin.bundle import IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE, open_bundle
from mufin.errors import BundleError, ConfigError
from mufin.graphs import EncoderGraphs
from mufin.inputs import InputSpec, TokenBatch
from mufin.manifest import INT8_FILES, EncoderPrecision, Encoders
from mufin.predictor import open_predictor
from mufin.training.progress import Reporter
from tests.model_export.test_onnx_graphs import DIMENSION, SIDE, network

QUIET = Reporter(quiet=True)
ANY = 1000.0
"""Points that no encoder can lose."""


def settings(encoders: Any, tolerance: float = ANY, reduce_range: bool = True) -> ExportSettings:
    """Without the report's latency, which is not what is tested here.

    Seven bits, which every processor adds up alike: eight overflow without VNNI, and outcomes would hang on the machine.
    """
    return ExportSettings(precision=PrecisionSettings(encoders, tolerance, reduce_range), report=False)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Which images' network, and the folder of its fp32 graphs."""
    folder = tmp_path_factory.mktemp("graphs")
    model = fold_spectral_norm(network(request.param))
    export_graphs(model, InputSpec(image_side_pixels=SIDE), DIMENSION, folder)
    return request.param, folder


@pytest.fixture(scope="module")
def int8_bundle(products_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product-to-product run with int8 encoders, whatever they cost."""
    target = tmp_path_factory.mktemp("bundles") / "int8"
    assert export(products_run, target, settings("int8"), QUIET).passed
    return target


def test_quantised_graphs_are_byte_equal_and_hold_int8_matrices(graphs: tuple[str, Path], tmp_path: Path) -> None:
    """Every constant matrix of the transformer; a network of convolutions is left as it is."""
    kind, folder = graphs
    for name in (TEXT_GRAPH_FILE, IMAGE_GRAPH_FILE):
        numbers = quantise_graph(folder / name, tmp_path / "once.onnx")
        assert quantise_graph(folder / name, tmp_path / "again.onnx") == numbers
        assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["again.onnx", "once.onnx"]
        if (kind, name) == ("resnet", IMAGE_GRAPH_FILE):
            assert numbers == 0
            assert (tmp_path / "once.onnx").read_bytes() == (folder / name).read_bytes()
            continue
        graph = onnx.load(tmp_path / "once.onnx").graph
        constants = {tensor.name for tensor in graph.initializer}
        assert not [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in constants]
        assert numbers > 0
        assert any(n.op_type == "MatMulInteger" for n in graph.node)


def test_reduced_range_uses_seven_bits(graphs: tuple[str, Path], tmp_path: Path) -> None:
    """Largest weights 64 at most instead of 127 or 128."""
    _, folder = graphs
    for reduce_range, most in ((False, 127), (True, 64)):
        quantise_graph(folder / TEXT_GRAPH_FILE, tmp_path / "g.onnx", reduce_range)
        model = onnx.load(tmp_path / "g.onnx")
        matrices = {n.input[1] for n in model.graph.node if n.op_type == "MatMulInteger"}
        own = [numpy_helper.to_array(t).astype(int) for t in model.graph.initializer if t.name in matrices]
        largest = max(int(np.abs(matrix).max()) for matrix in own)
        assert most - 1 <= largest <= most + 1


def test_titles_run_one_by_one_without_their_padding(graphs: tuple[str, Path], tmp_path: Path) -> None:
    """Padded beside a longer title, a title has the vector it has alone; in one call it has not."""
    kind, folder = graphs
    for name in ("bag_encoder.onnx", IMAGE_GRAPH_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    quantise_graph(folder / TEXT_GRAPH_FILE, tmp_path / INT8_FILES[TEXT_GRAPH_FILE])
    ids = np.array([[2, 7, 9, 3, 0, 0], [2, 11, 40, 51, 33, 3]])
    tokens = TokenBatch(ids, (ids > 0).astype(np.int64))
    together = EncoderGraphs(tmp_path, DIMENSION, encoders=Encoders(text=EncoderPrecision("int8")))
    alone = together.titles(TokenBatch(ids[:1, :4], np.ones((1, 4), np.int64)))
    apart = EncoderGraphs(tmp_path, DIMENSION, encoders=Encoders(text=EncoderPrecision("int8", True)))
    np.testing.assert_array_equal(apart.titles(tokens)[:1], alone)
    assert not np.array_equal(together.titles(tokens)[:1], alone), kind


def test_an_int8_bundle_says_what_it_cost(int8_bundle: Path) -> None:
    """Both precisions lie in it; figures, cosines, company, sizes and both ranges stand in the report."""
    manifest = open_bundle(int8_bundle).manifest
    assert set(INT8_FILES.values()) | set(INT8_FILES) <= set(manifest.files)
    assert {manifest.sizes.encoders.text.precision, manifest.sizes.encoders.image.precision} == {"int8"}
    found = json.loads((int8_bundle / "report.json").read_text())["int8"]
    assert list(found["int8"]["reduced range"]["cost"]) == ["image", "text", "text+image"]
    for name in ("full range", "reduced range"):
        own = found["int8"][name]
        cost = own["cost"]["text+image"]
        for figure in ("P@1", "P@5", "R@10"):
            lost = 100 * (found["fp32"][figure] - cost["figures"][figure])
            assert cost["points_lost"][figure] == pytest.approx(lost)
        low, high = cost["points_lost_P@1_interval"]
        assert low <= cost["points_lost"]["P@1"] <= high
        assert 0.9 < own["cosine"]["image"]["least"] <= own["cosine"]["image"]["mean"] <= 1.0
        assert all(0.9 < cosine <= 1 + 1e-9 for company in own["company"].values() for cosine in company.values())
    assert found["scored_products"] == manifest.provenance["encoders"]["validation_products"] > 0
    assert manifest.provenance["encoders"]["int8"] == found["int8"]["reduced range"]["cost"]["text+image"]["figures"]


def test_two_int8_exports_are_byte_equal(int8_bundle: Path, products_run: Path, tmp_path: Path) -> None:
    """The choice and what the manifest says of it hang on no time."""
    export(products_run, tmp_path / "again", settings("int8"), QUIET)
    for path in int8_bundle.iterdir():
        if path.name not in ("report.json", "sidecar.json"):
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_int8_beyond_the_tolerance_is_refused_with_the_figures(
    products_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, both values, the remedy, and no bundle. A negative tolerance asks for a gain that int8 has not."""
    command = [str(products_run), str(tmp_path / "b"), "--quiet", "--no-report", "--encoders", "int8"]
    assert main([*command, "--int8-tolerance", "-100.5"]) == 1
    message = capsys.readouterr().err
    for part in ("points of P@1, -100.50 are tolerated", "fp32", "text+image in int8", "95 % interval", "least cosine",
                 "--encoders auto or fp32", "--int8-tolerance"):  # fmt: skip
        assert part in message
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--int8-tolerance", "nan"]) == 1
    assert "finite number" in capsys.readouterr().err


def test_auto_keeps_fp32_where_int8_gains_little_or_costs_much(
    products_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small encoders; then large enough ones beyond and within the tolerance. The figures are reported in any case."""

    def chosen(name: str, tolerance: float) -> tuple[Encoders, str]:
        export(products_run, tmp_path / name, settings("auto", tolerance), QUIET)
        reason = json.loads((tmp_path / name / "report.json").read_text())["int8"]["reason"]
        return open_bundle(tmp_path / name).manifest.sizes.encoders, reason

    assert chosen("small", ANY) == (
        Encoders(), "large enough to gain by int8: none; within the tolerance: text+image, image, text"
    )  # fmt: skip
    monkeypatch.setattr(quantise, "SMALLEST_GAIN_WEIGHTS", 0)
    assert chosen("dear", -ANY) == (
        Encoders(), "large enough to gain by int8: image, text; within the tolerance: none"
    )  # fmt: skip
    found, _ = chosen("cheap", ANY)
    assert (found.text.precision, found.image.precision) == ("int8", "int8")


def test_company_that_changes_vectors_makes_an_encoder_run_one_by_one(
    products_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest says so, the predictor obeys, and golden products still come out."""
    monkeypatch.setattr(quantise, "LEAST_COMPANY_COSINE", 1.1)
    assert export(products_run, tmp_path / "b", settings("int8"), QUIET).passed
    alone = EncoderPrecision("int8", one_by_one=True)
    assert open_bundle(tmp_path / "b").manifest.sizes.encoders == Encoders(alone, alone)
    predictor = open_predictor(tmp_path / "b")
    side = predictor.input_spec.image_side_pixels
    pixels = np.random.default_rng(0).integers(0, 256, (5, side, side, 3)).astype(np.uint8)
    single = np.concatenate([predictor.encode_images(pixels[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(predictor.encode_images(pixels), single)


def test_broken_int8_graphs_are_never_taken(
    products_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong weights within a lax tolerance: golden products find them. auto stays with fp32, int8 is refused."""
    whole = quantise_graph

    def broken(source: Path, target: Path, reduce_range: bool = False, per_channel: bool = False) -> int:
        numbers = whole(source, target, reduce_range, per_channel)
        model = onnx.load(target)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor)[::-1], tensor.name))
        target.write_bytes(model.SerializeToString(deterministic=True))
        return numbers

    monkeypatch.setattr(quantise, "quantise_graph", broken)
    monkeypatch.setattr(quantise, "SMALLEST_GAIN_WEIGHTS", 0)
    monkeypatch.setattr("mufin.golden.int8_sums_overflow", lambda: True)
    with pytest.raises(
        BundleError, match=r"(?s)golden products within int8's tolerances.*FAILED.*--encoders"
    ) as caught:
        export(products_run, tmp_path / "refused", settings("int8"), QUIET)
    assert "VNNI" not in str(caught.value)  # 7 bits do not overflow: it is not the processor
    with pytest.raises(BundleError, match=r"(?s)golden products within int8's tolerances.*FAILED.*no VNNI"):
        export(products_run, tmp_path / "refused", settings("int8", reduce_range=False), QUIET)
    assert export(products_run, tmp_path / "auto", settings("auto"), QUIET).passed
    assert open_bundle(tmp_path / "auto").manifest.sizes.encoders == Encoders()
    assert not [p.name for p in (tmp_path / "auto").iterdir() if "int8" in p.name]
    reason = json.loads((tmp_path / "auto" / "report.json").read_text())["int8"]["reason"]
    assert "golden products fail with text+image in int8" in reason


def test_convolutions_stay_fp32_beside_int8_titles(queries_run: Path, tmp_path: Path) -> None:
    """int8 takes what it can; fp32 measures nothing."""
    assert export(queries_run, tmp_path / "int8", settings("int8"), QUIET).passed
    encoders = open_bundle(tmp_path / "int8").manifest.sizes.encoders
    assert (encoders.text.precision, encoders.image.precision) == ("int8", "fp32")
    assert export(queries_run, tmp_path / "fp32", settings("fp32"), QUIET).passed
    assert json.loads((tmp_path / "fp32" / "report.json").read_text())["int8"] == {}
    with pytest.raises(ConfigError, match="must be auto, fp32 or int8"):
        settings("int4")
