"""What the figures of bench/serving.py say: the goals that they reach, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def goals(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(measure, goal, figure, reached) of every number to reach."""
    floor, service, reference = found["floor"], found["service"], found["reference"]
    rows: list[tuple[str, str, float, float]] = []
    lone = service["title"]["lone"]["p50"] / floor["title"]["lone_ms"]
    rows.append(("lone p50 ÷ floor, title", "≤ 1.10", lone, 1.10))
    added = service["5 images, cached"]["lone"]["p50"] - floor["5 images, cached"]["lone_ms"]
    rows.append(("lone p50 - floor, ms, 5 cached images", "≤ .8", added, 0.8))
    for name in ("title", "5 images"):
        rows.append(
            (
                f"saturated ÷ floor's best, {name}",
                "≥ .92",
                service[name]["per_second"] / max(floor[name]["per_second"].values()),
                -0.92,
            )
        )
    for name in ("5 images, cached", "title"):
        cpu = service[name]["cpu_ms"] - floor[name]["cpu_ms"][floor[name]["best_batch"]]
        rows.append(
            (
                f"CPU added, ms a request, {name}",
                "≤ .6" if "cached" in name else "≤ .5",
                cpu,
                0.6 if "cached" in name else 0.5,
            )
        )
    for name in service:
        if isinstance(service[name], dict):
            rows.append((f"p99 ÷ p50 at 70 % load, {name}", "≤ 3", service[name]["p99_over_p50"], 3.0))
    for name, goal in (("title", 5.0), ("5 images", 3.5), ("5 images, cached", 100.0)):
        ratio = service[name]["per_second"] / reference[name]["per_second"]
        rows.append((f"throughput ÷ plain reference, {name}", f"≥ {goal:g}", ratio, -goal))
    large, small = found["labels"]["large"], found["labels"]["small"]
    rows.append((f"shortlist + rerank at {large['labels']:,} labels, ms", "≤ 2.0", large["ms"], 2.0))
    rows.append(("the same ÷ that of 10,000 labels", "≤ 2", large["ms"] / small["ms"], 2.0))
    return [
        (measure, goal, f"{value:.3f}", value <= limit if limit > 0 else value >= -limit)
        for measure, goal, value, limit in rows
    ]


def plot(found: dict[str, Any], path: Path) -> None:
    """Milliseconds of a lone request by load, floor and service; what a second holds."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "serving"
    names = list(found["floor"])
    places = np.arange(len(names))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    for axes, title_text in ((left, "lone request, ms (p50)"), (right, "products a second, saturated")):
        axes.set(xticks=places, title=title_text, yscale="log")
        axes.set_xticklabels(names, fontsize=8)
    own = found["service"]
    left.bar(places - 0.2, [found["floor"][name]["lone_ms"] for name in names], 0.4, label="floor")
    left.bar(places + 0.2, [own[name]["lone"]["p50"] for name in names], 0.4, label="service")
    right.bar(places - 0.27, [max(found["floor"][name]["per_second"].values()) for name in names], 0.27, label="floor")
    right.bar(places, [own[name]["per_second"] for name in names], 0.27, label="service")
    known = [name for name in names if name in found["reference"]]
    rates = [found["reference"][name]["per_second"] for name in known]
    right.bar([names.index(name) + 0.27 for name in known], rates, 0.27, label="plain reference")
    for axes in (left, right):
        axes.set_ylim(top=5 * axes.get_ylim()[1])
        axes.legend(fontsize=8, ncols=3, loc="upper center")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
