"""Attention over a bag of one slot: the shortcut says what the long way says."""

from __future__ import annotations

import pytest
import torch

from mufin.training.config import NetworkConfig
from mufin.training.model import BagAttention


def attention(heads: int) -> BagAttention:
    """With weights that are no identity, so that every projection counts."""
    torch.manual_seed(heads)
    found = BagAttention(NetworkConfig(dimension=16, attention_heads=heads)).eval()
    for parameter in found.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter)
    return found


@pytest.mark.parametrize("heads", [1, 4])
def test_a_lone_slot_is_attended_as_beside_an_empty_one(heads: int) -> None:
    """Padding a bag to two slots, the second masked, changes neither the result nor the weights."""
    own = attention(heads)
    queries, alone = torch.randn(3, 2, 16), torch.randn(3, 1, 16)
    padded, mask = torch.cat([alone, torch.randn(3, 1, 16)], dim=1), torch.tensor([[True, False]] * 3)
    short, short_weights = own.attend(queries, *own.project(alone), mask[:, :1])
    long, long_weights = own.attend(queries, *own.project(padded), mask)
    torch.testing.assert_close(short, long)
    torch.testing.assert_close(short_weights, long_weights[..., :1])


def test_leading_sizes_broadcast() -> None:
    """(B, 1, S, D) asks (B, K, 1, D), as module 4 does; a slot that holds nothing gives NaN, as a longer bag does."""
    own = attention(1)
    queries, labels = torch.randn(2, 1, 3, 16), torch.randn(2, 5, 1, 16)
    mask = torch.ones(2, 5, 1, dtype=torch.bool)
    mask[1, 4] = False
    attended, weights = own.attend(queries, *own.project(labels), mask)
    assert attended.shape == (2, 5, 3, 16) and weights.shape == (2, 5, 1, 3, 1)
    one = own.attend(queries[0, :, :], *own.project(labels[0, 2:3]), mask[0, 2:3])[0]
    torch.testing.assert_close(attended[0, 2:3], one)
    assert torch.isnan(attended[1, 4]).all() and not torch.isnan(attended[0]).any()
