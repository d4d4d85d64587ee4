"""Labels added to a bundle without training, and labels taken out of one: a new bundle each time, the old one untouched.

Knows no torch and no catalogue beyond a file of items. An added ("cold") label has its embedding for a classifier and
is marked ``encoder``; a removed one stays where it is behind a tombstone until tombstones are too many. Encoding takes
time by what is added; everything else is copied in a stream.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_export.answer_images import answer_images
from model_export.golden_update import updated_golden
from model_export.index_update import extend_index
from model_export.label_index import IndexSettings, LabelIndex, build_index, write_index
from model_export.verify import require_parity, verify_bundle
from mufin.bundle import (
    GOLDEN_FILE,
    HEAD_FILE,
    INDEX_FILE,
    VECTORS_FILE,
    Bundle,
    BundleWriter,
    open_bundle,
    write_removed,
)
from mufin.catalogue import Item, read_items
from mufin.combination import COMBINATION_FILE
from mufin.cross_attention_file import CROSS_FILE, read_label_fold
from mufin.errors import BundleError, CatalogueError, ConfigError, ImageError
from mufin.evidence import Evidence
from mufin.evidence_file import EVIDENCE_FILE, write_evidence
from mufin.evidence_labels import with_labels, without_labels
from mufin.golden import Parity, read_golden, write_golden
from mufin.graphs import EncoderGraphs
from mufin.image_source import ImageReader
from mufin.inputs import FloatArray, Int64Array, Uint8Array, decode_image, normalise_title
from mufin.item_encoder import ItemEncoder
from mufin.label_files import LABELS_FILE, LOOKUP_FILE, OFFSETS_FILE, extend_labels, write_labels
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, extend_filters, write_excluded, write_filters
from mufin.label_records_file import RECORDS_FILE, RecordBlock, RecordWriter
from mufin.label_search import EXACT
from mufin.label_store import BundleLabelStore
from mufin.manifest import ENCODER_FILES, BundleSizes
from mufin.predictor import Predictor, ProductBag
from mufin.title_words import SparseRow

COMPACTED_ABOVE = 0.1
"""Share of tombstones above which they and their labels are left out of the new bundle."""

_LABELS_AT_ONCE = 8192
_ENCODED_AT_ONCE = 256
_LOOKED_UP = 1000
_NAMED = 5

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, of how many."""


@dataclass(frozen=True)
class Update:
    """What an update did."""

    parity: Parity
    labels: int
    """That can be recommended now"""
    compacted: bool
    """Whether tombstones were cleared away"""


@dataclass(frozen=True)
class _Added:
    """A new label, encoded; its slots are in its record."""

    embedding: FloatArray
    """(D,)"""
    words: SparseRow | None
    sentence: FloatArray | None
    """(W,) Both as in ProductBag"""


def add_labels(
    source: Path, items_path: Path, target: Path, progress: Progress, image_base_url: str | None = None,
    threads: int = 1,
) -> Update:  # fmt: skip
    """Write the bundle ``source`` with the items of a JSONL or Parquet file as further labels to ``target``.

    Raises CatalogueError for a bad item or picture, BundleError for an id that is a label already, when a new label is
    not found by its own title and pictures, or when the new bundle does not compute what it should.
    """
    began = time.monotonic()
    bundle, items = open_bundle(source), read_items(items_path)
    _refuse_known(bundle, items, items_path)
    sizes, spec = bundle.manifest.sizes, bundle.manifest.input_spec
    _refuse_empty(items, items_path, spec.max_images)
    own = max(min(len(i.images), spec.max_images) + bool(normalise_title(i.title)) for i in items)
    with BundleWriter(target) as writer:
        folder = writer.folder
        _copy(bundle, folder, [*_unchanged(bundle), HEAD_FILE])
        write_removed(folder, bundle.removed)
        _extend_excluded(bundle, items, folder)
        texts = ((i.id, i.title, answer_images(i, image_base_url), i.metadata) for i in items)
        extend_labels(source, folder, texts)
        extend_filters(source / FILTERS_FILE, folder / FILTERS_FILE, (i.metadata for i in items))
        slots = max(sizes.label_slots, own)
        added = _extend_records(bundle, items, items_path.parent, folder, slots, threads, progress)
        embeddings = np.stack([own.embedding for own in added])
        extend_index(bundle, folder, embeddings)
        if bundle.evidence is not None:
            write_evidence(folder / EVIDENCE_FILE, _extended(bundle.evidence, added))
        grown = replace(
            sizes, labels=sizes.labels + len(items), label_slots=slots, untrained=sizes.untrained + len(items)
        )
        parity = _seal(writer, bundle, grown, None, {"added": len(items)})
        _require_found(folder, sizes.labels, embeddings, items)
        writer.report(_report(parity, folder, began))
        writer.finish()
    return Update(parity, grown.labels - grown.removed, False)


def remove_labels(source: Path, ids_path: Path, target: Path, progress: Progress) -> Update:
    """Write the bundle ``source`` without the labels whose ids stand in a text file, one a line, to ``target``.

    Raises BundleError for an id that is no label, when none would be left, and when tombstones are to be cleared away
    and no index of the bundle's kind finds enough of the labels that stay.
    """
    began = time.monotonic()
    bundle = open_bundle(source)
    sizes = bundle.manifest.sizes
    removed = np.union1d(bundle.removed, _read_ids(bundle, ids_path)).astype(np.int64)
    if len(removed) == sizes.labels:
        raise BundleError(f"{ids_path}: names every label of {source}: a bundle needs at least 1, keep one")
    compacted = len(removed) > COMPACTED_ABOVE * sizes.labels
    with BundleWriter(target) as writer:
        folder = writer.folder
        _copy(bundle, folder, _unchanged(bundle))
        if compacted:
            kept = np.setdiff1d(np.arange(sizes.labels), removed, assume_unique=True)
            shrunk = _compact(bundle, kept, folder, progress)
        else:
            kept = None
            names = [
                RECORDS_FILE, LABELS_FILE, OFFSETS_FILE, LOOKUP_FILE, FILTERS_FILE, EXCLUDED_FILE, HEAD_FILE, INDEX_FILE,
            ]  # fmt: skip
            names += [VECTORS_FILE] if sizes.index != EXACT else []
            _copy(bundle, folder, names + ([EVIDENCE_FILE] if sizes.combination else []))
            write_removed(folder, removed)
            shrunk = replace(sizes, removed=len(removed))
        parity = _seal(writer, bundle, shrunk, kept, {"removed": len(removed) - len(bundle.removed)})
        writer.report(_report(parity, folder, began))
        writer.finish()
    return Update(parity, shrunk.labels - shrunk.removed, compacted)


def _refuse_known(bundle: Bundle, items: Sequence[Item], path: Path) -> None:
    known = [i.id for i in items if bundle.labels.index_of(i.id, bundle.removed) is not None]
    if known:
        raise BundleError(
            f"{path}: {_some(known)} of its {len(items)} ids are labels of {bundle.folder} already: delete these lines, "
            "or remove the labels first"
        )


def _refuse_empty(items: Sequence[Item], path: Path, most: int) -> None:
    """A catalogue's item has a title or an image; this bundle may not look at images."""
    empty = [i.id for i in items if not normalise_title(i.title) and not i.images[:most]]
    if empty:
        raise CatalogueError(
            path, None, f"{_some(empty)} of its {len(items)} items have no title, and the bundle uses {most} images of a "
            "label; give them a title or delete the lines",
        )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _read_ids(bundle: Bundle, path: Path) -> Int64Array:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}): give a UTF-8 file with one label id a line") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ConfigError(f"{path}: names no label: write one id a line")
    found = [bundle.labels.index_of(identifier, bundle.removed) for identifier in ids]
    unknown = [identifier for identifier, index in zip(ids, found, strict=True) if index is None]
    if unknown:
        raise BundleError(f"{path}: {_some(unknown)} are no labels of {bundle.folder}: delete these lines")
    return np.asarray(found, dtype=np.int64)


def _unchanged(bundle: Bundle) -> list[str]:
    """Files that do not depend on which labels there are."""
    sizes = bundle.manifest.sizes
    names = [*ENCODER_FILES, *sizes.encoders.int8_files]
    names += [CROSS_FILE] if sizes.cross_attention else []
    return names + ([COMBINATION_FILE] if sizes.combination else [])


def _copy(bundle: Bundle, folder: Path, names: Sequence[str]) -> None:
    for name in names:
        shutil.copyfile(bundle.path(name), folder / name)


def _extend_excluded(bundle: Bundle, items: Sequence[Item], folder: Path) -> None:
    """excluded.npz; an exclude pair of a removed label holds for the label that comes back under its id, too."""
    # Any tombstone of an id will do: whatever came back before was given the pairs of the one before it.
    old = [bundle.labels.index_of(item.id) for item in items]
    back = {index: bundle.manifest.sizes.labels + place for place, index in enumerate(old) if index is not None}
    if not back:
        _copy(bundle, folder, [EXCLUDED_FILE])
        return
    excluded = {
        product: np.asarray([*labels, *(back[label] for label in labels.tolist() if label in back)], dtype=np.int64)
        for product, labels in bundle.exclusions.items()
    }
    write_excluded(folder / EXCLUDED_FILE, excluded)


def _extend_records(
    bundle: Bundle, items: Sequence[Item], images: Path, folder: Path, slots: int, threads: int, progress: Progress
) -> list[_Added]:
    """records.bin with the items behind the labels that are there; returns the items, encoded."""
    manifest, sizes = bundle.manifest, bundle.manifest.sizes
    fold = read_label_fold(bundle.path(CROSS_FILE)) if sizes.cross_attention else None
    # Labels are encoded in fp32, as at export, whatever incoming products are encoded in.
    graphs = EncoderGraphs(bundle.folder, sizes.dimension, threads, sentence=sizes.sentence)
    encoder = ItemEncoder(graphs, bundle)
    predictor = Predictor(encoder, BundleLabelStore(bundle, threads), bundle)
    added: list[_Added] = []
    with RecordWriter(folder, sizes.dimension, slots, sizes.record_type) as records, ImageReader(images) as reader:
        for start in range(0, sizes.labels, _LABELS_AT_ONCE):
            records.copy(np.asarray(bundle.records.rows[start : start + _LABELS_AT_ONCE]))
        for start in range(0, len(items), _ENCODED_AT_ONCE):
            block = items[start : start + _ENCODED_AT_ONCE]
            pixels = [
                _pixels(i, reader, manifest.input_spec.image_side_pixels, manifest.input_spec.max_images) for i in block
            ]
            bags = predictor.embed([i.title for i in block], pixels)
            records.append(_cold(bags, None if fold is None else fold.values))
            added += [_Added(bag.embedding, bag.words, bag.sentence) for bag in bags]
            progress("encoding labels", start + len(block), len(items))
    return added


def _extended(evidence: Evidence, added: Sequence[_Added]) -> Evidence:
    """With what the titles of added labels say."""
    silent = np.zeros(evidence.label_sentences.dimension, dtype=np.float32)
    sentences = np.stack([silent if own.sentence is None else own.sentence for own in added])
    return with_labels(evidence, [own.words for own in added], sentences)


def _pixels(item: Item, reader: ImageReader, side: int, most: int) -> Uint8Array:
    images = []
    for name in item.images[:most]:
        try:
            images.append(decode_image(reader.read(name), side))
        except ImageError as error:
            reason = f"image {name!r} of item {item.id!r}: {error}; replace or remove the image"
            raise CatalogueError(reader.folder, None, reason) from error
    return np.stack(images) if images else np.zeros((0, side, side, 3), dtype=np.uint8)


def _cold(bags: Sequence[ProductBag], fold: Callable[[FloatArray], FloatArray] | None) -> RecordBlock:
    """Records of labels without training: the classifier is the embedding."""
    keys = [bag.slots for bag in bags]
    values = [np.zeros_like(slots) if fold is None else fold(slots) for slots in keys]
    has_title = np.asarray([bag.has_title for bag in bags])
    return RecordBlock(keys, values, np.stack([bag.embedding for bag in bags]), has_title, "encoder")


def _require_found(folder: Path, first: int, embeddings: FloatArray, items: Sequence[Item]) -> None:
    """Search for new labels (all, or evenly spread ones) by themselves."""
    bundle = open_bundle(folder, verify="structure")
    store, wanted = BundleLabelStore(bundle), bundle.manifest.score_spec.shortlist_size
    rows = np.unique(np.linspace(0, len(items) - 1, min(len(items), _LOOKED_UP)).astype(np.int64))
    found, scores = store.search(embeddings[rows], min(wanted, store.size))
    # Behind K equals a label may be cut off; it is no worse than what was found.
    missed = [
        items[row].id for row, own, best in zip(rows, found, scores, strict=True)
        if first + row not in own and best.min() < 1 - 1e-4
    ]  # fmt: skip
    if len(missed) > (1 - IndexSettings().target_recall) * len(rows):
        raise BundleError(
            f"{folder}: {len(missed)} of {len(rows)} new labels are not found by their own embedding "
            f"({_some(missed)}): export the whole catalogue again, so that the index is built anew"
        )


def _compact(bundle: Bundle, kept: Int64Array, folder: Path, progress: Progress) -> BundleSizes:
    """Every label file with the ``kept`` labels (ascending) alone, renumbered, and a new index."""
    sizes, new = bundle.manifest.sizes, np.full(bundle.manifest.sizes.labels, -1, dtype=np.int64)
    new[kept] = np.arange(len(kept))
    write_labels(folder, (bundle.labels.fields(int(label)) for label in kept))
    write_filters(folder / FILTERS_FILE, (bundle.labels.fields(int(label))[3] for label in kept))
    if bundle.evidence is not None:
        write_evidence(folder / EVIDENCE_FILE, without_labels(bundle.evidence, kept))
    excluded = {product: new[labels] for product, labels in bundle.exclusions.items()}
    write_excluded(folder / EXCLUDED_FILE, {product: own[own >= 0] for product, own in excluded.items()})
    embeddings = np.zeros((len(kept), sizes.dimension), dtype=np.float32)
    store = BundleLabelStore(bundle)
    with RecordWriter(folder, sizes.dimension, sizes.label_slots, sizes.record_type) as records:
        for start in range(0, len(kept), _LABELS_AT_ONCE):
            block = kept[start : start + _LABELS_AT_ONCE]
            records.copy(np.asarray(bundle.records.rows[block]))
            embeddings[start : start + len(block)] = store.embeddings(block)
            progress("compacting labels", start + len(block), len(kept))
    write_removed(folder, np.zeros(0, dtype=np.int64))
    index = _rebuilt_index(bundle, embeddings, new[bundle.head_labels])
    write_index(folder, index)
    return replace(
        sizes,
        labels=len(kept),
        removed=0,
        untrained=int(bundle.records.untrained(kept).sum()),
        index=index.kind,
        index_candidates=index.candidates,
    )


def _rebuilt_index(bundle: Bundle, embeddings: FloatArray, head: Int64Array) -> LabelIndex:
    """Of (n, D) labels that are left, of the bundle's kind: that is what its tolerances are of.

    ``head``: head labels in the new numbering, -1 for those that are gone.
    """
    sizes, told = bundle.manifest.sizes, bundle.manifest.provenance.get("index", {})
    if sizes.index == EXACT:
        settings = IndexSettings(exact_labels=len(embeddings))
    else:
        target = told.get("target_recall", IndexSettings.target_recall)
        settings = IndexSettings(exact_labels=0, target_recall=target, kinds=(sizes.index,))
    frequency = np.zeros(len(embeddings), dtype=np.int64)
    frequency[head[head >= 0]] = settings.head_frequency
    try:
        return build_index(embeddings, frequency, bundle.manifest.score_spec.shortlist_size, settings)
    except (ConfigError, RuntimeError) as error:
        # Too little found, and what FAISS says of too few labels: remedies are settings of an export, not of an update.
        raise BundleError(
            f"{bundle.folder}: no {sizes.index} index can be built of the {len(embeddings)} labels that are left "
            f"({error}): run mufin-export again on a catalogue without the removed labels"
        ) from error


def _seal(
    writer: BundleWriter, bundle: Bundle, sizes: BundleSizes, kept: Int64Array | None, change: dict[str, int]
) -> Parity:
    """Golden products with the new labels, the manifest, and the check of both."""
    manifest, folder = bundle.manifest, writer.folder
    shutil.copyfile(bundle.path(GOLDEN_FILE), folder / GOLDEN_FILE)
    provenance = {**manifest.provenance}
    provenance["updates"] = [*provenance.get("updates", []), {**change, "of": manifest.bundle_id}]

    def seal() -> None:
        writer.seal(manifest.name, manifest.input_spec, manifest.score_spec, sizes, manifest.tolerances, provenance)

    seal()
    golden = updated_golden(read_golden(bundle.folder), open_bundle(folder, verify="structure"), kept)
    write_golden(folder, golden)
    seal()
    parity = verify_bundle(folder)
    require_parity(parity, writer.target)
    return parity


def _report(parity: Parity, folder: Path, began: float) -> dict[str, Any]:
    return {
        "updated_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "update_seconds": round(time.monotonic() - began, 1),
        "parity": parity.to_json(),
        "size_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
