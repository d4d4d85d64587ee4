"""Loss functions of MUFIN, pure: scores and relevance in, one number out.

Know no network and no sampling. Source: the authors' release (docs/network.md, Losses).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hardest_positive_margin_loss(
    scores: Tensor, relevant: Tensor, *, margin: float, negatives: int, temperature: float
) -> Tensor:
    """Hinge between the hardest in-batch positive and the hardest negatives (module 1, the release).

    scores (B, N), relevant (B, N) bool. s+ is the lowest relevant score; the ``negatives`` highest others are
    weighted with softmax(s / temperature), not detached. Rows without a relevant column count nothing.
    """
    hardest_positive = scores.masked_fill(~relevant, torch.inf).amin(dim=1, keepdim=True)
    return _weighted_hinge(scores, relevant, hardest_positive, margin, negatives, temperature)


def sampled_positives_margin_loss(
    scores: Tensor, relevant: Tensor, positives: Tensor, *, margin: float, negatives: int, temperature: float
) -> Tensor:
    """The same hinge against each of the drawn positives' scores (B, P), averaged over P (hard positives)."""
    parts = [
        _weighted_hinge(scores, relevant, positives[:, i : i + 1], margin, negatives, temperature)
        for i in range(positives.shape[1])
    ]
    return torch.stack(parts).mean()


def _weighted_hinge(
    scores: Tensor, relevant: Tensor, positive: Tensor, margin: float, negatives: int, temperature: float
) -> Tensor:
    count = min(negatives, scores.shape[1])
    hardest = scores.masked_fill(relevant, -torch.inf).topk(count, dim=1).values
    usable = torch.isfinite(hardest) & torch.isfinite(positive)
    finite = torch.where(usable, hardest, torch.full_like(hardest, -1e4))
    weights = (finite / temperature).softmax(dim=1)
    violation = torch.where(usable, torch.relu(finite - torch.where(usable, positive, finite) + margin), 0.0)
    return (violation * weights).mean()


def multi_positive_softmax_loss(scores: Tensor, relevant: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of softmax(scores / temperature) against the uniform distribution over relevant columns.

    scores (B, N), relevant (B, N) bool; rows without a relevant column are left out.
    """
    log_probability = (scores / temperature).log_softmax(dim=1)
    counts = relevant.sum(dim=1)
    per_row = -(log_probability * relevant).sum(dim=1) / counts.clamp_min(1)
    return per_row.sum() / (counts > 0).sum().clamp_min(1)


def cosine_embedding_loss(scores: Tensor, relevant: Tensor, *, margin: float) -> Tensor:
    """Mean of 1 - s where relevant, relu(s - margin) elsewhere (module 4, the release)."""
    return torch.where(relevant, 1.0 - scores, torch.relu(scores - margin)).mean()


def scaled_bce_loss(scores: Tensor, relevant: Tensor, *, scale: float, margin: float) -> Tensor:
    """Logistic loss of scale * (s - margin): every pair judged on its own."""
    return F.binary_cross_entropy_with_logits(scale * (scores - margin), relevant.to(scores.dtype))


def distillation_loss(student: Tensor, teacher: Tensor, usable: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of softmax(student / temperature) against that of the teacher, which learns nothing of it.

    student, teacher (B, C), usable (B, C) bool; rows without a usable column are left out (Hinton et al. 2015).
    """
    given = (teacher.detach() / temperature).masked_fill(~usable, -torch.inf).softmax(dim=1)
    learned = (student / temperature).masked_fill(~usable, -torch.inf).log_softmax(dim=1)
    rows = usable.any(dim=1)
    return -(given[rows] * learned[rows].masked_fill(~usable[rows], 0.0)).sum() / rows.sum().clamp_min(1)
