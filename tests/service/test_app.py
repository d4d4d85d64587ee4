"""The service over ASGI with a tiny model in memory and a real picture server."""

from __future__ import annotations

import asyncio
import base64
import threading

import pytest

from mufin.inputs import Int64Array
from mufin.label_files import Label
from tests.service.answered import ask, ids, refusal
from tests.service.memory_model import MemoryLabels, MemoryModel, shop
from tests.service.serving import picture, picture_server, running


async def test_a_title_is_answered_best_first() -> None:
    """The plain case: order, scores, bundle, stage, timings."""
    async with running() as (client, _):
        answer = await ask(client, product={"title": "red leather handbag"}, k=3)
        assert ids(answer)[0] == "l0"
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
        by_url = await ask(client, product={"images": [f"{pictures.origin}/red.png"]}, k=1)
        inline = "data:image/jpeg;base64," + base64.b64encode(picture("blue", kind="JPEG")).decode()
        by_data = await ask(client, product={"images": [inline]}, k=1)
        assert (ids(by_url), ids(by_data)) == (["l10"], ["l11"])
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
        answer = await ask(client, product={"images": images}, k=1)
        assert ids(answer) == ["l10"]
        found = [(w["code"], w["image"]) for w in answer["warnings"]]
        assert found == [("image_url_refused", 0), ("image_truncated", 1)]
        answer = await ask(client, product={"title": "red running shoes", "images": [f"{pictures.origin}/no"]}, k=1)
        assert ids(answer) == ["l2"]
        assert answer["modalities_used"] == ["title"]
        assert [w["code"] for w in answer["warnings"]] == ["image_unreachable"]


async def test_nothing_left_is_422_and_says_why() -> None:
    """The only picture cannot be had."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        response = await client.post("/recommend", json={"product": {"images": [f"{pictures.origin}/no.png"]}})
        problem = refusal(response, 422, "nothing_usable")
        assert [(f["pointer"], f["code"]) for f in problem["errors"]] == [("/product/images/0", "image_unreachable")]


async def test_more_images_than_the_bundle_uses_are_a_warning() -> None:
    """The first ones count; the rest is not even fetched."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        for number in range(5):
            pictures.serve(f"/{number}.png", picture("red"))
        images = [f"{pictures.origin}/{number}.png" for number in range(5)]
        answer = await ask(client, product={"images": images}, k=1)
        assert [(w["code"], w["image"]) for w in answer["warnings"]] == [("too_many_images", 3)]
        assert pictures.hits("/3.png") == 0


async def test_nothing_is_computed_or_fetched_twice() -> None:
    """Same title, same URL, same content under another URL, same image twice in one request."""
    model = MemoryModel(shop())
    async with picture_server() as pictures, running(model, fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/a.png", picture("red"))
        pictures.serve("/b.png", picture("red"))
        product = {"title": "Red  shoes", "images": [f"{pictures.origin}/a.png", f"{pictures.origin}/a.png"]}
        first = await ask(client, product=product)
        await ask(client, product={**product, "title": "Red shoes"})
        again = await ask(client, product=product)
        await ask(client, product={"images": [f"{pictures.origin}/b.png"]})
        assert (sum(model.title_batches), sum(model.image_batches)) == (1, 1)
        assert (pictures.hits("/a.png"), pictures.hits("/b.png")) == (1, 1)
        assert first["results"] == again["results"]
        assert "fetch" not in again["timings_ms"]


async def test_the_title_reaches_ranking_as_text_too() -> None:
    """A learned combination looks at its words, also where the vector came from the cache; none is an empty text."""
    model = MemoryModel(shop())
    async with picture_server() as pictures, running(model, fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/a.png", picture("red"))
        await ask(client, product={"title": "Red shoes"})
        await ask(client, product={"title": "Red  shoes"})
        await ask(client, product={"images": [f"{pictures.origin}/a.png"]})
        assert len(model.title_batches) == 1
        assert [title.split() for title in model.titles_seen if title] == [["Red", "shoes"]] * 2
        assert model.titles_seen[-1] == ""


async def test_a_title_whose_ranking_breaks_fails_alone_and_is_encoded_once() -> None:
    """Titles that come together are encoded and ranked in one go; what breaks after the encoder is no reason to go back."""
    model = MemoryModel(shop(), title_seconds=0.02, rank_breaker="cursed")
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
        first = await ask(client, product={"title": "red shoes", "images": images}, explain=True)
        await ask(client, product={"title": "blue shoes", "images": images})
        model.title_batches.clear()
        again = await ask(client, product={"title": "red  shoes ", "images": images}, explain=True)
        other = await ask(client, product={"title": "red shoes!", "images": images}, explain=True)
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
            assert ids(await ask(client, product={"images": [f"{pictures.origin}/a.png"]}, k=1)) == ["l10"]
        assert pictures.hits("/a.png") == 3
        assert ["if-none-match" in head.lower() for head in pictures.heads] == [False, True, True]
        assert sum(model.image_batches) == 1


async def test_a_url_that_failed_is_not_tried_again_at_once() -> None:
    """For a minute the failure itself is the answer."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        for _ in range(3):
            answer = await ask(client, product={"title": "red", "images": [f"{pictures.origin}/no.png"]})
            assert [w["code"] for w in answer["warnings"]] == ["image_unreachable"]
        assert pictures.hits("/no.png") == 1


async def test_business_rules_hold_and_k_results_come_back() -> None:
    """product.id, its exclude pairs, exclude and filter are applied before the cut."""
    async with running() as (client, _):
        product = {"title": "blue leather handbag"}
        assert ids(await ask(client, product=product, k=1)) == ["l1"]
        assert "l1" not in ids(await ask(client, product={**product, "id": "l1"}, k=12))
        assert "l1" not in ids(await ask(client, product={**product, "id": "p1"}, k=12))
        excluded = await ask(client, product=product, k=10, exclude=["l1", "l0", "unknown"])
        assert len(excluded["results"]) == 10
        assert not {"l0", "l1"} & set(ids(excluded))
        for rule, expected in [
            ({"kind": "shoes"}, {"l2", "l3", "l4"}),
            ({"kind": ["shoes", "belt"]}, {"l2", "l3", "l4", "l8"}),
            ({"kind": "shoes", "stock": True}, {"l2", "l4"}),
            ({"colours": "black"}, {"l8", "l9"}),
            ({"price": {"gte": 20, "lte": 40}}, {"l2", "l3", "l4"}),
            ({"price": 30}, {"l3"}),
            ({"kind": "nothing"}, set()),
        ]:
            assert set(ids(await ask(client, product=product, k=12, filter=rule))) == expected, rule


async def test_a_filter_on_an_unknown_key_is_refused() -> None:
    """A typo must not answer nothing."""
    async with running() as (client, _):
        response = await client.post("/recommend", json={"product": {"title": "x"}, "filter": {"knid": "shoes"}})
        problem = refusal(response, 422, "invalid_request")
        assert [fault["pointer"] for fault in problem["errors"]] == ["/filter/knid"]
        assert "kind" in problem["errors"][0]["detail"]


async def test_min_probability_leaves_out_the_improbable() -> None:
    """All that remain are probable enough, and nothing probable is missing."""
    async with running() as (client, _):
        product = {"title": "red running shoes"}
        everything = await ask(client, product=product, k=12)
        bound = everything["results"][3]["probability"]
        kept = await ask(client, product=product, k=12, min_probability=bound)
        assert ids(kept) == [r["id"] for r in everything["results"] if r["probability"] >= bound]
        assert 4 <= len(kept["results"]) < 12


async def test_diversity_brings_unlike_results_forward() -> None:
    """At 1 the second result is as unlike the first as can be; the first stays the best."""
    async with running() as (client, _):
        product = {"title": "blue cotton jersey"}
        plain = ids(await ask(client, product=product, k=3))
        spread = ids(await ask(client, product=product, k=3, diversity=0.9))
        assert plain[:2] == ["l6", "l7"]
        assert spread[0] == "l6"
        assert "l7" not in spread


async def test_an_explanation_names_slots_and_splits_the_score() -> None:
    """Rows are the product's slots, columns the label's; parts add up to the score."""
    async with picture_server() as pictures, running(fetch_trusted_origins=(pictures.origin,)) as (client, _):
        pictures.serve("/red.png", picture("red"))
        images = [f"{pictures.origin}/no.png", f"{pictures.origin}/red.png"]
        answer = await ask(client, product={"title": "red shoes", "images": images}, k=2, explain=True)
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
        assert {"l6", "l7"} <= set(ids(await ask(client, product=product, k=3)))
        queries = ids(await ask(client, "/bid-queries", product=product, k=5))
        assert len({"l6", "l7"} & set(queries)) == 1
        assert len(queries) == 5


async def test_near_the_deadline_the_shortlist_is_the_answer() -> None:
    """Reranking that is too slow is cut; what it would have given is null, and unapplied rules are said."""
    model = MemoryModel(shop(), rerank_seconds=0.5)
    async with running(model, deadline_milliseconds=250) as (client, _):
        answer = await ask(client, product={"title": "red leather handbag"}, k=2, min_probability=0.9)
        assert answer["stage"] == "shortlist"
        assert ids(answer)[0] == "l0"
        assert all(r["probability"] is None and r["classifier_score"] is None for r in answer["results"])
        assert [w["code"] for w in answer["warnings"]] == ["min_probability_not_applied"]
        assert answer["modalities_used"] == ["title"]
        await ask(client, product={"title": "red leather handbag"})
        assert sum(model.title_batches) == 1  # what was encoded is known, though ranking was cut


async def test_texts_that_do_not_come_end_as_504(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from files, and a disk may hang: an answer that was cut to its shortlist does not wait for that."""
    model, disk = MemoryModel(shop(), rerank_seconds=0.3), threading.Event()
    describe = type(model.labels).describe

    def held(labels: MemoryLabels, wanted: Int64Array) -> list[Label]:
        disk.wait(30)
        return describe(labels, wanted)

    async with running(model, deadline_milliseconds=200) as (client, _):
        monkeypatch.setattr(type(model.labels), "describe", held)
        try:
            for _ in range(2):  # with its title to be encoded, and known
                response = await client.post("/recommend", json={"product": {"title": "red leather handbag"}})
                late = refusal(response, 504, "deadline_passed")
                assert late["detail"] == "no answer was ready within the deadline"
                assert not disk.is_set()
        finally:
            disk.set()


async def test_a_deadline_before_the_shortlist_is_504() -> None:
    """And the caller's header sets it."""
    async with running(MemoryModel(shop(), title_seconds=0.4)) as (client, _):
        response = await client.post(
            "/recommend", json={"product": {"title": "red"}}, headers={"X-Request-Timeout-Ms": "50"}
        )
        late = refusal(response, 504, "deadline_passed")
        assert late["detail"] == "no answer was ready within the deadline"
        bad = await client.post("/recommend", json={"product": {"title": "red"}}, headers={"X-Request-Timeout-Ms": "x"})
        (fault,) = refusal(bad, 422, "invalid_request")["errors"]
        assert fault["code"] == "invalid_header" and "X-Request-Timeout-Ms" in fault["detail"]


async def test_an_image_that_is_late_is_dropped() -> None:
    """A silent picture server costs the picture, not the answer."""
    async with (
        picture_server() as pictures,
        running(fetch_trusted_origins=(pictures.origin,), deadline_milliseconds=400) as (client, _),
    ):
        pictures.silent("/silent.png")
        answer = await ask(client, product={"title": "red running shoes", "images": [f"{pictures.origin}/silent.png"]})
        assert [w["code"] for w in answer["warnings"]] == ["image_timeout"]
        assert answer["stage"] == "reranked"
