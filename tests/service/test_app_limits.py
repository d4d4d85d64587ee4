"""What the app refuses, how it tells where it stands, and what of it a caller can make grow."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from mufin.errors import BundleError
from service.app import lifecycle_of
from service.bundles import Verify
from service.errors import ServiceError
from service.lifecycle import Phase
from service.schemas import BatchAnswer
from tests.service.answered import ask, ids, refusal
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import eventually, running


async def test_too_much_waiting_is_429_with_retry_after() -> None:
    """Some of many simultaneous requests are refused at once, none fails otherwise."""
    model = MemoryModel(shop(), title_seconds=0.05)
    async with running(model, max_waiting_items=3, worker_threads=1, max_title_batch=1) as (client, _):
        asked = [client.post("/recommend", json={"product": {"title": f"title {number}"}}) for number in range(12)]
        responses = await asyncio.gather(*asked)
        refused = [response for response in responses if response.status_code == 429]
        assert {response.status_code for response in responses} == {200, 429}
        assert refusal(refused[0], 429, "overloaded")
        assert int(refused[0].headers["retry-after"]) >= 1
        assert 'mufin_shed_total{reason="queue_full"}' in (await client.get("/metrics")).text


async def test_more_requests_than_may_be_in_flight_are_refused() -> None:
    """The bound that holds while everybody waits for pictures."""
    async with running(MemoryModel(shop(), title_seconds=0.1), max_requests_in_flight=1) as (client, _):
        asked = [client.post("/recommend", json={"product": {"title": f"t{number}"}}) for number in range(3)]
        statuses = sorted(response.status_code for response in await asyncio.gather(*asked))
        assert statuses == [200, 429, 429]


async def test_a_defect_shows_nothing_of_itself() -> None:
    """500 with the request id, and the next request is fine."""
    async with running() as (client, _):
        response = await client.post("/recommend", json={"product": {"title": "explode"}})
        problem = refusal(response, 500, "internal_error")
        assert "encoder" not in response.text
        assert "errors" not in problem
        assert ids(await ask(client, product={"title": "red running shoes"}, k=1)) == ["l2"]


async def test_a_bad_product_of_a_batch_never_fails_its_neighbours() -> None:
    """Answers item by item, in order: good, invalid, defect, good."""
    async with running() as (client, _):
        items = [
            {"product": {"title": "red running shoes"}, "k": 1},
            {"product": {}, "k": 0},
            {"product": {"title": "explode"}},
            17,
            {"product": {"title": "black leather belt"}, "k": 1},
        ]
        response = await client.post("/recommend/batch", json={"items": items})
        assert response.status_code == 200
        BatchAnswer.model_validate_json(response.content)
        answers = response.json()["items"]
        assert [own["status"] for own in answers] == [200, 422, 500, 422, 200]
        assert [ids(own["answer"]) for own in (answers[0], answers[4])] == [["l2"], ["l8"]]
        assert {fault["pointer"] for fault in answers[1]["problem"]["errors"]} == {"/product", "/k"}


async def test_refused_requests_leave_nothing_behind() -> None:
    """Errors do not hold each other, their frames and the request's tasks alive."""
    async with running() as (client, _):
        tasks = len(asyncio.all_tasks())
        bad = {"product": {"title": "red"}, "k": 0}
        lost = {"product": {"images": ["http://10.0.0.1/"]}}
        for _ in range(20):
            assert (await client.post("/recommend", json=bad)).status_code == 422
            assert (await client.post("/recommend", json=lost)).status_code == 422
            assert (await client.post("/recommend/batch", json={"items": [bad, lost, {}]})).status_code == 200
        await asyncio.sleep(0.05)
        gc.collect()
        # By type(): isinstance would ask lazy proxies of other libraries for their class.
        left = [own for own in gc.get_objects() if issubclass(type(own), (ServiceError, ValidationError))]
        assert left == []
        assert len(asyncio.all_tasks()) == tasks


async def test_a_batch_has_limits() -> None:
    """Products and images are counted over the whole batch."""
    async with running(max_batch_products=2, max_batch_images=3) as (client, _):
        product = {"product": {"title": "x", "images": ["https://shop.example/1.jpg"] * 2}}
        too_long = await client.post("/recommend/batch", json={"items": [product] * 3})
        assert refusal(too_long, 422, "invalid_request")["errors"][0]["code"] == "too_long"
        too_many = await client.post("/recommend/batch", json={"items": [product] * 2})
        assert refusal(too_many, 422, "invalid_request")["errors"][0]["code"] == "too_many_images"


async def test_every_refusal_is_a_problem_document() -> None:
    """The router's own answers included."""
    async with running(max_body_bytes=2000, bid_queries_bundle=None) as (client, _):
        good = {"product": {"title": "x"}}
        refusal(await client.get("/nothing"), 404, "not_found")
        wrong = await client.get("/recommend")
        refusal(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        for path in ("/recommend/", "/recommend/batch/"):
            refusal(await client.post(path, json=good), 404, "not_found")
        for path in ("/metrics/", "/livez/", "/docs/", "/docs/static", "/docs/static/"):
            refusal(await client.get(path), 404, "not_found")
        refusal(
            await client.post("/recommend", content=b"x" * 3000, headers={"content-type": "application/json"}),
            413,
            "body_too_large",
        )
        refusal(await client.post("/recommend", content=b"{}"), 415, "not_json")
        refusal(await client.post("/recommend", json={}), 422, "invalid_request")
        refusal(await client.post("/bid-queries", json=good), 404, "no_bundle")


async def test_a_request_id_is_kept_when_harmless_and_made_otherwise() -> None:
    """In header and problem alike."""
    async with running() as (client, _):
        kept = await client.get("/nothing", headers={"X-Request-ID": "abc-1_2"})
        assert kept.headers["x-request-id"] == kept.json()["request_id"] == "abc-1_2"
        for bad in ("a b", "a" * 65, "<script>", ""):
            made = await client.get("/livez", headers={"X-Request-ID": bad})
            assert made.headers["x-request-id"] != bad
            assert len(made.headers["x-request-id"]) == 16


async def test_keys_guard_the_endpoints_but_not_the_probes() -> None:
    """401, 403, and the scopes."""
    digest = hashlib.sha256(b"secret").hexdigest()
    async with running(api_keys=f"shop:{digest}:recommend") as (client, _):
        good = {"product": {"title": "x"}}
        missing = await client.post("/recommend", json=good)
        refusal(missing, 401, "unauthenticated")
        assert missing.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer secret"}
        assert (await client.post("/recommend", json=good, headers=headers)).status_code == 200
        refusal(await client.post("/bid-queries", json=good, headers=headers), 403, "forbidden")
        refusal(await client.get("/bundles", headers=headers), 403, "forbidden")
        assert (await client.get("/readyz")).status_code == 200


async def test_probes_follow_the_life_of_the_process() -> None:
    """Starting, ready, draining; and answers while draining ask for the connection to end."""
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(folder: Path, verify: Verify, threads: int, resident: bool) -> MemoryModel:
        asyncio.run_coroutine_threadsafe(opened.wait(), loop).result(5)
        return MemoryModel(shop())

    async def statuses(client: httpx.AsyncClient) -> list[int]:
        return [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/startupz")]

    async with running(open_model=slowly, wait=False) as (client, app):
        assert await statuses(client) == [200, 503, 503]
        early = await client.post("/recommend", json={"product": {"title": "x"}})
        assert refusal(early, 503, "not_ready")
        assert "connection" not in early.headers
        opened.set()
        await eventually(lambda: lifecycle_of(app).phase is not Phase.STARTING)
        assert await statuses(client) == [200, 200, 200]
        lifecycle_of(app).drain()
        assert await statuses(client) == [200, 503, 200]
        late = await client.post("/recommend", json={"product": {"title": "red"}})
        assert late.status_code == 200
        assert late.headers["connection"] == "close"


async def test_a_signal_while_bundles_are_opening_makes_nothing_ready() -> None:
    """Not for good either, when they are open at last: there is nothing to answer with."""
    begun, opened = threading.Event(), threading.Event()

    def slowly(*_: object) -> MemoryModel:
        begun.set()
        opened.wait(5)
        return MemoryModel(shop())

    async with running(open_model=slowly, wait=False) as (client, app):
        await eventually(begun.is_set)
        lifecycle_of(app).drain()
        for _ in range(2):
            early = await client.post("/recommend", json={"product": {"title": "x"}})
            assert refusal(early, 503, "not_ready")
            assert (early.headers["retry-after"], early.headers["connection"]) == ("1", "close")
            statuses = [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/startupz")]
            assert statuses == [200, 503, 503]
            opened.set()
            await eventually(lambda: bool(app.state.parts.open_bundles()))


@pytest.mark.parametrize("failure", ["open", "golden"])
async def test_a_bundle_that_must_not_be_opened_never_gets_ready(failure: str) -> None:
    """A faulty folder, and golden items that come out differently."""

    def fail(folder: Path, verify: Verify, threads: int, resident: bool) -> MemoryModel:
        if failure == "open":
            raise BundleError("bundle has 3 labels, index has 2: export again")
        return MemoryModel(shop(), golden_passes=False)

    async with running(open_model=fail, wait=False) as (client, app):
        await eventually(lambda: lifecycle_of(app).phase is not Phase.STARTING)
        assert lifecycle_of(app).phase is Phase.FAILED
        assert "again" in lifecycle_of(app).failure
        assert (await client.get("/readyz")).status_code == 503


async def test_a_hung_model_call_turns_liveness_red() -> None:
    """And it turns green again when the call ends."""
    model = MemoryModel(shop(), title_seconds=0.4)
    async with running(model, hung_after_seconds=0.1) as (client, _):
        asked = asyncio.ensure_future(client.post("/recommend", json={"product": {"title": "x"}}))
        await asyncio.sleep(0.2)
        assert (await client.get("/livez")).status_code == 503
        await asked
        assert (await client.get("/livez")).status_code == 200


async def test_metrics_tell_what_happened_and_no_caller_makes_labels() -> None:
    """Routes are the known ones, outcomes are counted, the bundle is named."""
    async with running() as (client, _):
        await ask(client, product={"title": "x", "images": ["http://10.0.0.1/"]})
        await client.get("/made/up/by/caller")
        text = (await client.get("/metrics")).text
        for line in (
            'mufin_request_duration_seconds_count{route="/recommend",status="200"} 1.0',
            'mufin_request_duration_seconds_count{route="other",status="404"} 1.0',
            'mufin_image_fetch_total{outcome="image_url_refused"} 1.0',
            'mufin_cache_requests_total{kind="title",outcome="miss"} 1.0',
            'mufin_degraded_total{reason="image_url_refused"} 1.0',
            'endpoint="recommend",name="products"} 1.0',
            "mufin_ready 1.0",
        ):
            assert line in text, line
        assert "made" not in text


async def test_the_openapi_document_is_whole_and_its_page_needs_no_network() -> None:
    """Every reference resolves, examples are there, assets lie in the package."""
    async with running() as (client, _):
        document = (await client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        text = (await client.get("/openapi.json")).text
        for reference in {part.split('"')[0] for part in text.split('"$ref":"')[1:]}:
            assert reference.removeprefix("#/components/schemas/") in schemas, reference
        post = document["paths"]["/recommend"]["post"]
        assert post["requestBody"]["content"]["application/json"]["examples"]["title_only"]["value"]
        assert {"200", "404", "422", "429", "504"} <= set(post["responses"])
        page = (await client.get("/docs")).text
        assert "http" not in page.replace("<!doctype html>", "")
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js", "favicon-32x32.png"):
            assert asset in page
            assert (await client.get(f"/docs/static/{asset}")).status_code == 200


async def test_a_client_that_hangs_up_stops_the_work() -> None:
    """The request's task ends, and nothing stays in flight."""
    model = MemoryModel(shop(), title_seconds=0.05)
    async with running(model, worker_threads=1, max_title_batch=1) as (client, app):
        asked = [
            asyncio.ensure_future(client.post("/recommend", json={"product": {"title": f"t{n}"}})) for n in range(9)
        ]
        await asyncio.sleep(0.02)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert app.state.parts.queue.waiting_items == 0
        assert sum(model.title_batches) < 9


async def test_titles_go_before_pictures() -> None:
    """Cheap, and what an answer rests on when pictures are late: a crowd of pictures must not starve them."""
    async with running(worker_threads=1) as (_, app):
        recommender = app.state.parts.served.recommender("recommend")
        vectors, ranking = recommender._vectors, recommender._ranker.work()
        assert vectors.image_stage.step < vectors.title_stage.step < min(stage.step for stage in ranking)
