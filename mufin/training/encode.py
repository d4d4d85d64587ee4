"""Batches of items through the encoder: with gradients one batch, without them a whole set.

Knows no loss and no schedule. Bag order: images first (padded to the most), the title last (mufin.md section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.training.item_arrays import ItemArrays, ItemBatch
from mufin.training.model import ItemEncoder


def raw_bag(encoder: ItemEncoder, batch: ItemBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Title and image vectors of a batch in bag order: (B, S, D) and mask (B, S) bool, S = I + 1."""
    title_stage, image_stage = batch.stages
    title = torch.from_numpy(batch.title).to(device)
    if title_stage == "raw":
        title_vectors = encoder.text(title, torch.from_numpy(batch.token_mask).to(device))
    elif title_stage == "features":
        title_vectors = encoder.text.adapter(encoder.text.bottleneck(title))
    else:
        title_vectors = encoder.text.adapter(title)
    title_mask = torch.from_numpy(batch.has_title).to(device)[:, None]
    if batch.image_mask.shape[1] == 0:
        return title_vectors[:, None], title_mask
    image = torch.from_numpy(batch.image).to(device)
    if image_stage == "raw":
        image_vectors = encoder.image(image)
    elif image_stage == "features":
        image_vectors = encoder.image.encode_features(image)
    else:
        image_vectors = encoder.image.adapter(image)
    slots = image_vectors[torch.from_numpy(batch.image_index).to(device)]
    mask = torch.cat([torch.from_numpy(batch.image_mask).to(device), title_mask], dim=1)
    return torch.cat([slots, title_vectors[:, None].to(slots.dtype)], dim=1), mask


def encode_batch(encoder: ItemEncoder, batch: ItemBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Bag after self-attention (B, S, D), mask (B, S) bool, embedding (B, D) unit length."""
    bag, mask = raw_bag(encoder, batch, device)
    attended = encoder.attend(bag, mask)
    return attended, mask, encoder.embed(attended, mask)


@dataclass(frozen=True)
class EncodedItems:
    """A whole set of items, encoded."""

    bags: FloatArray
    """(N, S, D) after self-attention; a memory map when a folder was given"""
    mask: BoolArray
    """(N, S)"""
    embeddings: FloatArray
    """(N, D) unit length"""


@torch.no_grad()
def encode_items(
    encoder: ItemEncoder, arrays: ItemArrays, items: Int64Array | None, batch_size: int, device: torch.device,
    *, bags_path: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedItems:  # fmt: skip
    """Encode ``items`` (None: all) in eval mode; bags go to ``bags_path`` when given, else to memory."""
    wanted = np.arange(len(arrays)) if items is None else items
    slots = arrays.most_images + 1
    was_training = encoder.training
    encoder.eval()
    # Similar title lengths together: less padding; the order of the result is that of ``items``.
    order = np.argsort(arrays.token_counts[wanted], kind="stable")
    bags: FloatArray | None = None
    mask = np.zeros((len(wanted), slots), dtype=np.bool_)
    embeddings: FloatArray | None = None
    for start in range(0, len(wanted), batch_size):
        rows = order[start : start + batch_size]
        attended, own_mask, embedding = encode_batch(encoder, arrays.batch(wanted[rows]), device)
        if bags is None or embeddings is None:
            shape = (len(wanted), slots, attended.shape[-1])
            bags = (
                np.zeros(shape, np.float32)
                if bags_path is None
                else np.lib.format.open_memmap(bags_path, "w+", np.float32, shape)
            )
            embeddings = np.zeros((len(wanted), attended.shape[-1]), np.float32)
        width = attended.shape[1]
        # A batch whose items have few images has fewer slots; the title stays last.
        bags[rows, slots - width :] = attended.float().cpu().numpy()
        mask[rows, slots - width :] = own_mask.cpu().numpy()
        embeddings[rows] = embedding.float().cpu().numpy()
        progress(start + len(rows), len(wanted))
    encoder.train(was_training)
    if bags is None or embeddings is None:
        raise ValueError("no items to encode")
    return EncodedItems(bags, mask, embeddings)


@torch.no_grad()
def slot_vectors(
    encoder: ItemEncoder, arrays: ItemArrays, batch_size: int, device: torch.device, folder: Path, name: str,
    *, image_vectors: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """Module 3: title vectors (N, D) and image vectors (U, D) before self-attention, as memory maps in ``folder``.

    ``image_vectors`` of another item set over the same pixels are passed through.
    """
    was_training = encoder.training
    encoder.eval()
    dimension = encoder.text.bottleneck[-1].out_features
    assert isinstance(dimension, int)
    titles = np.lib.format.open_memmap(folder / f"titles-{name}.npy", "w+", np.float32, (len(arrays), dimension))
    order = np.argsort(arrays.token_counts, kind="stable")
    for start in range(0, len(arrays), batch_size):
        rows = order[start : start + batch_size]
        length = int(arrays.token_counts[rows].max(initial=1))
        ids = torch.from_numpy(np.asarray(arrays.token_ids[rows, :length], dtype=np.int64)).to(device)
        token_mask = (np.arange(length)[None] < arrays.token_counts[rows][:, None]).astype(np.int64)
        vectors = encoder.text(ids, torch.from_numpy(token_mask).to(device))
        titles[rows] = vectors.float().cpu().numpy()
    if image_vectors is None:
        path = folder / "images.npy"
        count = len(arrays.pixels)
        image_vectors = np.zeros((0, dimension), np.float32)
        if count:
            image_vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
        for start in range(0, count, batch_size):
            pixels = torch.from_numpy(np.asarray(arrays.pixels[start : start + batch_size])).to(device)
            image_vectors[start : start + batch_size] = encoder.image(pixels).float().cpu().numpy()
    encoder.train(was_training)
    return titles, image_vectors
