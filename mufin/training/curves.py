"""The picture of a training: loss and validation figures over epochs, module by module.

Knows only metrics.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mufin.errors import TrainingError
from mufin.training.disk import atomic_write

CURVES_FILE = "curves.png"


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw ``metrics`` (metrics.jsonl of a finished run) into the PNG ``target``, whole or not at all.

    Raises TrainingError with the remedy where that fails; the run itself is finished by then.
    """
    try:
        atomic_write(target, lambda path: _draw(metrics, path))
    except (TrainingError, OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{target}: cannot be drawn ({error}); the run is finished all the same: mend that and run the same "
            "mufin-train again to draw it"
        ) from error


def _draw(metrics: Path, target: Path) -> None:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    modules = [m for m in ("siamese", "frozen_ranker", "ranker") if any(line.get("module") == m for line in lines)]
    figure, axes = plt.subplots(2, len(modules), figsize=(5 * len(modules), 7), squeeze=False, layout="constrained")
    for column, module in enumerate(modules):
        own = [line for line in lines if line.get("module") == module]
        upper, lower = axes[0][column], axes[1][column]
        upper.plot([line["epoch"] for line in own], [line["loss"] for line in own], color="#1f4e79")
        upper.set_title(module.replace("_", " "))
        upper.set_ylabel("training loss")
        for name, colour in (("shortlist", "#888888"), ("classifier", "#d08010"), ("full", "#1f4e79")):
            points = [(line["epoch"], line[name]) for line in own if name in line]
            if points:
                epochs = [p[0] for p in points]
                lower.plot(epochs, [p[1]["P@1"] for p in points], color=colour, marker="o", ms=3, label=f"{name} P@1")
                lower.plot(epochs, [p[1]["P@5"] for p in points], color=colour, ls="--", label=f"{name} P@5")
        lower.set_ylabel("validation")
        lower.set_xlabel("epoch")
        lower.legend(fontsize=8)
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    try:
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    finally:
        plt.close(figure)
