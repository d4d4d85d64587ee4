"""A bundle folder: written whole or not at all, opened only when every part agrees.

The only code that knows a bundle's files; it knows neither ONNX Runtime nor FAISS, whose files it hands out as paths.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from mufin.combination import COMBINATION_FILE, Combination, read_combination
from mufin.cross_attention_file import CROSS_FILE, check_cross_attention, read_cross_attention
from mufin.errors import BundleError, TrainingError
from mufin.evidence import Evidence
from mufin.evidence_file import EVIDENCE_FILE, read_evidence
from mufin.inputs import InputSpec, Int64Array
from mufin.label_files import LABELS_FILE, LOOKUP_FILE, OFFSETS_FILE, LabelFile
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, Exclusions, FilterIndex
from mufin.label_records_file import RECORDS_FILE, RecordFile
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
PAGE_FILE = "report.html"
TOKENIZER_FILE = "tokenizer.json"
TEXT_GRAPH_FILE = "text_encoder.onnx"
IMAGE_GRAPH_FILE = "image_encoder.onnx"
BAG_GRAPH_FILE = "bag_encoder.onnx"
INDEX_FILE = "labels.faiss"
HEAD_FILE = "head_labels.npy"
VECTORS_FILE = "label_vectors.npy"
REMOVED_FILE = "removed_labels.npy"
GOLDEN_FILE = "golden.npz"

_ALWAYS = frozenset(
    {*ENCODER_FILES, INDEX_FILE, HEAD_FILE, RECORDS_FILE, LABELS_FILE, OFFSETS_FILE, LOOKUP_FILE}
    | {FILTERS_FILE, EXCLUDED_FILE, GOLDEN_FILE, REMOVED_FILE}
)
_AGAIN = "run mufin-export again"
_IDENTITY_FILE = "identity"
_HASH_THREADS = 4
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


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
    removed: Int64Array
    """Tombstones: labels that are never returned, ascending."""
    evidence: Evidence | None = None
    """Training products and title words; with ``combination``, or neither"""
    combination: Combination | None = None

    def path(self, name: str) -> Path:
        """Where one of the bundle's files lies."""
        return self.folder / name


class BundleWriter:
    """A temporary folder beside the bundle that becomes the bundle when it is whole.

    ``with BundleWriter(target) as writer``: put the files into ``writer.folder``, then call ``finish``.
    ``writer.scratch_for`` gives a folder for what is needed on the way. An export that is refused leaves nothing. One
    that was killed or interrupted leaves only hidden folders, which the next one uses or clears.
    """

    def __init__(self, target: Path) -> None:
        """Raises BundleError when ``target`` exists: a bundle is never changed in place."""
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self._scratch = target.with_name(f".{target.name}.scratch")
        # A link to nothing does not "exist", but the last rename fails on it.
        if os.path.lexists(target):
            kind = "exists, as a link" if target.is_symlink() else "exists"
            raise BundleError(f"{target} {kind}: name another folder, or remove it first")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def scratch_for(self, identity: str) -> Path:
        """A hidden folder for what can be used again by an export of the same ``identity``; of another, it is cleared."""
        marker = self._scratch / _IDENTITY_FILE
        if not marker.is_file() or marker.read_text(encoding="utf-8") != identity:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir()
            marker.write_text(identity, encoding="utf-8")
        return self._scratch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        # Not our verdict but someone's impatience or a full disk: what is done serves the next attempt.
        if not isinstance(error, (KeyboardInterrupt, OSError, MemoryError, TrainingError)):
            shutil.rmtree(self._scratch, ignore_errors=True)

    def seal(
        self, name: str, input_spec: InputSpec, score_spec: ScoreSpec, sizes: BundleSizes,
        tolerances: Tolerances, provenance: Mapping[str, Any],
    ) -> Manifest:  # fmt: skip
        """Hash what lies in the folder and write the manifest: the folder can be opened from here on."""
        own = (MANIFEST_FILE, SIDECAR_FILE, REPORT_FILE, PAGE_FILE)
        files = {p.name: _describe(p) for p in sorted(self.folder.iterdir()) if p.name not in own}
        manifest = Manifest(name, input_spec, score_spec, sizes, tolerances, dict(provenance), files)
        (self.folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        self.report({})
        return manifest

    def report(self, values: Mapping[str, Any], page: str | None = None) -> None:
        """Write report.json, report.html and their hashes; may be called again. Not part of the identity."""
        write_report(self.folder, values, page)

    def finish(self) -> None:
        """Check the structure, fsync everything and rename the folder into place."""
        open_bundle(self.folder, verify="structure")
        for path in [*self.folder.iterdir(), self.folder]:
            _fsync(path)
        # rename onto an empty folder succeeds; one with content, made since, is refused by the system.
        self.folder.rename(self.target)
        _fsync(self.target.parent)


def write_report(folder: Path, values: Mapping[str, Any], page: str | None = None) -> None:
    """Replace report.json and report.html (None: there is none) of a bundle and the sidecar that holds their hashes."""
    (folder / REPORT_FILE).write_bytes(canonical_json(dict(values)))
    if page is None:
        (folder / PAGE_FILE).unlink(missing_ok=True)
    else:
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    (folder / SIDECAR_FILE).write_bytes(_sidecar(folder))


def _sidecar(folder: Path) -> bytes:
    names = [name for name in (REPORT_FILE, PAGE_FILE) if (folder / name).is_file()]
    return canonical_json({name: hash_file(folder / name) for name in names})


def write_removed(folder: Path, labels: Int64Array) -> None:
    """Write removed_labels.npy: tombstones, labels that are never returned, ascending."""
    np.save(folder / REMOVED_FILE, np.asarray(labels, dtype=np.int64), allow_pickle=False)


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
        _check_length(folder / name, entry)
    digests = _hash_all(folder, manifest) if verify == "full" else {}
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry, digests.get(name, entry.sha256))
    _check_sidecar(folder)
    try:
        bundle = _open_files(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise BundleError(f"{folder}: a file cannot be read ({error}): {_AGAIN}") from error
    _check_sizes(bundle)
    return bundle


def _open_files(folder: Path, manifest: Manifest) -> Bundle:
    sizes = manifest.sizes
    evidence = read_evidence(folder / EVIDENCE_FILE, sizes.dimension, sizes.labels) if sizes.combination else None
    return Bundle(
        evidence=evidence,
        combination=read_combination(folder / COMBINATION_FILE) if sizes.combination else None,
        folder=folder,
        manifest=manifest,
        tokenizer_definition=(folder / TOKENIZER_FILE).read_text(encoding="utf-8"),
        cross_attention=read_cross_attention(folder / CROSS_FILE) if manifest.sizes.cross_attention else None,
        records=RecordFile(folder / RECORDS_FILE),
        labels=LabelFile(folder),
        filters=FilterIndex(folder / FILTERS_FILE),
        exclusions=Exclusions(folder / EXCLUDED_FILE),
        head_labels=np.load(folder / HEAD_FILE, allow_pickle=False),
        removed=np.load(folder / REMOVED_FILE, allow_pickle=False),
    )


def _check_presence(folder: Path, manifest: Manifest) -> None:
    required = _ALWAYS | ({CROSS_FILE} if manifest.sizes.cross_attention else set())
    required |= set(manifest.sizes.encoders.int8_files)
    required |= {EVIDENCE_FILE, COMBINATION_FILE} if manifest.sizes.combination else set()
    required |= {VECTORS_FILE} if manifest.sizes.index != "exact" else set()
    unlisted = sorted(required - set(manifest.files))
    if unlisted:
        raise BundleError(f"{folder / MANIFEST_FILE}: lists no {', '.join(unlisted)}: {_AGAIN}")
    foreign = sorted(set(manifest.files) - required)
    if foreign:
        raise BundleError(f"{folder / MANIFEST_FILE}: lists {', '.join(foreign)}, no file of this format: {_AGAIN}")
    expected = set(manifest.files) | {MANIFEST_FILE, SIDECAR_FILE, REPORT_FILE}
    found = {path.name for path in folder.iterdir()}
    for path in sorted(folder.iterdir()):
        if path.name in expected and (path.is_symlink() or not path.is_file()):
            kind = "a link" if path.is_symlink() else "no file"
            raise BundleError(
                f"{path}: is {kind}, a bundle holds plain files only: copy the bundle again, links resolved"
            )
    if missing := sorted(expected - found):
        raise BundleError(f"{folder}: lacks {', '.join(missing)}, which the manifest names: copy it whole or {_AGAIN}")
    if surplus := sorted(found - expected - {PAGE_FILE}):  # a report without a page is whole, too
        raise BundleError(f"{folder}: holds {', '.join(surplus)}, which no manifest names: remove it")


def _hash_all(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 of every file, on a few threads: hashing lets go of Python's lock. The largest first, it takes longest."""
    names = sorted(manifest.files, key=lambda name: -manifest.files[name].size_bytes)
    with ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1), thread_name_prefix="mufin-hash") as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(folder / name), names), strict=True))


def _check_length(path: Path, entry: FileEntry) -> None:
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise BundleError(
            f"{path}: has {size} bytes, the manifest says {entry.size_bytes}: copy the bundle again or {_AGAIN}"
        )


def _check_file(path: Path, entry: FileEntry, digest: str) -> None:
    if digest != entry.sha256:
        raise BundleError(
            f"{path}: SHA-256 is {digest}, the manifest says {entry.sha256}: copy the bundle again or {_AGAIN}"
        )
    _refuse_pickle(path)
    arrays = _array_headers(path)
    if arrays != dict(entry.arrays):
        raise BundleError(f"{path}: holds the arrays {arrays}, the manifest says {dict(entry.arrays)}: {_AGAIN}")


def _refuse_pickle(path: Path) -> None:
    """Whatever a file is called and whatever the manifest says of it: none of ours begins as a pickle does."""
    with path.open("rb") as handle:
        start = handle.read(2)
    if start in _PICKLES:
        raise BundleError(f"{path}: is a pickle, and opening one may run code: delete it and {_AGAIN}")


def _check_sidecar(folder: Path) -> None:
    """Reports and sidecar are small, so they are hashed by every kind of verification."""
    expected = _sidecar(folder)
    found = (folder / SIDECAR_FILE).read_bytes()
    if found != expected:
        raise BundleError(
            f"{folder / SIDECAR_FILE}: holds {_one_line(found)}, the reports give {_one_line(expected)}: "
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
    _check_labels(bundle.exclusions.labels, sizes, place / EXCLUDED_FILE)
    for name, labels in ((HEAD_FILE, bundle.head_labels), (REMOVED_FILE, bundle.removed)):
        _check_labels(labels, sizes, place / name)
        if (labels[1:] <= labels[:-1]).any():
            raise BundleError(f"{place / name}: is not ascending within 0..{sizes.labels - 1}: {_AGAIN}")
    if len(bundle.removed) != sizes.removed:
        raise BundleError(
            f"{place / REMOVED_FILE}: has {len(bundle.removed)} labels, the manifest says {sizes.removed}: {_AGAIN}"
        )
    if bundle.cross_attention is not None:
        check_cross_attention(bundle.cross_attention, sizes.dimension, place / CROSS_FILE)


def _check_labels(labels: Int64Array, sizes: BundleSizes, path: Path) -> None:
    """Label numbers of a file; compiled code reads wherever they point."""
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise BundleError(f"{path}: holds {labels.dtype} of shape {labels.shape}, needs a row of int64: {_AGAIN}")
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=-1))
    if lowest < 0 or highest >= sizes.labels:
        raise BundleError(
            f"{path}: names labels {lowest} to {highest}, the manifest says {sizes.labels} labels: {_AGAIN}"
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
