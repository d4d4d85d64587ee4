"""The whole chain on a real shop: train, export, serve its pictures, ask over the wire, get related products."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import RunningService, picture_server, read_items, run_command, service

CATALOGUE = Path(os.environ.get("MUFIN_DATA_DIR", Path(__file__).parents[3] / "shared" / "data")) / "magento"
pytestmark = pytest.mark.skipif(
    not CATALOGUE.is_dir(), reason=f"the catalogue {CATALOGUE} is absent: set MUFIN_DATA_DIR to a folder that holds it"
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, str]]:
    """Train and export with the default settings, serve bundle and pictures."""
    folder = tmp_path_factory.mktemp("magento")
    run_command("mufin.training", CATALOGUE, folder / "run")
    run_command("model_export", folder / "run", folder / "bundle")
    with picture_server(CATALOGUE) as pictures, service(
        recommend_bundle=folder / "bundle", fetch_trusted_origins=pictures, deadline_milliseconds="5000"
    ) as running:  # fmt: skip
        yield running, pictures


def related() -> dict[str, set[str]]:
    """All pairs of the shop's validation split: product id -> label ids."""
    result: dict[str, set[str]] = defaultdict(set)
    with (CATALOGUE / "valid.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            result[row["product_id"]].add(row["label_id"])
    return result


def test_unseen_products_get_related_products(shop: tuple[RunningService, str]) -> None:
    """Title and picture URLs of every validation product: related products come back far more often than by chance."""
    running, pictures = shop
    wanted = related()
    products = [p for p in read_items(CATALOGUE / "products.jsonl") if p["id"] in wanted]
    labels = {item["id"] for item in read_items(CATALOGUE / "labels.jsonl")}
    hits, chance = 0, 0.0
    for product in products:
        images = [f"{pictures}/{name}" for name in product["images"]]
        body = {"product": {"id": product["id"], "title": product["title"], "images": images}, "k": 10}
        answer = running.post("/recommend", body)
        assert answer.status_code == 200, answer.text
        ids = [result["id"] for result in answer.json()["results"]]
        assert len(ids) == 10 and product["id"] not in ids and set(ids) <= labels
        assert answer.json()["modalities_used"] == ["title", "image"]
        hits += len(wanted[product["id"]] & set(ids))
        chance += 10 * len(wanted[product["id"]]) / len(labels)
    assert hits > 1.5 * chance, f"{hits} related products among the answers, {chance:.1f} by chance"


def test_a_title_alone_and_a_picture_alone_are_enough(shop: tuple[RunningService, str]) -> None:
    """Either modality alone is answered from what is there."""
    running, pictures = shop
    product = read_items(CATALOGUE / "products.jsonl")[1]
    titled = running.post("/recommend", {"product": {"title": product["title"]}})
    pictured = running.post("/recommend", {"product": {"images": [f"{pictures}/{product['images'][0]}"]}})
    assert titled.json()["modalities_used"] == ["title"] and len(titled.json()["results"]) == 10
    assert pictured.json()["modalities_used"] == ["image"] and len(pictured.json()["results"]) == 10


def test_a_picture_that_cannot_be_had(shop: tuple[RunningService, str]) -> None:
    """As the only thing it is 422; beside a good one it is a warning and the answer comes."""
    running, pictures = shop
    product = read_items(CATALOGUE / "products.jsonl")[1]
    missing, good = f"{pictures}/images/none.jpg", f"{pictures}/{product['images'][0]}"
    alone = running.post("/recommend", {"product": {"images": [missing]}})
    assert alone.status_code == 422
    assert alone.headers["content-type"].startswith("application/problem+json")
    both = running.post("/recommend", {"product": {"images": [missing, good]}})
    assert both.status_code == 200
    assert [w["image"] for w in both.json()["warnings"]] == [0]
    assert both.json()["modalities_used"] == ["image"]


def test_no_other_endpoint_is_bound(shop: tuple[RunningService, str]) -> None:
    """Without a bundle for bid queries that endpoint answers 404 with a problem document."""
    running, _ = shop
    answer = running.post("/bid-queries", {"product": {"title": "bag"}})
    assert answer.status_code == 404 and answer.json()["request_id"]
