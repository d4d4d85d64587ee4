"""Folding cross attention offline changes where it is computed, not what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.label_records import fold_attention
from model_export.onnx_graphs import fold_spectral_norm
from mufin.scoring import LabelRecords, classifier_scores, cross_attend
from mufin.training.config import NetworkConfig
from mufin.training.model import BagAttention, Mufin
from tests.model_export.test_onnx_graphs import DIMENSION, network


def shaken() -> Mufin:
    """A network whose biases and norms are not at their start values either."""
    model = network("resnet")
    assert model.cross_attention is not None
    for parameter in model.cross_attention.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
@pytest.mark.parametrize("slots", [1, 4])
def test_folded_scores_equal_the_network(slots: int) -> None:
    """Adapted vectors, attention weights and classifier scores: numpy folded against torch unfolded, 1e-5."""
    torch.manual_seed(7)
    model = shaken()
    labels, size = 9, 3
    product, bags = torch.randn(1, slots, DIMENSION), torch.randn(1, labels, size, DIMENSION)
    mask = torch.rand(1, labels, size) > 0.3
    mask[..., 0] = True
    adapted, weights = model.adapt(product, torch.ones(1, slots, dtype=torch.bool), bags, mask)
    classifiers = torch.nn.functional.normalize(torch.randn(labels, DIMENSION), dim=-1)
    expected = (torch.nn.functional.normalize(adapted[0], dim=-1) * classifiers).sum(-1)

    attention = fold_spectral_norm(model).cross_attention
    assert attention is not None
    assert weights is not None
    folded = fold_attention(attention)
    keys = bags[0].numpy()
    records = LabelRecords(keys, folded.label.values(keys), mask[0].numpy(), classifiers.numpy())
    found, shares = cross_attend(folded.product, product[0].numpy(), records)
    np.testing.assert_allclose(found, adapted[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(shares, weights[0, :, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(
        classifier_scores(folded.product, product[0].numpy(), records), expected.numpy(), atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_several_heads_equal_the_network(heads: int, legacy: bool) -> None:
    """H = 1, 2, 4, merged rightly and as the public code does: scores and mean weights of torch within 1e-4."""
    torch.manual_seed(heads)
    labels, slots, size = 9, 4, 3
    config = NetworkConfig(dimension=DIMENSION, attention_heads=heads, legacy_heads=legacy)
    attention = BagAttention(config).eval()
    for parameter in attention.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    product, bags = torch.randn(slots, DIMENSION), torch.randn(labels, size, DIMENSION)
    mask = torch.rand(labels, size) > 0.3
    mask[:, 0] = True
    attended, weights = attention.attend(product.expand(labels, -1, -1), *attention.project(bags), mask)
    classifiers = torch.nn.functional.normalize(torch.randn(labels, DIMENSION), dim=-1)
    expected = (torch.nn.functional.normalize(attended.mean(1), dim=-1) * classifiers).sum(-1)

    folded = fold_attention(attention)
    records = LabelRecords(bags.numpy(), folded.label.values(bags.numpy()), mask.numpy(), classifiers.numpy())
    scores = classifier_scores(folded.product, product.numpy(), records)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    _, shares = cross_attend(folded.product, product.numpy(), records)
    np.testing.assert_allclose(shares, weights.mean(dim=1).numpy(), atol=1e-4)
    assert (folded.product.output_matrix is None) == (heads == 1)


@torch.no_grad()
def test_legacy_heads_differ_from_merged_ones() -> None:
    """The flag is no decoration: with two heads the public code's reshape gives other scores."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    attention = BagAttention(NetworkConfig(dimension=DIMENSION, attention_heads=2)).eval()
    product = fold_attention(attention).product
    bag, keys = (random.standard_normal(shape).astype(np.float32) for shape in ((3, DIMENSION), (5, 2, DIMENSION)))
    records = LabelRecords(keys, keys, np.ones((5, 2), dtype=np.bool_), keys[:, 0])
    right, legacy = (classifier_scores(replace(product, legacy_heads=own), bag, records) for own in (False, True))
    assert np.abs(right - legacy).max() > 1e-2
