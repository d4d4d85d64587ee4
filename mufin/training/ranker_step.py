"""One step of module 4: drawn candidates, cross-attention, classifiers, the pair loss; and who learns how fast.

Knows no schedule. Source: the authors' release, module 4 (docs/training.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mufin.inputs import Int64Array
from mufin.training.config import RankerConfig
from mufin.training.encode import (
    encode_batch,
)
from mufin.training.loop import Group, Session
from mufin.training.losses import (
    cosine_embedding_loss,
    distillation_loss,
    scaled_bce_loss,
)
from mufin.training.mining import (
    draw_candidates,
)
from mufin.training.preparation import (
    TrainingData,
)


def ranker_groups(session: Session, settings: RankerConfig, frozen: bool) -> list[Group]:
    """Parameters by learning rate: shared encoder (or adapters), cross-attention, classifiers."""
    encoder, model = session.model.encoder, session.model
    modules: list[nn.Module] = [encoder]
    if frozen:
        modules = [encoder.text.adapter, encoder.image.adapter]
        modules += [encoder.self_attention] if encoder.self_attention is not None else []
    shared = [p for m in modules for p in m.parameters() if p.requires_grad]
    cross = [] if model.cross_attention is None else list(model.cross_attention.parameters())
    return [
        Group(shared, settings.encoder_learning_rate, settings.weight_decay),
        Group(cross, settings.cross_learning_rate, settings.weight_decay),
        Group(
            list(model.classifiers.parameters()),
            settings.classifier_learning_rate,
            0.0,
            session.config.sparse_classifiers,
        ),
    ]


def ranker_loss(
    session: Session, data: TrainingData, settings: RankerConfig, shortlists: Int64Array, rows: Int64Array,
    random: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Loss of the train products ``rows`` against drawn candidates; the batch's labels are encoded once."""
    model, device, workers = session.model, session.device, session.workers
    candidates, relevant, real = draw_candidates(
        data.train, data.forbidden.select(data.train_rows[rows]), rows, shortlists, positives=settings.positives,
        negatives=settings.negatives, random_negatives=settings.random_negatives, drop_hardest=settings.drop_hardest,
        random=random,
    )  # fmt: skip
    own = workers.share(np.arange(len(rows)))
    distinct, inverse = np.unique(candidates[own], return_inverse=True)
    index = torch.from_numpy(inverse.reshape(len(own), -1)).to(device)
    items = data.products.batch(data.train_rows[rows[own]], session.config.image_dropout, random)
    bag, mask, products = encode_batch(model.encoder, items, device)
    label_items = data.labels.batch(distinct, session.config.image_dropout, random)
    label_bag, label_mask, label_embedding = encode_batch(model.encoder, label_items, device)
    if model.cross_attention is None:
        adapted, _ = model.adapt(bag, mask, label_bag[index], label_mask[index])
    else:
        keys, values = model.cross_attention.project(label_bag)
        adapted, _ = model.adapt_projected(bag, mask, keys[index], values[index], label_mask[index])
    weights = model.classifiers(torch.from_numpy(distinct).to(device), label_embedding)[index]
    with torch.autocast(device.type, enabled=False):
        scores = (F.normalize(adapted.float(), dim=-1) * weights.float()).sum(dim=-1)
        scores = workers.gather(scores, len(rows))
        usable = torch.from_numpy(real).to(device)
        loss = _pair_loss(settings, scores[usable], torch.from_numpy(relevant).to(device)[usable])
        if settings.distillation_weight:
            cosines = (products.float()[:, None] * label_embedding.float()[index]).sum(dim=-1)
            cosines, temperature = workers.gather(cosines, len(rows)), session.config.siamese.temperature
            loss = loss + settings.distillation_weight * distillation_loss(
                cosines, scores, usable, temperature=temperature
            )
        return loss


def _pair_loss(settings: RankerConfig, scores: Tensor, relevant: Tensor) -> Tensor:
    if settings.loss == "bce":
        return scaled_bce_loss(scores, relevant, scale=settings.scale, margin=settings.margin)
    return cosine_embedding_loss(scores, relevant, margin=settings.margin)
