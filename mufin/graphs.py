"""The bundle's three ONNX graphs as functions on arrays.

Knows neither labels nor scores. One session a graph, shared by all threads; spinning is off, so that idle
threads leave the cores to others (serving.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mufin.bundle import BAG_GRAPH_FILE, IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, TokenBatch, Uint8Array

_SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    TEXT_GRAPH_FILE: (("input_ids", "attention_mask"), ("title_vector",)),
    IMAGE_GRAPH_FILE: (("pixels",), ("image_vector",)),
    BAG_GRAPH_FILE: (("bag", "mask"), ("slots", "embedding")),
}


class EncoderGraphs:
    """Title, image and bag encoders. Thread-safe."""

    def __init__(self, folder: Path, dimension: int, intra_op_threads: int = 1) -> None:
        """Raises BundleError when a graph cannot be loaded or has other inputs, outputs or D than a bundle's."""
        self._text = _open(folder / TEXT_GRAPH_FILE, dimension, intra_op_threads)
        self._image = _open(folder / IMAGE_GRAPH_FILE, dimension, intra_op_threads)
        self._bag = _open(folder / BAG_GRAPH_FILE, dimension, intra_op_threads)

    def titles(self, tokens: TokenBatch) -> FloatArray:
        """(B, T) ids and mask -> (B, D)"""
        return _float(self._text.run(["title_vector"], {"input_ids": tokens.ids, "attention_mask": tokens.mask})[0])

    def images(self, pixels: Uint8Array) -> FloatArray:
        """(N, side, side, 3) uint8 -> (N, D)"""
        return _float(self._image.run(["image_vector"], {"pixels": pixels})[0])

    def bags(self, bag: FloatArray, mask: BoolArray) -> tuple[FloatArray, FloatArray]:
        """(B, S, D), (B, S) -> bag after self-attention (B, S, D), embedding (B, D) unit length"""
        slots, embedding = self._bag.run(["slots", "embedding"], {"bag": bag, "mask": mask})
        return _float(slots), _float(embedding)


def _float(array: Any) -> FloatArray:
    return np.asarray(array, dtype=np.float32)


def _open(path: Path, dimension: int, intra_op_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise BundleError(
            f"{path}: ONNX Runtime cannot load it ({str(error)[:300]}): run mufin-export again"
        ) from error
    _check_signature(path, session, dimension)
    return session


def _check_signature(path: Path, session: ort.InferenceSession, dimension: int) -> None:
    expected = _SIGNATURES[path.name]
    found = tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs())
    if (sorted(found[0]), sorted(found[1])) != (sorted(expected[0]), sorted(expected[1])):
        raise BundleError(f"{path}: inputs and outputs are {found}, needs {expected}: run mufin-export again")
    for output in session.get_outputs():
        width = output.shape[-1]
        if isinstance(width, int) and width != dimension:
            raise BundleError(
                f"{path}: {output.name} has {width} numbers, the manifest says {dimension}: run mufin-export again"
            )
