"""The bundle's ONNX graphs as functions on arrays.

Knows neither labels nor scores. One session a graph, shared by all threads; spinning is off, so that idle
threads leave the cores to others (docs/operations.md, Threads).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from mufin.bundle import BAG_GRAPH_FILE, IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.errors import BundleError, ConfigError
from mufin.inputs import BoolArray, FloatArray, TokenBatch, Uint8Array
from mufin.manifest import Encoders

Device = Literal["cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
# Fitted to calls of 1 to 28 titles of 6 to 16 tokens (docs/performance.md, Encoders): 15 with DistilBERT in int8, 25 with
# the demo's small encoder; on a GPU a call of a few tokens takes as long as one of hundreds.
_CALL_TOKENS = 15.0
_SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    TEXT_GRAPH_FILE: (("input_ids", "attention_mask"), ("title_vector",)),
    IMAGE_GRAPH_FILE: (("pixels",), ("image_vector",)),
    BAG_GRAPH_FILE: (("bag", "mask"), ("slots", "embedding")),
}


class EncoderGraphs:
    """Title, image and bag encoders. Thread-safe."""

    encoders: Encoders
    """How the vectors are computed here: as the bundle says on the CPU, in fp32 elsewhere."""

    def __init__(
        self, folder: Path, dimension: int, intra_op_threads: int = 1, encoders: Encoders | None = None,
        device: Device = "cpu", sentence: int = 0,
    ) -> None:  # fmt: skip
        """``encoders``: None runs the fp32 graphs. ``sentence``: W, numbers behind a title's vector.

        Raises BundleError when a graph cannot be loaded or has other inputs, outputs or D than a bundle's, ConfigError
        when ONNX Runtime lacks the device.
        """
        require_device(device)
        # Integer matrix products of ONNX Runtime exist on the CPU alone.
        self.encoders = encoders if encoders is not None and device == "cpu" else Encoders()
        self.title_call_tokens = _CALL_TOKENS if device == "cpu" else math.inf
        """What a call of the title encoder costs beside its tokens, in tokens"""
        self._dimension, self._title_width = dimension, dimension + sentence
        self.files = tuple(folder / self.encoders.graph_file(name) for name in _SIGNATURES)
        """The graphs that run"""

        def start(name: str, width: int) -> ort.InferenceSession:
            path = folder / self.encoders.graph_file(name)
            session = _open(path, intra_op_threads, device)
            _check_signature(path, _SIGNATURES[name], session, width)
            return session

        self._text = start(TEXT_GRAPH_FILE, self._title_width)
        self._image, self._bag = start(IMAGE_GRAPH_FILE, dimension), start(BAG_GRAPH_FILE, dimension)

    def titles(self, tokens: TokenBatch) -> FloatArray:
        """(B, T) ids and mask -> (B, D), or (B, D + W) with the title's sentence behind its vector."""
        if not self.encoders.text.one_by_one:
            return self._titles(tokens.ids, tokens.mask)
        vectors = np.zeros((len(tokens.ids), self._title_width), dtype=np.float32)
        for row, length in enumerate(tokens.mask.sum(axis=1)):  # padding would be company, too
            vectors[row] = self._titles(tokens.ids[row : row + 1, :length], tokens.mask[row : row + 1, :length])[0]
        return vectors

    def images(self, pixels: Uint8Array) -> FloatArray:
        """(N, side, side, 3) uint8 -> (N, D)"""
        if not self.encoders.image.one_by_one:
            return self._images(pixels)
        vectors = np.zeros((len(pixels), self._dimension), dtype=np.float32)
        for row in range(len(pixels)):
            vectors[row] = self._images(pixels[row : row + 1])[0]
        return vectors

    def bags(self, bag: FloatArray, mask: BoolArray) -> tuple[FloatArray, FloatArray]:
        """(B, S, D), (B, S) -> bag after self-attention (B, S, D), embedding (B, D) unit length"""
        slots, embedding = self._bag.run(["slots", "embedding"], {"bag": bag, "mask": mask})
        return _float(slots), _float(embedding)

    def _titles(self, ids: Any, mask: Any) -> FloatArray:
        inputs = {"input_ids": np.ascontiguousarray(ids), "attention_mask": np.ascontiguousarray(mask)}
        return _float(self._text.run(["title_vector"], inputs)[0])

    def _images(self, pixels: Uint8Array) -> FloatArray:
        return _float(self._image.run(["image_vector"], {"pixels": np.ascontiguousarray(pixels)})[0])


def require_device(device: Device) -> None:
    """Raise ConfigError where the installed ONNX Runtime cannot run graphs on ``device``."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}, must be cpu or cuda")
    found = ort.get_available_providers()
    if device == "cuda" and _CUDA not in found:
        raise ConfigError(
            f"device is 'cuda', which needs {_CUDA}; onnxruntime {ort.__version__} here has {', '.join(found)}: "
            "install onnxruntime-gpu in place of onnxruntime, or use device cpu"
        )


def _float(array: Any) -> FloatArray:
    return np.asarray(array, dtype=np.float32)


def _open(path: Path, intra_op_threads: int, device: Device) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers = [(_CUDA, {"use_tf32": "0"}), *providers]  # half of the digits would be lost against golden values
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise BundleError(
            f"{path}: ONNX Runtime cannot load it ({str(error)[:300]}): run mufin-export again"
        ) from error
    _check_device(path, session, device)
    return session


def _check_device(path: Path, session: ort.InferenceSession, device: Device) -> None:
    """ONNX Runtime falls back to the CPU without an error when the driver or CUDA's libraries do not fit."""
    found = session.get_providers()
    if device == "cuda" and found[0] != _CUDA:
        raise ConfigError(
            f"{path}: device is 'cuda', ONNX Runtime chose {', '.join(found)}: check the driver and the CUDA and cuDNN "
            "libraries that this onnxruntime-gpu needs, or use device cpu"
        )


def _check_signature(
    path: Path, expected: tuple[tuple[str, ...], tuple[str, ...]], session: ort.InferenceSession, dimension: int
) -> None:
    found = tuple(i.name for i in session.get_inputs()), tuple(o.name for o in session.get_outputs())
    if (sorted(found[0]), sorted(found[1])) != (sorted(expected[0]), sorted(expected[1])):
        raise BundleError(f"{path}: inputs and outputs are {found}, needs {expected}: run mufin-export again")
    for output in session.get_outputs():
        width = output.shape[-1]
        if isinstance(width, int) and width != dimension:
            raise BundleError(
                f"{path}: {output.name} has {width} numbers, the manifest says {dimension}: run mufin-export again"
            )
