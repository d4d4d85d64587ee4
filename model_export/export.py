"""The export's steps in order: a trained network in, a whole and verified bundle out, or nothing.

Knows the order of the steps only; each step is a module of this package. The command line stands in ``__main__``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_export.answer_images import answer_images
from model_export.encode_labels import EncodingSpeed, encode_labels, encoding_identity
from model_export.encoded_labels import EncodedLabels, write_records
from model_export.int8_cost import validation_sample
from model_export.int8_report import PrecisionSettings
from model_export.label_index import IndexSettings, LabelIndex, build_index, write_index
from model_export.label_records import RecordType, fold_attention
from model_export.onnx_graphs import export_graphs
from model_export.quantise import EncoderChoice, choose_encoders
from model_export.reporting import write_reports
from model_export.trained import Trained, item_arrays, trained_run
from model_export.verify import compute_golden, golden_items, require_parity, tolerances_for, verify_bundle
from mufin.bundle import TOKENIZER_FILE, BundleWriter, write_removed
from mufin.catalogue import Catalogue, Item
from mufin.combination import COMBINATION_FILE, write_combination
from mufin.cross_attention_file import CROSS_FILE, write_cross_attention
from mufin.errors import ConfigError
from mufin.evidence_file import EVIDENCE_FILE, write_evidence
from mufin.golden import Parity, write_golden
from mufin.image_source import is_url
from mufin.inputs import FloatArray, Int64Array, TitleTokenizer, normalise_title
from mufin.label_files import write_labels
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, write_excluded, write_filters
from mufin.label_records_file import check_number
from mufin.label_search import EXACT
from mufin.manifest import BundleSizes, Encoders
from mufin.training.encode import embed_items
from mufin.training.item_arrays import ItemArrays
from mufin.training.label_vectors import prototypes
from mufin.training.progress import Reporter

_MOST_QUERIES = 1000
_LIBRARIES = ("faiss-cpu", "numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class ExportSettings:
    """What can be chosen about a bundle."""

    name: str | None = None
    """Name of the bundle; None: that of the catalogue's folder."""
    record_type: RecordType = "float32"
    """Of the numbers in records.bin."""
    image_base_url: str | None = None
    """Put before folder-relative images of labels; None: they are left out of answers."""
    index: IndexSettings = field(default_factory=IndexSettings)
    """How labels.faiss is chosen."""
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    """Whether encoders become int8."""
    device: str = "cpu"
    """Where labels are encoded; cuda: on every GPU there is."""
    processes: int = 1
    """That encode labels."""
    report: bool = True
    """Whether latency is measured and report.html written."""

    def __post_init__(self) -> None:
        check_number(self.record_type)
        if self.image_base_url is not None and not is_url(self.image_base_url):
            raise ConfigError(f"image_base_url is {self.image_base_url!r}, must begin with http:// or https://")
        if self.processes < 1:
            raise ConfigError(f"processes is {self.processes}, needs at least 1")


def export(
    run_folder: Path, target: Path, settings: ExportSettings, reporter: Reporter, catalogue_folder: Path | None = None
) -> Parity:
    """Write the bundle of a finished run to ``target``; it is there, whole and verified, or not at all."""
    trained, catalogue = trained_run(run_folder, catalogue_folder)
    return export_trained(trained, catalogue, target, settings, reporter)


def export_trained(
    trained: Trained, catalogue: Catalogue, target: Path, settings: ExportSettings, reporter: Reporter
) -> Parity:
    """The same of any trained network and the catalogue of its labels, in order."""
    began, model, dimension = time.monotonic(), trained.model, trained.config.network.dimension
    if trained.config.network.early_fusion:
        raise ConfigError(
            "network.early_fusion is true: titles of such a network depend on images, which a bundle's title graph does not "
            "read; train with early_fusion=false"
        )
    if trained.config.shortlist.several_vectors:
        raise ConfigError(
            "shortlist.product_vectors or modality_vectors is set: a bundle's index holds one vector a label; "
            "train with shortlist.product_vectors=0 and modality_vectors=false"
        )
    with BundleWriter(target) as writer:
        folder = writer.folder
        scratch = writer.scratch_for(encoding_identity(trained, catalogue, settings.device))
        (folder / TOKENIZER_FILE).write_text(trained.tokenizer_json, encoding="utf-8")
        export_graphs(model, trained.input_spec, dimension, folder, sentence=trained.combined is not None)
        labels, speed = _export_labels(trained, catalogue, folder, scratch, settings, reporter)
        _export_label_texts(catalogue, folder, settings)
        _export_combination(trained, folder)
        _export_golden(trained, catalogue, labels, folder, scratch)
        index = _export_index(trained, catalogue, labels, folder, scratch, settings)
        sizes = BundleSizes(
            len(catalogue.labels), dimension, labels.slots, settings.record_type,
            model.cross_attention is not None, index.kind, index_candidates=index.candidates,
            combination=trained.combined is not None,
            sentence=0 if trained.combined is None else trained.combined[0].sentences.dimension,
        )  # fmt: skip
        name = settings.name or catalogue.folder.resolve().name
        tolerances = tolerances_for(index.kind, settings.record_type, trained.combined is not None)
        if settings.precision.encoders != "fp32":  # int8 is measured on a bundle that can be opened
            writer.seal(name, trained.input_spec, trained.score_spec, sizes, tolerances, {})
        choice = _choose_encoders(trained, catalogue, writer, scratch, settings, reporter)
        manifest = writer.seal(
            name, trained.input_spec, trained.score_spec, replace(sizes, encoders=choice.encoders), tolerances,
            {**_provenance(trained, catalogue), **_target(index, settings.index), "encoders": choice.provenance},
        )  # fmt: skip
        parity = verify_bundle(folder)
        require_parity(parity, target)
        values = {**_report(parity, index, speed, folder, began), "int8": choice.report}
        writer.report(values)
        if settings.report:
            write_reports(writer, manifest, values, catalogue, catalogue.splits.get("valid"))
        writer.finish()
    return parity


def _export_labels(
    trained: Trained, catalogue: Catalogue, folder: Path, scratch: Path, settings: ExportSettings, reporter: Reporter
) -> tuple[EncodedLabels, EncodingSpeed]:
    """Encode the labels, write their records and the cross attention."""
    model, most = trained.model, trained.input_spec.max_images
    attention = None if model.cross_attention is None else fold_attention(model.cross_attention)
    speed = encode_labels(
        trained, catalogue, scratch, settings.device, settings.processes,
        lambda done, total: reporter.step("encoding labels", done, total),
    )  # fmt: skip
    slots = max(min(len(i.images), most) + bool(normalise_title(i.title)) for i in catalogue.labels)
    if attention is not None:
        write_cross_attention(folder / CROSS_FILE, attention.product, attention.label)
    found_by = partial(_found_by, trained)
    return write_records(folder, scratch, model.classifiers, attention, settings.record_type, slots, found_by), speed


def _found_by(trained: Trained, first: int, embeddings: FloatArray) -> FloatArray:
    """(n, D) vectors by which labels from ``first`` on are found; ``embeddings`` (n, D): theirs."""
    if trained.label_means is None:
        return embeddings
    means = trained.label_means[first : first + len(embeddings)]
    return prototypes(embeddings, means, trained.config.shortlist.prototype_weight)


def _export_label_texts(catalogue: Catalogue, folder: Path, settings: ExportSettings) -> None:
    """What is answered of labels, what they are filtered by, and who must not get them."""
    items, base = catalogue.labels, settings.image_base_url
    write_labels(folder, ((i.id, i.title, answer_images(i, base), i.metadata) for i in items))
    write_filters(folder / FILTERS_FILE, (i.metadata for i in items))
    excluding = np.flatnonzero(np.diff(catalogue.exclude.indptr))
    write_excluded(
        folder / EXCLUDED_FILE, {catalogue.products[row].id: catalogue.exclude.row(row) for row in excluding.tolist()}
    )
    write_removed(folder, np.zeros(0, dtype=np.int64))


def _export_combination(trained: Trained, folder: Path) -> None:
    """Training products, title words and the combination learned, of a run that has them."""
    if trained.combined is not None:
        evidence, combination = trained.combined
        write_evidence(folder / EVIDENCE_FILE, evidence)
        write_combination(folder / COMBINATION_FILE, combination)


def _export_golden(trained: Trained, catalogue: Catalogue, labels: EncodedLabels, folder: Path, scratch: Path) -> None:
    """A few products through the network in torch, with the labels that it shortlists for them."""
    golden = golden_items(catalogue.products, trained.input_spec.max_images)

    def label_arrays(wanted: Int64Array) -> ItemArrays:
        return _arrays(trained, catalogue, [catalogue.labels[i] for i in wanted], scratch / "golden-labels")

    arrays = _arrays(trained, catalogue, golden, scratch / "golden")
    write_golden(
        folder,
        compute_golden(trained.model, golden, arrays, label_arrays, labels, trained.score_spec, trained.combined),
    )


def _export_index(
    trained: Trained, catalogue: Catalogue, labels: EncodedLabels, folder: Path, scratch: Path,
    settings: ExportSettings,
) -> LabelIndex:  # fmt: skip
    train = catalogue.splits.get("train")
    count = len(catalogue.labels)
    frequency = np.zeros(count, dtype=np.int64) if train is None else train.relevance.label_frequency()
    queries = _queries(trained, catalogue, scratch) if count > settings.index.exact_labels else None
    index = build_index(labels.embeddings, frequency, trained.score_spec.shortlist_size, settings.index, queries)
    write_index(folder, index)
    return index


def _queries(trained: Trained, catalogue: Catalogue, scratch: Path) -> FloatArray | None:
    """Embeddings of validation products, spread over the split: what the index's recall is measured with."""
    valid = catalogue.splits.get("valid")
    if valid is None:
        return None
    chosen = np.unique(np.linspace(0, len(valid.products) - 1, _MOST_QUERIES).astype(np.int64))
    items = [catalogue.products[row] for row in valid.products[chosen]]
    arrays = _arrays(trained, catalogue, items, scratch / "queries")
    size = trained.config.encode_batch_size
    return embed_items(trained.model.encoder, arrays, None, size, torch.device("cpu"))


def _arrays(trained: Trained, catalogue: Catalogue, items: Sequence[Item], folder: Path) -> ItemArrays:
    tokenizer = TitleTokenizer(trained.tokenizer_json, trained.input_spec.max_title_tokens)
    return item_arrays(items, catalogue.folder, trained.input_spec, tokenizer, folder)


def _choose_encoders(
    trained: Trained, catalogue: Catalogue, writer: BundleWriter, scratch: Path, settings: ExportSettings,
    reporter: Reporter,
) -> EncoderChoice:  # fmt: skip
    """Decide on int8 by what it costs on validation products; needs the bundle sealed with fp32 encoders."""
    wanted = settings.precision.encoders
    if "valid" not in catalogue.splits and wanted == "int8":
        raise ConfigError(
            f"{catalogue.folder}: has no valid split, and what int8 costs is measured on one: "
            "add valid.csv, or export with --encoders fp32"
        )
    if wanted == "fp32" or "valid" not in catalogue.splits:
        return EncoderChoice(Encoders(), {}, asdict(settings.precision))
    tokenizer = TitleTokenizer(trained.tokenizer_json, trained.input_spec.max_title_tokens)
    sample = validation_sample(catalogue, "valid", trained.input_spec, tokenizer, scratch / "int8", reporter.step)
    return choose_encoders(
        writer.folder, scratch / "int8", sample, settings.precision, reporter.step, torch.get_num_threads()
    )


def _provenance(trained: Trained, catalogue: Catalogue) -> dict[str, Any]:
    """Where the bundle comes from; no times and no folders, so that two exports of one run are equal."""
    return {
        "origin": _plain(trained.origin),
        "catalogue": {
            "name": catalogue.folder.resolve().name,
            "products": trained.facts.product_count,
            "labels": trained.facts.label_count,
            "label_ids_sha256": trained.facts.label_ids_sha256,
            "train_pairs": trained.facts.train_pairs,
        },
        "config": _plain(trained.config.to_json()),
        "metrics": _plain(trained.metrics),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _target(index: LabelIndex, settings: IndexSettings) -> dict[str, Any]:
    """What an update that builds the index anew has to reach; of an exact one there is nothing to say."""
    return {} if index.kind == EXACT else {"index": {"target_recall": settings.target_recall}}


def _plain(value: Any) -> Any:
    """Mappings and tuples as JSON would give them back, so that a manifest read again is the same."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _report(parity: Parity, index: LabelIndex, speed: EncodingSpeed, folder: Path, began: float) -> dict[str, Any]:
    return {
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "export_seconds": round(time.monotonic() - began, 1),
        "parity": parity.to_json(),
        "encoding": speed.to_json(),
        "index": {
            "kind": index.kind,
            "recall": index.recall,
            "build_seconds": index.build_seconds,
            "curve": [dict(point) for point in index.curve],
            "compared": [dict(point) for point in index.compared],
        },
        "size_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
