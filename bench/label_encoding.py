"""Labels a second of exporting beside what the encoder alone reaches on the same batches, by number of processes.

    python -m bench.label_encoding [--labels 192] [--device cpu] [--out bench/results/NAME.json]

DistilBERT and ViT-B/16 at 128 px, D = 192, random weights, two pictures and about 16 title tokens a label. Pictures are
decoded, titles tokenised and blocks stored on the way. With ``--device cuda`` every GPU gets a process.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import model_export.encode_labels as encode_labels
from bench.release_training import release_config, write_catalogue
from model_export.trained import trained_from
from mufin.catalogue import read_catalogue
from mufin.inputs import TitleTokenizer
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import Run, RunFacts
from mufin.training.preparation import new_network, tokenizer_json_of


def measure(options: argparse.Namespace, processes: list[int]) -> list[dict[str, Any]]:
    """Every number of processes, the same labels, blocks stored anew each time."""
    config = release_config("smoke" if options.smoke else "full", "fp32", options.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_catalogue(folder / "catalogue", options.labels, config.inputs.image_side_pixels)
        catalogue = read_catalogue(folder / "catalogue")
        tokenizer = tokenizer_json_of(catalogue, config)
        torch.manual_seed(0)
        model = new_network(config, TitleTokenizer(tokenizer, 16), len(catalogue.labels)).eval()
        facts = RunFacts("", len(catalogue.products), len(catalogue.labels), "", 0, "")
        trained = trained_from(Run(model, config, config.inputs, ScoreSpec(), tokenizer, facts, {}), {})
        results = []
        for count in processes:
            blocks = folder / f"blocks-{count}"
            blocks.mkdir()
            speed = encode_labels.encode_labels(
                trained, catalogue, blocks, options.device, count, lambda done, total: None
            )
            results.append(speed.to_json())
            print(results[-1], flush=True)
    return results


def main() -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=192)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--block", type=int, help="labels a block (default: a sixth of all, so that processes share)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="toy encoders: whether it runs")
    options = parser.parse_args()
    if options.smoke:
        options.labels = 32
    encode_labels.LABELS_IN_BLOCK = options.block or max(1, options.labels // 6)
    result = {
        "labels": options.labels, "device": options.device, "batch_size": options.batch_size,
        "labels_in_block": encode_labels.LABELS_IN_BLOCK, "threads": torch.get_num_threads(),
        "points": measure(options, options.processes), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
