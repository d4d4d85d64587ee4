"""report.html: complete, harmless whatever the titles hold, and whole when parts are missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from model_export.report import render_page
from model_export.report_examples import Card, Example, Result
from mufin.bundle import open_bundle
from mufin.manifest import Manifest
from tests.bundle_factory import make_tiny_bundle

BAD = '<script>alert(1)</script><img src="https://x.example/a.png">"\'&'
PICTURE = "data:image/jpeg;base64,AAAA"
VOID = {"meta", "img", "br"}

CALIBRATION: dict[str, Any] = {
    "bins": 2, "results": 10, "fitted_results": 30, "folds": 2,
    "subsets": {
        "both": {
            "own_fit": True, "products": 40, "right": 60, "wrong": 340, "scale": 6.0, "offset": -1.0,
            "ece": {"raw": 0.31234, "shared": 0.02, "fitted": 0.01},
            "curve": {name: [[0.2, 0.1, 200], [0.7, 0.8, 200]] for name in ("raw", "shared", "fitted")},
        },
        "title": {"own_fit": False, "products": 3, "right": 1, "wrong": 29, "scale": 6.0, "offset": -1.0},
        "images": {"own_fit": False, "products": 0, "right": 0, "wrong": 0, "scale": 6.0, "offset": -1.0},
    },
}  # fmt: skip
METRICS = {"fusion_weight": 0.75, "full": {"P@1": 0.4321, "R@10": 0.5}, "calibration": CALIBRATION}
VALUES: dict[str, Any] = {
    "exported_at": "2026-11-23T08:00:00Z",
    "export_seconds": 2.5,
    "encoding": {"labels": 700, "processes": 2, "labels_a_second": 1924.6, "encoder_alone_labels_a_second": 4221.4},
    "parity": {
        "golden_products": 3, "passed": False,
        "stages": [
            {"stage": "title", "largest_difference": None, "allowed_difference": 1e-4, "agreement": None,
             "needed_agreement": None, "passed": False},
            {"stage": "ranking", "largest_difference": 2e-7, "allowed_difference": 1e-4, "agreement": 0.9,
             "needed_agreement": 0.8, "passed": True},
        ],
    },
    "index": {
        "kind": "hnsw-sq8", "recall": 0.961,
        "curve": [
            {"parameters": {"efSearch": 300}, "recall": 0.93, "ms": 0.4},
            {"parameters": {"efSearch": 600}, "recall": 0.961, "ms": 0.8},
        ],
    },
    "latency": {
        "threads": 1, "machine": {"processor": "a <fast> one", "cores": 2},
        "stages": [{"stage": "title", "work": "encode 1 title", "median_ms": 1.5, "p90_ms": 2.0, "calls": 40}],
    },
    "int8": {
        "chosen": {"text": {"precision": "int8", "one_by_one": True}, "image": {"precision": "fp32", "one_by_one": False}},
        "reason": "images <gain> nothing", "validation_products": 300, "tolerance_points": 0.3,
        "fp32": {"P@1": 0.9, "R@10": None},
        "int8": {"full range": {"cost": {"text": {
            "figures": {"P@1": 0.8877, "R@10": 0.5}, "points_lost": {"P@1": 1.23},
            "points_lost_P@1_interval": [-0.5, None], "embedding_cosine": {},
        }}}},
        "size_bytes": {"text": {"fp32": 1234, "int8": 321}}, "milliseconds": {"fp32": {"1_title": 2.0}, "int8": {}},
    },
    "size_bytes": {"records.bin": 80_000, "labels.bin": 4_000, "report.json": 3},
}  # fmt: skip


class Outline(HTMLParser):
    """Checks that tags are closed in order; keeps tags, their attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A real manifest with a run's figures, its name full of markup."""
    found = open_bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "b")).manifest
    return replace(found, name=BAD, provenance={"metrics": METRICS})


def examples() -> list[Example]:
    """One product whose title is an attack, one with nothing known."""
    results = (Result(Card(BAD, PICTURE), 0.8, 0.7, True), Result(Card("", None), 0.5, 0.1, False))
    return [Example(Card(BAD, PICTURE), 1, results), Example(Card("x" * 5000, None), 0, ())]


def test_everything_measured_is_on_the_page(manifest: Manifest) -> None:
    """A figure of each section, and the identity of the bundle."""
    text = Outline(render_page(VALUES, manifest, examples())).text
    for wanted in (
        manifest.bundle_id, "2026-11-23T08:00:00Z", "0.4321", "0.3123", "one curve for all", "that of all products",
        "a <fast> one", "by 2 processes, 1,925 a second", "1.5 ms", "efSearch 600", "0.9610", "no number", "FAILED", "2.00e-07", "images <gain> nothing",
        "text int8 one by one", "0.8877", "1.23", "-0.50 to ?", "1,234", "80,000", "2,000.0", "84,000", "2,100.0", "score 0.800", "probability 0.700", "✓ relevant",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "report.json" not in text


def test_a_learned_combination_is_named_where_it_makes_the_scores(manifest: Manifest) -> None:
    """Its kind and what taught it, and no fusion weight, which it does not use; one that was not kept changes nothing."""
    for kept in (True, False):
        metrics = {**METRICS, "combination": {"kept": kept, "kind": BAD, "lists": 1234}}
        text = Outline(render_page(VALUES, replace(manifest, provenance={"metrics": metrics}), [])).text
        assert (f"learned combination ({BAD}), taught by 1,234 training products" in text) is kept
        assert ("classifier's weight in" in text) is not kept


def test_titles_cannot_leave_their_place(manifest: Manifest) -> None:
    """Markup in titles and names is text: no script, no picture but our own, no address, one policy."""
    page = render_page(VALUES, manifest, examples())
    outline = Outline(page)
    assert outline.text.count("<script>alert(1)</script>") == 4  # page title, heading, product, label
    tags = [tag for tag, _ in outline.tags]
    assert "script" not in tags and "link" not in tags and "iframe" not in tags
    assert {a["src"] for tag, a in outline.tags if tag == "img"} == {PICTURE}
    assert all((a["href"] or "").startswith("#") for _, a in outline.tags if "href" in a)
    assert not any(name.startswith("on") or name == "style" for _, a in outline.tags for name in a)
    policies = [a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"url\(|@import", page)
    assert "x" * 200 not in page


def test_sections_are_reachable_and_named(manifest: Manifest) -> None:
    """Every link has its target, every chart and table says what it is."""
    outline = Outline(render_page(VALUES, manifest, examples()))
    names = {a["id"] for _, a in outline.tags if "id" in a}
    links = {(a["href"] or "")[1:] for _, a in outline.tags if "href" in a}
    assert len(links) == 8 and links <= names
    charts = [a for tag, a in outline.tags if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 4 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("table") == tags.count("caption") == 9
    assert outline.tags[0] == ("html", {"lang": "en"})


def test_missing_parts_are_said_to_be_missing(manifest: Manifest) -> None:
    """A bundle from elsewhere: no figures, no measurements, no examples."""
    text = Outline(render_page({}, replace(manifest, provenance={}), [])).text
    for wanted in ("no validation figures", "no calibration figures", "Nothing was measured", "int8 was not measured"):
        assert wanted in text
    asked = {"int8": {"encoders": "fp32", "tolerance_points": 0.3}}
    assert "int8 was not measured" in Outline(render_page(asked, manifest, [])).text
    exact = Outline(render_page({"index": {"kind": "exact", "recall": 1.0, "curve": []}}, manifest, [])).text
    assert "compared with every label" in exact


def test_a_page_is_small(manifest: Manifest) -> None:
    """Twelve products with five labels and pictures of 8 kB each stay below 2 MB."""
    card = Card("a title " * 10, "data:image/jpeg;base64," + "A" * 11_000)
    own = Example(card, 3, tuple(Result(card, 0.5, 0.5, False) for _ in range(5)))
    assert len(render_page(VALUES, manifest, [own] * 12).encode()) < 2_000_000
