"""One step of module 1: drawn labels, embeddings of products and labels, the siamese loss.

Knows no schedule. Source: the authors' release, module 1 (docs/training.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mufin.inputs import Int64Array
from mufin.training.config import SiameseConfig
from mufin.training.encode import encode_batch
from mufin.training.loop import Session
from mufin.training.losses import (
    hardest_positive_margin_loss,
    multi_positive_softmax_loss,
    sampled_positives_margin_loss,
)
from mufin.training.mining import (
    draw_hard_labels,
    draw_labels,
    relevance_block,
    with_label_negatives,
)
from mufin.training.preparation import (
    TrainingData,
)


def siamese_loss(session: Session, data: TrainingData, rows: Int64Array, random: np.random.Generator) -> Tensor:
    """Loss of the train products ``rows``: in-batch relevance is the true one, forbidden pairs are no negatives."""
    settings, encoder, workers = session.config.siamese, session.model.encoder, session.workers
    dropout = session.config.image_dropout
    drawn = draw_labels(data.train, rows, random)
    hard = None
    if settings.hard_positives and session.positives:
        vectors = [p.numpy() for p in session.positives]
        hard = draw_hard_labels(data.train, rows, vectors[0], vectors[1], settings.hard_positives, random)
        drawn = np.concatenate([drawn, hard.reshape(-1)])
    if settings.label_negatives:
        drawn = with_label_negatives(drawn, settings.label_negatives, data.train.label_count, random)
    relevant = torch.from_numpy(_block(data, rows, drawn)).to(session.device)
    forbidden = torch.from_numpy(_forbidden_block(data, rows, drawn)).to(session.device)
    own_rows, own_labels = workers.share(data.train_rows[rows]), workers.share(drawn)
    _, _, products = encode_batch(encoder, data.products.batch(own_rows, dropout, random), session.device)
    _, _, labels = encode_batch(encoder, data.labels.batch(own_labels, dropout, random), session.device)
    products = workers.gather(products.float(), len(rows))
    with torch.autocast(session.device.type, enabled=False):
        labels = labels.float()
        scores = products @ workers.gather(labels, len(drawn)).T
        loss = _contrast(settings, scores.masked_fill(forbidden, -1e4), relevant, hard)
        if settings.classifier_weight:
            own = session.model.classifiers(torch.from_numpy(own_labels).to(session.device), labels)
            scores = products @ workers.gather(own, len(drawn)).T
            extra = _contrast(settings, scores.masked_fill(forbidden, -1e4), relevant, hard)
            loss = loss + settings.classifier_weight * extra
    return loss


def _contrast(settings: SiameseConfig, scores: Tensor, relevant: Tensor, hard: Int64Array | None) -> Tensor:
    """The configured loss of scores (B, N); ``hard`` (B, P) drawn positives fill the columns behind the first B."""
    if settings.loss == "softmax":
        loss = multi_positive_softmax_loss(scores, relevant, temperature=settings.temperature)
        if settings.label_to_product_weight:
            other = multi_positive_softmax_loss(scores.T, relevant.T, temperature=settings.temperature)
            loss = loss + settings.label_to_product_weight * other
        return loss
    margin, negatives, temperature = settings.margin, settings.hard_negatives, settings.temperature
    if hard is None:
        return hardest_positive_margin_loss(
            scores, relevant, margin=margin, negatives=negatives, temperature=temperature
        )
    columns = torch.arange(hard.size, device=scores.device).reshape(hard.shape) + len(scores)
    return sampled_positives_margin_loss(
        scores, relevant, scores.gather(1, columns), margin=margin, negatives=negatives, temperature=temperature
    )


def _block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return relevance_block(data.train, rows, labels)


def _forbidden_block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Exclude pairs and the product itself are no negatives; a stated relevant pair stays one."""
    return relevance_block(data.forbidden, data.train_rows[rows], labels) & ~_block(data, rows, labels)
