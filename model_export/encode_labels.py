"""All labels of a catalogue through the encoder: in one process or several, going on where a killed export stopped.

Knows neither records nor index. What is held in memory does not grow with L: blocks lie in the export's scratch folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model_export.label_blocks import BlockDone, BlockEncoder, LabelBlock, block_path
from model_export.trained import Trained
from mufin.catalogue import Catalogue, Item
from mufin.errors import ConfigError, MufinError
from mufin.image_source import packed_image

LABELS_IN_BLOCK = 2048
"""Labels a block. Decides which labels share a forward pass, so it is part of the identity."""

_BLOCKS_AT_ONCE = 2
"""Blocks handed to a process at a time: the second one's pictures are decoded while the first is encoded."""

_LAYOUT = 1
"""Raised when blocks are computed or stored in another way."""

Progress = Callable[[int, int], None]
"""Called with labels done, of how many."""


@dataclass(frozen=True, slots=True)
class EncodingSpeed:
    """How fast labels were encoded, and how fast the encoder could have."""

    labels: int
    """encoded now"""
    resumed_labels: int
    """found encoded by an export that was killed"""
    seconds: float
    forward_seconds: float
    """inside the encoder, summed over processes"""
    processes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report; a rate is null where nothing was encoded."""
        rate = self.labels / self.seconds if self.labels else None
        limit = self.labels * self.processes / self.forward_seconds if self.labels else None
        return {
            "labels": self.labels, "resumed_labels": self.resumed_labels, "processes": self.processes,
            "seconds": round(self.seconds, 2), "labels_a_second": rate and round(rate, 1),
            "encoder_alone_labels_a_second": limit and round(limit, 1),
            "of_encoder_alone": rate and limit and round(rate / limit, 3),
        }  # fmt: skip


def encoding_identity(trained: Trained, catalogue: Catalogue, device: str) -> str:
    """SHA-256 of all that the blocks depend on: encoder, titles and pictures of the labels, sizes, library, device kind.

    A picture counts with its name, size and time; one behind a URL with its name. Processes are left out: a block is
    computed by one, whichever.
    """
    digest = hashlib.sha256()
    settings = [
        _LAYOUT,
        LABELS_IN_BLOCK,
        trained.config.encode_batch_size,
        torch.__version__,
        torch.device(device).type,
    ]
    for value in (settings, trained.input_spec.to_json(), trained.tokenizer_json):
        digest.update(json.dumps(value).encode() + b"\n")
    for name, tensor in sorted(trained.model.encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    for label in catalogue.labels:
        images = label.images[: trained.input_spec.max_images]
        packed = [packed_image(image) for image in images]
        files = [image if part is None else part.file for image, part in zip(images, packed, strict=True)]
        stamps = [_stamp(catalogue.folder / file) for file in files]
        digest.update(json.dumps([label.title, images, stamps]).encode() + b"\n")
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    try:
        known = path.stat()
    except OSError:
        return []
    return [known.st_size, known.st_mtime_ns]


def block_count(labels: int) -> int:
    """How many blocks hold so many labels."""
    return -(-labels // LABELS_IN_BLOCK)


def encode_labels(
    trained: Trained, catalogue: Catalogue, scratch: Path, device: str, processes: int, progress: Progress
) -> EncodingSpeed:
    """Store every block of labels in ``scratch`` that does not lie there yet.

    ``processes`` on a CPU share its cores; with ``cuda`` every GPU gets at least one. Raises ChildProcessError when
    one of several dies; blocks that are done stay.
    """
    labels = catalogue.labels
    missing = [n for n in range(block_count(len(labels))) if not block_path(scratch, n).is_file()]
    resumed = len(labels) - sum(len(_items(labels, n)) for n in missing)
    devices = worker_devices(device, processes)
    devices = devices[: max(1, -(-len(missing) // _BLOCKS_AT_ONCE))]
    own = BlockEncoder(
        trained.model.encoder, trained.input_spec, trained.tokenizer_json, catalogue.folder,
        trained.config.encode_batch_size, devices[0], scratch,
    )  # fmt: skip
    began, done, forward_seconds = time.perf_counter(), resumed, 0.0
    finished = _one_process(own, labels, missing) if len(devices) == 1 else _processes(own, devices, labels, missing)
    for block in finished:
        done += block.labels
        forward_seconds += block.forward_seconds
        progress(done, len(labels))
    seconds = time.perf_counter() - began
    return EncodingSpeed(len(labels) - resumed, resumed, seconds, forward_seconds, len(devices))


def worker_devices(device: str, processes: int) -> list[torch.device]:
    """The device of each process. Raises ConfigError for a device that torch does not see."""
    wanted = torch.device(device)
    if wanted.type != "cuda" or ":" in device:
        return [wanted] * processes
    gpus = torch.cuda.device_count()
    if gpus == 0:
        raise ConfigError(f"--device is {device}, torch sees no GPU: encode labels with --device cpu")
    return [torch.device("cuda", number % gpus) for number in range(max(gpus, processes))]


def _items(labels: Sequence[Item], number: int) -> Sequence[Item]:
    return labels[number * LABELS_IN_BLOCK : (number + 1) * LABELS_IN_BLOCK]


def _chunks(labels: Sequence[Item], missing: Sequence[int], blocks: int) -> Iterator[list[LabelBlock]]:
    """So many blocks at a time, without metadata: it is not encoded, and another process would be sent it."""
    for first in range(0, len(missing), blocks):
        yield [
            LabelBlock(number, [Item(i.id, i.title, i.images) for i in _items(labels, number)])
            for number in missing[first : first + blocks]
        ]


def _one_process(encoder: BlockEncoder, labels: Sequence[Item], missing: Sequence[int]) -> Iterator[BlockDone]:
    """Here, one block ahead decoded."""
    _keep_digits()
    encoder.encoder.to(encoder.device)
    try:
        for chunk in _chunks(labels, missing, 16):
            yield from encoder.encode(chunk)
    finally:
        encoder.encoder.to("cpu")


def _processes(
    encoder: BlockEncoder, devices: Sequence[torch.device], labels: Sequence[Item], missing: Sequence[int]
) -> Iterator[BlockDone]:
    """In a process for each of ``devices``."""
    context = multiprocessing.get_context("spawn")
    parts = io.BytesIO()
    torch.save(
        encoder, parts
    )  # bytes over a pipe: torch's own way needs shared memory, which containers have little of
    places = context.SimpleQueue()
    for device in devices:
        places.put(str(device))
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    pool = ProcessPoolExecutor(len(devices), context, _begin_worker, (parts.getvalue(), places, threads))
    try:
        yield from _finished(pool, _chunks(labels, missing, _BLOCKS_AT_ONCE), len(devices) + 1)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that encoded labels died, likely for lack of memory: lower --processes; "
            "the same command goes on where this one stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(pool: ProcessPoolExecutor, chunks: Iterator[list[LabelBlock]], ahead: int) -> Iterator[BlockDone]:
    """What comes back, in any order; few chunks wait at a time, so that memory does not grow with L."""
    waiting: set[Future[list[BlockDone] | str]] = set()
    for chunk in chunks:
        waiting.add(pool.submit(_encode_chunk, chunk))
        if len(waiting) > ahead:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from _blocks_of(future.result())
    for future in waiting:
        yield from _blocks_of(future.result())


def _blocks_of(result: list[BlockDone] | str) -> list[BlockDone]:
    if isinstance(result, str):
        raise MufinError(result)
    return result


_worker: BlockEncoder | None = None


def _begin_worker(parts: bytes, places: Any, threads: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _keep_digits()
    # Our own parent's bytes, from a pipe that nobody else writes to.
    # Bytes of the parent process, from its own pipe.
    sent: BlockEncoder = torch.load(io.BytesIO(parts), weights_only=False)  # nosec B614
    device = torch.device(places.get())
    sent.encoder.eval().to(device)
    _worker = replace(sent, device=device)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool, whose processes would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_chunk(chunk: list[LabelBlock]) -> list[BlockDone] | str:
    """What became of the blocks, or what is wrong with them: errors of ours cannot be sent to another process."""
    assert _worker is not None
    try:
        return list(_worker.encode(chunk))
    except MufinError as error:
        return str(error)


def _keep_digits() -> None:
    torch.backends.cudnn.allow_tf32 = False  # half of the digits would be lost against the CPU's golden values
