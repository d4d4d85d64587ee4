"""report.html: what a person wants to know of a bundle before it serves, on one page that needs nothing outside itself.

Knows no network and measures nothing: plain values of report.json and the manifest, and examples, in; HTML out.
Every text of a catalogue is escaped, and the page forbids scripts and foreign addresses besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from model_export.report_charts import Axis, Bar, Series, bar_chart, legend, line_chart
from model_export.report_examples import Card, Example
from model_export.report_html import plain_text, share, table
from model_export.report_int8 import int8_section
from model_export.report_style import STYLE
from mufin.bundle import PAGE_FILE, REPORT_FILE, SIDECAR_FILE
from mufin.manifest import Manifest

_TITLE_CHARACTERS = 120
_RANKINGS = ("shortlist", "classifier", "full")
_MODALITIES = {"both": "title and images", "title": "title only", "images": "images only"}
_ESTIMATES = {"raw": "score as it is", "shared": "one curve for all", "fitted": "as exported"}
_NO_FIGURES = "<p>Nothing was measured.</p>"


def render_page(values: Mapping[str, Any], manifest: Manifest, examples: Sequence[Example]) -> str:
    """The whole page. ``values``: the content of report.json; a part that it lacks is said to be missing."""
    metrics = manifest.provenance.get("metrics", {})
    sections = [
        ("accuracy", "Accuracy", _accuracy(metrics)),
        ("calibration", "Calibration", _calibration(metrics.get("calibration", {}))),
        ("speed", "Speed", _latency(values.get("latency", {})) + _encoding(values.get("encoding", {}))),
        ("index", "Label index", _index(values.get("index", {}))),
        ("parity", "Parity with the network", _parity(values.get("parity", {}))),
        ("int8", "Cost of int8", int8_section(values.get("int8", {}))),
        ("sizes", "Sizes", _sizes(values.get("size_bytes", {}), manifest.sizes.labels)),
        ("examples", "Examples", _examples(examples)),
    ]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    name = escape(manifest.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Bundle {name}</title><style>{STYLE}</style></head>"
        f'<body><header><h1>Bundle <span class="name">{name}</span></h1>{_identity(values, manifest)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main></body></html>\n'
    )


def _identity(values: Mapping[str, Any], manifest: Manifest) -> str:
    sizes = manifest.sizes
    facts = {
        "Labels": f"{sizes.labels:,}",
        "Dimension": str(sizes.dimension),
        "Index": sizes.index,
        "Records": sizes.record_type,
        "Exported": str(values.get("exported_at", "unknown")),
        "Export took": f"{values['export_seconds']} s" if "export_seconds" in values else "unknown",
        "Bundle": manifest.bundle_id,
        "Encoder": manifest.encoder_id,
    }
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _accuracy(metrics: Mapping[str, Any]) -> str:
    rankings = {name: metrics[name] for name in _RANKINGS if name in metrics}
    if not rankings:
        return "<p>The run has no validation figures.</p>"
    names = list(dict.fromkeys(name for own in rankings.values() for name in own))
    rows = [[name, *(share(own.get(key)) for key in names)] for name, own in rankings.items()]
    return f"<p>On the validation split, by the network before export. {_of_full(metrics)}</p>" + table(
        "Validation figures", ["ranking", *names], rows
    )


def _of_full(metrics: Mapping[str, Any]) -> str:
    """How the scores of ``full`` are made, and what was chosen on the products that it is measured on."""
    combination = metrics.get("combination") or {}
    if combination.get("kept"):
        return (
            f"<em>full</em> is of a learned combination ({escape(str(combination['kind']))}), taught by "
            f"{combination['lists']:,} training products; calibration was chosen on this split."
        )
    weight = metrics.get("fusion_weight")
    fused = "" if weight is None else f" The classifier's weight in <em>full</em> is {weight:.2f}."
    return (
        "Fusion weight and calibration were chosen on the same split, so the figures of <em>full</em> are slightly "
        f"flattering.{fused}"
    )


def _calibration(calibration: Mapping[str, Any]) -> str:
    known = calibration.get("subsets", {})
    subsets = {name: known[name] for name in _MODALITIES if name in known}
    measured = {name: own for name, own in subsets.items() if "ece" in own}
    if not measured:
        return "<p>The run has no calibration figures.</p>"
    rows, charts, series = [], [], []
    for name, own in subsets.items():
        errors = [share(own.get("ece", {}).get(key)) for key in _ESTIMATES]
        source = "own" if own["own_fit"] else "that of all products"
        rows.append([_MODALITIES[name], f"{own['products']:,}", source, *errors])
    for name, own in measured.items():
        series = [
            Series(text, [(p, share) for p, share, _ in own["curve"][key]], number)
            for number, (key, text) in enumerate(_ESTIMATES.items(), start=1)
        ]
        title = _MODALITIES[name]
        chart = line_chart(
            f"Reliability of products with {title}", series, Axis("probability", 0, 1), Axis("share relevant", 0, 1),
            diagonal=True,
        )  # fmt: skip
        charts.append(f"<figure>{chart}<figcaption>{title}</figcaption></figure>")
    return (
        f"<p>Share of relevant labels among the first {calibration['results']} results against the probability given, "
        f"in {calibration['bins']} bins of equal mass; on the diagonal the two agree. The expected calibration error "
        "(ECE) is the mean distance from it. Validation products with everything, and again with their images or their "
        f"title left out; {calibration['folds']}-fold cross-fitted: each product's probability comes from a fit that "
        f'did not see it.</p>{legend(series)}<div class="charts">{"".join(charts)}</div>'
        + table(
            "Expected calibration error",
            ["product has", "products", "curve", *(f"ECE, {text}" for text in _ESTIMATES.values())],
            rows,
        )
    )


def _latency(latency: Mapping[str, Any]) -> str:
    stages = latency.get("stages", [])
    if not stages:
        return _NO_FIGURES
    bars = [Bar(f"{s['stage']}: {s['work']}", s["median_ms"], s["p90_ms"], f"{s['median_ms']:.3g} ms") for s in stages]
    rows = [[s["stage"], s["work"], f"{s['median_ms']:.3g}", f"{s['p90_ms']:.3g}", str(s["calls"])] for s in stages]
    machine = latency["machine"]
    return (
        f"<p>Measured at export on {escape(str(machine['processor']))}, {machine['cores']} cores, "
        f"{latency['threads']} thread, one item a call, warm. Bars: medians; whiskers: 90th percentiles. "
        "Other work on the machine is in the figures.</p>"
        + bar_chart("Median milliseconds of each stage", bars)
        + table("Milliseconds a call", ["stage", "work", "median", "90 %", "calls"], rows)
    )


def _encoding(encoding: Mapping[str, Any]) -> str:
    rate = encoding.get("labels_a_second")
    if rate is None:
        return ""
    processes = encoding["processes"]
    return (
        f"<p>At export {encoding['labels']:,} labels were encoded by {processes} process{'' if processes == 1 else 'es'}, "
        f"{rate:,.0f} a second; the encoder alone would do {encoding['encoder_alone_labels_a_second']:,.0f}.</p>"
    )


def _index(index: Mapping[str, Any]) -> str:
    if not index:
        return _NO_FIGURES
    points = [_index_point(point) for point in index.get("curve", [])]
    kind = escape(str(index["kind"]))
    words = f"<p>Kind: {kind}. It finds {index['recall']:.4f} of the exact shortlist.</p>"
    if kind == "exact":
        words = "<p>Exact: a product is compared with every label.</p>"
    if not points:
        return words
    chart = ""
    timed = sorted((ms, recall) for _, recall, ms in points if ms is not None)
    if len(timed) > 1:
        least = min(recall for _, recall in timed)
        axes = Axis("ms a query", 0, 1.05 * timed[-1][0]), Axis("recall", max(0.0, least - 0.05), 1.0)
        chart = line_chart("Recall of the index against time a query", [Series("recall", timed, 1)], *axes)
        chart = f'<div class="charts"><figure>{chart}<figcaption>what was tried</figcaption></figure></div>'
    rows = [[text, f"{recall:.4f}", "" if ms is None else f"{ms:.3g}"] for text, recall, ms in points]
    return words + chart + table("What was tried", ["parameters", "recall", "ms a query"], rows)


def _index_point(point: Mapping[str, Any]) -> tuple[str, float, float | None]:
    """Parameters as text, recall, milliseconds a query where they were measured."""
    ms = next((float(value) for key, value in point.items() if "ms" in key.split("_") and value is not None), None)
    return plain_text(point.get("parameters", "")), float(point["recall"]), ms


def _parity(parity: Mapping[str, Any]) -> str:
    stages = parity.get("stages", [])
    if not stages:
        return _NO_FIGURES
    rows = [
        [
            s["stage"], _difference(s["largest_difference"]), _difference(s["allowed_difference"]),
            share(s["agreement"]), share(s["needed_agreement"]), "ok" if s["passed"] else "FAILED",
        ]
        for s in stages
    ]  # fmt: skip
    return (
        f"<p>{parity['golden_products']} golden products through the bundle, against what the network computed before "
        "folding. Agreement: least share of the first ten that the network ranks there, too, ties allowed.</p>"
        + table("Parity", ["stage", "difference", "allowed", "agreement", "needed", "verdict"], rows)
    )


def _sizes(sizes: Mapping[str, int], labels: int) -> str:
    if not sizes:
        return _NO_FIGURES
    sizes = {name: size for name, size in sizes.items() if name not in (REPORT_FILE, PAGE_FILE, SIDECAR_FILE)}
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    rows = [[name, f"{size:,}", f"{size / labels:,.1f}"] for name, size in ordered]
    total = sum(sizes.values())
    rows.append(["total", f"{total:,}", f"{total / labels:,.1f}"])
    largest = [Bar(name, size, size, _bytes(size)) for name, size in ordered[:6]]
    return (
        bar_chart("Bytes of the largest files", largest)
        + table("Files", ["file", "bytes", "bytes a label"], rows)
        + "<p>Without the reports and their hashes.</p>"
    )


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return "<p>There are no products to show.</p>"
    intro = (
        "<p>Validation products as they come, and the first labels that this bundle gives them, with score and "
        "probability. A tick marks labels that are known to be relevant; others may be right all the same.</p>"
    )
    return intro + "".join(_example(example) for example in examples)


def _example(example: Example) -> str:
    items = "".join(
        f'<li class="{"hit" if r.relevant else "miss"}">{_card(r.card)}'
        f'<p class="figures">{"<strong>✓ relevant</strong> " if r.relevant else ""}'
        f"score {r.score:.3f}<br>probability {r.probability:.3f}</p></li>"
        for r in example.results
    )
    known = f"{example.relevant} relevant label{'' if example.relevant == 1 else 's'} known"
    return (
        f'<article class="example"><div class="product">{_card(example.card)}<p class="figures">{known}</p></div>'
        f'<ol class="results">{items}</ol></article>'
    )


def _card(card: Card) -> str:
    title = card.title if len(card.title) <= _TITLE_CHARACTERS else card.title[: _TITLE_CHARACTERS - 1] + "…"
    shown = escape(title) if title else "<em>no title</em>"
    if card.picture is None:
        return f'<div class="picture none">no picture</div><p class="title">{shown}</p>'
    return (
        f'<img class="picture" alt="" width="96" height="96" src="{escape(card.picture)}"><p class="title">{shown}</p>'
    )


def _difference(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2e}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
