"""A real bundle, made by hand in milliseconds, behind the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mufin.errors import BundleError
from mufin.inputs import decode_image
from mufin.predictor import open_predictor
from service.bundles import Endpoint, Opener, open_bundles, open_from_disk
from service.schemas import RecommendAnswer
from tests.bundle_factory import SIDE, make_tiny_bundle, picture
from tests.service.serving import picture_server, running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labels."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "products")


async def test_the_service_answers_what_the_predictor_computes(bundle: Path) -> None:
    """Over HTTP, with a title and a picture by URL: the same labels and scores as a direct call."""
    predictor = open_predictor(bundle)
    (expected,) = predictor.rank(predictor.embed(["red shirt men"], [decode_image(picture("blue"), SIDE)[None]]), 10)
    async with (
        picture_server() as pictures,
        running(
            open_model=open_from_disk,
            recommend_bundle=bundle,
            bid_queries_bundle=bundle,
            fetch_trusted_origins=(pictures.origin,),
        ) as (
            client,
            app,
        ),
    ):
        pictures.serve("/blue.png", picture("blue"))
        body: dict[str, Any] = {"product": {"title": "red shirt men", "images": [f"{pictures.origin}/blue.png"]}}
        for _ in range(2):
            response = await client.post("/recommend", json=body)
            answer = RecommendAnswer.model_validate_json(response.content)
            ids = [label.id for label in predictor.labels.describe(expected.labels)]
            assert [result.id for result in answer.results] == ids
            assert [result.score for result in answer.results] == pytest.approx(expected.scores.tolist(), abs=1e-6)
            assert answer.modalities_used == ["title", "image"]
        explained = (await client.post("/recommend", json={**body, "explain": True, "diversity": 0.3})).json()
        for result in explained["results"]:
            explanation = result["explanation"]
            weights = np.asarray(explanation["attention"])
            assert weights.shape == (2, len(explanation["label_slots"]))
            assert weights.sum(axis=1) == pytest.approx(np.ones(2), abs=1e-5)
        assert len(app.state.parts.open_bundles()) == 1 + 1


async def test_endpoints_with_one_folder_share_one_model(bundle: Path) -> None:
    """Sessions and memory are not doubled."""
    folders: dict[Endpoint, Path] = {"recommend": bundle, "bid-queries": bundle.parent / "." / bundle.name}
    opened = await open_bundles(folders, Opener(open_from_disk, "structure", 1, False))
    assert opened["recommend"] is opened["bid-queries"]
    assert opened["recommend"].facts()["labels"] == 40


async def test_bundles_with_one_encoder_share_its_sessions_and_their_work(bundle: Path, tmp_path: Path) -> None:
    """Labels apart, sessions together; a title that one endpoint has encoded the other one knows."""
    other = make_tiny_bundle(tmp_path / "other", labels=30)
    settings: dict[str, Any] = {"recommend_bundle": bundle, "bid_queries_bundle": other}
    async with running(open_model=open_from_disk, **settings) as (client, app):
        first, second = (own.model for own in app.state.parts.served.bundles().values())
        assert first.encoder is second.encoder
        assert first.labels is not second.labels
        body = {"product": {"title": "red shirt men"}}
        for path in ("/recommend", "/bid-queries"):
            assert (await client.post(path, json=body)).status_code == 200
        page = (await client.get("/metrics")).text
        assert 'mufin_batch_size_count{stage="encode_titles"} 1.0' in page
        shown = (await client.get("/bundles")).json()["bundles"]
        assert [own["labels"] for own in shown] == [40, 30]
        graph = shown[0]["memory_bytes"]["text_encoder.onnx"]
        assert graph == {"resident": (bundle / "text_encoder.onnx").stat().st_size, "mapped": 0}
        size = (other / "labels.bin").stat().st_size
        assert f'mufin_bundle_bytes{{endpoint="bid-queries",held="mapped",part="labels.bin"}} {float(size)}' in page


async def test_encoders_that_differ_are_not_shared(bundle: Path, tmp_path: Path) -> None:
    """Other weights, another encoder_id."""
    opener = Opener(open_from_disk, "structure", 1, False)
    other = make_tiny_bundle(tmp_path / "other", seed=1)
    opened = await open_bundles({"recommend": bundle, "bid-queries": other}, opener)
    assert opened["recommend"].model.encoder is not opened["bid-queries"].model.encoder


async def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """With the predictor's own error."""
    with pytest.raises(BundleError):
        await open_bundles({"recommend": tmp_path}, Opener(open_from_disk, "full", 1, False))


@pytest.mark.parametrize("resident", [False, True])
async def test_records_are_mapped_or_resident_as_set(bundle: Path, resident: bool) -> None:
    """Resident ones are the process's own memory, mapped ones the page cache's; the answers are the same."""
    body = {"product": {"title": "red shirt men"}}
    settings: dict[str, Any] = {"recommend_bundle": bundle, "bid_queries_bundle": bundle, "resident_records": resident}
    async with running(open_model=open_from_disk, **settings) as (client, app):
        opened = app.state.parts.served.bundles()["recommend"]
        use = opened.model.labels.memory()["records.bin"]
        assert (use.resident_bytes > 0, use.mapped_bytes > 0) == (resident, not resident)
        answer = RecommendAnswer.model_validate_json((await client.post("/recommend", json=body)).content)
    predictor = open_predictor(bundle)
    none = np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8)
    (expected,) = predictor.rank(predictor.embed(["red shirt men"], [none]), 10)
    assert [r.id for r in answer.results] == [label.id for label in predictor.labels.describe(expected.labels)]
