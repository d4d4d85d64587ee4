"""More than can be answered: what is accepted is answered in time, the rest is told when to come again."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import eventually, picture, picture_server, running


def _product(number: int, *images: str) -> dict[str, Any]:
    return {"product": {"title": f"red shoes {number}", "images": list(images)}, "k": 1}


async def _burst(client: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))


async def test_of_a_burst_as_many_are_accepted_as_can_be_answered_in_time() -> None:
    """Nothing is accepted and then dropped; refusals say when to come again; afterwards all is as before."""
    model = MemoryModel(shop(), title_seconds=0.02)
    settings: dict[str, Any] = {"worker_threads": 1, "max_title_batch": 1, "deadline_milliseconds": 4000}
    async with running(model, **settings) as (client, app):
        await _burst(client, [_product(number) for number in range(1000, 1003)])
        answers = await _burst(client, [_product(number) for number in range(250)])
        statuses = {status: sum(own.status_code == status for own in answers) for status in (200, 429)}
        assert sum(statuses.values()) == len(answers)
        assert min(statuses.values()) > 10
        refused = [own for own in answers if own.status_code == 429]
        assert {own.json()["code"] for own in refused} == {"overloaded"}
        assert all(1 <= int(own.headers["retry-after"]) <= 10 for own in refused)
        assert app.state.parts.queue.estimated_wait_seconds() == 0
        assert (await client.post("/recommend", json=_product(2000))).status_code == 200


async def test_under_load_what_needs_less_is_still_answered() -> None:
    """Known vectors pass those who wait for an encoder, titles pass pictures; only what would wait is refused."""
    async with running(worker_threads=1) as (client, app):
        assert (await client.post("/recommend", json=_product(1))).status_code == 200
        vectors = app.state.parts.served.recommender("recommend")._vectors
        stages = {stage.name: stage for stage in (vectors.title_stage, vectors.image_stage)}
        bodies = [_product(1), _product(2), _product(3, "data:image/png;base64,AAAA")]
        for crowded, statuses in (("encode_titles", [200, 429, 429]), ("encode_images", [200, 200, 429])):
            stages[crowded].seconds_per_item = 1.0
            with app.state.parts.queue.admit({stages[crowded]: 1}, 100.0):
                assert [own.status_code for own in await _burst(client, bodies)] == statuses
            stages[crowded].seconds_per_item = 0.0


async def test_pictures_count_while_they_are_being_fetched() -> None:
    """They will need the encoder as surely as those that wait for it; when they fail, they count no more."""
    async with picture_server() as pictures:
        for number in range(4):
            pictures.silent(f"/{number}.png")
        pictures.serve("/red.png", picture("red"))
        async with running(worker_threads=1, fetch_trusted_origins=(pictures.origin,)) as (client, app):
            queue = app.state.parts.queue
            images = app.state.parts.served.recommender("recommend")._vectors.image_stage
            images.seconds_per_item = 0.1
            urls = [f"{pictures.origin}/{number}.png" for number in range(4)]
            slow = [
                asyncio.ensure_future(client.post("/recommend", json=_product(n, url))) for n, url in enumerate(urls)
            ]
            await eventually(lambda: len(pictures.heads) == 4)
            assert queue._promised[images] == 4
            refused = await client.post("/recommend", json=_product(9, f"{pictures.origin}/red.png"))
            assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
            assert [own.status_code for own in await asyncio.gather(*slow)] == [200] * 4
            assert not queue._promised
            assert (await client.post("/recommend", json=_product(10, f"{pictures.origin}/red.png"))).status_code == 200


async def test_an_idle_service_takes_a_whole_batch() -> None:
    """32 products whose titles take most of a second in all: its own items do not crowd a batch out."""
    async with running(MemoryModel(shop(), title_seconds=0.03), worker_threads=1, max_title_batch=1) as (client, _):
        await client.post("/recommend", json=_product(1000))
        answer = await client.post("/recommend/batch", json={"items": [_product(number) for number in range(32)]})
        assert [own["status"] for own in answer.json()["items"]] == [200] * 32
