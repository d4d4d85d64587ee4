"""The export's steps in order: a finished run in, a whole and verified bundle out, or nothing.

Knows the order of the steps only; each step is a module of this package. The command line stands in ``__main__``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from model_export.label_index import IndexSettings, LabelIndex, build_index, write_index
from model_export.label_records import (
    EncodedLabels,
    RecordType,
    fold_attention,
    write_records,
)
from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from model_export.verify import compute_golden, golden_items, require_parity, tolerances_for, verify_bundle
from mufin.bundle import CROSS_FILE, TOKENIZER_FILE, BundleWriter, write_cross_attention
from mufin.catalogue import Catalogue, Item, ensure_validation, read_catalogue
from mufin.errors import ConfigError
from mufin.golden import Parity, write_golden
from mufin.image_source import is_url
from mufin.inputs import TitleTokenizer
from mufin.label_files import write_labels
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, write_excluded, write_filters
from mufin.manifest import BundleSizes
from mufin.training.checkpoint import Run, load_run
from mufin.training.evaluation import check_labels
from mufin.training.item_arrays import prepare
from mufin.training.model import Mufin
from mufin.training.progress import Reporter

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
    device: str = "cpu"
    """Where labels are encoded."""

    def __post_init__(self) -> None:
        if self.record_type not in ("float32", "float16"):
            raise ConfigError(f"record_type is {self.record_type!r}, must be float32 or float16")
        if self.image_base_url is not None and not is_url(self.image_base_url):
            raise ConfigError(f"image_base_url is {self.image_base_url!r}, must begin with http:// or https://")


def export(
    run_folder: Path, target: Path, settings: ExportSettings, reporter: Reporter, catalogue_folder: Path | None = None
) -> Parity:
    """Write the bundle of a finished run to ``target``; it is there, whole and verified, or not at all."""
    began = time.monotonic()
    run = load_run(run_folder)
    catalogue = read_catalogue(catalogue_folder or Path(run.facts.catalogue))
    check_labels(run, catalogue)
    model = fold_spectral_norm(run.model)
    with BundleWriter(target) as writer:
        folder = writer.folder
        (folder / TOKENIZER_FILE).write_text(run.tokenizer_json, encoding="utf-8")
        dimension = run.config.network.dimension
        export_graphs(model, run.input_spec, dimension, folder)
        labels = _export_labels(run, model, catalogue, folder, writer.scratch, settings, reporter)
        index = _export_index(run, catalogue, labels, folder, settings)
        sizes = BundleSizes(
            len(catalogue.labels), dimension, labels.slots, settings.record_type,
            model.cross_attention is not None, index.kind,
        )  # fmt: skip
        writer.seal(
            settings.name or catalogue.folder.resolve().name, run.input_spec, run.score_spec, sizes,
            tolerances_for(index.kind, settings.record_type), _provenance(run, catalogue),
        )  # fmt: skip
        parity = verify_bundle(folder)
        require_parity(parity, target)
        writer.report(_report(parity, index, folder, began))
        writer.finish()
    return parity


def _export_labels(
    run: Run, model: Mufin, catalogue: Catalogue, folder: Path, scratch: Path, settings: ExportSettings,
    reporter: Reporter,
) -> EncodedLabels:  # fmt: skip
    """Encode the labels and write their files, the cross attention and the golden products."""
    golden = golden_items(catalogue.products, run.input_spec.max_images)
    tokenizer = TitleTokenizer(run.tokenizer_json, run.input_spec.max_title_tokens)
    small = replace(catalogue, products=golden, products_are_labels=False)
    products, arrays = prepare(small, run.input_spec, tokenizer, scratch, reporter.step)
    device = torch.device(settings.device)
    torch.backends.cudnn.allow_tf32 = False  # half of the digits would be lost against the CPU's golden values
    attention = None if model.cross_attention is None else fold_attention(model.cross_attention)
    labels = write_records(
        folder, model.to(device), arrays, attention, settings.record_type, run.config.encode_batch_size, device,
        lambda done, total: reporter.step("encoding labels", done, total),
    )  # fmt: skip
    model.to("cpu")
    if attention is not None:
        write_cross_attention(folder / CROSS_FILE, attention.product)
    items, base = catalogue.labels, settings.image_base_url
    write_labels(folder, ((i.id, i.title, answer_images(i, base), i.metadata) for i in items))
    write_filters(folder / FILTERS_FILE, (i.metadata for i in items))
    excluded = {p.id: catalogue.exclude.row(row) for row, p in enumerate(catalogue.products)}
    write_excluded(folder / EXCLUDED_FILE, excluded)
    write_golden(folder, compute_golden(model, golden, products, arrays, labels, run.score_spec))
    return labels


def _export_index(
    run: Run, catalogue: Catalogue, labels: EncodedLabels, folder: Path, settings: ExportSettings
) -> LabelIndex:
    train = ensure_validation(catalogue, run.config.validation_fraction, run.config.seed).splits["train"]
    frequency = train.relevance.label_frequency()
    index = build_index(labels.embeddings, frequency, run.score_spec.shortlist_size, settings.index)
    write_index(folder, index)
    return index


def answer_images(item: Item, base_url: str | None) -> list[str]:
    """What an answer says of a label's images: URLs as they are, paths behind the base URL or not at all."""
    prefix = None if base_url is None else base_url.rstrip("/") + "/"
    urls = (i if is_url(i) else None if prefix is None else prefix + quote(i) for i in item.images)
    return [url for url in urls if url is not None]


def _provenance(run: Run, catalogue: Catalogue) -> dict[str, Any]:
    """Where the bundle comes from; no times and no folders, so that two exports of one run are equal."""
    return {
        "catalogue": {
            "name": catalogue.folder.resolve().name,
            "products": run.facts.product_count,
            "labels": run.facts.label_count,
            "label_ids_sha256": run.facts.label_ids_sha256,
            "train_pairs": run.facts.train_pairs,
        },
        "config": _plain(run.config.to_json()),
        "metrics": _plain(run.metrics),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _plain(value: Any) -> Any:
    """Mappings and tuples as JSON would give them back, so that a manifest read again is the same."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _report(parity: Parity, index: LabelIndex, folder: Path, began: float) -> dict[str, Any]:
    return {
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "export_seconds": round(time.monotonic() - began, 1),
        "parity": parity.to_json(),
        "index": {"kind": index.kind, "recall": index.recall, "effort_recall": [list(point) for point in index.curve]},
        "size_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
