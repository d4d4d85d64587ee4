"""Folding cross attention offline changes where it is computed, not what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_export.label_records import fold_attention
from model_export.onnx_graphs import fold_spectral_norm
from mufin.errors import ConfigError
from mufin.scoring import LabelRecords, classifier_scores, cross_attend
from mufin.training.model import Mufin
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
    records = LabelRecords(keys, folded.values(keys), mask[0].numpy(), classifiers.numpy())
    found, shares = cross_attend(folded.product, product[0].numpy(), records)
    np.testing.assert_allclose(found, adapted[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(shares, weights[0, :, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(
        classifier_scores(folded.product, product[0].numpy(), records), expected.numpy(), atol=1e-5
    )


def test_several_heads_are_refused_with_the_remedy() -> None:
    """One set of records serves one head."""
    attention = network("resnet", heads=3).cross_attention
    assert attention is not None
    with pytest.raises(ConfigError, match=r"attention_heads is 3, .* train with network.attention_heads=1"):
        fold_attention(attention)
