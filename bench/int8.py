"""Title and image encoders in fp32 and in int8: CPU time of one call, one thread, random weights of full size.

    python -m bench.int8 [--smoke] [--out bench/results/NAME.json]

Three questions: what int8 gains at the paper's size; from how many weights on it gains at all (``auto`` of
mufin-export has a threshold for that); what one scale a column, or 7-bit weights, change. Both precisions take turns;
times are the shortest, the ratio is the median over the turns. Cosines are of random weights; those of trained ones
stand in a bundle's report.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from model_export.quantise import quantise_graph
from mufin.bundle import IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.graphs import EncoderGraphs
from mufin.inputs import FloatArray, InputSpec, TokenBatch, Uint8Array
from mufin.manifest import INT8_FILES, EncoderPrecision, Encoders
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.model import build_backbone, build_network

DIMENSION = 192
TITLES = ((1, 16), (8, 16))
IMAGES = (1, 5)


@dataclass(frozen=True)
class Size:
    """Width and depth of both encoders."""

    name: str
    width: int
    layers: int
    vocabulary: int
    side_pixels: int
    patch_pixels: int

    def text(self) -> dict[str, Any]:
        """DistilBERT's shape."""
        return {
            "model_type": "distilbert", "dim": self.width, "n_layers": self.layers, "n_heads": max(2, self.width // 64),
            "hidden_dim": 4 * self.width, "vocab_size": self.vocabulary,
        }  # fmt: skip

    def image(self) -> dict[str, Any]:
        """ViT's shape, with DistilBERT's depth doubled as in the paper's pair."""
        return {
            "model_type": "vit", "hidden_size": self.width, "num_hidden_layers": 2 * self.layers,
            "num_attention_heads": max(2, self.width // 64), "intermediate_size": 4 * self.width,
            "image_size": self.side_pixels, "patch_size": self.patch_pixels,
        }  # fmt: skip


PAPER = Size("DistilBERT, ViT-B/16 at 128 px", 768, 6, 30522, 128, 16)
SMALLER = [
    Size("width 64, 2 layers", 64, 2, 2000, 64, 16),
    Size("width 128, 2 layers", 128, 2, 2000, 64, 16),
    Size("width 256, 2 layers", 256, 2, 2000, 64, 16),
    Size("width 384, 4 layers", 384, 4, 2000, 64, 16),
]
SMOKE = Size("smoke", 32, 1, 60, 32, 16)


def measure(size: Size, folder: Path, runs: int, variants: bool) -> dict[str, Any]:
    """Milliseconds in both precisions, ratios, cosines, sizes on disk and numbers in int8 matrices."""
    torch.manual_seed(0)
    text, image = (build_backbone(EncoderConfig(options=o)) for o in (size.text(), size.image()))
    model = fold_spectral_norm(build_network(text, image, NetworkConfig(dimension=DIMENSION), 5).eval())
    export_graphs(model, InputSpec(image_side_pixels=size.side_pixels), DIMENSION, folder)
    del model, text, image
    numbers = {g: quantise_graph(folder / g, folder / INT8_FILES[g]) for g in (TEXT_GRAPH_FILE, IMAGE_GRAPH_FILE)}
    int8 = EncoderPrecision("int8")
    graphs = {
        "fp32": EncoderGraphs(folder, DIMENSION), "int8": EncoderGraphs(folder, DIMENSION, 1, Encoders(int8, int8)),
    }  # fmt: skip
    random = np.random.default_rng(0)
    cases: dict[str, Callable[[EncoderGraphs], FloatArray]] = {}
    for batch, length in TITLES:
        ids = random.integers(5, size.vocabulary, (batch, length))
        tokens = TokenBatch(ids, np.ones_like(ids))
        cases[f"{batch} title{'s' * (batch > 1)} of {length} tokens"] = partial(EncoderGraphs.titles, tokens=tokens)
    pixels = random.integers(0, 256, (max(IMAGES), size.side_pixels, size.side_pixels, 3)).astype(np.uint8)
    for count in IMAGES:
        cases[f"{count} image{'s' * (count > 1)}"] = partial(EncoderGraphs.images, pixels=pixels[:count])
    found: dict[str, Any] = {
        "size": size.name,
        "int8_numbers": {"text": numbers[TEXT_GRAPH_FILE], "image": numbers[IMAGE_GRAPH_FILE]},
        "bytes": {name: (folder / name).stat().st_size for g in numbers for name in (g, INT8_FILES[g])},
        "cases": {name: _compare(case, graphs, runs) for name, case in cases.items()},
    }
    if variants:
        found["variants"] = _variants(folder, pixels[:1], runs)
    return found


def _compare(case: Callable[[EncoderGraphs], FloatArray], graphs: dict[str, EncoderGraphs], runs: int) -> Any:
    fp32, int8 = case(graphs["fp32"]), case(graphs["int8"])
    cosine = (fp32 * int8).sum(1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(int8, axis=1)
    times = _turns({name: partial(case, own) for name, own in graphs.items()}, runs)
    return {
        "fp32_ms": round(float(times["fp32"].min()), 3), "int8_ms": round(float(times["int8"].min()), 3),
        "ratio": round(float(np.median(times["fp32"] / times["int8"])), 2),
        "least_cosine": round(float(cosine.min()), 5),
    }  # fmt: skip


def _variants(folder: Path, pixels: Uint8Array, runs: int) -> dict[str, Any]:
    """One scale a tensor or a column, 8 or 7 bits, of the image encoder and one image."""
    sessions = {}
    for per_channel in (False, True):
        for reduce_range in (False, True):
            name = f"{'a column' if per_channel else 'a tensor'}, {7 if reduce_range else 8} bits"
            path = folder / f"variant-{per_channel}-{reduce_range}.onnx"
            quantise_graph(folder / IMAGE_GRAPH_FILE, path, reduce_range, per_channel)
            sessions[name] = _session(path)
            path.unlink()
    fp32 = _session(folder / IMAGE_GRAPH_FILE).run(None, {"pixels": pixels})[0]
    times = _turns({name: partial(own.run, None, {"pixels": pixels}) for name, own in sessions.items()}, runs)
    results = {}
    for name, session in sessions.items():
        own = session.run(None, {"pixels": pixels})[0]
        cosine = float((own * fp32).sum() / np.linalg.norm(own) / np.linalg.norm(fp32))
        results[name] = {"ms": round(float(times[name].min()), 3), "cosine": round(cosine, 5)}
    return results


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _turns(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, npt.NDArray[np.float64]]:
    """(runs,) CPU time of each call in ms; the calls take turns, so that a busy machine disturbs all alike."""
    times = {name: np.zeros(runs) for name in calls}
    for run in range(runs):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name][run] = 1000.0 * (time.process_time() - began)
    return times


def _processor() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    return {
        "machine": platform.machine(),
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "flags": [flag for flag in wanted if flag in flags],
    }


def main() -> int:
    """Measure all sizes, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny encoders: whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for size in [SMOKE] if options.smoke else [*SMALLER, PAPER]:
        with tempfile.TemporaryDirectory() as scratch:
            own = measure(size, Path(scratch), 3 if options.smoke else 40, options.smoke or size is PAPER)
        results.append(own)
        print(f"{size.name}: {own['int8_numbers']} numbers in int8", flush=True)
        for name, case in own["cases"].items():
            print(f"  {name:<24} {case['fp32_ms']:>9} {case['int8_ms']:>9} {case['ratio']:>6} {case['least_cosine']}")
        print(f"  {own.get('variants', '')}")
    if options.out:
        facts = {**_processor(), "python": platform.python_version(), "onnxruntime": ort.__version__, "threads": 1}
        options.out.write_text(json.dumps({"results": results, **facts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
