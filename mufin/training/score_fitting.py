"""ScoreSpec from the validation split: fusion weight and calibration of a network that is trained to the end.

Knows neither how it was trained nor where the result goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mufin.scoring import ScoreSpec
from mufin.training.calibration import calibrate, outcomes_of
from mufin.training.combining import Combiner
from mufin.training.evaluation import EncodedLabels, rank_candidates
from mufin.training.folds import Folds, choose_combination, without_training
from mufin.training.fusion import choose_fusion_weight
from mufin.training.label_vectors import LabelVectors
from mufin.training.loop import Session
from mufin.training.preparation import TrainingData
from mufin.training.shortlist import LabelSearch
from mufin.training.validation import all_labels, outcomes_by_modality, precision, score_products


@dataclass(frozen=True)
class FittedScores:
    """How scores become an answer, and how well they do on the validation split."""

    spec: ScoreSpec
    metrics: dict[str, Any]
    """fusion_weight; shortlist, classifier, full -> metric -> value; calibration"""
    fusion_curve: dict[str, float]
    """P@1 of every alpha tried; empty when it was given"""
    combiner: Combiner | None = None
    """Evidence and the combination learned, where it does better than fusion alone"""


def fit_scores(
    session: Session, data: TrainingData, bags: Path, fusion_weight: float | None = None, folds: Folds | None = None
) -> FittedScores:
    """Encode all labels, their bags into the file ``bags``, and fit. ``fusion_weight``: taken as it is; None: chosen.

    ``folds``: those that were trained, to learn a combination from; without them there is none.
    """
    labels = all_labels(session, data, bags)
    candidates = score_products(session, data, data.products, data.valid_rows, labels)
    chosen, curve = (fusion_weight, {}) if fusion_weight is not None else choose_fusion_weight(candidates, data.valid)
    spec = ScoreSpec(shortlist_size=session.config.shortlist.size, fusion_weight=chosen)
    ranked = rank_candidates(candidates, data.valid_rows, spec)
    combiner: Combiner | None = None
    extra: dict[str, Any] = {}
    if folds is not None:
        fusion = precision(ranked.rows["full"], data.valid)
        combiner, report = choose_combination(session, data, folds, labels, bags, chosen)
        extra = {"fusion": fusion, "combination": report}
        candidates = score_products(session, data, data.products, data.valid_rows, labels, combiner)
        ranked = rank_candidates(candidates, data.valid_rows, spec)
    overall = outcomes_of(ranked.rows["full"], ranked.scores["full"], data.valid, np.arange(len(data.valid_rows)))
    subsets = outcomes_by_modality(session, data, labels, ranked, spec, combiner)
    fits, calibration = calibrate(overall, subsets, session.reporter.say)
    spec = replace(
        spec, calibration_both=fits["both"], calibration_title=fits["title"], calibration_images=fits["images"]
    )
    spec, untrained = _with_untrained(session, data, spec, labels, combiner)
    calibration = {**calibration, "untrained": untrained}
    metrics = {name: precision(own, data.valid) for name, own in ranked.rows.items()}
    return FittedScores(
        spec, {"fusion_weight": chosen, **metrics, **extra, "calibration": calibration}, curve, combiner
    )


def _with_untrained(
    session: Session, data: TrainingData, spec: ScoreSpec, labels: EncodedLabels, combiner: Combiner | None
) -> tuple[ScoreSpec, dict[str, Any]]:
    """Calibrations of labels without training: the trained ones ranked as if their classifiers were their embeddings.

    A label that was never trained on may fit a little worse than these, whose embeddings were.
    """
    cold = replace(labels, classifiers=labels.items.embeddings)
    if session.config.shortlist.more_than_embeddings:  # of which a label without training products has none
        found_by = LabelVectors.own(labels.items.embeddings)
        cold = replace(cold, search=LabelSearch(found_by, data.frequency, session.config.shortlist))
    unknown = None if combiner is None else without_training(combiner)
    candidates = score_products(session, data, data.products, data.valid_rows, cold, unknown)
    ranked = rank_candidates(candidates, data.valid_rows, spec)
    overall = outcomes_of(ranked.rows["full"], ranked.scores["full"], data.valid, np.arange(len(data.valid_rows)))
    fits, figures = calibrate(overall, outcomes_by_modality(session, data, cold, ranked, spec, unknown), _nobody)
    spec = replace(
        spec, calibration_untrained_both=fits["both"], calibration_untrained_title=fits["title"],
        calibration_untrained_images=fits["images"],
    )  # fmt: skip
    return spec, {"ece": {name: own["ece"]["fitted"] for name, own in figures["subsets"].items() if "ece" in own}}


def _nobody(_: str) -> None:
    """What a subset lacks was said of the trained labels already."""
