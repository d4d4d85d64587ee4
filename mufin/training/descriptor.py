"""Colours and edges of a picture as one vector, without anything to train: for catalogues with too few pictures to
train an encoder on, and no pretrained one at hand.

Joint histogram of hue, saturation and value beside histograms of oriented gradients (Dalal and Triggs 2005), both by
plain tensor operations, so that they run inside the exported graph. Knows no loss and no catalogue.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

MODEL_TYPE = "mufin-descriptor"
_HUES, _SATURATIONS, _VALUES = 8, 3, 3
_ORIENTATIONS = 9
_CELLS = 8
_SHARPNESS = 4
"""Power of the cosine that parts orientations: neighbours overlap by half."""


class DescriptorConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Nothing to choose; pixels come as (x - .5) / .5."""

    model_type = MODEL_TYPE

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.hidden_size = _HUES * _SATURATIONS * _VALUES + _ORIENTATIONS * _CELLS * _CELLS
        self.image_mean, self.image_std = 0.5, 0.5


class Descriptor(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Pixels -> colour and edge histograms, each of unit length."""

    config_class = DescriptorConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DescriptorConfig) -> None:
        super().__init__(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        """(N, 3, side, side), -1..1 -> last_hidden_state (N, 1, width), as transformers hand out their [CLS]."""
        pixels = pixel_values * 0.5 + 0.5
        both = torch.cat([colours(pixels), edges(pixels)], dim=1)
        return BaseModelOutput(last_hidden_state=both[:, None])


def colours(pixels: Tensor) -> Tensor:
    """(N, 3, side, side), 0..1 -> (N, hues * saturations * values): square roots of shares, so unit length."""
    red, green, blue = pixels.flatten(2).unbind(dim=1)
    value, least = pixels.flatten(2).amax(dim=1), pixels.flatten(2).amin(dim=1)
    spread = value - least
    safe = spread.clamp_min(1e-6)
    from_blue = torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, from_blue) / 6.0  # -1/6..5/6 of the circle
    saturation = spread / value.clamp_min(1e-6)
    centres = torch.arange(_HUES, dtype=pixels.dtype, device=pixels.device) / _HUES
    turn = hue[:, :, None] - centres
    hues = torch.relu(1.0 - (turn - torch.round(turn)).abs() * _HUES)
    joint = _bins(saturation, _SATURATIONS)[:, :, :, None] * _bins(value, _VALUES)[:, :, None, :]
    counts = hues.transpose(1, 2) @ joint.flatten(2)
    return torch.sqrt(counts.flatten(1) / hue.shape[1] + 1e-12)


def _bins(values: Tensor, count: int) -> Tensor:
    """(N, P) in 0..1 -> (N, P, count) triangular weights that add up to 1."""
    centres = torch.arange(count, dtype=values.dtype, device=values.device)
    return torch.relu(1.0 - (values[:, :, None] * (count - 1) - centres).abs())


def edges(pixels: Tensor) -> Tensor:
    """(N, 3, side, side), 0..1 -> (N, orientations * cells * cells) of unit length; a flat picture is nearly 0."""
    grey = pixels.mean(dim=1, keepdim=True)
    across = F.pad(grey[:, :, :, 2:] - grey[:, :, :, :-2], (1, 1, 0, 0))
    down = F.pad(grey[:, :, 2:, :] - grey[:, :, :-2, :], (0, 0, 1, 1))
    strength = torch.sqrt(across * across + down * down + 1e-12)
    # The double angle has no sign: light to dark is the same edge as dark to light.
    cosine, sine = (across * across - down * down) / strength**2, 2.0 * across * down / strength**2
    angles = torch.arange(_ORIENTATIONS, dtype=pixels.dtype, device=pixels.device) * (2.0 * math.pi / _ORIENTATIONS)
    near = cosine * torch.cos(angles)[:, None, None] + sine * torch.sin(angles)[:, None, None]
    weighed = torch.relu(near) ** _SHARPNESS * strength
    side = grey.shape[-1] // _CELLS
    cells = torch.sqrt(F.avg_pool2d(weighed, kernel_size=side, stride=side)[:, :, :_CELLS, :_CELLS] + 1e-12)
    return F.normalize(cells.flatten(1), dim=1)


def register_descriptor() -> None:
    """Make the descriptor known to transformers by its model type."""
    AutoConfig.register(MODEL_TYPE, DescriptorConfig, exist_ok=True)
    AutoModel.register(DescriptorConfig, Descriptor, exist_ok=True)
