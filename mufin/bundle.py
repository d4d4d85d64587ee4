"""A bundle folder: written whole or not at all, opened only when every part agrees.

The only code that knows a bundle's files; it knows neither ONNX Runtime nor FAISS, whose files it hands out as paths.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from mufin.errors import BundleError
from mufin.inputs import InputSpec, Int64Array
from mufin.label_files import LABELS_FILE, LOOKUP_FILE, OFFSETS_FILE, RECORDS_FILE, LabelFile, RecordFile
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, Exclusions, FilterIndex, write_arrays
from mufin.manifest import (
    ENCODER_FILES,
    ArrayEntry,
    BundleSizes,
    FileEntry,
    Manifest,
    Tolerances,
    canonical_json,
    hash_file,
    read_manifest,
)
from mufin.scoring import CrossAttention, ScoreSpec

Verify = Literal["full", "structure"]

MANIFEST_FILE = "manifest.json"
SIDECAR_FILE = "sidecar.json"
REPORT_FILE = "report.json"
TOKENIZER_FILE = "tokenizer.json"
TEXT_GRAPH_FILE = "text_encoder.onnx"
IMAGE_GRAPH_FILE = "image_encoder.onnx"
BAG_GRAPH_FILE = "bag_encoder.onnx"
INDEX_FILE = "labels.faiss"
HEAD_FILE = "head_labels.npy"
CROSS_FILE = "cross_attention.npz"
GOLDEN_FILE = "golden.npz"

_ALWAYS = frozenset(
    {*ENCODER_FILES, INDEX_FILE, HEAD_FILE, RECORDS_FILE, LABELS_FILE, OFFSETS_FILE, LOOKUP_FILE}
    | {FILTERS_FILE, EXCLUDED_FILE, GOLDEN_FILE}
)
_AGAIN = "run mufin-export again"


@dataclass(frozen=True)
class Bundle:
    """An open bundle. Label files are mapped; everything is read-only and thread-safe."""

    folder: Path
    manifest: Manifest
    tokenizer_definition: str
    cross_attention: CrossAttention | None
    records: RecordFile
    labels: LabelFile
    filters: FilterIndex
    exclusions: Exclusions
    head_labels: Int64Array
    """Labels searched exactly beside an approximate index, ascending."""

    def path(self, name: str) -> Path:
        """Where one of the bundle's files lies."""
        return self.folder / name


class BundleWriter:
    """A temporary folder beside the bundle that becomes the bundle when it is whole.

    ``with BundleWriter(target) as writer``: put the files into ``writer.folder``, then call ``finish``.
    ``writer.scratch`` is a folder for what is needed on the way. Leaving without ``finish`` leaves nothing; a killed
    export leaves only hidden folders, which the next one clears.
    """

    def __init__(self, target: Path) -> None:
        """Raises BundleError when ``target`` exists: a bundle is never changed in place."""
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self.scratch = target.with_name(f".{target.name}.scratch")
        if target.exists():
            raise BundleError(f"{target} exists: name another folder, or remove it first")
        self._clear()
        for folder in (self.folder, self.scratch):
            folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def _clear(self) -> None:
        for folder in (self.folder, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)

    def seal(
        self, name: str, input_spec: InputSpec, score_spec: ScoreSpec, sizes: BundleSizes,
        tolerances: Tolerances, provenance: Mapping[str, Any],
    ) -> Manifest:  # fmt: skip
        """Hash what lies in the folder and write the manifest: the folder can be opened from here on."""
        own = (MANIFEST_FILE, SIDECAR_FILE, REPORT_FILE)
        files = {p.name: _describe(p) for p in sorted(self.folder.iterdir()) if p.name not in own}
        manifest = Manifest(name, input_spec, score_spec, sizes, tolerances, dict(provenance), files)
        (self.folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        self.report({})
        return manifest

    def report(self, values: Mapping[str, Any]) -> None:
        """Write report.json and its hash in the sidecar; may be called again. Not part of the identity."""
        write_report(self.folder, values)

    def finish(self) -> None:
        """Check the structure, fsync everything and rename the folder into place."""
        open_bundle(self.folder, verify="structure")
        for path in [*self.folder.iterdir(), self.folder]:
            _fsync(path)
        # rename onto an empty folder succeeds; one with content, made since, is refused by the system.
        self.folder.rename(self.target)
        _fsync(self.target.parent)


def write_report(folder: Path, values: Mapping[str, Any]) -> None:
    """Replace report.json of a bundle and the sidecar that holds its hash."""
    (folder / REPORT_FILE).write_bytes(canonical_json(dict(values)))
    (folder / SIDECAR_FILE).write_bytes(canonical_json({REPORT_FILE: hash_file(folder / REPORT_FILE)}))


def write_cross_attention(path: Path, attention: CrossAttention) -> None:
    """Write cross_attention.npz."""
    arrays = {name: np.asarray(getattr(attention, name), dtype=np.float32) for name in _CROSS_VECTORS}
    write_arrays(path, {**arrays, "norm_epsilon": np.asarray(attention.norm_epsilon, dtype=np.float64)})


_CROSS_VECTORS = ("query_matrix", "query_bias", "norm_weight", "norm_bias")


def open_bundle(folder: Path, verify: Verify = "full") -> Bundle:
    """Open a bundle after checking it.

    full: version, presence, every hash, sizes and shapes against each other.
    structure: the same without hashing, for a folder that a full verification has passed before.
    Raises BundleError naming the file, both values and the remedy.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: is no folder: name a bundle that mufin-export wrote")
    manifest = read_manifest(folder / MANIFEST_FILE)
    _check_presence(folder, manifest)
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry, verify)
    _check_sidecar(folder)
    try:
        bundle = _open_files(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise BundleError(f"{folder}: a file cannot be read ({error}): {_AGAIN}") from error
    _check_sizes(bundle)
    return bundle


def _open_files(folder: Path, manifest: Manifest) -> Bundle:
    return Bundle(
        folder=folder,
        manifest=manifest,
        tokenizer_definition=(folder / TOKENIZER_FILE).read_text(encoding="utf-8"),
        cross_attention=_read_cross_attention(folder / CROSS_FILE) if manifest.sizes.cross_attention else None,
        records=RecordFile(folder / RECORDS_FILE),
        labels=LabelFile(folder),
        filters=FilterIndex(folder / FILTERS_FILE),
        exclusions=Exclusions(folder / EXCLUDED_FILE),
        head_labels=np.load(folder / HEAD_FILE, allow_pickle=False),
    )


def _read_cross_attention(path: Path) -> CrossAttention:
    with np.load(path, allow_pickle=False) as arrays:
        return CrossAttention(**{n: arrays[n] for n in _CROSS_VECTORS}, norm_epsilon=float(arrays["norm_epsilon"]))


def _check_presence(folder: Path, manifest: Manifest) -> None:
    required = _ALWAYS | ({CROSS_FILE} if manifest.sizes.cross_attention else set())
    unlisted = sorted(required - set(manifest.files))
    if unlisted:
        raise BundleError(f"{folder / MANIFEST_FILE}: lists no {', '.join(unlisted)}: {_AGAIN}")
    foreign = sorted(set(manifest.files) - required)
    if foreign:
        raise BundleError(f"{folder / MANIFEST_FILE}: lists {', '.join(foreign)}, no file of this format: {_AGAIN}")
    expected = set(manifest.files) | {MANIFEST_FILE, SIDECAR_FILE, REPORT_FILE}
    found = {path.name for path in folder.iterdir()}
    if missing := sorted(expected - found):
        raise BundleError(f"{folder}: lacks {', '.join(missing)}, which the manifest names: copy it whole or {_AGAIN}")
    if surplus := sorted(found - expected):
        raise BundleError(f"{folder}: holds {', '.join(surplus)}, which no manifest names: remove it")


def _check_file(path: Path, entry: FileEntry, verify: Verify) -> None:
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise BundleError(
            f"{path}: has {size} bytes, the manifest says {entry.size_bytes}: copy the bundle again or {_AGAIN}"
        )
    if verify == "full" and (digest := hash_file(path)) != entry.sha256:
        raise BundleError(
            f"{path}: SHA-256 is {digest}, the manifest says {entry.sha256}: copy the bundle again or {_AGAIN}"
        )
    arrays = _array_headers(path)
    if arrays != dict(entry.arrays):
        raise BundleError(f"{path}: holds the arrays {arrays}, the manifest says {dict(entry.arrays)}: {_AGAIN}")


def _check_sidecar(folder: Path) -> None:
    """Report and sidecar are small, so they are hashed by every kind of verification."""
    expected = canonical_json({REPORT_FILE: hash_file(folder / REPORT_FILE)})
    found = (folder / SIDECAR_FILE).read_bytes()
    if found != expected:
        raise BundleError(
            f"{folder / SIDECAR_FILE}: holds {_one_line(found)}, {REPORT_FILE} gives {_one_line(expected)}: "
            "the report was altered, copy the bundle again"
        )


def _one_line(content: bytes) -> str:
    return " ".join(content[:200].decode("utf-8", "replace").split())


def _check_sizes(bundle: Bundle) -> None:
    sizes, records = bundle.manifest.sizes, bundle.records
    place = bundle.folder
    counts = {
        RECORDS_FILE: records.count,
        LABELS_FILE: bundle.labels.count,
        FILTERS_FILE: bundle.filters.count,
    }
    for name, count in counts.items():
        if count != sizes.labels:
            raise BundleError(f"{place / name}: has {count} labels, the manifest says {sizes.labels}: {_AGAIN}")
    found = (records.dimension, records.slots, records.number)
    expected = (sizes.dimension, sizes.label_slots, sizes.record_type)
    if found != expected:
        raise BundleError(f"{place / RECORDS_FILE}: records are {found}, the manifest says {expected}: {_AGAIN}")
    highest = max(bundle.exclusions.highest_label, int(bundle.head_labels.max(initial=-1)))
    if highest >= sizes.labels:
        raise BundleError(f"{place}: label {highest} is named, the manifest says {sizes.labels} labels: {_AGAIN}")
    attention = bundle.cross_attention
    if attention is not None and attention.query_matrix.shape != (sizes.dimension, sizes.dimension):
        raise BundleError(
            f"{place / CROSS_FILE}: query_matrix is {attention.query_matrix.shape}, "
            f"the manifest says dimension {sizes.dimension}: {_AGAIN}"
        )


def _describe(path: Path) -> FileEntry:
    return FileEntry(hash_file(path), path.stat().st_size, _array_headers(path))


def _array_headers(path: Path) -> dict[str, ArrayEntry]:
    """dtype and shape of the arrays of an .npy or .npz, from their headers; empty for other files."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return {"": _entry(array.dtype, array.shape)}
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {name.removesuffix(".npy"): _member_header(archive, name) for name in archive.namelist()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: is no readable array file ({error}): {_AGAIN}") from error
    return {}


def _member_header(archive: zipfile.ZipFile, name: str) -> ArrayEntry:
    with archive.open(name) as handle:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(handle)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    return _entry(dtype, shape)


def _entry(dtype: np.dtype[Any], shape: tuple[int, ...]) -> ArrayEntry:
    return ArrayEntry(dtype.str if dtype.names is None else json.dumps(dtype.descr), tuple(shape))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
