"""Labels through the encoder in blocks, each of them a file that is whole or not there.

Knows neither the order of blocks nor who else encodes some. A block depends on its labels and on the encoder alone,
so that it is the same whoever computes it, and whenever.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model_export.trained import item_arrays
from mufin.catalogue import Item
from mufin.inputs import BoolArray, FloatArray, InputSpec, Int64Array, TitleTokenizer
from mufin.label_filters import write_arrays
from mufin.training.encode import encode_batch
from mufin.training.item_arrays import ItemArrays
from mufin.training.model import ItemEncoder


@dataclass(frozen=True)
class LabelBlock:
    """Some labels in a row."""

    number: int
    """Place of the block among all"""
    items: Sequence[Item]


@dataclass(frozen=True)
class EncodedBlock:
    """N labels, encoded; m of each one's slots are real, images first, the title last."""

    bags: FloatArray
    """(sum of m, D) after self-attention, label after label"""
    counts: Int64Array
    """(N,) m of each"""
    has_title: BoolArray
    """(N,)"""
    embeddings: FloatArray
    """(N, D) unit length"""


@dataclass(frozen=True, slots=True)
class BlockDone:
    """What a finished block says of itself."""

    labels: int
    forward_seconds: float
    """Time inside the encoder, batches ready and waiting"""


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes blocks on one device."""

    encoder: ItemEncoder
    """In eval mode, on ``device``"""
    input_spec: InputSpec
    tokenizer_json: str
    catalogue_folder: Path
    batch_size: int
    """Items a forward pass"""
    device: torch.device
    scratch: Path

    def encode(self, blocks: Sequence[LabelBlock]) -> Iterator[BlockDone]:
        """Encode and store every block; the next one's pictures are decoded meanwhile."""
        tokenizer = TitleTokenizer(self.tokenizer_json, self.input_spec.max_title_tokens)
        with ThreadPoolExecutor(1) as ahead:
            arrays = [ahead.submit(self._prepare, block, tokenizer) for block in blocks[:1]]
            for place, block in enumerate(blocks):
                own = arrays.pop().result()
                if place + 1 < len(blocks):
                    arrays.append(ahead.submit(self._prepare, blocks[place + 1], tokenizer))
                encoded, seconds = self._forward(own)
                write_block(self.scratch, block.number, encoded)
                shutil.rmtree(self._inputs_of(block))
                yield BlockDone(len(block.items), seconds)

    def _inputs_of(self, block: LabelBlock) -> Path:
        return self.scratch / f"inputs-{block.number:06d}"

    def _prepare(self, block: LabelBlock, tokenizer: TitleTokenizer) -> ItemArrays:
        return item_arrays(block.items, self.catalogue_folder, self.input_spec, tokenizer, self._inputs_of(block))

    @torch.no_grad()
    def _forward(self, arrays: ItemArrays) -> tuple[EncodedBlock, float]:
        """The whole block, titles of like length together, and the seconds that it took."""
        counts = np.diff(arrays.image_offsets) + arrays.has_title
        starts = np.cumsum(counts) - counts
        order = np.argsort(arrays.token_counts, kind="stable")
        bags = embeddings = np.zeros((0, 0), dtype=np.float32)
        seconds = 0.0
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            batch = arrays.batch(rows)
            began = time.perf_counter()
            outputs = encode_batch(self.encoder, batch, self.device)
            attended, mask, own = (tensor.cpu().numpy() for tensor in outputs)  # waits for a GPU to finish
            seconds += time.perf_counter() - began
            if not len(embeddings):
                bags = np.zeros((int(counts.sum()), own.shape[1]), dtype=np.float32)
                embeddings = np.zeros((len(arrays), own.shape[1]), dtype=np.float32)
            bags[_places(starts[rows], counts[rows])] = attended[mask]
            embeddings[rows] = own
        return EncodedBlock(bags, counts.astype(np.int64), np.asarray(arrays.has_title), embeddings), seconds


def _places(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """starts[i], starts[i] + 1, ... of ``counts[i]`` places each, one after the other."""
    before = np.cumsum(counts) - counts
    return np.asarray(np.repeat(starts - before, counts) + np.arange(int(counts.sum())), dtype=np.int64)


def block_path(scratch: Path, number: int) -> Path:
    """Where a block lies when it is whole."""
    return scratch / f"block-{number:06d}.npz"


def write_block(scratch: Path, number: int, block: EncodedBlock) -> None:
    """Store a block: written beside its place, fsynced, renamed."""
    path = block_path(scratch, number)
    partial = path.with_suffix(".partial")
    write_arrays(partial, vars(block))
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.rename(path)


def read_block(scratch: Path, number: int) -> EncodedBlock:
    """A stored block; zip's checksums are compared on the way."""
    with np.load(block_path(scratch, number), allow_pickle=False) as arrays:
        return EncodedBlock(arrays["bags"], arrays["counts"], arrays["has_title"], arrays["embeddings"])
