"""Titles and pixels to vectors: a bundle's tokenizer and graphs, shared by all bundles that encode alike.

Knows neither labels nor scores, and keeps no bundle open.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from weakref import WeakValueDictionary

import numpy as np

from mufin.bundle import Bundle
from mufin.errors import InputError
from mufin.graphs import Device, EncoderGraphs
from mufin.inputs import FloatArray, InputSpec, TitleTokenizer, TokenBatch, Uint8Array
from mufin.label_store import MemoryUse
from mufin.length_groups import cheapest_calls

_TITLES_AT_ONCE = 64
_IMAGES_AT_ONCE = 16


class ItemEncoder:
    """Tokenizer and graphs of one ``encoder_id``. Thread-safe."""

    def __init__(self, graphs: EncoderGraphs, bundle: Bundle) -> None:
        """Takes what it needs of the bundle, not the bundle itself."""
        manifest = bundle.manifest
        self.graphs = graphs
        self.input_spec: InputSpec = manifest.input_spec
        self.tokenizer = TitleTokenizer(bundle.tokenizer_definition, self.input_spec.max_title_tokens)
        self.dimension = manifest.sizes.dimension
        """D"""
        self.title_width = self.dimension + manifest.sizes.sentence
        """Numbers of a title's vector: D, and W of its sentence behind them where a learned combination looks at it"""
        self._manifest = manifest
        self.memory = {path.name: MemoryUse(path.stat().st_size, 0) for path in graphs.files}
        """Of each session, by its graph's file: at least its weights, which ONNX Runtime copies"""

    @cached_property
    def encoder_id(self) -> str:
        """Of the graphs that run here: fp32 and int8 ones differ, so that no cache mixes their vectors.

        Asked for, not computed at once: an export measures graphs before its manifest lists them.
        """
        return self._manifest.encoder_id_of(self.graphs.encoders)

    def encode_titles(self, titles: Sequence[str]) -> FloatArray:
        """(B, title_width). A title that tokenises to nothing still has [CLS] and [SEP]; callers leave empty titles out."""
        return self.encode_tokens(self.tokenizer.encode(titles))

    def encode_counted(self, titles: Sequence[str]) -> tuple[FloatArray, list[tuple[int, int]]]:
        """``encode_titles``, and (known, unknown) tokens of each title: TitleTokenizer.encode_counted."""
        tokens, counts = self.tokenizer.encode_counted(titles)
        return self.encode_tokens(tokens), counts

    def encode_tokens(self, tokens: TokenBatch) -> FloatArray:
        """(B, T) ids and mask -> (B, title_width); titles of like length share a call: mufin.length_groups."""
        if len(tokens.ids) == 1 and tokens.mask.all():  # nothing to order, nothing to cut
            return self.graphs.titles(tokens)
        vectors = np.zeros((len(tokens.ids), self.title_width), dtype=np.float32)
        lengths = tokens.mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        ascending = lengths[order].tolist()
        for start, end in cheapest_calls(ascending, self.graphs.title_call_tokens, _TITLES_AT_ONCE):
            rows, longest = order[start:end], ascending[end - 1]
            part = TokenBatch(
                np.ascontiguousarray(tokens.ids[rows, :longest]), np.ascontiguousarray(tokens.mask[rows, :longest])
            )
            vectors[rows] = self.graphs.titles(part)
        return vectors

    def encode_images(self, pixels: Uint8Array) -> FloatArray:
        """(N, side, side, 3) uint8 -> (N, D)"""
        side = self.input_spec.image_side_pixels
        if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3) or pixels.dtype != np.uint8:
            raise InputError(
                f"pixels are {pixels.shape} {pixels.dtype}, this bundle needs (N, {side}, {side}, 3) uint8"
            )
        vectors = np.zeros((len(pixels), self.dimension), dtype=np.float32)
        for start in range(0, len(pixels), _IMAGES_AT_ONCE):
            block = slice(start, start + _IMAGES_AT_ONCE)
            vectors[block] = self.graphs.images(np.ascontiguousarray(pixels[block]))
        return vectors


class EncoderPool:
    """Encoders that are in use, so that bundles with one encoder share its sessions. Thread-safe.

    Holds none of them itself: with the last predictor that uses it an encoder is gone.
    """

    def __init__(self) -> None:
        self._encoders: WeakValueDictionary[tuple[str, int, Device], ItemEncoder] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, bundle: Bundle, intra_op_threads: int, device: Device) -> ItemEncoder:
        """The encoder of a bundle, opened unless one that encodes alike is. Raises what ``open_encoder`` raises."""
        key = (bundle.manifest.encoder_id, intra_op_threads, device)
        with self._lock:
            found = self._encoders.get(key)
            if found is None:
                found = open_encoder(bundle, intra_op_threads, device)
                self._encoders[key] = found
            return found


def open_encoder(bundle: Bundle, intra_op_threads: int = 1, device: Device = "cpu") -> ItemEncoder:
    """A bundle's own encoder. Raises BundleError for graphs that do not fit, ConfigError for a missing device."""
    sizes = bundle.manifest.sizes
    graphs = EncoderGraphs(bundle.folder, sizes.dimension, intra_op_threads, sizes.encoders, device, sizes.sentence)
    return ItemEncoder(graphs, bundle)
