"""What reranking needs of each label, cross attention folded into it.

Knows no encoder, no ONNX and no index. The projections of cross attention are folded into the records, so that no matrix
product per label is left for serving (docs/performance.md, Reranking).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mufin.inputs import FloatArray
from mufin.label_records_file import RecordNumber
from mufin.scoring import CrossAttention, LabelFold
from mufin.training.model import BagAttention

RecordType = RecordNumber


@dataclass(frozen=True)
class FoldedAttention:
    """Cross attention, taken apart: the product's side, and the map of a label's bag to its stored values."""

    product: CrossAttention
    label: LabelFold


def fold_attention(attention: BagAttention) -> FoldedAttention:
    """Multiply the projections of one layer together, in double precision.

    One head: W_q with W_k into the product's query, W_v with W_o into the label's values. Several: a query matrix a
    head, and W_o stays with the product's side, because it mixes what the heads have weighted differently.
    """
    query, query_bias = _linear(attention.query)
    key, _ = _linear(attention.key)  # its bias adds the same to every slot, which the softmax takes out
    value, value_bias = _linear(attention.value)
    output, output_bias = _linear(attention.output)
    if attention.heads == 1:
        scale = math.sqrt(query.shape[0])
        product = _product_side(attention, query.T @ key / scale, query_bias @ key / scale)
        return FoldedAttention(
            product, LabelFold(_float(value.T @ output.T), _float(output @ value_bias + output_bias))
        )
    width = query.shape[0] // attention.heads
    slices = [slice(head * width, (head + 1) * width) for head in range(attention.heads)]
    matrices = np.stack([query[own].T @ key[own] for own in slices]) / math.sqrt(width)
    biases = np.stack([query_bias[own] @ key[own] for own in slices]) / math.sqrt(width)
    product = replace(
        _product_side(attention, matrices, biases),
        heads=attention.heads, legacy_heads=attention.legacy_heads,
        output_matrix=_float(output.T), output_bias=_float(output_bias),
    )  # fmt: skip
    return FoldedAttention(product, LabelFold(_float(value.T), _float(value_bias)))


def _product_side(
    attention: BagAttention, query_matrix: npt.NDArray[np.float64], query_bias: npt.NDArray[np.float64]
) -> CrossAttention:
    norm = attention.norm
    return CrossAttention(
        query_matrix=_float(query_matrix),
        query_bias=_float(query_bias),
        norm_weight=_float(norm.weight.detach().cpu().numpy()),
        norm_bias=_float(norm.bias.detach().cpu().numpy()),
        norm_epsilon=float(norm.eps),
    )


def _linear(layer: torch.nn.Linear) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight (out, in) and bias (out,)."""
    return layer.weight.detach().double().cpu().numpy(), layer.bias.detach().double().cpu().numpy()


def _float(array: npt.NDArray[Any]) -> FloatArray:
    return np.ascontiguousarray(array, dtype=np.float32)
