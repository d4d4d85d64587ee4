"""The demo's whole chain with its default settings: generate, train, evaluate, export, serve both endpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import RunningService, picture_server, read_items, run_command, service

SETS = ("products", "queries")


@dataclass(frozen=True)
class Demo:
    """What `make serve` makes."""

    folder: Path
    running: RunningService
    pictures: str

    def example(self, images: int) -> dict[str, Any]:
        """A test product with so many pictures."""
        test = (self.folder / "catalogues" / "products" / "test.csv").read_text().splitlines()[1:]
        ids = {line.split(",")[0] for line in test}
        items = read_items(self.folder / "catalogues" / "products" / "products.jsonl")
        return next(item for item in items if item["id"] in ids and len(item["images"]) == images)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Catalogues, runs and bundles of both label sets, served."""
    folder = tmp_path_factory.mktemp("demo")
    run_command("mufin.datasets.shop", folder / "catalogues")
    for name in SETS:
        run_command("mufin.training", folder / "catalogues" / name, folder / "runs" / name)
        run_command("model_export", folder / "runs" / name, folder / "bundles" / name)
    with (
        picture_server(folder / "catalogues" / "products") as pictures,
        service(
            recommend_bundle=folder / "bundles" / "products",
            bid_queries_bundle=folder / "bundles" / "queries",
            fetch_trusted_origins=pictures,
            deadline_milliseconds="5000",
        ) as running,
    ):
        yield Demo(folder, running, pictures)


@pytest.mark.parametrize("name", SETS)
def test_the_full_model_beats_every_partial_oracle_and_its_own_shortlist(demo: Demo, name: str, tmp_path: Path) -> None:
    """P@1 on test: .8 of the oracle's, above both one-modality oracles, 3 points above the model's own shortlist."""
    bundle, catalogue = demo.folder / "bundles" / name, demo.folder / "catalogues" / name
    run_command("mufin.evaluate", bundle, catalogue, "--split", "test", "--json", tmp_path / "report.json", "--quiet")
    report = json.loads((tmp_path / "report.json").read_text())
    oracle = {key: value["P@1"] for key, value in json.loads((catalogue / "ceilings.json").read_text()).items()}
    full, shortlist = (report["rankings"][row]["P@1"]["value"] for row in ("fused", "shortlist"))
    assert full >= 0.8 * oracle["all attributes"]
    assert full > oracle["title only"] and full > oracle["picture only"]
    assert full >= shortlist + 0.03


@pytest.mark.parametrize("endpoint", ["/recommend", "/bid-queries"])
def test_both_endpoints_answer_titles_pictures_and_both(demo: Demo, endpoint: str) -> None:
    """A title alone, a picture alone by URL, and the two together; the same product is never its own answer."""
    product = demo.example(images=1)
    picture = f"{demo.pictures}/{product['images'][0]}"
    for body, used in (
        ({"title": product["title"]}, ["title"]),
        ({"images": [picture]}, ["image"]),
        ({"id": product["id"], "title": product["title"], "images": [picture]}, ["title", "image"]),
    ):
        answer = demo.running.post(endpoint, {"product": body, "k": 5})
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert content["modalities_used"] == used and content["stage"] == "reranked" and content["warnings"] == []
        scores = [result["score"] for result in content["results"]]
        assert len(scores) == 5 and scores == sorted(scores, reverse=True)
        assert all(result["id"] != body.get("id") for result in content["results"])


def test_answers_name_what_fits_the_picture(demo: Demo) -> None:
    """Bid queries of a product with title and picture are mostly among its relevant ones."""
    catalogue = demo.folder / "catalogues" / "queries"
    relevant: dict[str, set[str]] = {}
    for line in (catalogue / "test.csv").read_text().splitlines()[1:]:
        product, label = line.split(",")
        relevant.setdefault(product, set()).add(label)
    items = [item for item in read_items(catalogue / "products.jsonl") if item["id"] in relevant and item["images"]][
        :40
    ]
    hits = 0
    for item in items:
        images = [f"{demo.pictures}/{name}" for name in item["images"]]
        answer = demo.running.post("/bid-queries", {"product": {"title": item["title"], "images": images}, "k": 1})
        hits += answer.json()["results"][0]["id"] in relevant[item["id"]]
    assert hits >= 0.7 * len(items)


def test_pictures_that_cannot_be_had(demo: Demo) -> None:
    """The only picture missing: 422. A second, good one: 200 and a warning. A private address: never fetched."""
    product = demo.example(images=2)
    good, missing = f"{demo.pictures}/{product['images'][0]}", f"{demo.pictures}/images/none.png"
    alone = demo.running.post("/recommend", {"product": {"images": [missing]}})
    assert alone.status_code == 422
    assert alone.headers["content-type"].startswith("application/problem+json")
    both = demo.running.post("/recommend", {"product": {"images": [missing, good]}})
    assert both.status_code == 200
    assert [(w["code"], w["image"]) for w in both.json()["warnings"]] == [("image_unreachable", 0)]
    inside = demo.running.post("/recommend", {"product": {"images": ["http://127.0.0.1:1/x.png", "http://10.0.0.1/x"]}})
    assert inside.status_code == 422


def test_probes_metrics_and_documents_answer(demo: Demo) -> None:
    """What Kubernetes, Prometheus and a newcomer look at."""
    for path in ("/livez", "/readyz", "/startupz", "/docs"):
        assert demo.running.get(path).status_code == 200, path
    assert "mufin_request_duration_seconds" in demo.running.get("/metrics").text
    paths = demo.running.get("/openapi.json").json()["paths"]
    assert {"/recommend", "/bid-queries"} <= paths.keys()
    assert demo.running.post("/recommend", {"product": {}}).status_code == 422
