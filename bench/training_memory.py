"""Peak memory and time of one training epoch on synthetic catalogues of growing size.

    python -m bench.training_memory [--pairs 1000000] [--out bench/results/NAME.json]

Two questions: does an epoch over many pairs stream (peak grows with the item lists alone), and does memory grow
with L x D for the classifiers and with nothing else in L? Every point runs in a fresh process.
With ``--pictures`` every product has a picture (ten share one), batches come from clusters and shortlists hold 300.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DIMENSION = 64
TINY = [
    'text.options={"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}',
    'image.options={"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 16, "image_size": 16, "patch_size": 8}',
    "inputs.image_side_pixels=16", "inputs.max_title_tokens=8", f"network.dimension={DIMENSION}", "shortlist.size=20",
    "siamese.batch_size=1024", "siamese.epochs=1", "siamese.random_epochs=1", "frozen_ranker.epochs=0",
    "ranker.epochs=1", "ranker.batch_size=1024", "ranker.negatives=6", "ranker.positives=2", "ranker.random_negatives=0",
    "vocabulary_size=2000", "sparse_classifiers=true", "encode_batch_size=2048", "ranker.encoder_learning_rate=1e-4",
    "ranker.loss=bce", "shortlist.exact_labels=1000000",
]  # fmt: skip


PICTURES = ["siamese.random_epochs=0", "shortlist.size=300"]
SHARED_BY = 10


def write_pictures(folder: Path, count: int) -> None:
    """``count`` different pictures of 16 x 16 pixels."""
    random = np.random.default_rng(1)
    for number in range(count):
        path = folder / "pictures" / str(number // 1000) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def write_catalogue(folder: Path, pairs: int, labels: int, pictures: bool, seed: int = 0) -> None:
    """``pairs`` products with one label each; label j is relevant to titles that carry its two words."""
    random = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(1000)]
    folder.mkdir(parents=True)
    with (folder / "labels.jsonl").open("w") as out:
        for label in range(labels):
            title = f"{words[label % 1000]} {words[(label * 7 + label // 1000) % 1000]}"
            out.write(json.dumps({"id": f"l{label}", "title": title}) + "\n")
    valid = 2000
    if pictures:
        write_pictures(folder, (pairs + valid) // SHARED_BY + 1)
    own = random.integers(0, labels, pairs + valid)
    noise = random.integers(0, 1000, pairs + valid)
    tables = {name: (folder / f"{name}.csv").open("w") for name in ("train", "valid")}
    for table in tables.values():
        table.write("product_id,label_id\n")
    with (folder / "products.jsonl").open("w") as out:
        for product, (label, word) in enumerate(zip(own.tolist(), noise.tolist(), strict=True)):
            title = f"{words[label % 1000]} {words[(label * 7 + label // 1000) % 1000]} {words[word]}"
            number = product // SHARED_BY
            images = f', "images": ["pictures/{number // 1000}/{number}.png"]' if pictures else ""
            out.write(f'{{"id": "p{product}", "title": "{title}"{images}}}\n')
            tables["train" if product < pairs else "valid"].write(f"p{product},l{label}\n")
    for table in tables.values():
        table.close()


def measure(pairs: int, labels: int, pictures: bool) -> dict[str, Any]:
    """One training in this process: peak resident memory in MiB after reading and at the end, seconds."""
    from mufin.catalogue import read_catalogue
    from mufin.training.config_reading import build_config
    from mufin.training.progress import Reporter
    from mufin.training.recipe import train

    with tempfile.TemporaryDirectory() as scratch:
        write_catalogue(Path(scratch) / "catalogue", pairs, labels, pictures)
        began, anonymous = time.monotonic(), AnonymousPeak()
        catalogue = read_catalogue(Path(scratch) / "catalogue")
        after_reading, read_seconds = _peak_mib(), time.monotonic() - began
        config = build_config(None, [*TINY, *(PICTURES if pictures else [])])
        train(catalogue, config, Path(scratch) / "run", Reporter(quiet=True))
        anonymous.stop()
        lines = [json.loads(line) for line in (Path(scratch) / "run" / "metrics.jsonl").read_text().splitlines()]
        epochs = {line["module"]: line["epoch_seconds"] for line in lines if "epoch_seconds" in line}
        stages = [{k: v for k, v in line.items() if k.endswith("_seconds")} for line in lines if "epoch" in line]
    return {
        "pairs": pairs, "labels": labels, "pictures": pictures, "stages": stages, "read_seconds": round(read_seconds, 1), "epoch_seconds": epochs,
        "peak_mib_after_reading": after_reading, "peak_mib": _peak_mib(),
        "training_mib": round(_peak_mib() - after_reading, 1), "peak_anonymous_mib": anonymous.mib,
    }  # fmt: skip


class AnonymousPeak:
    """Largest memory of this process that no file stands behind, looked at 20 times a second.

    The peak of all resident memory counts mapped files, too (shortlists, pixels), which the kernel takes back at will.
    """

    def __init__(self) -> None:
        self.mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            status = Path("/proc/self/status").read_text()
            kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            self.mib = max(self.mib, round(kib / 1024, 1))

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> int:
    """Run all points, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="toy label counts: whether it runs")
    parser.add_argument("--pictures", action="store_true", help="with pictures, clusters and shortlists of 300")
    parser.add_argument("--point", nargs=2, type=int, metavar=("PAIRS", "LABELS"), help="measure one point, print JSON")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.point[0], options.point[1], options.pictures)))
        return 0
    most = options.pairs
    few, many = (200, 400) if options.smoke else (10_000, 100_000)
    points = [(most // 4, few), (most, few), (most // 10, few), (most // 10, many // 2), (most // 10, many)]
    if options.pictures:
        points = points[:2]  # how it grows with L is measured without them
    results = []
    for pairs, labels in points:
        command = [sys.executable, "-m", "bench.training_memory", "--point", str(pairs), str(labels)]
        command += ["--pictures"] if options.pictures else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    summary = {
        f"{name}_at_four_times_the_pairs": round(results[1][name] / results[0][name], 2)
        for name in ("training_mib", "peak_anonymous_mib")
    }
    if not options.pictures:
        low, high = results[2], results[4]
        slope = (high["training_mib"] - low["training_mib"]) * 2**20 / (high["labels"] - low["labels"])
        summary |= {"bytes_a_label": round(slope), "in_units_of_4_D_bytes": round(slope / (4 * DIMENSION), 2)}
    print(summary)
    if options.out:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        options.out.write_text(json.dumps({"points": results, "summary": summary, **machine}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
