"""What was measured of int8 encoders, as values, as plain JSON and as the text of a refusal.

Knows neither how it was measured nor what is decided from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from model_export.int8_cost import FIGURES, Company, Ranked, Sample, Vectors, cosine_summary
from mufin.bundle import IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.errors import ConfigError
from mufin.manifest import INT8_FILES, Encoders
from mufin.processor import INT8_OVERFLOWS, int8_sums_overflow

GRAPHS = {"text": TEXT_GRAPH_FILE, "image": IMAGE_GRAPH_FILE}


@dataclass(frozen=True)
class PrecisionSettings:
    """What can be chosen about encoders."""

    encoders: Literal["auto", "fp32", "int8"] = "auto"
    """int8: every encoder that can, or a refusal; auto: those that gain by it and cost no more than the tolerance."""
    tolerance_points: float = 0.3
    """Most that P@1 of the validation products may fall, in points of 0.01."""
    reduce_range: bool = field(default_factory=int8_sums_overflow)
    """7-bit weights: on x86-64 processors without VNNI, sums of full ones overflow. Default: where this is one."""

    def __post_init__(self) -> None:
        if self.encoders not in ("auto", "fp32", "int8"):
            raise ConfigError(f"encoders is {self.encoders!r}, must be auto, fp32 or int8")
        if not math.isfinite(self.tolerance_points):
            raise ConfigError(f"int8 tolerance is {self.tolerance_points}, must be a finite number of points of P@1")


@dataclass(frozen=True)
class Variant:
    """Both encoders quantised with one range of weights, and what they make of the sample."""

    folder: Path
    """of the int8 graphs"""
    weights: Mapping[str, int]
    """text, image -> numbers in quantised matrices"""
    company: Mapping[str, Company]
    encoders: Encoders
    vectors: Vectors
    milliseconds: Mapping[str, float]
    costs: Mapping[str, Mapping[str, Any]]
    """which encoders are int8 together, e.g. text+image -> ``int8_cost.cost_of``; the most gainful first"""

    def lost(self, parts: str) -> float:
        """Points of P@1."""
        return float(self.costs[parts]["points_lost"]["P@1"])


@dataclass(frozen=True)
class Measured:
    """fp32 and int8 on one sample."""

    settings: PrecisionSettings
    sample: Sample
    vectors: Vectors
    """in fp32"""
    base: Ranked
    """in fp32"""
    full: Variant
    reduced: Variant
    milliseconds: Mapping[str, float]
    """in fp32"""

    @property
    def chosen(self) -> Variant:
        """The one of the range that was asked for."""
        return self.reduced if self.settings.reduce_range else self.full


def report(measured: Measured, encoders: Encoders, reason: str, folder: Path) -> dict[str, Any]:
    """Everything, for report.json."""
    variants = {"full range": measured.full, "reduced range": measured.reduced}
    return _json(
        {
            "asked": measured.settings.encoders,
            "tolerance_points": measured.settings.tolerance_points,
            "reduce_range": measured.settings.reduce_range,
            "chosen": asdict(encoders),
            "reason": reason,
            "validation_products": len(measured.sample.arrays),
            "scored_products": len(measured.base.scores.rows),
            "fp32": _figures(measured),
            "int8": {name: _variant(variant, measured) for name, variant in variants.items()},
            "size_bytes": {
                part: {
                    "fp32": (folder / graph).stat().st_size,
                    "int8": (measured.chosen.folder / INT8_FILES[graph]).stat().st_size,
                }
                for part, graph in GRAPHS.items()
            },
            "milliseconds": {"fp32": measured.milliseconds, "int8": measured.chosen.milliseconds},
        }
    )


def provenance(measured: Measured, encoders: Encoders) -> dict[str, Any]:
    """What of it belongs to a bundle's identity: one processor gives the same figures each time."""
    parts = "+".join(part for part in GRAPHS if getattr(encoders, part).precision == "int8")
    found = {**asdict(measured.settings), "validation_products": len(measured.sample.arrays)}
    if parts:
        found |= {"fp32": _figures(measured), "int8": measured.chosen.costs[parts]["figures"]}
    return _json(found)


def refusal(measured: Measured) -> str:
    """Why int8 is too dear, with the figures and the remedy."""
    variant, p1 = measured.chosen, 100.0 * _figures(measured)["P@1"]
    details = []
    for parts, cost in variant.costs.items():
        low, high = cost["points_lost_P@1_interval"]
        details.append(
            f"{parts} in int8 {100 * cost['figures']['P@1']:.2f} (loses {variant.lost(parts):.2f}, 95 % interval "
            f"{low:.2f} to {high:.2f}; least cosine {cost['embedding_cosine']['least']:.4f})"
        )
    return (
        f"int8 encoders lose {variant.lost(next(iter(variant.costs))):.2f} points of P@1, "
        f"{measured.settings.tolerance_points:.2f} are tolerated. P@1 of {len(measured.base.scores.rows)} validation "
        f"products: fp32 {p1:.2f}, {', '.join(details)}: export with --encoders auto or fp32, or allow more with "
        "--int8-tolerance"
        + (f"; {INT8_OVERFLOWS}" if int8_sums_overflow() and not measured.settings.reduce_range else "")
    )


def _variant(variant: Variant, measured: Measured) -> dict[str, Any]:
    titled = measured.sample.arrays.has_title  # nobody meets the vectors of empty titles
    return {
        "cost": variant.costs,
        "cosine": {
            "title": cosine_summary(variant.vectors.titles[titled], measured.vectors.titles[titled]),
            "image": cosine_summary(variant.vectors.images, measured.vectors.images),
        },
        "company": {part: found.cosines for part, found in variant.company.items()},
        "one_by_one": {"text": variant.encoders.text.one_by_one, "image": variant.encoders.image.one_by_one},
        "quantised_numbers": variant.weights,
    }


def _figures(measured: Measured) -> dict[str, float]:
    values = measured.base.scores.values()
    return {name: values[name] for name in FIGURES}


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain dictionaries; NaN, which JSON does not have, becomes null, and -0 becomes 0."""
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _json(value)
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    return value
