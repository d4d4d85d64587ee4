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

from mufin.errors import BundleError
from mufin.inputs import BoolArray, FloatArray, InputSpec, Int64Array, Uint8Array
from mufin.predictor import LabelStore, ProductBag, Ranking, Shortlist, open_predictor
from mufin.scoring import ScoreSpec

Endpoint = Literal["recommend", "bid-queries"]
Verify = Literal["full", "structure"]


class Replay(Protocol):
    """How a bundle's golden items compared with what export computed."""

    @property
    def passed(self) -> bool:
        """Whether every stage lies within its tolerance."""
        ...

    def table(self) -> str:
        """The comparison, for people."""
        ...


class Model(Protocol):
    """What the service needs of ``mufin.predictor.Predictor``; a tiny in-memory one serves tests."""

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
    def title_width(self) -> int: ...

    def encode_titles(self, titles: Sequence[str]) -> FloatArray: ...
    def encode_images(self, pixels: Uint8Array) -> FloatArray: ...
    def bag(
        self,
        image_vectors: Sequence[FloatArray],
        title_vectors: Sequence[FloatArray | None],
        titles: Sequence[str] | None = None,
    ) -> list[ProductBag]: ...
    def shortlist_without(
        self,
        bags: Sequence[ProductBag],
        k: int,
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
class OpenBundle:
    """A bundle that is verified and has answered."""

    endpoint: Endpoint
    folder: Path
    model: Model
    opened_seconds: float
    """How long opening, verifying and replaying took."""

    def facts(self) -> dict[str, Any]:
        """What GET /bundles shows."""
        return {
            "endpoint": f"/{self.endpoint}",
            "id": self.model.bundle_id,
            "name": self.model.name,
            "encoder_id": self.model.encoder_id,
            "labels": self.model.labels.size,
            "filter_keys": list(self.model.labels.filter_keys),
            "input_spec": self.model.input_spec.to_json(),
            "score_spec": self.model.score_spec.to_json(),
            "opened_seconds": round(self.opened_seconds, 3),
        }


def open_from_disk(folder: Path, verify: Verify, intra_op_threads: int, resident: bool) -> Model:
    """The real thing: a bundle that mufin-export wrote."""
    return open_predictor(folder, verify, intra_op_threads, resident=resident)


async def open_bundles(
    folders: Mapping[Endpoint, Path], verify: Verify, intra_op_threads: int, resident: bool, open_model: OpenModel
) -> list[OpenBundle]:
    """Open every bundle; endpoints that share a folder share a model. Raises BundleError."""
    models: dict[Path, tuple[Model, float]] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders.values()):
        began = time.monotonic()
        model = await asyncio.to_thread(_open_and_replay, folder, verify, intra_op_threads, resident, open_model)
        models[folder] = (model, time.monotonic() - began)
    return [OpenBundle(endpoint, folder, *models[folder.resolve()]) for endpoint, folder in folders.items()]


def _open_and_replay(
    folder: Path, verify: Verify, intra_op_threads: int, resident: bool, open_model: OpenModel
) -> Model:
    """Readiness means that a real inference has run and came out right (pytorch/serve#1531)."""
    model = open_model(folder, verify, intra_op_threads, resident)
    replay = model.replay_golden()
    if not replay.passed:
        raise BundleError(
            f"{folder}: golden items do not come out as at export, so this machine or its libraries compute "
            f"differently: export again here, or install the versions in the manifest's provenance\n{replay.table()}"
        )
    return model
