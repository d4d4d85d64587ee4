"""The service over ASGI with a tiny model in memory and a real picture server."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from mufin.errors import BundleError
from service.app import lifecycle_of
from service.bundles import Verify
from service.errors import ServiceError
from service.lifecycle import Phase
from service.schemas import BatchAnswer, Problem, RecommendAnswer
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import eventually, picture, picture_server, running


async def _ask(client: httpx.AsyncClient, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    """The answer, checked against the contract."""
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    RecommendAnswer.model_validate_json(response.content)
    answer: dict[str, Any] = response.json()
    return answer


def _problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code, problem.request_id) == (status, code, response.headers["x-request-id"])
    values: dict[str, Any] = response.json()
    return values


def _ids(answer: dict[str, Any]) -> list[str]:
    return [result["id"] for result in answer["results"]]


async def test_a_title_is_answered_best_first() -> None:
    """The plain case: order, scores, bundle, stage, timings."""
    async with running() as (client, _):
        answer = await _ask(client, product={"title": "red leather handbag"}, k=3)
        assert _ids(answer)[0] == "l0"
        assert len(answer["results"]) == 3
        scores = [result["score"] for result in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert answer["stage"] == "reranked"
        assert answer["modalities_used"] == ["title"]
        assert answer["warnings"] == []
        assert answer["bundle"] == {"id": "sha256:bundle", "name": "products"}
        assert {"encode", "shortlist", "rerank", "total"} <= set(answer["timings_ms"])
        assert answer["results"][0]["metadata"] == {"kind": "handbag", "colours": ["red"], "price": 0.0, "stock": True}


async def test_an_image_by_url_and_one_by_data_url_are_seen() -> None:
    """The trusted origin's picture and the inline one decide the answer without a title."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/red.png", picture("red"))
        by_url = await _ask(client, product={"images": [f"{pictures.origin}/red.png"]}, k=1)
        inline = "data:image/jpeg;base64," + base64.b64encode(picture("blue", kind="JPEG")).decode()
        by_data = await _ask(client, product={"images": [inline]}, k=1)
        assert (_ids(by_url), _ids(by_data)) == (["l10"], ["l11"])
        assert by_url["modalities_used"] == ["image"]
        assert {"fetch", "decode", "encode"} <= set(by_url["timings_ms"])


async def test_an_image_that_cannot_be_had_is_a_warning_while_something_is_left() -> None:
    """A refused, a missing and a broken picture beside a good one; and a title beside a bad one."""
    async with (
        picture_server() as pictures,
        running(MemoryModel(shop()), fetch_trusted_origins=(pictures.origin,)) as (client, _),
    ):
        pictures.serve("/red.png", picture("red"))
        pictures.serve("/cut.png", picture()[:60])
        images = ["http://10.0.0.1/x.png", f"{pictures.origin}/cut.png", f"{pictures.origin}/red.png"]
        answer = await _ask(client, product={"images": images}, k=1)
        assert _ids(answer) == ["l10"]
        found = [(w["code"], w["image"]) for w in answer["warnings"]]
        assert found == [("image_url_refused", 0), ("image_truncated", 1)]
        answer = await _ask(client, product={"title": "red running shoes", "images": [f"{pictures.origin}/no"]}, k=1)
        assert _ids(answer) == ["l2"]
        assert answer["modalities_used"] == ["title"]
        assert [w["code"] for w in answer["warnings"]] == ["image_unreachable"]


async def test_nothing_left_is_422_and_says_why() -> None:
    """The only picture cannot be had."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        response = await client.post("/recommend", json={"product": {"images": [f"{pictures.origin}/no.png"]}})
        problem = _problem(response, 422, "nothing_usable")
        assert [(f["pointer"], f["code"]) for f in problem["errors"]] == [("/product/images/0", "image_unreachable")]


async def test_more_images_than_the_bundle_uses_are_a_warning() -> None:
    """The first ones count; the rest is not even fetched."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        for number in range(5):
            pictures.serve(f"/{number}.png", picture("red"))
        images = [f"{pictures.origin}/{number}.png" for number in range(5)]
        answer = await _ask(client, product={"images": images}, k=1)
        assert [(w["code"], w["image"]) for w in answer["warnings"]] == [("too_many_images", 3)]
        assert pictures.hits("/3.png") == 0


async def test_nothing_is_computed_or_fetched_twice() -> None:
    """Same title, same URL, same content under another URL, same image twice in one request."""
    model = MemoryModel(shop())
    async with picture_server() as pictures, running(model, fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/a.png", picture("red"))
        pictures.serve("/b.png", picture("red"))
        product = {"title": "Red  shoes", "images": [f"{pictures.origin}/a.png", f"{pictures.origin}/a.png"]}
        first = await _ask(client, product=product)
        await _ask(client, product={**product, "title": "Red shoes"})
        again = await _ask(client, product=product)
        await _ask(client, product={"images": [f"{pictures.origin}/b.png"]})
        assert (sum(model.title_batches), sum(model.image_batches)) == (1, 1)
        assert (pictures.hits("/a.png"), pictures.hits("/b.png")) == (1, 1)
        assert first["results"] == again["results"]
        assert "fetch" not in again["timings_ms"]


async def test_the_title_reaches_ranking_as_text_too() -> None:
    """A learned combination looks at its words, also where the vector came from the cache; none is an empty text."""
    model = MemoryModel(shop())
    async with picture_server() as pictures, running(model, fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/a.png", picture("red"))
        await _ask(client, product={"title": "Red shoes"})
        await _ask(client, product={"title": "Red  shoes"})
        await _ask(client, product={"images": [f"{pictures.origin}/a.png"]})
        assert len(model.title_batches) == 1
        assert [title.split() for title in model.titles_seen if title] == [["Red", "shoes"]] * 2
        assert model.titles_seen[-1] == ""


async def test_a_title_whose_ranking_breaks_fails_alone_and_is_encoded_once() -> None:
    """Titles that come together are encoded and ranked in one go; what breaks after the encoder is no reason to go back."""
    model = MemoryModel(shop(), title_seconds=0.01, rank_breaker="cursed")
    async with running(model, worker_threads=1) as (client, _):
        titles = ["red shoes", "blue shoes", "cursed shoes", "green shoes"]
        answers = await asyncio.gather(
            *(client.post("/recommend", json={"product": {"title": own}, "k": 2}) for own in titles)
        )
        assert [own.status_code for own in answers] == [200, 200, 500, 200]
        assert sum(model.title_batches) == len(titles)
        assert len(model.title_batches) == 2  # the first alone, the others together
        again = await client.post("/recommend", json={"product": {"title": "red shoes"}, "k": 2})
        assert again.json()["results"] == answers[0].json()["results"]
        assert sum(model.title_batches) == len(titles)


async def test_one_title_asked_for_by_many_is_encoded_once() -> None:
    """Also where the first of them is ranked on its way; both ways answer alike."""
    model = MemoryModel(shop(), title_seconds=0.05)
    async with running(model, worker_threads=1) as (client, _):
        body = {"product": {"title": "red leather handbag"}, "k": 3}
        answers = await asyncio.gather(*(client.post("/recommend", json=body) for _ in range(5)))
        assert sum(model.title_batches) == 1
        assert len({str(own.json()["results"]) for own in answers}) == 1


async def test_a_new_title_is_ranked_with_the_pictures_that_are_known() -> None:
    """As if all were new."""
    model = MemoryModel(shop())
    async with picture_server() as pictures, running(model, fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/a.png", picture("red"))
        images = [f"{pictures.origin}/a.png"]
        first = await _ask(client, product={"title": "red shoes", "images": images}, explain=True)
        await _ask(client, product={"title": "blue shoes", "images": images})
        model.title_batches.clear()
        again = await _ask(client, product={"title": "red  shoes ", "images": images}, explain=True)
        other = await _ask(client, product={"title": "red shoes!", "images": images}, explain=True)
        assert first["results"] == again["results"]
        assert other["modalities_used"] == ["title", "image"]
        assert other["results"][0]["explanation"]["product_slots"] == ["image 0", "title"]
        assert model.title_batches == [1]


async def test_a_stale_url_is_asked_again_with_its_tag() -> None:
    """304 spares the transfer, and the embedding is still known."""
    model = MemoryModel(shop())
    async with (
        picture_server() as pictures,
        running(model, fetch_trusted_origins=(pictures.origin,), url_fresh_seconds=0.0) as (client, _),
    ):
        pictures.with_etag("/a.png", picture("red"), '"v1"')
        for _ in range(3):
            assert _ids(await _ask(client, product={"images": [f"{pictures.origin}/a.png"]}, k=1)) == ["l10"]
        assert pictures.hits("/a.png") == 3
        assert ["if-none-match" in head.lower() for head in pictures.heads] == [False, True, True]
        assert sum(model.image_batches) == 1


async def test_a_url_that_failed_is_not_tried_again_at_once() -> None:
    """For a minute the failure itself is the answer."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        for _ in range(3):
            answer = await _ask(client, product={"title": "red", "images": [f"{pictures.origin}/no.png"]})
            assert [w["code"] for w in answer["warnings"]] == ["image_unreachable"]
        assert pictures.hits("/no.png") == 1


async def test_business_rules_hold_and_k_results_come_back() -> None:
    """product.id, its exclude pairs, exclude and filter are applied before the cut."""
    async with running() as (client, _):
        product = {"title": "blue leather handbag"}
        assert _ids(await _ask(client, product=product, k=1)) == ["l1"]
        assert "l1" not in _ids(await _ask(client, product={**product, "id": "l1"}, k=12))
        assert "l1" not in _ids(await _ask(client, product={**product, "id": "p1"}, k=12))
        excluded = await _ask(client, product=product, k=10, exclude=["l1", "l0", "unknown"])
        assert len(excluded["results"]) == 10
        assert not {"l0", "l1"} & set(_ids(excluded))
        for rule, expected in [
            ({"kind": "shoes"}, {"l2", "l3", "l4"}),
            ({"kind": ["shoes", "belt"]}, {"l2", "l3", "l4", "l8"}),
            ({"kind": "shoes", "stock": True}, {"l2", "l4"}),
            ({"colours": "black"}, {"l8", "l9"}),
            ({"price": {"gte": 20, "lte": 40}}, {"l2", "l3", "l4"}),
            ({"price": 30}, {"l3"}),
            ({"kind": "nothing"}, set()),
        ]:
            assert set(_ids(await _ask(client, product=product, k=12, filter=rule))) == expected, rule


async def test_a_filter_on_an_unknown_key_is_refused() -> None:
    """A typo must not answer nothing."""
    async with running() as (client, _):
        response = await client.post("/recommend", json={"product": {"title": "x"}, "filter": {"knid": "shoes"}})
        problem = _problem(response, 422, "invalid_request")
        assert [fault["pointer"] for fault in problem["errors"]] == ["/filter/knid"]
        assert "kind" in problem["errors"][0]["detail"]


async def test_min_probability_leaves_out_the_improbable() -> None:
    """All that remain are probable enough, and nothing probable is missing."""
    async with running() as (client, _):
        product = {"title": "red running shoes"}
        everything = await _ask(client, product=product, k=12)
        bound = everything["results"][3]["probability"]
        kept = await _ask(client, product=product, k=12, min_probability=bound)
        assert _ids(kept) == [r["id"] for r in everything["results"] if r["probability"] >= bound]
        assert 4 <= len(kept["results"]) < 12


async def test_diversity_brings_unlike_results_forward() -> None:
    """At 1 the second result is as unlike the first as can be; the first stays the best."""
    async with running() as (client, _):
        product = {"title": "blue cotton jersey"}
        plain = _ids(await _ask(client, product=product, k=3))
        spread = _ids(await _ask(client, product=product, k=3, diversity=0.9))
        assert plain[:2] == ["l6", "l7"]
        assert spread[0] == "l6"
        assert "l7" not in spread


async def test_an_explanation_names_slots_and_splits_the_score() -> None:
    """Rows are the product's slots, columns the label's; parts add up to the score."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/red.png", picture("red"))
        images = [f"{pictures.origin}/no.png", f"{pictures.origin}/red.png"]
        answer = await _ask(client, product={"title": "red shoes", "images": images}, k=2, explain=True)
        for result in answer["results"]:
            explanation = result["explanation"]
            assert explanation["product_slots"] == ["image 1", "title"]
            assert explanation["label_slots"] == ["title"]
            assert [sum(row) for row in explanation["attention"]] == pytest.approx([1.0, 1.0])
            parts = explanation["classifier_part"] + explanation["shortlist_part"]
            assert parts == pytest.approx(result["score"], abs=1e-6)


async def test_bid_queries_collapse_labels_with_the_same_words() -> None:
    """The same bundle behind both endpoints: products stay apart, queries collapse, and k still come."""
    async with running() as (client, _):
        product = {"title": "blue cotton jersey"}
        assert {"l6", "l7"} <= set(_ids(await _ask(client, product=product, k=3)))
        queries = _ids(await _ask(client, "/bid-queries", product=product, k=5))
        assert len({"l6", "l7"} & set(queries)) == 1
        assert len(queries) == 5


async def test_near_the_deadline_the_shortlist_is_the_answer() -> None:
    """Reranking that is too slow is cut; what it would have given is null, and unapplied rules are said."""
    model = MemoryModel(shop(), rerank_seconds=0.5)
    async with running(model, deadline_milliseconds=250) as (client, _):
        answer = await _ask(client, product={"title": "red leather handbag"}, k=2, min_probability=0.9)
        assert answer["stage"] == "shortlist"
        assert _ids(answer)[0] == "l0"
        assert all(r["probability"] is None and r["classifier_score"] is None for r in answer["results"])
        assert [w["code"] for w in answer["warnings"]] == ["min_probability_not_applied"]
        assert answer["modalities_used"] == ["title"]
        await _ask(client, product={"title": "red leather handbag"})
        assert sum(model.title_batches) == 1  # what was encoded is known, though ranking was cut


async def test_a_deadline_before_the_shortlist_is_504() -> None:
    """And the caller's header sets it."""
    async with running(MemoryModel(shop(), title_seconds=0.4)) as (client, _):
        response = await client.post(
            "/recommend", json={"product": {"title": "red"}}, headers={"X-Request-Timeout-Ms": "50"}
        )
        _problem(response, 504, "deadline_passed")
        bad = await client.post("/recommend", json={"product": {"title": "red"}}, headers={"X-Request-Timeout-Ms": "x"})
        _problem(bad, 422, "invalid_request")


async def test_an_image_that_is_late_is_dropped() -> None:
    """A silent picture server costs the picture, not the answer."""
    async with (
        picture_server() as pictures,
        running(fetch_trusted_origins=(pictures.origin,), deadline_milliseconds=400) as (client, _),
    ):
        pictures.silent("/silent.png")
        answer = await _ask(client, product={"title": "red running shoes", "images": [f"{pictures.origin}/silent.png"]})
        assert [w["code"] for w in answer["warnings"]] == ["image_timeout"]
        assert answer["stage"] == "reranked"


async def test_too_much_waiting_is_429_with_retry_after() -> None:
    """Some of many simultaneous requests are refused at once, none fails otherwise."""
    model = MemoryModel(shop(), title_seconds=0.05)
    async with running(model, max_waiting_items=3, worker_threads=1, max_title_batch=1) as (client, _):
        asked = [client.post("/recommend", json={"product": {"title": f"title {number}"}}) for number in range(12)]
        responses = await asyncio.gather(*asked)
        refused = [response for response in responses if response.status_code == 429]
        assert {response.status_code for response in responses} == {200, 429}
        assert _problem(refused[0], 429, "overloaded")
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
        problem = _problem(response, 500, "internal_error")
        assert "encoder" not in response.text
        assert "errors" not in problem
        assert _ids(await _ask(client, product={"title": "red running shoes"}, k=1)) == ["l2"]


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
        assert [_ids(own["answer"]) for own in (answers[0], answers[4])] == [["l2"], ["l8"]]
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
        assert _problem(too_long, 422, "invalid_request")["errors"][0]["code"] == "too_long"
        too_many = await client.post("/recommend/batch", json={"items": [product] * 2})
        assert _problem(too_many, 422, "invalid_request")["errors"][0]["code"] == "too_many_images"


async def test_every_refusal_is_a_problem_document() -> None:
    """The router's own answers included."""
    async with running(max_body_bytes=2000, bid_queries_bundle=None) as (client, _):
        good = {"product": {"title": "x"}}
        _problem(await client.get("/nothing"), 404, "not_found")
        wrong = await client.get("/recommend")
        _problem(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        _problem(
            await client.post("/recommend", content=b"x" * 3000, headers={"content-type": "application/json"}),
            413,
            "body_too_large",
        )
        _problem(await client.post("/recommend", content=b"{}"), 415, "not_json")
        _problem(await client.post("/recommend", json={}), 422, "invalid_request")
        _problem(await client.post("/bid-queries", json=good), 404, "no_bundle")


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
        _problem(missing, 401, "unauthenticated")
        assert missing.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer secret"}
        assert (await client.post("/recommend", json=good, headers=headers)).status_code == 200
        _problem(await client.post("/bid-queries", json=good, headers=headers), 403, "forbidden")
        _problem(await client.get("/bundles", headers=headers), 403, "forbidden")
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
        assert _problem(early, 503, "not_ready")
        assert "connection" not in early.headers
        opened.set()
        await eventually(lambda: lifecycle_of(app).phase is not Phase.STARTING)
        assert await statuses(client) == [200, 200, 200]
        lifecycle_of(app).drain()
        assert await statuses(client) == [200, 503, 200]
        late = await client.post("/recommend", json={"product": {"title": "red"}})
        assert late.status_code == 200
        assert late.headers["connection"] == "close"


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
        await _ask(client, product={"title": "x", "images": ["http://10.0.0.1/"]})
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
