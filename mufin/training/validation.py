"""Figures on the validation split while training goes on.

Knows no loss and no schedule; ``mufin-evaluate`` computes the full set afterwards.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import Relevance
from mufin.inputs import BoolArray, Int64Array
from mufin.metrics import score_rows
from mufin.scoring import Modality, ScoreSpec
from mufin.training.calibration import Outcomes, outcomes_of
from mufin.training.combining import Combiner, combined_candidates
from mufin.training.encode import (
    embed_items,
    encode_items,
)
from mufin.training.evaluation import (
    Candidates,
    EncodedLabels,
    RankedSplit,
    encode_labels,
    rank_candidates,
    score_candidates,
    search_allowed,
)
from mufin.training.item_arrays import ItemArrays
from mufin.training.label_vectors import ItemEmbedder, label_vectors
from mufin.training.loop import Session
from mufin.training.preparation import (
    TrainingData,
)
from mufin.training.shortlist import LabelSearch

_VALIDATION_PRODUCTS = 5000
"""Mid-training evaluations use so many validation products at the most; the last one uses all."""


def evaluate_shortlist(session: Session, data: TrainingData, epoch: int, epochs: int) -> dict[str, Any]:
    """The shortlist's figures, every ``evaluate_epochs`` epochs and after the last; nothing in between."""
    if not _is_due(session, epoch, epochs):
        return {}
    config, encoder, began = session.config, session.model.encoder, time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    queries = embed_items(encoder, data.products, rows, config.encode_batch_size, session.device)
    search = search_now(session, data)
    found, _ = search_allowed(search, queries, data.forbidden.select(rows), min(10, len(data.labels)))
    session.spend("evaluate", began)
    return {"shortlist": precision(found, data.valid.select(np.arange(len(rows))))}


def search_now(session: Session, data: TrainingData) -> LabelSearch:
    """Over all labels as encoded now."""
    config = session.config
    embed = ItemEmbedder(session.model.encoder, config.encode_batch_size, session.device)
    found_by = label_vectors(embed, embed(data.labels), data.labels, data.taught, config.shortlist)
    return LabelSearch(found_by, data.frequency, config.shortlist)


def evaluate_full(session: Session, data: TrainingData, bags: Path, epoch: int, epochs: int) -> dict[str, Any]:
    """Figures of shortlist, classifier and their even fusion, as often as ``evaluate_shortlist``."""
    if not _is_due(session, epoch, epochs):
        return {}
    began = time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    candidates = scored_candidates(session, data, rows, bags)
    ranked = rank_candidates(candidates, rows, ScoreSpec(session.config.shortlist.size, 0.5))
    session.model.train()
    session.spend("evaluate", began)
    valid = data.valid.select(np.arange(len(rows)))
    return {name: precision(labels, valid) for name, labels in ranked.rows.items()}


def _is_due(session: Session, epoch: int, epochs: int) -> bool:
    return session.scored and (epoch % session.config.evaluate_epochs == 0 or epoch == epochs)


def scored_candidates(session: Session, data: TrainingData, rows: Int64Array, bags: Path) -> Candidates:
    """Products ``rows`` against all labels as encoded now; the labels' bags go to the file ``bags``."""
    return score_products(session, data, data.products, rows, all_labels(session, data, bags))


def all_labels(session: Session, data: TrainingData, bags: Path) -> EncodedLabels:
    """All labels as encoded now; their bags go to the file ``bags``."""
    config = session.config
    return encode_labels(
        session.model, data.labels, data.taught, config.shortlist, config.encode_batch_size, session.device, bags
    )


def score_products(
    session: Session, data: TrainingData, products: ItemArrays, rows: Int64Array, labels: EncodedLabels,
    combiner: Combiner | None = None,
) -> Candidates:  # fmt: skip
    """``rows`` of ``products`` against encoded labels; ``products`` may be the data's with a modality left out.

    ``combiner``: adds what evidence speaks for, and combined scores.
    """
    config, model, device = session.config, session.model, session.device
    queries = encode_items(model.encoder, products, rows, config.encode_batch_size, device)
    wanted = min(config.shortlist.size, len(data.labels))
    if combiner is not None:
        pictured = np.diff(products.image_offsets)[rows] > 0
        return combined_candidates(
            model, queries, rows, products.has_title[rows], pictured, labels, data.forbidden.select(rows), wanted,
            device, combiner,
        ).candidates  # fmt: skip
    return score_candidates(model, queries, labels, data.forbidden.select(rows), wanted, device)


def outcomes_by_modality(
    session: Session,
    data: TrainingData,
    labels: EncodedLabels,
    ranked: RankedSplit,
    spec: ScoreSpec,
    combiner: Combiner | None = None,
) -> dict[Modality, Outcomes]:
    """What comes of the validation products that have title and images, of titles alone, of images alone.

    ``ranked``: all validation products as they come. A modality that no product has is missing.
    """
    products, rows = data.products, data.valid_rows
    titled, pictured = products.has_title[rows], np.diff(products.image_offsets)[rows] > 0
    found: dict[Modality, Outcomes] = {}
    wholes: tuple[tuple[Modality, BoolArray, BoolArray, ItemArrays], ...] = (
        ("both", titled & pictured, titled & pictured, products),
        ("title", titled, titled & ~pictured, products.without_images()),
        ("images", pictured, pictured & ~titled, products.without_titles()),
    )
    for modality, having, nothing_to_leave_out, left in wholes:
        places = np.flatnonzero(having)
        if not len(places):
            continue
        if (having == nothing_to_leave_out).all():
            own, scores = ranked.rows["full"][places], ranked.scores["full"][places]
        else:
            scored = score_products(session, data, left, rows[places], labels, combiner)
            again = rank_candidates(scored, rows[places], spec)
            own, scores = again.rows["full"], again.scores["full"]
        found[modality] = outcomes_of(own, scores, data.valid, places)
    return found


def precision(ranked: Int64Array, relevance: Relevance) -> dict[str, float]:
    """P@1, P@5 and R@10 for the log; mufin-evaluate computes the full set."""
    figures = score_rows(ranked[:, :10], relevance, cuts=(1, 5), recall_cuts=(10,)).values()
    return {name: round(figures[name], 5) for name in ("P@1", "P@5", "R@10")}
