"""Which bundles are open, and what the service needs of one.

Opens, verifies, replays and warms off the event loop; knows no requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mufin.bundle import MANIFEST_FILE
from mufin.errors import BundleError
from mufin.graphs import Device
from mufin.inputs import BoolArray, FloatArray, InputSpec, Int64Array, Uint8Array
from mufin.predictor import EncoderPool, LabelStore, MemoryUse, ProductBag, Ranking, Shortlist, open_predictor
from mufin.scoring import ScoreSpec

Endpoint = Literal["recommend", "bid-queries"]
Verify = Literal["full", "structure"]


class Replay(Protocol):
    """How a bundle's golden items compared with what export computed."""

    @property
    def passed(self) -> bool:
        """Whether every stage lies within its tolerance."""
        ...

    @property
    def advice(self) -> str:
        """What to mend though every stage passed; empty where there is nothing."""
        ...

    def table(self) -> str:
        """The comparison, for people."""
        ...


class Encoder(Protocol):
    """What turns titles and pixels into vectors; ``mufin.item_encoder.ItemEncoder``. Bundles may share one."""

    @property
    def input_spec(self) -> InputSpec: ...
    @property
    def encoder_id(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def title_width(self) -> int: ...

    def encode_counted(self, titles: Sequence[str]) -> tuple[FloatArray, list[tuple[int, int]]]: ...
    def encode_images(self, pixels: Uint8Array) -> FloatArray: ...


class Model(Protocol):
    """What the service needs of ``mufin.predictor.Predictor``; a tiny in-memory one serves tests."""

    @property
    def encoder(self) -> Encoder: ...
    @property
    def input_spec(self) -> InputSpec: ...
    @property
    def score_spec(self) -> ScoreSpec: ...
    @property
    def labels(self) -> LabelStore: ...
    @property
    def encoder_id(self) -> str: ...
    @property
    def bundle_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def score_unit(self) -> float: ...

    def memory(self) -> Mapping[str, MemoryUse]: ...
    def bag(
        self,
        image_vectors: Sequence[FloatArray],
        title_vectors: Sequence[FloatArray | None],
        titles: Sequence[str] | None = None,
    ) -> list[ProductBag]: ...
    def shortlist_without(
        self,
        bags: Sequence[ProductBag],
        k: int | Sequence[int],
        allowed: BoolArray | None = None,
        excluded: Sequence[Int64Array] | None = None,
    ) -> list[Shortlist]: ...
    def rerank(self, bags: Sequence[ProductBag], shortlists: Sequence[Shortlist]) -> list[FloatArray]: ...
    def fuse(self, bag: ProductBag, shortlist: Shortlist, classifier: FloatArray, k: int) -> Ranking: ...
    def attention_weights(self, bag: ProductBag, labels: Int64Array) -> FloatArray | None: ...
    def replay_golden(self) -> Replay: ...


OpenModel = Callable[[Path, Verify, int, bool], Model]
"""Folder, how to verify, threads inside a call, whether records are copied to memory -> model. Raises BundleError."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle lies at one moment: the folder that a path names, and whether it is still the same one."""

    folder: Path
    """Links resolved, so that a bundle is opened from one folder whatever its link does meanwhile"""
    stamp: tuple[int, int, int] | None
    """Inode, nanoseconds of the last change and size of its manifest; None: there is none"""

    @classmethod
    def of(cls, path: Path) -> Place:
        """Look at the disk."""
        folder = path.resolve()
        try:
            status = (folder / MANIFEST_FILE).stat()
        except OSError:
            return cls(folder, None)
        return cls(folder, (status.st_ino, status.st_mtime_ns, status.st_size))


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class OpenBundle:
    """A bundle that is verified and has answered."""

    place: Place
    model: Model
    opened_seconds: float
    """How long opening, verifying and replaying took."""
    advice: str
    """What to mend, though its golden items came out right"""

    def facts(self) -> dict[str, Any]:
        """What GET /bundles shows."""
        return {
            "id": self.model.bundle_id,
            "name": self.model.name,
            "folder": self.place.folder.name,
            "encoder_id": self.model.encoder_id,
            "labels": self.model.labels.size,
            "filter_keys": list(self.model.labels.filter_keys),
            "input_spec": self.model.input_spec.to_json(),
            "score_spec": self.model.score_spec.to_json(),
            "opened_seconds": round(self.opened_seconds, 3),
            "memory_bytes": {
                part: {"resident": use.resident_bytes, "mapped": use.mapped_bytes}
                for part, use in self.model.memory().items()
            },
        }


# Holds no encoder itself: a bundle opened while another one encodes alike shares its sessions.
_ENCODERS = EncoderPool()


def open_from_disk(
    folder: Path, verify: Verify, intra_op_threads: int, resident: bool, device: Device = "cpu"
) -> Model:
    """The real thing: a bundle that mufin-export wrote. Raises ConfigError where ``device`` cannot be had."""
    return open_predictor(folder, verify, intra_op_threads, device, resident=resident, encoders=_ENCODERS)


@dataclass(frozen=True, slots=True)
class Opener:
    """How bundles are opened, at the start and while serving."""

    open_model: OpenModel
    verify: Verify
    intra_op_threads: int
    resident: bool

    async def open(self, place: Place) -> OpenBundle:
        """Open, verify, warm. Raises BundleError."""
        began = time.monotonic()
        model, advice = await asyncio.to_thread(self._open_and_replay, place.folder)
        return OpenBundle(place, model, time.monotonic() - began, advice)

    def _open_and_replay(self, folder: Path) -> tuple[Model, str]:
        """Readiness means that a real inference has run and came out right (pytorch/serve#1531)."""
        model = self.open_model(folder, self.verify, self.intra_op_threads, self.resident)
        replay = model.replay_golden()
        if not replay.passed:
            raise BundleError(
                f"{folder}: golden items do not come out as at export, so this machine or its libraries compute "
                f"differently: export again here, or install the versions in the manifest's provenance\n{replay.table()}"
            )
        return model, replay.advice


async def open_bundles(folders: Mapping[Endpoint, Path], opener: Opener) -> dict[Endpoint, OpenBundle]:
    """Open every bundle; endpoints that share a folder share a bundle. Raises BundleError."""
    places = {endpoint: await asyncio.to_thread(Place.of, folder) for endpoint, folder in folders.items()}
    bundles = {place: await opener.open(place) for place in dict.fromkeys(places.values())}
    return {endpoint: bundles[place] for endpoint, place in places.items()}
