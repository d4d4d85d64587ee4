"""manifest.json: what a bundle is, as frozen values, and the hashes that identify it.

Knows the manifest's fields and no other file's content. It holds no times, so that two exports of one run
are byte-equal; times stand in report.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mufin.errors import BundleError, ConfigError
from mufin.inputs import InputSpec
from mufin.scoring import ScoreSpec

FORMAT_VERSION = 0
"""0 while the format still moves; a newer bundle is refused."""

ENCODER_FILES = ("text_encoder.onnx", "image_encoder.onnx", "bag_encoder.onnx", "tokenizer.json")
"""Files that, with the InputSpec, decide what an item's embedding is."""

_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """One array inside a file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size_bytes: int
    arrays: Mapping[str, ArrayEntry]
    """Name -> array, for .npz; the name is empty for .npy; no entry for other files."""


@dataclass(frozen=True, slots=True)
class BundleSizes:
    """Sizes that the files must agree on."""

    labels: int
    """L"""
    dimension: int
    """D"""
    label_slots: int
    """M, bag slots kept of a label."""
    record_type: Literal["float32", "float16"]
    """Of keys, values and classifiers in records.bin."""
    cross_attention: bool
    """False: the network has none, the product's embedding meets the classifiers directly."""
    index: str
    """Kind of labels.faiss: exact, or hnsw-sq8."""

    def __post_init__(self) -> None:
        for name in ("labels", "dimension", "label_slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, needs at least 1")
        if self.record_type not in ("float32", "float16"):
            raise ConfigError(f"record_type is {self.record_type!r}, must be float32 or float16")


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far the bundle may lie from the network in torch (architecture.md)."""

    encoder_difference: float = 1e-4
    """Largest absolute difference of title, image, bag and embedding vectors and of shortlist scores."""
    classifier_difference: float = 1e-4
    """The same of classifier and fused scores; fp16 records need more."""
    top_k_agreement: float = 1.0
    """Least share of the first ten that torch ranks there, too, ties allowed; approximate indexes need less."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: str
    """What the labels are, e.g. products or queries."""
    input_spec: InputSpec
    score_spec: ScoreSpec
    sizes: BundleSizes
    tolerances: Tolerances
    provenance: Mapping[str, Any]
    """Catalogue, training config, metrics, library versions."""
    files: Mapping[str, FileEntry]

    @property
    def encoder_id(self) -> str:
        """Equal for two bundles whose items have equal embeddings."""
        files = {name: self.files[name].sha256 for name in ENCODER_FILES}
        return _identity({"files": files, "input_spec": self.input_spec.to_json()})

    @property
    def bundle_id(self) -> str:
        """Equal for two bundles that answer equally."""
        return _identity(self._content())

    def to_bytes(self) -> bytes:
        """The one spelling of this manifest; a file spelt otherwise was altered."""
        return canonical_json({**self._content(), "bundle_id": self.bundle_id})

    def _content(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "encoder_id": self.encoder_id,
            "input_spec": self.input_spec.to_json(),
            "score_spec": self.score_spec.to_json(),
            "sizes": asdict(self.sizes),
            "tolerances": asdict(self.tolerances),
            "provenance": dict(self.provenance),
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.json. Raises BundleError naming what is wrong and the remedy."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}): export the bundle again") from error
    values = _parse(path, content)
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version is {version!r}, this mufin reads {FORMAT_VERSION}: "
            "install the mufin that wrote the bundle, or export it again with this one"
        )
    try:
        manifest = _build(values)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise BundleError(f"{path}: a field is missing or wrong ({error}): export the bundle again") from error
    if values.get("bundle_id") != manifest.bundle_id:
        raise BundleError(
            f"{path}: bundle_id is {values.get('bundle_id')}, its content gives {manifest.bundle_id}: "
            "the manifest was altered, export the bundle again"
        )
    if content != manifest.to_bytes():
        raise BundleError(f"{path}: is not spelt as mufin-export writes it, so it was altered: export the bundle again")
    return manifest


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is no JSON ({error}): export the bundle again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path}: holds {type(values).__name__}, needs an object: export the bundle again")
    return values


def _build(values: dict[str, Any]) -> Manifest:
    files = {
        name: FileEntry(
            entry["sha256"],
            entry["size_bytes"],
            {key: ArrayEntry(array["dtype"], tuple(array["shape"])) for key, array in entry["arrays"].items()},
        )
        for name, entry in values["files"].items()
    }
    missing = sorted(set(ENCODER_FILES) - set(files))
    if missing:
        raise KeyError(f"files lists no {', '.join(missing)}")
    return Manifest(
        name=values["name"],
        input_spec=InputSpec.from_json(values["input_spec"]),
        score_spec=ScoreSpec.from_json(values["score_spec"]),
        sizes=BundleSizes(**values["sizes"]),
        tolerances=Tolerances(**values["tolerances"]),
        provenance=values["provenance"],
        files=files,
    )


def canonical_json(values: Any) -> bytes:
    """The one spelling of plain values: sorted keys, one space of indent, UTF-8, a newline at the end."""
    text = json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _identity(values: Any) -> str:
    return "sha256:" + hashlib.sha256(canonical_json(values)).hexdigest()
