"""cross_attention.npz: the folded cross-attention as arrays.

Knows how it is laid out and checks that it fits; what is computed from it stands in ``mufin.scoring``.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mufin.errors import BundleError
from mufin.label_filters import write_arrays
from mufin.scoring import CrossAttention, LabelFold

CROSS_FILE = "cross_attention.npz"
_CROSS_VECTORS = ("query_matrix", "query_bias", "norm_weight", "norm_bias")
_SEVERAL_HEADS_ONLY = ("output_matrix", "output_bias")
_AGAIN = "run mufin-export again"


def write_cross_attention(path: Path, attention: CrossAttention, fold: LabelFold) -> None:
    """Write cross_attention.npz: the product's side, and the label's for labels that are added later."""
    present = (n for n in (*_CROSS_VECTORS, *_SEVERAL_HEADS_ONLY) if getattr(attention, n) is not None)
    arrays: dict[str, Any] = {name: np.asarray(getattr(attention, name), dtype=np.float32) for name in present}
    arrays |= {"value_matrix": fold.value_matrix, "value_bias": fold.value_bias}
    arrays["norm_epsilon"] = np.asarray(attention.norm_epsilon, dtype=np.float64)
    arrays["heads"] = np.asarray(attention.heads, dtype=np.int64)
    arrays["legacy_heads"] = np.asarray(attention.legacy_heads, dtype=np.bool_)
    write_arrays(path, arrays)


def read_label_fold(path: Path) -> LabelFold:
    """The label's side of cross_attention.npz. Raises BundleError when it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return LabelFold(arrays["value_matrix"], arrays["value_bias"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read ({error}): {_AGAIN}") from error


def read_cross_attention(path: Path) -> CrossAttention:
    """The product's side of cross_attention.npz. Raises what reading raises: OSError, ValueError, KeyError, BadZipFile."""
    with np.load(path, allow_pickle=False) as arrays:
        heads = int(arrays["heads"])
        names = _CROSS_VECTORS if heads == 1 else (*_CROSS_VECTORS, *_SEVERAL_HEADS_ONLY)
        return CrossAttention(
            **{name: arrays[name] for name in names},
            norm_epsilon=float(arrays["norm_epsilon"]),
            heads=heads,
            legacy_heads=bool(arrays["legacy_heads"]),
        )


def check_cross_attention(attention: CrossAttention, dimension: int, path: Path) -> None:
    """Every shape: compiled reranking reads as far as these say. Raises BundleError naming both values."""
    heads = attention.heads
    if heads < 1 or dimension % heads:
        raise BundleError(f"{path}: has {heads} heads, the manifest says dimension {dimension}: {_AGAIN}")
    lead = () if heads == 1 else (heads,)
    shapes = {
        "query_matrix": (*lead, dimension, dimension), "query_bias": (*lead, dimension),
        "norm_weight": (dimension,), "norm_bias": (dimension,),
        "output_matrix": (dimension, dimension), "output_bias": (dimension,),
    }  # fmt: skip
    for name, expected in shapes.items():
        array = getattr(attention, name)
        if array is not None and array.shape != expected:
            raise BundleError(
                f"{path}: {name} is {array.shape}, {heads} heads and the manifest's dimension {dimension} "
                f"make it {expected}: {_AGAIN}"
            )
