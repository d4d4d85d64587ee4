"""Probabilities of relevance from fused scores: fitted for each modality subset, and how well they hold.

Knows no network: ranked scores and outcomes in, parameters and figures out. Platt's sigmoid with his smoothed targets
(Platt 1999); expected calibration error over bins of equal mass (Nguyen and O'Connor 2015). Figures are cross-fitted:
a product's probabilities come from a fit that did not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.scoring import Calibration, Modality

Float64Array = npt.NDArray[np.float64]

MODALITIES: tuple[Modality, ...] = ("both", "title", "images")
BINS = 15
RESULTS = 10
"""Results of a product that the figures look at: about what a caller asks for."""
FITTED_RESULTS = 30
"""Results of a product that a fit looks at. Further down nearly all are wrong, and would rule the curve by number."""
LEAST_OUTCOMES = 50
"""A subset with fewer right or fewer wrong results has no fit of its own."""
_FOLDS = 2


@dataclass(frozen=True)
class Outcomes:
    """The rankings of n validation products and which of their results are right; best first."""

    products: Int64Array
    """(n,) positions in the validation split"""
    scores: FloatArray
    """(n, K) fused"""
    relevant: BoolArray
    """(n, K)"""
    known: BoolArray
    """(n, K), False for padding"""

    def flat(self, depth: int, chosen: BoolArray | None = None) -> tuple[FloatArray, BoolArray]:
        """Scores and outcomes of the first ``depth`` results of the ``chosen`` products, one after the other."""
        rows = slice(None) if chosen is None else chosen
        known = self.known[rows, :depth]
        return self.scores[rows, :depth][known], self.relevant[rows, :depth][known]


def outcomes_of(labels: Int64Array, scores: FloatArray, relevance: Relevance, products: Int64Array) -> Outcomes:
    """Ranked labels (n, K), padded -1, and their scores of the products at ``products`` in ``relevance``."""
    labels, scores = labels[:, :FITTED_RESULTS], scores[:, :FITTED_RESULTS]
    relevant = np.stack([np.isin(row, relevance.row(i)) for row, i in zip(labels, products, strict=True)])
    return Outcomes(products, scores, relevant & (labels >= 0), labels >= 0)


def calibrate(
    overall: Outcomes, subsets: Mapping[Modality, Outcomes], say: Callable[[str], None]
) -> tuple[dict[Modality, Calibration], dict[str, Any]]:
    """A calibration for each modality, and its figures as plain values.

    ``overall``: the products as they come; its fit serves a subset that has too few outcomes, and ``say`` is told.
    ``subsets``: the products that have a modality, with the others left out; one may be missing.
    """
    shared = fit_calibration(*overall.flat(FITTED_RESULTS))
    fold = _folds(1 + int(max(own.products.max(initial=0) for own in (overall, *subsets.values()))))
    fits: dict[Modality, Calibration] = {}
    figures: dict[str, Any] = {}
    for modality in MODALITIES:
        own = subsets.get(modality)
        _, relevant = own.flat(FITTED_RESULTS) if own is not None else (None, np.zeros(0, dtype=np.bool_))
        right, wrong = int(relevant.sum()), int((~relevant).sum())
        enough = own is not None and min(right, wrong) >= LEAST_OUTCOMES
        if not enough:
            say(
                f"calibration of {modality}: {right} right and {wrong} wrong results, {LEAST_OUTCOMES} of each are "
                "needed; takes the one of all validation products"
            )
        fits[modality] = fit_calibration(*own.flat(FITTED_RESULTS)) if own is not None and enough else shared
        figures[modality] = {
            "own_fit": enough, "products": 0 if own is None else len(own.products), "right": right, "wrong": wrong,
            "scale": round(fits[modality].scale, 6), "offset": round(fits[modality].offset, 6),
        }  # fmt: skip
        if own is not None and len(relevant):
            figures[modality] |= _held_out(overall, own, fold, enough)
    settings = {"bins": BINS, "results": RESULTS, "fitted_results": FITTED_RESULTS, "folds": _FOLDS}
    return fits, {**settings, "subsets": figures}


def _held_out(overall: Outcomes, own: Outcomes, fold: Int64Array, enough: bool) -> dict[str, Any]:
    """Calibration errors and reliability curves of a subset, by fits on the other folds' products.

    raw: the score itself, cut to 0..1; shared: one fit of the products as they come; fitted: the subset's own.
    """
    raw, shared, fitted, outcomes = [], [], [], []
    for number in range(_FOLDS):
        here = fold[own.products] == number
        scores, relevant = own.flat(RESULTS, here)
        general = fit_calibration(*overall.flat(FITTED_RESULTS, fold[overall.products] != number))
        special = fit_calibration(*own.flat(FITTED_RESULTS, ~here)) if enough else general
        raw.append(np.clip(scores, 0, 1))
        shared.append(general.probability(scores))
        fitted.append(special.probability(scores))
        outcomes.append(relevant)
    right = np.concatenate(outcomes)
    by = {"raw": raw, "shared": shared, "fitted": fitted}
    curves = {name: reliability_curve(np.concatenate(parts), right) for name, parts in by.items()}
    return {
        "ece": {name: round(calibration_error(curve), 5) for name, curve in curves.items()},
        "curve": {name: [[round(v, 5) for v in point] for point in curve] for name, curve in curves.items()},
    }


def _folds(count: int) -> Int64Array:
    """A fold for each of ``count`` products, by chance: neighbours in a catalogue are alike."""
    return np.asarray(np.random.default_rng(0).permutation(count) % _FOLDS, dtype=np.int64)


def reliability_curve(probabilities: FloatArray, relevant: BoolArray, bins: int = BINS) -> list[list[float]]:
    """[mean probability, share of relevant, results] of bins of equal mass, by rising probability. Both (N,)."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(bins, max(1, len(order))))
    return [
        [float(probabilities[p].mean(dtype=np.float64)), float(relevant[p].mean()), float(len(p))]
        for p in parts if len(p)
    ]  # fmt: skip


def calibration_error(curve: list[list[float]]) -> float:
    """Expected calibration error: the mean over results of |mean probability - share of relevant| of their bin."""
    total = sum(count for _, _, count in curve)
    return sum(count * abs(mean - share) for mean, share, count in curve) / max(total, 1)


def fit_calibration(scores: FloatArray, relevant: BoolArray) -> Calibration:
    """scale and offset by maximum likelihood with Platt's smoothed targets.

    scores, relevant: (N,), finite. The scale is never below 0, so that an answer's probabilities fall with its scores.
    A set with only one kind of outcome, or none, gives a flat curve at Platt's prior.
    """
    right, wrong = int(relevant.sum()), int((~relevant).sum())
    if right == 0 or wrong == 0 or float(scores.std()) < 1e-9:
        rate = (right + 1) / (right + wrong + 2)
        return Calibration(0.0, float(np.log(rate / (1 - rate))))
    targets = np.where(relevant, (right + 1) / (right + 2), 1 / (wrong + 2))
    mean, spread = float(scores.mean()), float(scores.std())
    z = (scores.astype(np.float64) - mean) / spread

    def negative_log_likelihood(parameters: Float64Array) -> tuple[float, Float64Array]:
        logits = parameters[0] * z + parameters[1]
        loss = np.logaddexp(0.0, logits) - targets * logits
        difference = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - targets
        return float(loss.mean()), np.array([(difference * z).mean(), difference.mean()])

    start, bounds = np.array([1.0, 0.0]), [(0.0, None), (None, None)]
    found = minimize(
        negative_log_likelihood, start, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"ftol": 1e-12, "gtol": 1e-8},
    )  # fmt: skip
    slope, offset = (float(v) for v in found.x)
    return Calibration(slope / spread, offset - slope * mean / spread)
