"""Golden products: inputs and the expected output of every stage, and the comparison with what a predictor gives.

Knows neither torch nor the predictor: the export fills in the one side, ``Predictor.replay_golden`` the other.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mufin.bundle import GOLDEN_FILE
from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, Int64Array, Uint8Array
from mufin.label_filters import pack_json, unpack_json, write_arrays
from mufin.manifest import Encoders, Tolerances
from mufin.processor import INT8_OVERFLOWS, int8_sums_overflow

_INT8_COMBINED = 2.0
"""How far int8 vectors may move a combined score, whose unit is a logit; the order of the first ten is held as ever."""


@dataclass(frozen=True)
class Golden:
    """G products and what the network in torch makes of them."""

    titles: list[str]
    """"" for a product without one"""
    has_title: BoolArray
    """(G,)"""
    token_ids: Int64Array
    """(G, T) padded with 0"""
    image_offsets: Int64Array
    """(G + 1,) into pixels"""
    pixels: Uint8Array
    """(N, side, side, 3)"""
    title_vectors: FloatArray
    """(G, D), of the empty title, too"""
    image_vectors: FloatArray
    """(N, D)"""
    slots: FloatArray
    """(G, S, D) after self-attention"""
    slot_mask: BoolArray
    """(G, S)"""
    embeddings: FloatArray
    """(G, D)"""
    shortlist: tuple[Int64Array, FloatArray]
    """Labels (G, K) by exact search, padded with -1, and their cosines"""
    classifier: FloatArray
    """(G, K) scores of the shortlist"""
    fused: FloatArray
    """(G, K) scores of the shortlist"""
    k: int = 10
    """Ranks compared"""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Labels of one product, best first, with scores."""

    labels: Int64Array
    scores: FloatArray


@dataclass(frozen=True)
class GoldenResults:
    """What a predictor makes of the same products."""

    token_ids: Int64Array
    title_vectors: FloatArray
    image_vectors: FloatArray
    slots: Sequence[FloatArray]
    embeddings: FloatArray
    shortlists: Sequence[Ranked]
    classifier: Sequence[FloatArray]
    """of the golden shortlists"""
    rankings: Sequence[Ranked]


@dataclass(frozen=True, slots=True)
class StageParity:
    """One row of the parity table."""

    stage: str
    largest_difference: float
    allowed_difference: float
    agreement: float | None
    """Least share of a product's first k that torch ranks there, too, ties allowed; None where nothing is ranked"""
    needed_agreement: float | None
    measure: Literal["largest", "1 - cosine"] = "largest"
    """What the difference is: the largest absolute one of any number, or how far the worst vector's cosine is from 1"""

    @property
    def passed(self) -> bool:
        """Whether the stage lies within its tolerances; NaN does not."""
        near = self.largest_difference <= self.allowed_difference
        return near and (self.agreement is None or self.agreement >= (self.needed_agreement or 0.0))


@dataclass(frozen=True)
class Parity:
    """The parity table."""

    products: int
    stages: tuple[StageParity, ...]
    advice: str = ""
    """What may be at fault where a stage fails, and what to mend though none does"""

    @property
    def passed(self) -> bool:
        """Whether every stage lies within its tolerances."""
        return all(stage.passed for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json; a difference that is no number becomes null."""
        rows = [{**asdict(stage), "passed": stage.passed} for stage in self.stages]
        for row in rows:
            if not np.isfinite(row["largest_difference"]):
                row["largest_difference"] = None
        return {"golden_products": self.products, "passed": self.passed, "stages": rows}

    def table(self) -> str:
        """The table as text."""
        lines = [
            f"{'stage':<12}{'difference':>12}{'allowed':>10}{'top-k':>8}{'needed':>8}  ({self.products} golden products)"
        ]
        for row in self.stages:
            ranked = "" if row.agreement is None else f"{row.agreement:>8.3f}{row.needed_agreement:>8.3f}"
            verdict = ("ok" if row.passed else "FAILED") + (" (1 - cosine)" if row.measure != "largest" else "")
            lines.append(
                f"{row.stage:<12}{row.largest_difference:>12.2e}{row.allowed_difference:>10.0e}{ranked:>16}  {verdict}"
            )
        if self.advice and not self.passed:
            lines.append(self.advice)
        return "\n".join(lines)


def compare(
    golden: Golden, results: GoldenResults, tolerances: Tolerances, encoders: Encoders | None = None,
    may_overflow: bool = True, stretch: float = 1.0,
) -> Parity:  # fmt: skip
    """Both sides, stage by stage; ``encoders``: how the predictor computed the vectors, by default in fp32.

    ``may_overflow``: whether int8 encoders have weights of 8 bits. ``stretch``: by how much final scores lie further apart
    than what they are made of, as those of untrained labels do (``ScoreSpec.untrained_stretch``).
    """
    used = encoders or Encoders()
    text, image = (own.precision == "int8" for own in (used.text, used.image))
    either = text or image
    slots = [own[mask] for own, mask in zip(golden.slots, golden.slot_mask, strict=True)]
    return Parity(
        len(golden.titles),
        (
            StageParity("tokens", _difference([results.token_ids], [golden.token_ids]), 0.0, None, None),
            _vectors("title", [results.title_vectors], [golden.title_vectors], tolerances, text),
            _vectors("image", [results.image_vectors], [golden.image_vectors], tolerances, image),
            _vectors("bag", results.slots, slots, tolerances, either),
            _vectors("embedding", [results.embeddings], [golden.embeddings], tolerances, either),
            *_score_stages(golden, results, tolerances, either, stretch),
        ),
        INT8_OVERFLOWS if either and may_overflow and int8_sums_overflow() else "",
    )


def _vectors(
    stage: str, found: Sequence[FloatArray], expected: Sequence[FloatArray], tolerances: Tolerances, int8: bool
) -> StageParity:
    if not int8:
        return StageParity(stage, _difference(found, expected), tolerances.encoder_difference, None, None)
    allowed = 1.0 - tolerances.int8_cosine
    return StageParity(stage, _cosine_distance(found, expected), allowed, None, None, "1 - cosine")


def _score_stages(
    golden: Golden, results: GoldenResults, tolerances: Tolerances, int8: bool, stretch: float
) -> tuple[StageParity, StageParity, StageParity]:
    """Shortlist, classifier scores of the golden shortlist, ranking."""
    near, classifier, needed = (
        tolerances.encoder_difference, tolerances.classifier_difference, tolerances.top_k_agreement,
    )  # fmt: skip
    ranked = tolerances.ranking_difference if tolerances.ranking_difference is not None else classifier
    ties = (near, ranked)
    if int8:
        # Unit vectors of cosine c lie sqrt(2 (1 - c)) apart, and no score of a unit label moves by more.
        near = max(near, (2.0 * (1.0 - tolerances.int8_cosine)) ** 0.5)
        classifier, needed = max(classifier, near), min(needed, tolerances.int8_top_k_agreement)
        ranked = classifier if tolerances.ranking_difference is None else max(ranked, _INT8_COMBINED)
        tie = tolerances.int8_tie if tolerances.ranking_difference is None else _INT8_COMBINED
        ties = (max(ties[0], tolerances.int8_tie), max(ties[1], tie))
    ranked, ties = ranked * stretch, (ties[0], ties[1] * stretch)
    wanted = [Ranked(row[row >= 0], own[row >= 0]) for row, own in zip(*golden.shortlist, strict=True)]
    scores = [own[: len(w.labels)] for own, w in zip(golden.classifier, wanted, strict=True)]
    fused = [_sorted(w.labels, own[: len(w.labels)]) for own, w in zip(golden.fused, wanted, strict=True)]
    shortlist, ranking = _ranked_difference(results.shortlists, wanted), _ranked_difference(results.rankings, fused)
    return (
        StageParity("shortlist", shortlist, near, agreement(results.shortlists, wanted, golden.k, ties[0]), needed),
        StageParity("classifier", _difference(results.classifier, scores), classifier, None, None),
        StageParity("ranking", ranking, ranked, agreement(results.rankings, fused, golden.k, ties[1]), needed),
    )


def agreement(found: Sequence[Ranked], expected: Sequence[Ranked], k: int, tie: float) -> float:
    """Least share over the products of the first k found that belong there; scores within ``tie`` are equal."""
    shares = [1.0]
    for own, wanted in zip(found, expected, strict=True):
        ranks = min(k, len(wanted.labels))
        if ranks == 0:
            continue
        belonging = wanted.labels[wanted.scores >= wanted.scores[ranks - 1] - tie]
        shares.append(float(np.isin(own.labels[:ranks], belonging).sum()) / ranks)
    return min(shares)


def _difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    worst = 0.0
    for own, wanted in zip(found, expected, strict=True):
        if own.shape != wanted.shape:
            return float("inf")
        worst = max(worst, float(np.abs(own.astype(np.float64) - wanted).max(initial=0.0)), key=_nan_last)
    return worst


def _cosine_distance(found: Sequence[FloatArray], expected: Sequence[FloatArray]) -> float:
    """1 - the least cosine of two vectors in the same place; NaN or infinite where there is no cosine to take."""
    worst = 0.0
    for own, wanted in zip(found, expected, strict=True):
        if own.shape != wanted.shape:
            return float("inf")
        here, there = own.astype(np.float64), wanted.astype(np.float64)
        lengths = np.linalg.norm(here, axis=-1) * np.linalg.norm(there, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            distances = np.where((here == there).all(axis=-1), 0.0, 1.0 - (here * there).sum(axis=-1) / lengths)
        worst = max([worst, *distances.ravel().tolist()], key=_nan_last)
    return worst


def _nan_last(value: float) -> tuple[bool, float]:
    """NaN counts as larger than any number."""
    return bool(np.isnan(value)), value


def _ranked_difference(found: Sequence[Ranked], expected: Sequence[Ranked]) -> float:
    """Largest score difference of labels that both sides rank."""
    worst = 0.0
    for own, wanted in zip(found, expected, strict=True):
        _, here, there = np.intersect1d(own.labels, wanted.labels, return_indices=True)
        worst = max(worst, _difference([own.scores[here]], [wanted.scores[there]]), key=_nan_last)
    return worst


def _sorted(labels: Int64Array, scores: FloatArray) -> Ranked:
    order = np.lexsort((labels, -scores))
    return Ranked(labels[order], scores[order])


_ARRAYS = (
    "has_title", "token_ids", "image_offsets", "pixels", "title_vectors", "image_vectors", "slots", "slot_mask",
    "embeddings", "classifier", "fused",
)  # fmt: skip


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden.npz."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(golden, name) for name in _ARRAYS}
    arrays["titles"], arrays["k"] = pack_json(golden.titles), np.asarray(golden.k, dtype=np.int64)
    arrays["shortlist_labels"], arrays["shortlist_scores"] = golden.shortlist
    write_arrays(folder / GOLDEN_FILE, arrays)


def read_golden(folder: Path) -> Golden:
    """Read golden.npz. Raises BundleError when it cannot be read."""
    try:
        with np.load(folder / GOLDEN_FILE, allow_pickle=False) as arrays:
            return Golden(
                titles=unpack_json(arrays["titles"]),
                shortlist=(arrays["shortlist_labels"], arrays["shortlist_scores"]),
                k=int(arrays["k"]),
                **{name: arrays[name] for name in _ARRAYS},
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{folder / GOLDEN_FILE}: cannot be read ({error}): run mufin-export again") from error
