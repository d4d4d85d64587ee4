"""Losses against plain loops, and their edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mufin.training.config import SiameseConfig
from mufin.training.losses import (
    cosine_embedding_loss,
    distillation_loss,
    hardest_positive_margin_loss,
    multi_positive_softmax_loss,
    sampled_positives_margin_loss,
    scaled_bce_loss,
)
from mufin.training.siamese_step import _contrast


def scores_and_relevance(seed: int, rows: int = 6, columns: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Random scores in -1..1 and a relevance with at least one relevant column a row."""
    random = np.random.default_rng(seed)
    relevant = random.random((rows, columns)) < 0.2
    relevant[np.arange(rows), random.integers(0, columns, rows)] = True
    return torch.tensor(random.uniform(-1, 1, (rows, columns))), torch.tensor(relevant)


def plain_hinge(scores: torch.Tensor, relevant: torch.Tensor, positives: list[float], count: int) -> float:
    """The hinge by loops: margin .3, tau .1."""
    total = 0.0
    for row, mask, positive in zip(scores.tolist(), relevant.tolist(), positives, strict=True):
        negatives = sorted((s for s, r in zip(row, mask, strict=True) if not r), reverse=True)[:count]
        weights = [math.exp(s / 0.1) for s in negatives]
        total += sum(w / sum(weights) * max(0.0, s - positive + 0.3) for w, s in zip(weights, negatives, strict=True))
    return total / (len(positives) * count)


@pytest.mark.parametrize("seed", range(5))
def test_margin_loss_equals_a_plain_loop(seed: int) -> None:
    """Hardest positive, hardest negatives, softmax weights, mean over products and negatives."""
    scores, relevant = scores_and_relevance(seed)
    hardest = [
        min(s for s, r in zip(row, mask, strict=True) if r)
        for row, mask in zip(scores.tolist(), relevant.tolist(), strict=True)
    ]
    loss = hardest_positive_margin_loss(scores, relevant, margin=0.3, negatives=3, temperature=0.1)
    assert float(loss) == pytest.approx(plain_hinge(scores, relevant, hardest, 3), abs=1e-9)


def test_sampled_positives_average_over_the_draws() -> None:
    """Each drawn positive takes the place of the hardest one; the results are averaged."""
    scores, relevant = scores_and_relevance(7)
    drawn = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (6, 2)))
    loss = sampled_positives_margin_loss(scores, relevant, drawn, margin=0.3, negatives=3, temperature=0.1)
    plain = [plain_hinge(scores, relevant, drawn[:, i].tolist(), 3) for i in range(2)]
    assert float(loss) == pytest.approx(sum(plain) / 2, abs=1e-9)


def test_margin_loss_survives_fewer_negatives_than_asked() -> None:
    """A row whose every column is relevant adds nothing, and the gradient stays finite."""
    scores = torch.zeros(2, 3, requires_grad=True)
    relevant = torch.tensor([[True, True, True], [True, False, True]])
    loss = hardest_positive_margin_loss(scores, relevant, margin=0.3, negatives=10, temperature=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.3 / (2 * 3))
    assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())


@pytest.mark.parametrize("seed", range(3))
def test_softmax_loss_equals_cross_entropy_per_positive(seed: int) -> None:
    """The mean over a row's relevant columns of the cross entropy."""
    scores, relevant = scores_and_relevance(seed)
    plain = []
    for row, mask in zip(scores.tolist(), relevant.tolist(), strict=True):
        log_total = math.log(sum(math.exp(s / 0.1) for s in row))
        own = [log_total - s / 0.1 for s, r in zip(row, mask, strict=True) if r]
        plain.append(sum(own) / len(own))
    loss = multi_positive_softmax_loss(scores, relevant, temperature=0.1)
    assert float(loss) == pytest.approx(sum(plain) / len(plain), abs=1e-9)


def test_softmax_loss_leaves_out_rows_without_relevance() -> None:
    """A row with nothing relevant changes neither the sum nor the count."""
    scores, relevant = scores_and_relevance(2)
    padded = torch.cat([scores, torch.ones(1, 9)])
    nothing = torch.cat([relevant, torch.zeros(1, 9, dtype=torch.bool)])
    expected = multi_positive_softmax_loss(scores, relevant, temperature=0.1)
    assert float(multi_positive_softmax_loss(padded, nothing, temperature=0.1)) == pytest.approx(float(expected))


def test_pair_losses_equal_their_formulas() -> None:
    """Cosine: 1 - s and relu(s - margin). Logistic: of scale * (s - margin)."""
    scores, relevant = torch.tensor([0.9, 0.2, 0.7]), torch.tensor([True, False, False])
    assert float(cosine_embedding_loss(scores, relevant, margin=0.5)) == pytest.approx((0.1 + 0.0 + 0.2) / 3)
    logits = [20 * (s - 0.5) for s in scores.tolist()]
    plain = [math.log1p(math.exp(-logits[0])), math.log1p(math.exp(logits[1])), math.log1p(math.exp(logits[2]))]
    assert float(scaled_bce_loss(scores, relevant, scale=20, margin=0.5)) == pytest.approx(sum(plain) / 3, rel=1e-5)


def test_distillation_equals_a_plain_loop() -> None:
    """Cross entropy over usable columns, mean over rows that have one; what cannot be used may be anything."""
    random = np.random.default_rng(3)
    student, teacher = (torch.tensor(random.uniform(-1, 1, (5, 7)), requires_grad=True) for _ in range(2))
    usable = torch.tensor(random.random((5, 7)) < 0.6)
    usable[2] = False
    total, rows = 0.0, 0
    for own, other, mask in zip(student.tolist(), teacher.tolist(), usable.tolist(), strict=True):
        columns = [i for i, keep in enumerate(mask) if keep]
        if columns:
            given, learned = ([math.exp(values[i] / 0.1) for i in columns] for values in (other, own))
            total -= sum(g / sum(given) * math.log(v / sum(learned)) for g, v in zip(given, learned, strict=True))
            rows += 1
    loss = distillation_loss(student, teacher, usable, temperature=0.1)
    assert rows == 4 and float(loss.detach()) == pytest.approx(total / rows, abs=1e-9)
    loss.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None and student.grad is not None and bool(torch.isfinite(student.grad).all())
    assert not student.grad[~usable].any() and bool(student.grad[usable].any())


def test_distillation_of_nothing_is_nothing() -> None:
    """No usable column at all: 0, and no gradient that is not a number."""
    student = torch.zeros((2, 3), requires_grad=True)
    loss = distillation_loss(student, torch.ones(2, 3), torch.zeros((2, 3), dtype=torch.bool), temperature=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0 and student.grad is not None and not student.grad.any()


def test_label_to_product_loss_is_added_with_its_weight() -> None:
    """The same softmax over each label's column."""
    scores, relevant = scores_and_relevance(4)
    over_labels = multi_positive_softmax_loss(scores, relevant, temperature=0.1)
    over_products = multi_positive_softmax_loss(scores.T, relevant.T, temperature=0.1)
    settings = SiameseConfig(loss="softmax", temperature=0.1, label_to_product_weight=0.5)
    found = _contrast(settings, scores, relevant, None)
    assert float(found) == pytest.approx(float(over_labels + 0.5 * over_products))
    assert float(over_products) != pytest.approx(float(over_labels))
