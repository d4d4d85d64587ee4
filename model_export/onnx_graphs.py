"""The trained encoders as three ONNX graphs: batch and length dynamic, pixels uint8, everything else inside.

Knows neither labels nor the bundle's other files. The legacy exporter's graphs are the faster ones
(docs/performance.md, Encoders).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mufin.bundle import BAG_GRAPH_FILE, IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.inputs import InputSpec
from mufin.training.model import ItemEncoder, Mufin, TextEncoder

OPSET = 17


class TitleGraph(nn.Module):
    """Title encoder that hands out the title's sentence, unit length, behind its vector."""

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, D + W)"""
        sentence = self.text.sentence(input_ids, attention_mask)
        features = sentence
        if self.text.words is not None:
            features = torch.cat([sentence, self.text.words(input_ids, attention_mask)], dim=-1)
        return torch.cat([self.text.encode_features(features), nn.functional.normalize(sentence, dim=-1)], dim=-1)


class _BagGraph(nn.Module):
    """Bag encoder: self-attention, masked mean, unit length."""

    def __init__(self, encoder: ItemEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, bag: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D), (B, S) bool -> (B, S, D), (B, D)"""
        attended = self.encoder.attend(bag, mask)
        if attended is bag:  # without self-attention; a graph's output must not be its input
            attended = bag + 0.0
        return attended, self.encoder.embed(attended, mask)


def fold_spectral_norm(model: Mufin) -> Mufin:
    """A copy in eval mode whose weights are divided by their spectral norms once and for all (docs/network.md, Encoders)."""
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and parametrize.is_parametrized(child, "weight"):
                setattr(parent, name, _plain_linear(child))
    return folded


def _plain_linear(layer: nn.Linear) -> nn.Linear:
    """A new layer: removing the parametrization in place would also take it from the original, whose class is shared."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain.eval()


def export_graphs(model: Mufin, spec: InputSpec, dimension: int, folder: Path, sentence: bool = False) -> None:
    """Write the three graphs of a network whose spectral norms are folded. ``sentence``: titles as in TitleGraph."""
    encoder = model.encoder
    ids = torch.tensor([[2, 1, 1, 3], [2, 1, 3, 0]], dtype=torch.int64)
    token_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.int64)
    title_axes = {"input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "T"}, "title_vector": {0: "B"}}
    text = TitleGraph(encoder.text) if sentence else encoder.text
    _export(text, (ids, token_mask), title_axes, ["title_vector"], folder / TEXT_GRAPH_FILE)

    side = spec.image_side_pixels
    pixels = (torch.arange(2 * side * side * 3) % 256).to(torch.uint8).reshape(2, side, side, 3)
    image_axes = {"pixels": {0: "N"}, "image_vector": {0: "N"}}
    _export(encoder.image, (pixels,), image_axes, ["image_vector"], folder / IMAGE_GRAPH_FILE)

    bag = torch.linspace(-1, 1, 2 * 3 * dimension).reshape(2, 3, dimension)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    bag_axes = {"bag": {0: "B", 1: "S"}, "mask": {0: "B", 1: "S"}, "slots": {0: "B", 1: "S"}, "embedding": {0: "B"}}
    _export(_BagGraph(encoder), (bag, mask), bag_axes, ["slots", "embedding"], folder / BAG_GRAPH_FILE)


def _export(
    module: nn.Module, example: tuple[Tensor, ...], axes: dict[str, dict[int, str]], outputs: list[str], path: Path
) -> None:
    inputs = [name for name in axes if name not in outputs]
    buffer = io.BytesIO()
    with _silenced(), torch.no_grad():
        torch.onnx.export(
            module.eval(), example, _target(buffer), input_names=inputs, output_names=outputs, dynamic_axes=axes,
            opset_version=OPSET, dynamo=False, do_constant_folding=True,
        )  # fmt: skip
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(graph)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _target(buffer: io.BytesIO) -> Any:
    """The legacy exporter writes to a file object, which torch's annotation does not say."""
    return buffer


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without the exporter's deprecation and tracing warnings: parity is measured on golden products instead."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
