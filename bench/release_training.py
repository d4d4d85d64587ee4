"""The release's sizes, trained: products a second, time by stage and peak memory of one epoch of modules 1 and 4.

    python -m bench.release_training [--device cuda] [--precision bf16] [--products 20000] [--gradient-checkpointing]
                                     [--out bench/results/NAME.json]

DistilBERT and ViT-B/16 at 128 px, D = 192, random weights, two different pictures and about 16 title tokens an item.
On a CPU only a handful of products makes sense: ``--device cpu --products 48 --batch-size 16``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mufin.catalogue import read_catalogue
from mufin.training.config import TrainConfig
from mufin.training.config_reading import build_config
from mufin.training.progress import Reporter
from mufin.training.recipe import train

IMAGES = 2
WORDS = 12
SIZES = {
    "full": (
        '{"model_type": "distilbert"}',
        '{"model_type": "vit", "image_size": 224}',
    ),
    "smoke": (
        '{"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}',
        '{"model_type": "vit", "image_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
        '"intermediate_size": 16}',
    ),
}


def write_catalogue(folder: Path, products: int, side: int) -> None:
    """An even number of training products that are each other's labels in pairs, and as many as needed to validate."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    count = products + max(4, products // 50) // 2 * 2
    with (folder / "products.jsonl").open("w") as out:
        for row in range(count):
            title = " ".join(f"w{word}" for word in random.integers(0, 5000, WORDS))
            images = [f"{row}-{place}.jpg" for place in range(IMAGES)]
            for name in images:
                noise = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((side, side)).save(folder / name, quality=80)
            out.write(json.dumps({"id": f"p{row}", "title": title, "images": images}) + "\n")
    for name, rows in (("train", range(products)), ("valid", range(products, count))):
        lines = [f"p{row},p{row ^ 1}" for row in rows]
        (folder / f"{name}.csv").write_text("\n".join(["product_id,label_id", *lines]) + "\n")


def release_config(sizes: str, precision: str, batch_size: int, recompute: bool = False) -> TrainConfig:
    """``paper-300k`` with random encoders of the same sizes, one epoch of modules 1 and 4, clusters from the start.

    ``recompute``: the encoders keep no activations for the backward pass.
    """
    text, image = SIZES[sizes]
    return build_config(
        "paper-300k",
        [
            "text.name=null", f"text.options={text}", "image.name=null", f"image.options={image}",
            f"precision={precision}", f"siamese.batch_size={batch_size}", "siamese.epochs=1", "siamese.random_epochs=0",
            "frozen_ranker.epochs=0", "ranker.epochs=1", f"ranker.batch_size={max(2, batch_size // 5)}",
            f"encode_batch_size={min(512, batch_size)}", f"inputs.max_images={IMAGES}", "inputs.max_title_tokens=16",
            f"inputs.image_side_pixels={128 if sizes == 'full' else 16}", "shortlist.size=30",
            *(f"{encoder}.gradient_checkpointing={json.dumps(recompute)}" for encoder in ("text", "image")),
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, then read the run's own log."""
    sizes = "smoke" if options.smoke else "full"
    config = release_config(sizes, options.precision, options.batch_size, options.gradient_checkpointing)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_catalogue(folder / "catalogue", options.products, config.inputs.image_side_pixels)
        began = time.monotonic()
        train(
            read_catalogue(folder / "catalogue"), config, folder / "run", Reporter(quiet=True),
            device=torch.device(options.device),
        )  # fmt: skip
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    modules = {}
    for line in lines:
        if "epoch" in line:
            steps = sum(line[f"{stage}_seconds"] for stage in ("forward", "backward", "optimiser"))
            stages = {key: value for key, value in line.items() if key.endswith("_seconds")}
            modules[line["module"]] = {"products_a_second": round(options.products / steps, 2), **stages}
    cuda = options.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "precision": options.precision, "products": options.products, "siamese_batch": options.batch_size,
        "ranker_batch": config.ranker.batch_size, "gradient_checkpointing": options.gradient_checkpointing,
        "modules": modules, "peak_mib": round(peak / 2**20),
        "peak_of": "GPU memory" if cuda else "resident memory", "seconds": round(time.monotonic() - began, 1),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> int:
    """Measure one device, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=1023, help="of module 1; a fifth of it in module 4")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute activations: less memory, a third more time"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="toy encoders on the CPU: whether it runs")
    options = parser.parse_args()
    if options.smoke:
        options.device, options.products, options.batch_size = "cpu", 32, 16
    if options.products % 2:
        parser.error(f"--products is {options.products}: they are each other's labels in pairs, name an even number")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device (--device cpu measures a CPU)")
        return 0
    result = measure(options)
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
