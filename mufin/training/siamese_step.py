"""One step of module 1: drawn labels, embeddings of products and labels, the siamese loss.

Knows no schedule. Source: mufin.md section 6, M1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mufin.inputs import Int64Array
from mufin.training.encode import (
    encode_batch,
)
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
    relevant = torch.from_numpy(_block(data, rows, drawn)).to(session.device)
    own_rows, own_labels = workers.share(data.train_rows[rows]), workers.share(drawn)
    embeddings = []
    for arrays, own, total in ((data.products, own_rows, len(rows)), (data.labels, own_labels, len(drawn))):
        _, _, embedding = encode_batch(encoder, arrays.batch(own, dropout, random), session.device)
        embeddings.append(workers.gather(embedding.float(), total))
    with torch.autocast(session.device.type, enabled=False):
        scores = embeddings[0] @ embeddings[1].T
        scores = scores.masked_fill(torch.from_numpy(_forbidden_block(data, rows, drawn)).to(session.device), -1e4)
        if settings.loss == "softmax":
            return multi_positive_softmax_loss(scores, relevant, temperature=settings.temperature)
        if hard is not None:
            columns = torch.arange(hard.size, device=session.device).reshape(hard.shape) + len(rows)
            return sampled_positives_margin_loss(
                scores, relevant, scores.gather(1, columns), margin=settings.margin,
                negatives=settings.hard_negatives, temperature=settings.temperature,
            )  # fmt: skip
        return hardest_positive_margin_loss(
            scores,
            relevant,
            margin=settings.margin,
            negatives=settings.hard_negatives,
            temperature=settings.temperature,
        )


def _block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return relevance_block(data.train, rows, labels)


def _forbidden_block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Exclude pairs and the product itself are no negatives (accuracy.md); a stated relevant pair stays one."""
    return relevance_block(data.forbidden, data.train_rows[rows], labels) & ~_block(data, rows, labels)
