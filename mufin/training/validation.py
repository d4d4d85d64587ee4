"""Figures on the validation split while training goes on.

Knows no loss and no schedule; ``mufin-evaluate`` computes the full set afterwards.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import Relevance
from mufin.inputs import Int64Array
from mufin.scoring import ScoreSpec
from mufin.training.encode import (
    embed_items,
    encode_items,
)
from mufin.training.evaluation import (
    Candidates,
    encode_labels,
    rank_candidates,
    score_candidates,
    search_allowed,
)
from mufin.training.fusion import relevant_at
from mufin.training.loop import Session
from mufin.training.preparation import (
    TrainingData,
)
from mufin.training.shortlist import LabelSearch

_VALIDATION_PRODUCTS = 5000
"""Mid-training evaluations use so many validation products at the most; the last one uses all."""


def evaluate_shortlist(session: Session, data: TrainingData, epoch: int, epochs: int) -> dict[str, Any]:
    """The shortlist's figures, every ``evaluate_epochs`` epochs and after the last; nothing in between."""
    if epoch % session.config.evaluate_epochs and epoch != epochs:
        return {}
    config, encoder, began = session.config, session.model.encoder, time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    labels = embed_items(encoder, data.labels, None, config.encode_batch_size, session.device)
    queries = embed_items(encoder, data.products, rows, config.encode_batch_size, session.device)
    search = LabelSearch(labels, data.frequency, config.shortlist)
    found, _ = search_allowed(search, queries, data.forbidden.select(rows), min(10, len(data.labels)))
    session.spend("evaluate", began)
    return {"shortlist": precision(found, data.valid.select(np.arange(len(rows))))}


def evaluate_full(session: Session, data: TrainingData, bags: Path, epoch: int, epochs: int) -> dict[str, Any]:
    """Figures of shortlist, classifier and their even fusion, as often as ``evaluate_shortlist``."""
    if epoch % session.config.evaluate_epochs and epoch != epochs:
        return {}
    began = time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    candidates = scored_candidates(session, data, rows, bags)
    ranked = rank_candidates(candidates, rows, ScoreSpec(session.config.shortlist.size, 0.5))
    session.model.train()
    session.spend("evaluate", began)
    valid = data.valid.select(np.arange(len(rows)))
    return {name: precision(labels, valid) for name, labels in ranked.rows.items()}


def scored_candidates(session: Session, data: TrainingData, rows: Int64Array, bags: Path) -> Candidates:
    """Products ``rows`` against all labels as encoded now; the labels' bags go to the file ``bags``."""
    config, model, device = session.config, session.model, session.device
    size = config.encode_batch_size
    labels = encode_labels(model, data.labels, data.frequency, config.shortlist, size, device, bags)
    queries = encode_items(model.encoder, data.products, rows, size, device)
    wanted = min(config.shortlist.size, len(data.labels))
    return score_candidates(model, queries, labels, data.forbidden.select(rows), wanted, device)


def precision(ranked: Int64Array, relevance: Relevance) -> dict[str, float]:
    """P@1, P@5 and R@10 for the log; mufin-evaluate computes the full set."""
    hits = relevant_at(ranked[:, :10], relevance)
    counts = np.maximum(np.diff(relevance.indptr), 1)
    return {
        "P@1": round(float(hits[:, :1].mean()), 5),
        "P@5": round(float(hits[:, :5].sum(axis=1).mean() / 5), 5),
        "R@10": round(float((hits.sum(axis=1) / counts).mean()), 5),
    }
