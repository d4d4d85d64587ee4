"""The reports of a sealed bundle: latency and examples measured, then report.json and report.html written.

Knows the order only; ``latency``, ``report_examples`` and ``report`` do the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from model_export.latency import measure_stages
from model_export.report import render_page
from model_export.report_examples import make_examples
from mufin.bundle import BundleWriter
from mufin.catalogue import Catalogue, Relevance, Split
from mufin.manifest import Manifest
from mufin.predictor import open_predictor


def write_reports(
    writer: BundleWriter, manifest: Manifest, values: Mapping[str, Any], catalogue: Catalogue, split: Split | None
) -> None:
    """Add latency to ``values`` and write both reports of the sealed bundle in ``writer.folder``.

    ``split``: whose products serve as examples, with what is relevant to them; None: any products, nothing is known.
    """
    predictor = open_predictor(writer.folder, "structure")
    values = {**values, "latency": measure_stages(predictor, writer.folder)}
    shown = split or _all_products(catalogue)
    examples = make_examples(predictor, catalogue, shown.products, shown.relevance)
    writer.report(values, render_page(values, manifest, examples))


def _all_products(catalogue: Catalogue) -> Split:
    nothing, count = np.zeros(0, dtype=np.int64), len(catalogue.products)
    return Split(np.arange(count), Relevance.from_pairs(nothing, nothing, count, len(catalogue.labels)))
