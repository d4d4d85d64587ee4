"""Labels through the trained encoder, and what reranking needs of each into records.bin.

Knows no ONNX and no index. The projections of cross attention are folded into the records, so that no matrix
product per label is left for serving (performance.md, reranking).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mufin.errors import ConfigError
from mufin.inputs import FloatArray
from mufin.label_files import RecordBlock, RecordWriter
from mufin.scoring import CrossAttention
from mufin.training.encode import encode_items
from mufin.training.item_arrays import ItemArrays
from mufin.training.model import BagAttention, Mufin

RecordType = Literal["float32", "float16"]

_LABELS_AT_ONCE = 1024


@dataclass(frozen=True)
class FoldedAttention:
    """Cross attention, taken apart: the product's side, and the map of a label's bag to its stored values."""

    product: CrossAttention
    value_matrix: FloatArray
    """(D, D): bag @ value_matrix + value_bias = W_o (W_v bag + b_v) + b_o"""
    value_bias: FloatArray
    """(D,)"""

    def values(self, bag: FloatArray) -> FloatArray:
        """(..., D) -> (..., D)"""
        return np.asarray(bag @ self.value_matrix + self.value_bias, dtype=np.float32)


def fold_attention(attention: BagAttention) -> FoldedAttention:
    """Multiply the projections of one layer and one head together, in double precision.

    Raises ConfigError for more heads: each would need keys and values of its own in the records.
    """
    if attention.heads != 1:
        raise ConfigError(
            f"network.attention_heads is {attention.heads}, the records of a bundle fold 1: "
            "train with network.attention_heads=1"
        )

    def weights(layer: torch.nn.Linear) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return layer.weight.detach().double().cpu().numpy(), layer.bias.detach().double().cpu().numpy()

    query, query_bias = weights(attention.query)
    key, _ = weights(attention.key)  # its bias adds the same to every slot, which the softmax takes out
    value, value_bias = weights(attention.value)
    output, output_bias = weights(attention.output)
    scale = math.sqrt(query.shape[0])
    norm = attention.norm
    product = CrossAttention(
        query_matrix=_float(query.T @ key / scale),
        query_bias=_float(query_bias @ key / scale),
        norm_weight=_float(norm.weight.detach().cpu().numpy()),
        norm_bias=_float(norm.bias.detach().cpu().numpy()),
        norm_epsilon=float(norm.eps),
    )
    return FoldedAttention(product, _float(value.T @ output.T), _float(output @ value_bias + output_bias))


@dataclass(frozen=True)
class EncodedLabels:
    """What is kept of all labels in memory; their bags go to records.bin block by block."""

    embeddings: FloatArray
    """(L, D) unit length"""
    classifiers: FloatArray
    """(L, D) unit length"""
    slots: int
    """M, slots of the label that has most"""


@torch.no_grad()
def write_records(
    folder: Path, model: Mufin, labels: ItemArrays, attention: FoldedAttention | None, number: RecordType,
    batch_size: int, device: torch.device, progress: Callable[[int, int], None],
) -> EncodedLabels:  # fmt: skip
    """Encode every label and write records.bin. Without cross attention values stay empty: nobody reads them."""
    count, slots = len(labels), int((np.diff(labels.image_offsets) + labels.has_title).max())
    embeddings, classifiers = [], []
    writer: RecordWriter | None = None
    with contextlib.ExitStack() as stack:
        for start in range(0, count, _LABELS_AT_ONCE):
            rows = np.arange(start, min(start + _LABELS_AT_ONCE, count))
            items = encode_items(model.encoder, labels, rows, batch_size, device)
            vectors = model.classifiers(
                torch.from_numpy(rows).to(device), torch.from_numpy(items.embeddings).to(device)
            )
            embeddings.append(items.embeddings)
            classifiers.append(vectors.float().cpu().numpy())
            bags = [bag[mask] for bag, mask in zip(items.bags, items.mask, strict=True)]
            values = [np.zeros_like(bag) if attention is None else attention.values(bag) for bag in bags]
            if writer is None:
                writer = stack.enter_context(RecordWriter(folder, bags[0].shape[1], slots, number))
            writer.append(RecordBlock(bags, values, classifiers[-1], np.asarray(labels.has_title[rows]), "trained"))
            progress(len(rows) + start, count)
    return EncodedLabels(np.concatenate(embeddings), np.concatenate(classifiers), slots)


def _float(array: npt.NDArray[Any]) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)
