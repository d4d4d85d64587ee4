"""Encoded blocks put together: records.bin in the bundle, embeddings and classifiers mapped in the scratch folder.

Knows no encoder and no index. Blocks are read one at a time, in order, so that memory does not grow with L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from model_export.encode_labels import block_count
from model_export.label_blocks import EncodedBlock, read_block
from model_export.label_records import FoldedAttention, RecordType
from mufin.inputs import FloatArray
from mufin.label_records_file import RecordBlock, RecordWriter
from mufin.training.model import LabelClassifiers


@dataclass(frozen=True)
class EncodedLabels:
    """What the steps behind need of all labels."""

    embeddings: FloatArray
    """(L, D) unit length, mapped: what labels are found by"""
    classifiers: FloatArray
    """(L, D) unit length, mapped"""
    slots: int
    """M, slots of the label that has most"""


class _Rows(Protocol):
    def write(self, data: bytes) -> int: ...


@torch.no_grad()
def write_records(
    folder: Path, scratch: Path, classifiers: LabelClassifiers, attention: FoldedAttention | None, number: RecordType,
    slots: int, found_by: Callable[[int, FloatArray], FloatArray],
) -> EncodedLabels:  # fmt: skip
    """Write records.bin of the blocks in ``scratch``. Without cross attention values stay empty: nobody reads them.

    ``found_by``: first label and embeddings of a block -> the vectors that its labels are found by.
    """
    count, dimension = classifiers.free.weight.shape
    paths = scratch / "embeddings.npy", scratch / "classifiers.npy"
    with (
        RecordWriter(folder, dimension, slots, number) as records,
        _npy_rows(paths[0], (count, dimension)) as embeddings,
        _npy_rows(paths[1], (count, dimension)) as weights,
    ):
        first = 0
        for block in (read_block(scratch, place) for place in range(block_count(count))):
            rows = torch.arange(first, first + len(block.counts))
            own = classifiers(rows, torch.from_numpy(block.embeddings)).numpy()
            records.append(_record_block(block, own, attention))
            embeddings.write(found_by(first, block.embeddings).tobytes())
            weights.write(own.tobytes())
            first += len(rows)
    mapped = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    return EncodedLabels(mapped[0], mapped[1], slots)


def _record_block(block: EncodedBlock, classifiers: FloatArray, attention: FoldedAttention | None) -> RecordBlock:
    """All slots of the block folded in one product."""
    values = np.zeros_like(block.bags) if attention is None else attention.label.values(block.bags)
    ends = np.cumsum(block.counts)[:-1]
    return RecordBlock(np.split(block.bags, ends), np.split(values, ends), classifiers, block.has_title, "trained")


@contextmanager
def _npy_rows(path: Path, shape: tuple[int, int]) -> Iterator[_Rows]:
    """An .npy of float32 that is written from the front: a map written to would be held in memory as far as it goes."""
    with path.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        yield handle
