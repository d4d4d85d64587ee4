"""manifest.json: what a bundle is, as frozen values, and the hashes that identify it.

Knows the manifest's fields and no other file's content. It holds no times, so that two exports of one run
are byte-equal; times stand in report.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mufin.errors import BundleError, ConfigError
from mufin.inputs import InputSpec
from mufin.label_records_file import RecordNumber, check_number
from mufin.scoring import SAME_ITEM, SAME_ITEM_INT8, ScoreSpec

FORMAT_VERSION = 0
"""0 while the format still moves; a newer bundle is refused."""

ENCODER_FILES = ("text_encoder.onnx", "image_encoder.onnx", "bag_encoder.onnx", "tokenizer.json")
"""In every bundle: with the InputSpec they decide what an item's embedding is, where no int8 graph stands in."""

INT8_FILES = {"text_encoder.onnx": "text_encoder.int8.onnx", "image_encoder.onnx": "image_encoder.int8.onnx"}
"""fp32 graph -> the int8 graph that the CPU runs in its place; the fp32 one stays for other devices."""

Precision = Literal["fp32", "int8"]


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
class EncoderPrecision:
    """How one encoder is computed."""

    precision: Precision = "fp32"
    one_by_one: bool = False
    """Every item in a call of its own: int8 scales over a whole batch, and here the company changes vectors too much."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise ConfigError(f"precision is {self.precision!r}, must be fp32 or int8")
        if type(self.one_by_one) is not bool:
            raise ConfigError(f"one_by_one is {self.one_by_one!r}, must be true or false")


@dataclass(frozen=True, slots=True)
class Encoders:
    """How the title and the image encoder are computed on the CPU; the bag encoder, which is tiny, is fp32."""

    text: EncoderPrecision = field(default_factory=EncoderPrecision)
    image: EncoderPrecision = field(default_factory=EncoderPrecision)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Encoders:
        """From what a manifest holds. Raises KeyError, TypeError or ConfigError."""
        text, image = (EncoderPrecision(**values[name]) for name in ("text", "image"))
        return cls(text, image)

    @property
    def int8_files(self) -> tuple[str, ...]:
        """The int8 graphs that a bundle must hold for these."""
        pairs = zip(INT8_FILES.values(), (self.text, self.image), strict=True)
        return tuple(name for name, own in pairs if own.precision == "int8")

    @property
    def same_item(self) -> float:
        """Cosine from which a product and a label are one item: of all that open the bundle, in fp32, too."""
        return SAME_ITEM_INT8 if self.int8_files else SAME_ITEM

    def graph_file(self, name: str) -> str:
        """The graph that is run for an fp32 graph's name."""
        int8 = INT8_FILES.get(name)
        return int8 if int8 is not None and int8 in self.int8_files else name


@dataclass(frozen=True, slots=True)
class BundleSizes:
    """Sizes that the files must agree on."""

    labels: int
    """L"""
    dimension: int
    """D"""
    label_slots: int
    """M, bag slots kept of a label."""
    record_type: RecordNumber
    """Of keys, values and classifiers in records.bin."""
    cross_attention: bool
    """False: the network has none, the product's embedding meets the classifiers directly."""
    index: str
    """Kind of labels.faiss: exact, hnsw-sq8, ivf-sq8, ivf-pq or ivf-rabitq."""
    encoders: Encoders = field(default_factory=Encoders)
    index_candidates: float = 1.0
    """Labels that an approximate index is asked for, per label wanted; the best of them by their vectors remain."""
    removed: int = 0
    """Of the labels: how many have a tombstone and are never returned."""
    untrained: int = 0
    """Of the labels: how many were added without training."""
    combination: bool = False
    """Whether scores are joined by a learned combination with evidence, instead of by the fusion weight."""
    sentence: int = 0
    """W, numbers that the title graph hands out behind a title's vector, for the combination; 0 without one."""

    def __post_init__(self) -> None:
        if not self.index_candidates >= 1:
            raise ConfigError(f"index_candidates is {self.index_candidates}, needs 1 or more")
        if not 0 <= self.untrained <= self.labels:
            raise ConfigError(f"untrained is {self.untrained} of {self.labels} labels")
        if not 0 <= self.removed < self.labels:
            raise ConfigError(f"removed is {self.removed} of {self.labels} labels, at least 1 must be left")
        for name in ("labels", "dimension", "label_slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, needs at least 1")
        check_number(self.record_type)


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far the bundle may lie from the network in torch (docs/bundle.md, Verification); the last three where an encoder is int8."""

    encoder_difference: float = 1e-4
    """Largest absolute difference of title, image, bag and embedding vectors and of shortlist scores."""
    classifier_difference: float = 1e-4
    """The same of classifier and fused scores; float16 and int8 records need more."""
    ranking_difference: float | None = None
    """The same of final scores where a learned combination makes them; None: as of classifier scores."""
    top_k_agreement: float = 1.0
    """Least share of the first ten that torch ranks there, too, ties allowed; approximate indexes need less."""
    int8_cosine: float = 0.99
    """Least cosine of title, image, bag and embedding vectors."""
    int8_top_k_agreement: float = 0.9
    """Least share of the first ten."""
    int8_tie: float = 0.01
    """Labels of torch whose scores differ by no more are equal: what the vectors' error moves most scores by."""


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
        """Equal for two bundles whose items have equal embeddings on the CPU."""
        return self.encoder_id_of(self.sizes.encoders)

    @property
    def int8_sums_may_overflow(self) -> bool:
        """Whether weights of int8 encoders, where there are any, have 8 bits, which need a processor with VNNI.

        True unless it is told otherwise, as while an export tries its int8 graphs.
        """
        told = self.provenance.get("encoders")
        return not (isinstance(told, Mapping) and told.get("reduce_range"))

    def encoder_id_of(self, encoders: Encoders) -> str:
        """The same where other graphs of the bundle are run, so that no cache mixes fp32 and int8 vectors."""
        files = {name: self.files[encoders.graph_file(name)].sha256 for name in ENCODER_FILES}
        alone = {"text": encoders.text.one_by_one, "image": encoders.image.one_by_one}
        return _identity({"files": files, "one_by_one": alone, "input_spec": self.input_spec.to_json()})

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
    sizes = BundleSizes(**{**values["sizes"], "encoders": Encoders.from_json(values["sizes"]["encoders"])})
    missing = sorted({*ENCODER_FILES, *sizes.encoders.int8_files} - set(files))
    if missing:
        raise KeyError(f"files lists no {', '.join(missing)}")
    return Manifest(
        name=values["name"],
        input_spec=InputSpec.from_json(values["input_spec"]),
        score_spec=ScoreSpec.from_json(values["score_spec"]),
        sizes=sizes,
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
    with path.open("rb", buffering=0) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _identity(values: Any) -> str:
    return "sha256:" + hashlib.sha256(canonical_json(values)).hexdigest()
