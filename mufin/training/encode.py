"""Batches of items through the encoder: with gradients one batch, without them a whole set.

Knows no loss and no schedule. Bag order: images first (padded to the most), the title last (docs/network.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.training.disk import allocate
from mufin.training.item_arrays import ItemArrays, ItemBatch
from mufin.training.model import ItemEncoder, masked_mean


def title_vectors(encoder: ItemEncoder, stage: str, title: Tensor, token_mask: Tensor) -> Tensor:
    """What a batch holds of titles (tokens, features or vectors) -> (B, D)."""
    if stage == "raw":
        return cast(Tensor, encoder.text(title, token_mask))
    if stage == "features":
        return encoder.text.encode_features(title)
    return cast(Tensor, encoder.text.adapter(title))


def image_vectors(encoder: ItemEncoder, stage: str, image: Tensor) -> Tensor:
    """What a batch holds of images (pixels, features or vectors) -> (U, D)."""
    if stage == "raw":
        return cast(Tensor, encoder.image(image))
    if stage == "features":
        return encoder.image.encode_features(image)
    return cast(Tensor, encoder.image.adapter(image))


def raw_bag(encoder: ItemEncoder, batch: ItemBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Title and image vectors of a batch in bag order: (B, S, D) and mask (B, S) bool, S = I + 1."""
    title_mask = torch.from_numpy(batch.has_title).to(device)[:, None]
    if batch.image_mask.shape[1] == 0:
        return _titles(encoder, batch, device, None, None)[:, None], title_mask
    images = image_vectors(encoder, batch.stages[1], torch.from_numpy(batch.image).to(device))
    slots = images[torch.from_numpy(batch.image_index).to(device)]
    image_mask = torch.from_numpy(batch.image_mask).to(device)
    titles = _titles(encoder, batch, device, slots, image_mask)
    return torch.cat([slots, titles[:, None].to(slots.dtype)], dim=1), torch.cat([image_mask, title_mask], dim=1)


def _titles(
    encoder: ItemEncoder, batch: ItemBatch, device: torch.device, slots: Tensor | None, image_mask: Tensor | None
) -> Tensor:
    """Title vectors (B, D) of a batch; slots (B, I, D) and mask (B, I) of its images, where there are any, go into them
    where they are fused early and are not in them already (module 3)."""
    stage, title = batch.stages[0], torch.from_numpy(batch.title).to(device)
    tokens = torch.from_numpy(batch.token_mask).to(device)
    if encoder.text.fusion is None or stage != "raw":
        return title_vectors(encoder, stage, title, tokens)
    if slots is None or image_mask is None:
        image = torch.zeros((len(title), encoder.text.fusion.in_features), device=device)
        has_image = torch.zeros(len(title), dtype=torch.bool, device=device)
    else:
        image, has_image = masked_mean(slots, image_mask), image_mask.any(dim=1)
    return encoder.text.fused(title, tokens, image, has_image)


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
def embed_items(
    encoder: ItemEncoder, arrays: ItemArrays, items: Int64Array | None, batch_size: int, device: torch.device,
    *, unit_length: bool = True,
) -> FloatArray:  # fmt: skip
    """Embeddings (N, D) of ``items`` (None: all) in eval mode; their bags are never held together.

    ``unit_length=False``: the mean of each bag as it comes.
    """
    wanted = np.arange(len(arrays)) if items is None else items
    embeddings: FloatArray | None = None
    for rows, bags, mask, own in _encoded_batches(encoder, arrays, wanted, batch_size, device):
        if embeddings is None:
            embeddings = np.zeros((len(wanted), own.shape[1]), np.float32)
        embeddings[rows] = own if unit_length else (bags * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    if embeddings is None:
        raise ValueError("no items to embed")
    return embeddings


@torch.no_grad()
def encode_items(
    encoder: ItemEncoder, arrays: ItemArrays, items: Int64Array | None, batch_size: int, device: torch.device,
    *, bags_path: Path | None = None,
) -> EncodedItems:  # fmt: skip
    """Encode ``items`` (None: all) in eval mode; bags go to a memory map at ``bags_path`` when given."""
    wanted = np.arange(len(arrays)) if items is None else items
    slots = arrays.most_images + 1
    bags: FloatArray | None = None
    mask = np.zeros((len(wanted), slots), dtype=np.bool_)
    embeddings = np.zeros((0, 0), np.float32)
    for rows, attended, own_mask, own in _encoded_batches(encoder, arrays, wanted, batch_size, device):
        if bags is None:
            shape = (len(wanted), slots, own.shape[1])
            embeddings = np.zeros((len(wanted), own.shape[1]), np.float32)
            bags = np.zeros(shape, np.float32) if bags_path is None else allocate(bags_path, np.float32, shape)
        width = attended.shape[1]
        # A batch whose items have few images has fewer slots; the title stays last.
        bags[rows, slots - width :] = attended
        mask[rows, slots - width :] = own_mask
        embeddings[rows] = own
    if bags is None:
        raise ValueError("no items to encode")
    return EncodedItems(bags, mask, embeddings)


def _encoded_batches(
    encoder: ItemEncoder, arrays: ItemArrays, wanted: Int64Array, batch_size: int, device: torch.device
) -> Iterator[tuple[Int64Array, FloatArray, BoolArray, FloatArray]]:
    """Positions in ``wanted``, their bags, masks and embeddings, similar title lengths together: less padding."""
    was_training = encoder.training
    encoder.eval()
    order = np.argsort(arrays.token_counts[wanted], kind="stable")
    for start in range(0, len(wanted), batch_size):
        rows = order[start : start + batch_size]
        attended, mask, embedding = encode_batch(encoder, arrays.batch(wanted[rows]), device)
        yield rows, attended.float().cpu().numpy(), mask.cpu().numpy(), embedding.float().cpu().numpy()
    encoder.train(was_training)


def store_titles(
    encoder: ItemEncoder, arrays: ItemArrays, width: int, batch_size: int, device: torch.device, path: Path,
    encode: Callable[[Tensor, Tensor], Tensor], items: Int64Array | None = None,
) -> FloatArray:  # fmt: skip
    """Titles of N ``items`` (None: all) through ``encode`` (stored form, token mask) -> (N, width), a memory map at ``path``."""

    def titles(rows: Int64Array) -> Tensor:
        title, token_mask = arrays.titles(rows)
        return encode(torch.from_numpy(title).to(device), torch.from_numpy(token_mask).to(device))

    return _store_by_length(encoder, arrays, width, batch_size, path, titles, items)


def store_fused_titles(
    encoder: ItemEncoder, arrays: ItemArrays, width: int, batch_size: int, device: torch.device, path: Path
) -> FloatArray:
    """Title vectors of N items that have their images in them (early fusion) -> (N, D), a memory map at ``path``."""

    def titles(rows: Int64Array) -> Tensor:
        return raw_bag(encoder, arrays.batch(rows), device)[0][:, -1]

    return _store_by_length(encoder, arrays, width, batch_size, path, titles, None)


@torch.no_grad()
def _store_by_length(
    encoder: ItemEncoder, arrays: ItemArrays, width: int, batch_size: int, path: Path,
    encode: Callable[[Int64Array], Tensor], items: Int64Array | None,
) -> FloatArray:  # fmt: skip
    """N ``items`` (None: all) through ``encode`` (rows -> (B, width)), titles of similar length together."""
    was_training = encoder.training
    encoder.eval()
    wanted = np.arange(len(arrays)) if items is None else items
    stored = allocate(path, np.float32, (len(wanted), width))
    order = np.argsort(arrays.token_counts[wanted], kind="stable")
    for start in range(0, len(wanted), batch_size):
        rows = order[start : start + batch_size]
        stored[rows] = encode(wanted[rows]).float().cpu().numpy()
    encoder.train(was_training)
    return stored


@torch.no_grad()
def store_images(
    encoder: ItemEncoder, arrays: ItemArrays, width: int, batch_size: int, device: torch.device, path: Path,
    encode: Callable[[Tensor], Tensor], images: Int64Array | None = None,
) -> FloatArray:  # fmt: skip
    """U distinct ``images`` (None: all) through ``encode`` (stored form) -> (U, width), as a memory map at ``path``."""
    wanted = np.arange(arrays.image_count) if images is None else images
    if not len(wanted):
        return np.zeros((0, width), np.float32)
    was_training = encoder.training
    encoder.eval()
    stored = allocate(path, np.float32, (len(wanted), width))
    for start in range(0, len(wanted), batch_size):
        rows = slice(start, start + batch_size)
        stored[rows] = encode(torch.from_numpy(arrays.images(wanted[rows])).to(device)).float().cpu().numpy()
    encoder.train(was_training)
    return stored
