"""The page's section on int8: what it costs in accuracy, and what it saves.

Knows the shape of ``int8_report.report`` only; what is missing in it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from model_export.report_html import plain_text, share, table


def int8_section(int8: Mapping[str, Any]) -> str:
    """``int8``: of report.json; without figures nothing was measured."""
    variants = int8.get("int8", {})
    if not variants:
        return "<p>The encoders are fp32; int8 was not measured.</p>"
    base = int8.get("fp32", {})
    rows: list[Sequence[str]] = [["fp32", *(share(value) for value in base.values()), "", "", ""]]
    for title, variant in variants.items():
        for parts, cost in variant.get("cost", {}).items():
            rows.append([f"{parts} in int8, {title}", *_cost(cost, list(base))])
    head = ["encoders", *base, "points of P@1 lost", "95 % interval", "least cosine"]
    chosen = ", ".join(
        f"{part} {own['precision']}{' one by one' if own['one_by_one'] else ''}"
        for part, own in int8.get("chosen", {}).items()
    )
    return (
        f"<p>Chosen: {escape(chosen)}. Because: {escape(str(int8.get('reason', '')))}.</p>"
        f"<p>Measured on {int8.get('validation_products', '?')} validation products; "
        f"{plain_text(int8.get('tolerance_points'))} points of P@1 may be lost.</p>"
        + table("Accuracy", head, rows)
        + _savings("Bytes", _by_part(int8.get("size_bytes", {})))
        + _savings("Milliseconds", int8.get("milliseconds", {}))
    )


def _cost(cost: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    figures, low_high = cost.get("figures", {}), cost.get("points_lost_P@1_interval", [])
    lost, cosine = cost.get("points_lost", {}).get("P@1"), cost.get("embedding_cosine", {}).get("least")
    interval = " to ".join("?" if bound is None else f"{bound:.2f}" for bound in low_high)
    return [
        *(share(figures.get(name)) for name in names),
        "" if lost is None else f"{lost:.2f}",
        interval,
        share(cosine),
    ]


def _by_part(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """part -> precision -> bytes, the other way round."""
    kinds = dict.fromkeys(kind for own in sizes.values() for kind in own)
    return {kind: {part: own[kind] for part, own in sizes.items() if kind in own} for kind in kinds}


def _savings(caption: str, values: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each thing measured, a column for each precision."""
    if not values:
        return ""
    names = dict.fromkeys(name for own in values.values() for name in own)
    rows = [[name.replace("_", " "), *(_number(own.get(name)) for own in values.values())] for name in names]
    return table(caption, ["", *values], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
