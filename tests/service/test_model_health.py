"""What metrics say of the model and of what is left alone: probabilities, modalities, unknown words, breakers."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from service.bundles import open_from_disk
from service.redis_client import FAILURES
from service.telemetry import is_sampled
from tests.bundle_factory import make_tiny_bundle, picture
from tests.service.redis_process import free_port
from tests.service.serving import running


async def value(client: httpx.AsyncClient, series: str) -> float | None:
    """A series' value as Prometheus reads it; None: it is not there."""
    lines = (await client.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(series + " ")), None)


async def test_answers_tell_of_the_model(tmp_path: Path) -> None:
    """By endpoint: what products came with, words the tokenizer lacks (once, then they are known), the best probability."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    image = "data:image/png;base64," + base64.b64encode(picture("red")).decode()
    async with running(open_model=open_from_disk, recommend_bundle=bundle, bid_queries_bundle=bundle) as (client, _):
        asked = [{"title": "red shirt zeppelin"}, {"title": "red shirt zeppelin"}, {"images": [image]}]
        asked.append({"title": "blue hat", "images": [image]})
        answers = [(await client.post("/recommend", json={"product": product})).json() for product in asked]
        batch = {"items": [{"product": {"title": "green bag"}}, {"product": {}}]}
        assert (await client.post("/bid-queries/batch", json=batch)).status_code == 200
        for modality, count in (("title", 2.0), ("image", 1.0), ("both", 1.0)):
            series = f'mufin_products_total{{endpoint="recommend",modality="{modality}"}}'
            assert await value(client, series) == count
        assert await value(client, 'mufin_products_total{endpoint="bid-queries",modality="title"}') == 1.0
        assert await value(client, 'mufin_title_tokens_total{endpoint="recommend",known="true"}') == 2.0 + 2.0
        assert await value(client, 'mufin_title_tokens_total{endpoint="recommend",known="false"}') == 1.0
        assert await value(client, 'mufin_title_tokens_total{endpoint="bid-queries",known="false"}') is None
        assert await value(client, 'mufin_top_probability_count{endpoint="recommend"}') == 4.0
        total = await value(client, 'mufin_top_probability_sum{endpoint="recommend"}')
        assert total is not None
        assert abs(total - sum(own["results"][0]["probability"] for own in answers)) < 1e-6


async def test_an_answer_without_labels_has_no_top_probability() -> None:
    """Everything filtered away is an answer, too."""
    async with running() as (client, _):
        body = {"product": {"title": "red shoes"}, "min_probability": 1.0}
        answer = (await client.post("/recommend", json=body)).json()
        assert answer["results"] == []
        assert await value(client, 'mufin_top_probability_count{endpoint="recommend"}') is None
        assert await value(client, 'mufin_products_total{endpoint="recommend",modality="title"}') == 1.0


async def test_pictures_of_a_product_that_nothing_is_left_of_are_counted() -> None:
    """Alone and in a batch: a picture host that is down shows, whatever the products came with."""
    origin = f"http://127.0.0.1:{free_port()}"
    async with running(fetch_trusted_origins=(origin,)) as (client, _):
        body = {"product": {"images": [f"{origin}/1.png", f"{origin}/2.png"]}}
        assert (await client.post("/recommend", json=body)).status_code == 422
        batch = {"items": [{"product": {"images": [f"{origin}/3.png"]}}]}
        assert (await client.post("/recommend/batch", json=batch)).json()["items"][0]["status"] == 422
        assert await value(client, 'mufin_image_fetch_total{outcome="image_unreachable"}') == 3.0
        assert await value(client, 'mufin_cache_requests_total{kind="url",outcome="miss"}') == 3.0


async def test_breakers_are_shown() -> None:
    """A Redis that is not there opens its breaker; hosts are counted, never named."""
    async with running(redis_url=f"redis://127.0.0.1:{free_port()}/0") as (client, app):
        assert await value(client, 'mufin_breaker_open{name="redis"}') == 0.0
        for number in range(FAILURES):
            await client.post("/recommend", json={"product": {"title": f"red shoes {number}"}})
        assert await value(client, 'mufin_breaker_open{name="redis"}') == 1.0
        breakers = app.state.parts.fetcher._breakers
        for host in ("https://a.example", "https://b.example"):
            for _ in range(5):
                breakers.of(host).failed()
        breakers.of("https://c.example").failed()
        assert await value(client, 'mufin_breaker_open{name="picture_hosts"}') == 2.0
    async with running() as (client, _):
        assert await value(client, 'mufin_breaker_open{name="redis"}') is None


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
async def test_a_share_of_the_answers_is_logged_for_evaluation(share: float) -> None:
    """The same requests in every process: which labels, how probable, by which bundle; no title."""
    body = {"product": {"title": "red leather handbag"}, "k": 2}
    ids = [f"request-{number}" for number in range(40)]
    async with running(event_share=share) as (client, _):
        with capture_logs() as logs:
            answers = [
                (await client.post("/recommend", json=body, headers={"X-Request-ID": own})).json() for own in ids
            ]
    events = [line for line in logs if line["event"] == "answer"]
    assert [line["request_id"] for line in events] == [own for own in ids if is_sampled(own, share)]
    assert {0.0: len(events) == 0, 0.3: 4 < len(events) < 22, 1.0: len(events) == 40}[share]
    for line in events:
        answer = answers[ids.index(line["request_id"])]
        assert line["labels"] == [own["id"] for own in answer["results"]] and len(line["labels"]) == 2
        assert line["probabilities"] == [own["probability"] for own in answer["results"]]
        assert (line["bundle_id"], line["endpoint"], line["stage"]) == (answer["bundle"]["id"], "recommend", "reranked")
        assert line["modalities"] == ["title"]
    assert "handbag" not in str(logs)


async def test_answers_of_a_batch_are_logged_with_their_places() -> None:
    """What failed has none."""
    items = [{"product": {"title": "red shoes"}}, {"product": {}}, {"product": {"title": "blue hat"}}]
    async with running(event_share=1.0) as (client, _):
        with capture_logs() as logs:
            assert (await client.post("/bid-queries/batch", json={"items": items})).status_code == 200
    events = [line for line in logs if line["event"] == "answer"]
    assert sorted(line["item"] for line in events) == [0, 2]
    assert {line["endpoint"] for line in events} == {"bid-queries"}
