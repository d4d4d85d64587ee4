"""Peak memory and time of an export as labels grow, step by step: what is bounded by settings, and what grows with L.

    python -m bench.export_memory [--labels 1000000] [--processes 1] [--out bench/results/NAME.json]

Labels are titles alone, the encoder is a toy, D = 64, the index exact. A quarter of the labels and all of them are
exported, each in a fresh process. A thread reads the process's anonymous memory (its own) and file-backed memory
(mapped files, which the system takes back when it needs to) every 10 ms; getrusage gives the peak of both together.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import model_export.export as steps
import model_export.trained as trained
from model_export.int8_report import PrecisionSettings
from model_export.label_index import IndexSettings
from mufin.inputs import TitleTokenizer
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import RunFacts, hash_label_ids, save_run
from mufin.training.config import TrainConfig
from mufin.training.config_reading import build_config
from mufin.training.preparation import new_network
from mufin.training.progress import Reporter
from mufin.training.tokenizer import train_wordpiece

DIMENSION = 64
PRODUCTS = 400
WORDS = 1000
TINY = [
    'text.options={"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}',
    'image.options={"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    '"intermediate_size": 16, "image_size": 16, "patch_size": 8}',
    "inputs.image_side_pixels=16", "inputs.max_title_tokens=8", f"network.dimension={DIMENSION}", "shortlist.size=100",
    "vocabulary_size=2000",
]  # fmt: skip
MEASURED = {
    "read the catalogue": (trained, "read_catalogue"),
    "load the run": (trained, "load_run"),
    "identity": (steps, "encoding_identity"),
    "graphs": (steps, "export_graphs"),
    "encode labels": (steps, "encode_labels"),
    "records": (steps, "write_records"),
    "titles and filters": (steps, "_export_label_texts"),
    "golden products": (steps, "compute_golden"),
    "index": (steps, "_export_index"),
    "verify": (steps, "verify_bundle"),
}


def title(number: int) -> str:
    """Three words; no two labels of a million share all."""
    return f"w{number % WORDS} w{number // WORDS % WORDS} w{number * 7 % WORDS}"


def write_catalogue(folder: Path, labels: int) -> None:
    """``labels`` titles and a few products that are relevant to them."""
    folder.mkdir(parents=True)
    with (folder / "labels.jsonl").open("w") as out:
        for number in range(labels):
            out.write(json.dumps({"id": f"l{number}", "title": title(number), "price": number % 500}) + "\n")
    with (folder / "products.jsonl").open("w") as out:
        for number in range(PRODUCTS):
            out.write(json.dumps({"id": f"p{number}", "title": title(number * 31)}) + "\n")
    for name, rows in (("train", range(PRODUCTS // 2)), ("valid", range(PRODUCTS // 2, PRODUCTS))):
        lines = [f"p{row},l{row * 31 % labels}" for row in rows]
        (folder / f"{name}.csv").write_text("\n".join(["product_id,label_id", *lines]) + "\n")


def write_run(folder: Path, catalogue: Path, labels: int) -> TrainConfig:
    """A finished run with random weights."""
    config = build_config(None, TINY)
    torch.manual_seed(0)
    tokenizer = train_wordpiece([f"w{word}" for word in range(WORDS)], config.vocabulary_size)
    model = new_network(config, TitleTokenizer(tokenizer, config.inputs.max_title_tokens), labels)
    ids = hash_label_ids([f"l{number}" for number in range(labels)])
    facts = RunFacts(str(catalogue), PRODUCTS, labels, ids, PRODUCTS // 2, "")
    save_run(folder, model, config, ScoreSpec(config.shortlist.size), tokenizer, facts, {}, "")
    return config


class Watch:
    """Peaks of this process's memory by step."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._current = "start"
        threading.Thread(target=self._sample, daemon=True).start()

    def step(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, watched under ``name``."""

        def watched(*arguments: Any, **named: Any) -> Any:
            before, began, self._current = self._current, time.monotonic(), name
            start = _memory()["RssAnon"]
            try:
                return function(*arguments, **named)
            finally:
                own = self.steps.setdefault(name, {})
                own["seconds"] = round(time.monotonic() - began, 1)
                own["anonymous_mib_before"] = start
                self._note(name)
                own["anonymous_mib_after"] = _memory()["RssAnon"]
                self._current = before

        return watched

    def _sample(self) -> None:
        while True:
            self._note(self._current)
            time.sleep(0.01)

    def _note(self, name: str) -> None:
        own, now = self.steps.setdefault(name, {}), _memory()
        own["peak_anonymous_mib"] = max(own.get("peak_anonymous_mib", 0.0), now["RssAnon"])
        own["peak_file_mib"] = max(own.get("peak_file_mib", 0.0), now["RssFile"])


def _memory() -> dict[str, float]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: round(int(words[1]) / 1024, 1) for words in lines if words[0] in ("RssAnon:", "RssFile:")}


def export_once(run: Path, target: Path, processes: int) -> dict[str, Any]:
    """One export in this process."""
    watch = Watch()
    for name, (module, function) in MEASURED.items():
        setattr(module, function, watch.step(name, getattr(module, function)))
    settings = steps.ExportSettings(
        index=IndexSettings(exact_labels=10**9), precision=PrecisionSettings("fp32"), report=False, processes=processes
    )
    began = time.monotonic()
    steps.export(run, target, settings, Reporter(quiet=True))
    report = json.loads((target / "report.json").read_text())
    return {
        "seconds": round(time.monotonic() - began, 1), "encoding": report["encoding"],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1), "steps": watch.steps,
        "bundle_mib": round(sum(report["size_bytes"].values()) / 2**20, 1),
    }  # fmt: skip


def measure(labels: int, processes: int) -> dict[str, Any]:
    """Write a catalogue and a run, export them in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_catalogue(folder / "catalogue", labels)
        write_run(folder / "run", folder / "catalogue", labels)
        command = [sys.executable, "-m", "bench.export_memory", "--processes", str(processes), "--export"]
        done = subprocess.run(
            [*command, str(folder / "run"), str(folder / "bundle")], stdout=subprocess.PIPE, text=True, check=True
        )
    return {"labels": labels, **json.loads(done.stdout.splitlines()[-1])}


def summary(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """What grows with L, in bytes a label, and how much more the steps themselves take."""
    more = many["labels"] - few["labels"]

    def grown(step: str, figure: str) -> float:
        return float(many["steps"][step][figure]) - float(few["steps"][step][figure])

    def own(point: dict[str, Any], step: str) -> float:
        return float(point["steps"][step]["peak_anonymous_mib"] - point["steps"][step]["anonymous_mib_before"])

    catalogue = own(many, "read the catalogue") - own(few, "read the catalogue")
    return {
        "labels_ratio": many["labels"] / few["labels"],
        "peak_ratio": round(many["peak_mib"] / few["peak_mib"], 2),
        "peak_bytes_a_label": round((many["peak_mib"] - few["peak_mib"]) * 2**20 / more),
        "catalogue_bytes_a_label": round(catalogue * 2**20 / more),
        "classifiers_bytes_a_label": 4 * DIMENSION,
        "own_memory_of_step_mib": {
            step: [round(own(few, step), 1), round(own(many, step), 1)] for step in MEASURED if step in many["steps"]
        },
        "own_memory_of_step_bytes_a_label": {
            step: round((own(many, step) - own(few, step)) * 2**20 / more) for step in MEASURED if step in many["steps"]
        },
        "mapped_bytes_a_label_at_peak": round(max(grown(s, "peak_file_mib") for s in many["steps"]) * 2**20 / more),
    }


def main() -> int:
    """Both sizes, a table, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="few labels: whether it runs")
    parser.add_argument("--export", nargs=2, type=Path, metavar=("RUN", "BUNDLE"), help="one export, print JSON")
    options = parser.parse_args()
    if options.export:
        run, bundle = options.export
        print(json.dumps(export_once(run, bundle, options.processes)))
        return 0
    most = 8_000 if options.smoke else options.labels
    points = []
    for labels in (most // 4, most):
        points.append(measure(labels, options.processes))
        print(json.dumps(points[-1], indent=1), flush=True)
    result = {
        "dimension": DIMENSION, "points": points, "summary": summary(*points), "machine": platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
    }  # fmt: skip
    print(json.dumps(result["summary"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
