"""Labels are encoded in blocks: by one process or several, once, and in memory that does not grow with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import model_export.encode_labels as encode_labels
from model_export.encode_labels import EncodingSpeed, block_count, encoding_identity, worker_devices
from model_export.label_blocks import EncodedBlock, block_path, read_block
from model_export.trained import Trained, item_arrays, trained_run
from mufin.catalogue import Catalogue, Item
from mufin.errors import CatalogueError, ConfigError, MufinError
from mufin.inputs import TitleTokenizer
from mufin.training.encode import encode_items
from tests.model_export.killed_exports import die

LABELS, IN_BLOCK = 60, 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks, the last one not full."""
    monkeypatch.setattr(encode_labels, "LABELS_IN_BLOCK", IN_BLOCK)


@pytest.fixture
def parts(products_run: Path) -> tuple[Trained, Catalogue]:
    """A run whose labels have titles, pictures or both."""
    return trained_run(products_run)


def encode(parts: tuple[Trained, Catalogue], scratch: Path, processes: int = 1) -> EncodingSpeed:
    """All labels into ``scratch``."""
    scratch.mkdir(exist_ok=True)
    return encode_labels.encode_labels(*parts, scratch, "cpu", processes, lambda done, total: None)


def blocks(scratch: Path) -> list[EncodedBlock]:
    """What lies there, in order."""
    return [read_block(scratch, number) for number in range(block_count(LABELS))]


def test_blocks_hold_what_the_network_computes(parts: tuple[Trained, Catalogue], tmp_path: Path) -> None:
    """Bags, counts and embeddings of all labels, against all of them encoded at once."""
    speed = encode(parts, tmp_path / "scratch")
    assert (speed.labels, speed.resumed_labels, speed.processes) == (LABELS, 0, 1)
    trained, catalogue = parts
    tokenizer = TitleTokenizer(trained.tokenizer_json, trained.input_spec.max_title_tokens)
    arrays = item_arrays(catalogue.labels, catalogue.folder, trained.input_spec, tokenizer, tmp_path / "whole")
    whole = encode_items(trained.model.encoder, arrays, None, 512, torch.device("cpu"))
    found = blocks(tmp_path / "scratch")
    np.testing.assert_array_equal(np.concatenate([b.counts for b in found]), whole.mask.sum(axis=1))
    np.testing.assert_array_equal(np.concatenate([b.has_title for b in found]), arrays.has_title)
    np.testing.assert_allclose(np.concatenate([b.bags for b in found]), whole.bags[whole.mask], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([b.embeddings for b in found]), whole.embeddings, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "scratch").iterdir()) == [block_path(tmp_path, n).name for n in range(4)]


def test_several_processes_write_the_same_blocks(parts: tuple[Trained, Catalogue], tmp_path: Path) -> None:
    """Who encodes a block does not matter."""
    encode(parts, tmp_path / "one")
    assert encode(parts, tmp_path / "two", processes=2).processes == 2
    for one, two in zip(blocks(tmp_path / "one"), blocks(tmp_path / "two"), strict=True):
        np.testing.assert_array_equal(one.counts, two.counts)
        np.testing.assert_allclose(one.bags, two.bags, atol=1e-6)
        np.testing.assert_allclose(one.embeddings, two.embeddings, atol=1e-6)


def test_blocks_that_are_there_are_not_encoded_again(parts: tuple[Trained, Catalogue], tmp_path: Path) -> None:
    """Only the missing one is; the others are not touched."""
    scratch = tmp_path / "scratch"
    encode(parts, scratch)
    whole = [block_path(scratch, number).read_bytes() for number in range(4)]
    block_path(scratch, 2).unlink()
    times = [block_path(scratch, number).stat().st_mtime_ns for number in (0, 1, 3)]
    speed = encode(parts, scratch)
    assert (speed.labels, speed.resumed_labels) == (IN_BLOCK, LABELS - IN_BLOCK)
    assert [block_path(scratch, number).read_bytes() for number in range(4)] == whole
    assert [block_path(scratch, number).stat().st_mtime_ns for number in (0, 1, 3)] == times
    assert encode(parts, scratch).to_json()["labels_a_second"] is None


def test_a_process_that_dies_is_said_so(parts: tuple[Trained, Catalogue], tmp_path: Path) -> None:
    """With the remedy; an OSError, after which what is done is kept."""
    parts[0].model.encoder.attend = die  # type: ignore[method-assign,assignment]
    with pytest.raises(ChildProcessError, match=r"died, likely for lack of memory: lower --processes"):
        encode(parts, tmp_path / "scratch", processes=2)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_picture_that_cannot_be_read_is_named(
    processes: int, parts: tuple[Trained, Catalogue], tmp_path: Path
) -> None:
    """By its file, also when another process met it."""
    trained, catalogue = parts
    copy = Path(shutil.copytree(catalogue.folder, tmp_path / "copy"))
    broken = next(label.images[0] for label in catalogue.labels[::-1] if label.images)
    (copy / broken).write_bytes(b"no picture")
    with pytest.raises(MufinError, match=f"{broken}.*replace or remove the image") as raised:
        encode((trained, replace(catalogue, folder=copy)), tmp_path / "scratch", processes)
    assert isinstance(raised.value, CatalogueError) == (processes == 1)


def test_the_identity_is_of_what_blocks_depend_on(parts: tuple[Trained, Catalogue], tmp_path: Path) -> None:
    """Weights, titles, pictures, their sizes; not of metadata, nor of where the catalogue lies."""
    trained, catalogue = parts
    first = encoding_identity(trained, catalogue, "cpu")
    assert encoding_identity(trained, catalogue, "cpu") == first

    def changed(**fields: object) -> str:
        labels = list(catalogue.labels)
        labels[7] = replace(labels[7], **fields)  # type: ignore[arg-type]
        return encoding_identity(trained, replace(catalogue, labels=labels), "cpu")

    assert changed(metadata={"kind": "other"}) == first
    moved = replace(catalogue, folder=Path(shutil.copytree(catalogue.folder, tmp_path / "moved")))
    assert encoding_identity(trained, moved, "cpu") == first
    others = {changed(title="another"), changed(images=()), encoding_identity(trained, catalogue, "cuda")}
    picture = next(label.images[0] for label in moved.labels if label.images)
    (moved.folder / picture).write_bytes((moved.folder / picture).read_bytes() + b" ")
    others.add(encoding_identity(trained, moved, "cpu"))
    sizes = replace(trained.input_spec, max_images=1)
    others.add(encoding_identity(replace(trained, input_spec=sizes), catalogue, "cpu"))
    with torch.no_grad():
        next(trained.model.encoder.parameters()).view(-1)[0] += 1
    others.add(encoding_identity(trained, catalogue, "cpu"))
    assert len(others | {first}) == 7


def test_processes_are_spread_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda means every GPU; one of them can be named; none is an error with the remedy."""
    assert worker_devices("cpu", 3) == [torch.device("cpu")] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [d.index for d in worker_devices("cuda", 1)] == [0, 1]
    assert [d.index for d in worker_devices("cuda", 3)] == [0, 1, 0]
    assert worker_devices("cuda:1", 1) == [torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees no GPU: encode labels with --device cpu"):
        worker_devices("cuda", 1)


def test_speed_is_told_beside_the_encoders_own() -> None:
    """Two processes whose encoders worked half of the time reach half of what the encoder allows."""
    values = EncodingSpeed(1000, 24, seconds=10.0, forward_seconds=10.0, processes=2).to_json()
    assert values["labels_a_second"] == 100.0
    assert values["encoder_alone_labels_a_second"] == 200.0
    assert values["of_encoder_alone"] == 0.5


def test_items_are_sent_without_metadata() -> None:
    """Metadata is not encoded, and may be large."""
    labels = [Item(str(n), "t", (), {"long": "x" * 1000}) for n in range(40)]
    chunks = list(encode_labels._chunks(labels, [0, 2], 2))
    assert [[(b.number, len(b.items)) for b in chunk] for chunk in chunks] == [[(0, 16), (2, 8)]]
    assert all(not item.metadata for chunk in chunks for block in chunk for item in block.items)
