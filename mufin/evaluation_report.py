"""What an evaluation says: figures with intervals as frozen values, JSON and a table.

Knows no model and no catalogue files; ``mufin.evaluate`` fills it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mufin.label_bands import BANDS
from mufin.significance import Difference, Interval

_NAME_WIDTH = 16
_CELL_WIDTH = 24


@dataclass(frozen=True)
class Figures:
    """The figures of one view of the split: with exclude pairs left out, or with them left in."""

    scored: int
    """products with a relevant label"""
    left_out: int
    """products without one"""
    relevant_pairs: int
    attainable: Mapping[str, float]
    """figure -> its highest possible value on this split"""
    rankings: Mapping[str, Mapping[str, Interval]]
    """shortlist, classifier, fused -> figure -> value and interval"""
    bands: Mapping[str, Mapping[str, Interval]]
    """the same keys -> ``P@1 head`` ... and ``relevant head`` ...; empty without training pairs"""


@dataclass(frozen=True)
class Comparison:
    """The fused ranking against another subject's, on the same products."""

    other: Mapping[str, str]
    values: Mapping[str, Interval]
    """the other's figures"""
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found."""

    subject: Mapping[str, str]
    catalogue: str
    split: str
    settings: Mapping[str, Any]
    """propensity and bootstrap as used"""
    figures: Figures
    """exclude pairs in neither ranking nor relevance"""
    band_facts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    over_shortlist: Mapping[str, Difference] = field(default_factory=dict)
    """fused less shortlist"""
    without_exclude: Figures | None = None
    """exclude pairs treated like any other"""
    ceilings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """oracle -> figure -> what it reaches on the test split"""
    comparison: Comparison | None = None
    notes: Sequence[str] = ()

    def ceiling_shares(self) -> dict[str, dict[str, float]]:
        """Oracle -> figure -> share of it that the fused ranking reaches."""
        fused = self.figures.rankings["fused"]
        return {
            oracle: {name: fused[name].value / value for name, value in reached.items() if name in fused and value > 0}
            for oracle, reached in self.ceilings.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; a figure that is not defined is null."""
        values: dict[str, Any] = {
            "subject": dict(self.subject), "catalogue": self.catalogue, "split": self.split,
            "settings": dict(self.settings), **_figures_json(self.figures),
            "label_bands": self.band_facts, "fused_over_shortlist": self.over_shortlist,
        }  # fmt: skip
        if self.without_exclude is not None:
            values["without_exclude"] = _figures_json(self.without_exclude)
        if self.ceilings:
            values["ceilings"], values["share_of_ceilings"] = self.ceilings, self.ceiling_shares()
        if self.comparison is not None:
            own = self.comparison
            values["comparison"] = {"other": own.other, "values": own.values, "differences": own.differences}
        values["notes"] = list(self.notes)
        plain: dict[str, Any] = _plain(values)
        return plain

    def table(self) -> str:
        """For a person to read."""
        lines = [f"{self.subject['kind']} {self.subject['path']} on {self.catalogue}, split {self.split}", ""]
        lines += _figure_lines(self.figures, "exclude pairs left out of ranking and relevance")
        if self.figures.bands:
            lines += ["", *_band_lines(self.figures.bands, self.band_facts)]
        if self.over_shortlist:
            lines += ["", *_difference_lines("fused less shortlist", self.over_shortlist)]
        if self.without_exclude is not None:
            lines += ["", *_figure_lines(self.without_exclude, "exclude pairs left in")]
        if self.ceilings:
            lines += ["", *_ceiling_lines(self.ceilings, self.ceiling_shares(), self.split)]
        if self.comparison is not None:
            title = f"fused less fused of {self.comparison.other['path']}"
            lines += ["", *_difference_lines(title, self.comparison.differences)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _figures_json(figures: Figures) -> dict[str, Any]:
    return {
        "products_scored": figures.scored,
        "products_without_relevant_label": figures.left_out,
        "relevant_pairs": figures.relevant_pairs,
        "attainable": figures.attainable,
        "rankings": figures.rankings,
        "bands": figures.bands,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain({"value": value.value, "low": value.low, "high": value.high})
    if isinstance(value, Difference):
        names = ("difference", "low", "high", "share_above_zero")
        return _plain({name: getattr(value, name) for name in names})
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _row(name: str, cells: Sequence[str]) -> str:
    return (name.ljust(_NAME_WIDTH) + "".join(cell.rjust(_CELL_WIDTH) for cell in cells)).rstrip()


def _cell(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _figure_lines(figures: Figures, title: str) -> list[str]:
    names = next(iter(figures.rankings.values()))
    lines = [
        f"{figures.scored} products, {figures.relevant_pairs} relevant pairs; {title}"
        + (f"; {figures.left_out} products without a relevant label left out" if figures.left_out else ""),
        _row("", list(figures.rankings)),
    ]
    lines += [_row(name, [_cell(own[name]) for own in figures.rankings.values()]) for name in names]
    best = ", ".join(f"{name} {value:.4f}" for name, value in figures.attainable.items())
    return [*lines, f"attainable: {best} (F/max is the share of it)"]


def _band_lines(bands: Mapping[str, Mapping[str, Interval]], facts: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = ["by training frequency of the label; the three parts add up to the figure"]
    for band in BANDS:
        own = facts[band]
        lines.append(
            f"{band}: {own['labels']} labels, trained on {own['lowest_frequency']} to {own['highest_frequency']} pairs each"
        )
    lines.append(_row("", list(bands)))
    names = next(iter(bands.values()))
    return lines + [_row(name, [_cell(own[name]) for own in bands.values()]) for name in names]


def _difference_lines(title: str, differences: Mapping[str, Difference]) -> list[str]:
    lines = [title, _row("", ["difference", "share above 0"])]
    for name, own in differences.items():
        cell = f"{own.difference:+.4f} [{own.low:+.4f}, {own.high:+.4f}]"
        lines.append(_row(name, [cell.rjust(_CELL_WIDTH + 3), f"{own.share_above_zero:.3f}".rjust(_CELL_WIDTH - 3)]))
    return lines


def _ceiling_lines(
    ceilings: Mapping[str, Mapping[str, float]], shares: Mapping[str, Mapping[str, float]], split: str
) -> list[str]:
    where = "" if split == "test" else f"; they hold for the test split, this is {split}"
    lines = [f"oracles, and the share of each that the fused ranking reaches{where}"]
    for oracle, reached in ceilings.items():
        cells = [
            f"{n} {v:.4f}" + (f" ({shares[oracle][n]:.3f})" if n in shares[oracle] else "") for n, v in reached.items()
        ]
        lines.append(_row(oracle, cells))
    return lines
