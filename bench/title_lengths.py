"""Titles of mixed lengths in an int8 encoder of full size: one padded call, or calls of like lengths (mufin.length_groups).

    python -m bench.title_lengths CATALOGUE... [--smoke] [--out bench/results/NAME.json]

Token counts are those of the catalogues' titles, by the tokenizer of the pretrained sentence encoder (the bench extra has
it), at most 32; the tokens themselves are random, as is the encoder, DistilBERT's shape. CPU time of one thread; both ways
take turns on the same batches. Without a catalogue lengths are drawn from 4 to 32.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.int8 import DIMENSION, PAPER, SMOKE, Size
from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from model_export.quantise import quantise_graph
from mufin.bundle import TEXT_GRAPH_FILE
from mufin.catalogue import read_catalogue
from mufin.graphs import EncoderGraphs
from mufin.inputs import FloatArray, InputSpec, Int64Array, TitleTokenizer, TokenBatch
from mufin.length_groups import cheapest_calls
from mufin.manifest import INT8_FILES, EncoderPrecision, Encoders
from mufin.training.auto import installed_sentence_encoder
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.model import build_backbone, build_network
from mufin.training.tokenizer import load_named_tokenizer

MOST_TOKENS = 32
BATCHES = (4, 8, 28, 64)
_DRAWN = "lengths 4 to 32, drawn"


def encoder(size: Size, folder: Path) -> EncoderGraphs:
    """Random weights; the title encoder in int8, a picture encoder that is not asked."""
    torch.manual_seed(0)
    text, image = (build_backbone(EncoderConfig(options=own)) for own in (size.text(), SMOKE.image()))
    model = fold_spectral_norm(build_network(text, image, NetworkConfig(dimension=DIMENSION), 5).eval())
    export_graphs(model, InputSpec(image_side_pixels=SMOKE.side_pixels), DIMENSION, folder)
    quantise_graph(folder / TEXT_GRAPH_FILE, folder / INT8_FILES[TEXT_GRAPH_FILE])
    return EncoderGraphs(folder, DIMENSION, 1, Encoders(text=EncoderPrecision("int8")))


def lengths_of(catalogue: Path) -> Int64Array:
    """(N,) tokens of the titles. Raises RuntimeError without the sentence encoder."""
    named = installed_sentence_encoder()
    if named is None:
        raise RuntimeError("no sentence encoder is installed, whose tokenizer would count: make .venv/.bench-installed")
    tokenizer = TitleTokenizer(load_named_tokenizer(named), MOST_TOKENS)
    titles = [item.title for item in read_catalogue(catalogue).products if item.title]
    return np.asarray(tokenizer.encode(titles).mask.sum(axis=1), dtype=np.int64)


def measure(graphs: EncoderGraphs, lengths: Int64Array, batch: int, titles: int, vocabulary: int) -> dict[str, Any]:
    """CPU milliseconds a title of both ways, in turns over the same batches, and what either computes for nothing."""
    random = np.random.default_rng(0)
    ways = {"padded": math.inf, "grouped": graphs.title_call_tokens}
    seconds, computed, calls, real = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), dict.fromkeys(ways, 0), 0
    batches = max(2, titles // batch)
    for number in range(batches + 1):
        own = np.sort(random.choice(lengths, batch))
        ids = random.integers(5, vocabulary, (batch, int(own[-1])))
        for way, call_cost in ways.items():
            began = time.process_time()
            parts = cheapest_calls(own.tolist(), call_cost, batch)
            for start, end in parts:
                _encode(graphs, ids[start:end, : own[end - 1]], own[start:end])
            if number:  # the first warms
                seconds[way] += time.process_time() - began
                computed[way] += sum((end - start) * int(own[end - 1]) for start, end in parts)
                calls[way] += len(parts)
        real += int(own.sum()) if number else 0
    return {
        way: {
            "ms_a_title": round(1000 * seconds[way] / (batches * batch), 3),
            "padding": round(1 - real / computed[way], 3), "calls": round(calls[way] / batches, 1),
        }
        for way in ways
    }  # fmt: skip


def _encode(graphs: EncoderGraphs, ids: Int64Array, lengths: Int64Array) -> FloatArray:
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return graphs.titles(TokenBatch(ids, mask))


def main() -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("catalogues", type=Path, nargs="*", metavar="CATALOGUE")
    parser.add_argument("--titles", type=int, default=1500, help="encoded by each way at each size of batch")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a tiny encoder: whether it runs")
    options = parser.parse_args()
    size, titles = (SMOKE, 64) if options.smoke else (PAPER, options.titles)
    known = {own.name: lengths_of(own) for own in options.catalogues} or {_DRAWN: np.arange(4, MOST_TOKENS + 1)}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = encoder(size, Path(scratch))
        for name, lengths in known.items():
            results[name] = {"mean_tokens": round(float(lengths.mean()), 1), "sd": round(float(lengths.std()), 1)}
            print(name, results[name], flush=True)
            for batch in BATCHES:
                own = measure(graphs, lengths, batch, titles, size.vocabulary)
                ratio = round(own["grouped"]["ms_a_title"] / own["padded"]["ms_a_title"], 3)
                results[name][f"batch {batch}"] = {**own, "ratio": ratio}
                print(f"  {batch:>3} a batch: {own}  ratio {ratio}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
