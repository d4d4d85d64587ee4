"""Title and image encoders in int8 where their measured cost allows it.

Knows how graphs are quantised and what is decided from their cost (``int8_cost``), nothing of training. Weights become
QInt8, one scale a tensor (in 7 bits one a column); activations get their scale at every call, over the whole batch. Why so: docs/performance.md.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from model_export import int8_cost, int8_report
from model_export.int8_cost import Ranked, Sample, Vectors
from model_export.int8_report import GRAPHS, Measured, PrecisionSettings, Variant
from mufin.bundle import BAG_GRAPH_FILE
from mufin.errors import BundleError
from mufin.graphs import EncoderGraphs
from mufin.manifest import INT8_FILES, EncoderPrecision, Encoders
from mufin.predictor import Predictor, open_predictor
from mufin.training.item_arrays import Progress

LEAST_COMPANY_COSINE = 0.999
"""Below it, between an item alone and in any batch, an encoder runs its items one by one."""
SMALLEST_GAIN_WEIGHTS = 1_000_000
"""Numbers in an encoder's quantised matrices below which ``auto`` keeps fp32: bench/int8.py sees little gain there."""

_ROUNDING = 1e-9
"""100 * (.910 - .907) is a little more than .3."""
_SETS = (("text", "image"), ("image",), ("text",))
"""What may be int8 together, the most gainful first: images take most of a request's time."""


@dataclass(frozen=True)
class EncoderChoice:
    """How the bundle's encoders are computed, and why."""

    encoders: Encoders
    report: dict[str, Any]
    """Figures and times for report.json; empty where nothing was measured"""
    provenance: dict[str, Any]
    """What of them belongs to the bundle's identity"""


def quantise_graph(source: Path, target: Path, reduce_range: bool = False, per_channel: bool = False) -> int:
    """Write an int8 copy of a graph, equal bytes each time; returns how many numbers its int8 matrices hold.

    Only MatMul with a constant matrix: convolutions and products of two activations stay fp32. A network of
    convolutions is copied, with 0 numbers: its projection alone would lose accuracy and gain nothing.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _silenced():
        path = Path(scratch) / target.name
        quantize_dynamic(
            source, path, op_types_to_quantize=["MatMul"], per_channel=per_channel, reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        graph = onnx.load(path)
    matrices = {node.input[1] for node in graph.graph.node if node.op_type == "MatMulInteger"}
    if len(matrices) < sum(node.op_type == "Conv" for node in graph.graph.node):
        shutil.copyfile(source, target)
        return 0
    target.write_bytes(graph.SerializeToString(deterministic=True))
    return sum(int(np.prod(t.dims)) for t in graph.graph.initializer if t.name in matrices)


def choose_encoders(
    folder: Path, scratch: Path, sample: Sample, settings: PrecisionSettings, progress: Progress, threads: int = 1
) -> EncoderChoice:
    """Measure int8 on the sample, decide, and put the chosen int8 graphs into ``folder``; for "auto" and "int8".

    ``folder``: a sealed bundle with fp32 encoders, to be sealed again. The choice hangs on no time, so that it is the
    same each time. Raises BundleError with the figures when int8 is asked for and costs too much.
    """
    fp32 = open_predictor(folder, "structure", threads)
    measured = _measure(fp32, folder, scratch, sample, settings, progress, threads)
    candidates, reason = _decide(measured)
    encoders = Encoders()
    for parts in candidates:
        found = _with(parts, measured.chosen.encoders)
        if (failed := _install(folder, found, measured, fp32, threads)) is None:
            encoders = found
            break
        if settings.encoders == "int8":
            raise BundleError(
                f"int8 encoders do not compute the golden products within int8's tolerances:\n{failed}\n"
                "export with --encoders auto or fp32"
            )
        reason += f"; golden products fail with {'+'.join(parts)} in int8"
    report = int8_report.report(measured, encoders, reason, folder)
    return EncoderChoice(encoders, report, int8_report.provenance(measured, encoders))


def _measure(
    fp32: Predictor, folder: Path, scratch: Path, sample: Sample, settings: PrecisionSettings, progress: Progress,
    threads: int,
) -> Measured:  # fmt: skip
    progress("measuring int8 encoders", 0, 3)
    vectors = int8_cost.encode(fp32, sample)
    base = int8_cost.rank(fp32, sample, vectors)
    times = int8_cost.milliseconds(_graphs(folder, fp32, threads, Encoders()), sample)
    variants = []
    for done, reduce_range in enumerate((False, True), start=1):
        progress("measuring int8 encoders", done, 3)
        own = scratch / ("int8-reduced" if reduce_range else "int8-full")
        weights = _quantise_both(folder, own, reduce_range)
        every = _SETS if reduce_range == settings.reduce_range else _SETS[:1]
        able = tuple(part for part in GRAPHS if weights[part] and _is_seen(part, sample))
        sets = [parts for parts in dict.fromkeys((able, *every)) if parts and set(parts) <= set(able)]
        variants.append(_measure_variant(fp32, own, weights, sets, sample, vectors, base, threads))
    progress("measuring int8 encoders", 3, 3)
    full, reduced = variants
    return Measured(settings, sample, vectors, base, full, reduced, times)


def _is_seen(part: str, sample: Sample) -> bool:
    """Whether the sample has anything to measure an encoder on."""
    return bool(sample.arrays.has_title.any()) if part == "text" else sample.arrays.image_count > 0


def _quantise_both(source: Path, folder: Path, reduce_range: bool) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)  # an export that was killed leaves one
    shutil.copyfile(source / BAG_GRAPH_FILE, folder / BAG_GRAPH_FILE)
    # In 7 bits one scale a matrix is too coarse for some trained encoders (docs/performance.md).
    return {
        part: quantise_graph(source / graph, folder / INT8_FILES[graph], reduce_range, per_channel=reduce_range)
        for part, graph in GRAPHS.items()
    }  # fmt: skip


def _measure_variant(
    fp32: Predictor, folder: Path, weights: dict[str, int], sets: list[tuple[str, ...]], sample: Sample,
    base_vectors: Vectors, base: Ranked, threads: int,
) -> Variant:  # fmt: skip
    both = Encoders(EncoderPrecision("int8"), EncoderPrecision("int8"))
    graphs = _graphs(folder, fp32, threads, both)
    titles, images = int8_cost.company_of(graphs, sample)
    encoders = Encoders(
        EncoderPrecision("int8", titles.least < LEAST_COMPANY_COSINE),
        EncoderPrecision("int8", images.least < LEAST_COMPANY_COSINE),
    )
    times = int8_cost.milliseconds(graphs, sample)
    if encoders != both:
        graphs = _graphs(folder, fp32, threads, encoders)
    int8 = int8_cost.encode(fp32.with_graphs(graphs), sample)
    costs = {}
    for parts in sets:
        mixed = Vectors(
            int8.titles if "text" in parts else base_vectors.titles,
            int8.images if "image" in parts else base_vectors.images,
        )
        costs["+".join(parts)] = int8_cost.cost_of(int8_cost.rank(fp32, sample, mixed), base)
    return Variant(folder, weights, {"text": titles, "image": images}, encoders, int8, times, costs)


def _decide(measured: Measured) -> tuple[list[tuple[str, ...]], str]:
    """Sets of encoders worth taking, best first, and why. Raises BundleError where int8 was asked for and must not be."""
    settings, variant = measured.settings, measured.chosen
    reason = ""
    if not variant.costs:
        reason = "no encoder has both a matrix product to quantise and validation products to measure its cost on"
    elif not len(measured.base.scores.rows):
        reason = "no validation product has a relevant label to measure the cost with"
    most = settings.tolerance_points + _ROUNDING
    within = [parts for parts in variant.costs if variant.lost(parts) <= most]
    if settings.encoders == "int8":
        if reason:
            raise BundleError(f"int8 encoders were asked for, but {reason}: export with --encoders auto or fp32")
        widest = next(iter(variant.costs))
        if widest not in within:
            raise BundleError(int8_report.refusal(measured))
        return [tuple(widest.split("+"))], "asked for"
    if reason:
        return [], reason
    gainful = {part for part, count in variant.weights.items() if count >= SMALLEST_GAIN_WEIGHTS}
    chosen = [parts for parts in (tuple(own.split("+")) for own in within) if set(parts) <= gainful]
    return chosen, (
        f"large enough to gain by int8: {', '.join(sorted(gainful)) or 'none'}; "
        f"within the tolerance: {', '.join(within) or 'none'}"
    )


def _graphs(folder: Path, fp32: Predictor, threads: int, encoders: Encoders) -> EncoderGraphs:
    sentence = fp32.title_width - fp32.dimension
    return EncoderGraphs(folder, fp32.dimension, threads, encoders, sentence=sentence)


def _with(parts: tuple[str, ...], encoders: Encoders) -> Encoders:
    fp32 = EncoderPrecision()
    return Encoders(encoders.text if "text" in parts else fp32, encoders.image if "image" in parts else fp32)


def _install(folder: Path, encoders: Encoders, measured: Measured, fp32: Predictor, threads: int) -> str | None:
    """Copy the int8 graphs into the bundle; take them back and return the parity table when golden products fail."""
    for name in encoders.int8_files:
        shutil.copyfile(measured.chosen.folder / name, folder / name)
    parity = fp32.with_graphs(_graphs(folder, fp32, threads, encoders)).replay_golden()
    if parity.passed:
        return None
    for name in encoders.int8_files:
        (folder / name).unlink()
    # Weights of 7 bits do not overflow: no reason to advise them.
    return (replace(parity, advice="") if measured.settings.reduce_range else parity).table()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without the advice to pre-process graphs: it fuses nothing here (docs/performance.md)."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
