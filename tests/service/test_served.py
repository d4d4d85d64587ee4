"""Bundles replaced while requests go on."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from service.bundles import open_from_disk
from service.served import Served
from tests.bundle_factory import make_tiny_bundle
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import eventually, running

BODY = {"product": {"title": "red shirt men"}, "k": 3}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two with one encoder, one with another."""
    folder = tmp_path_factory.mktemp("bundles")
    first, second = (make_tiny_bundle(folder / f"v{labels}", labels=labels) for labels in (40, 50))
    return [first, second, make_tiny_bundle(folder / "other", seed=1)]


@pytest.fixture
def link(bundles: list[Path], tmp_path: Path) -> Path:
    """A link to the first bundle."""
    path = tmp_path / "current"
    path.symlink_to(bundles[0])
    return path


def point(link: Path, target: Path) -> None:
    """What an operator does: a new link in place of the old, in one step."""
    new = link.with_name("link-being-made")
    new.symlink_to(target)
    new.replace(link)


@asynccontextmanager
async def serving(link: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Both endpoints on the link; looked at when a test says so, unless settings say otherwise."""
    chosen = {"recommend_bundle": link, "bid_queries_bundle": link, "bundle_poll_seconds": 0, **settings}
    async with running(open_model=open_from_disk, **chosen) as (client, app):
        yield client, app


def served(app: FastAPI) -> Served:
    """What stands behind the endpoints."""
    found: Served = app.state.parts.served
    return found


async def look(app: FastAPI) -> None:
    """A change counts once it has been seen twice."""
    await served(app).look()
    await served(app).look()


async def _answer(client: httpx.AsyncClient, path: str = "/recommend") -> str:
    response = await client.post(path, json=BODY)
    assert response.status_code == 200, response.text
    assert len(response.json()["results"]) == 3
    return str(response.json()["bundle"]["id"])


def _lasting_threads() -> set[int]:
    """All but the event loop's own pool, which grows to its size as calls happen to overlap."""
    return {thread.native_id or 0 for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def _open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_ten_swaps_under_load_fail_no_request_and_leave_nothing_behind(bundles: list[Path], link: Path) -> None:
    """Handles, threads and bundles are as many afterwards as before; the old bundles are gone without a collection."""
    left: list[weakref.ref[Any]] = []
    # A busy machine may be slower than the deadline; what a swap must not do is lose a request.
    async with serving(link, deadline_milliseconds=5000) as (client, app):
        seen: set[str] = set()
        stopping = False

        async def ask() -> None:
            while not stopping:
                for path in ("/recommend", "/bid-queries"):
                    seen.add(await _answer(client, path))
                response = await client.post("/recommend/batch", json={"items": [BODY] * 3})
                assert [item["status"] for item in response.json()["items"]] == [200] * 3

        callers = [asyncio.ensure_future(ask()) for _ in range(8)]
        # The second and third bundle have been open once: what libraries keep for ever is there.
        for target in (bundles[1], bundles[2], bundles[0]):
            point(link, target)
            await look(app)
        handles, threads = _open_handles(), _lasting_threads()
        gc.collect()
        gc.disable()
        try:
            for swap in range(10):
                left.append(weakref.ref(served(app).bundles()["recommend"].model))
                point(link, bundles[(swap + 1) % 3])
                await look(app)
                await asyncio.sleep(0.02)
            await eventually(lambda: not any(own() for own in left))
        finally:
            gc.enable()
            stopping = True
        await asyncio.gather(*callers)
        assert len(seen) == 3
        page = (await client.get("/metrics")).text
        assert 'mufin_bundle_swaps_total{endpoint="recommend",outcome="swapped"} 13.0' in page
        assert "mufin_bundles_in_memory 1.0" in page
        assert page.count("mufin_bundle_info{") == 2
        assert _open_handles() <= handles
        assert _lasting_threads() <= threads


async def test_a_bad_bundle_changes_nothing_and_is_reported(bundles: list[Path], link: Path, tmp_path: Path) -> None:
    """Once, with the reason; the old one goes on, and a good one afterwards is taken."""
    bad = tmp_path / "bad"
    shutil.copytree(bundles[1], bad)
    with (bad / "labels.bin").open("r+b") as handle:
        handle.write(b"x")
    async with serving(link) as (client, app):
        before = await _answer(client)
        with capture_logs() as logs:
            point(link, bad)
            for _ in range(3):
                await look(app)
            assert await _answer(client) == before
            point(link, tmp_path / "nowhere")
            await look(app)
            assert await _answer(client) == before
        refusals = [entry for entry in logs if entry["event"] == "bundle_swap_refused"]
        assert [(own["endpoint"], own["folder"]) for own in refusals] == [
            ("/recommend", "bad"), ("/bid-queries", "bad"), ("/recommend", "nowhere"), ("/bid-queries", "nowhere"),
        ]  # fmt: skip
        assert "labels.bin" in refusals[0]["reason"]
        assert refusals[0]["serving"] == before
        assert (await client.get("/readyz")).status_code == 200
        page = (await client.get("/metrics")).text
        assert 'mufin_bundle_swaps_total{endpoint="recommend",outcome="refused"} 2.0' in page
        point(link, bundles[1])
        await look(app)
        assert await _answer(client) != before


async def test_a_bundle_whose_golden_items_come_out_otherwise_is_refused(tmp_path: Path) -> None:
    """Opened is not enough."""
    good, bad = MemoryModel(shop(), bundle_id="good"), MemoryModel(shop(), bundle_id="bad", golden_passes=False)
    models = {"good": good, "bad": bad}
    for name in models:
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "good")
    settings: dict[str, Any] = {"recommend_bundle": link, "bid_queries_bundle": None, "bundle_poll_seconds": 0}
    async with running(open_model=lambda folder, *_: models[folder.name], **settings) as (client, app):
        point(link, tmp_path / "bad")
        await look(app)
        assert await _answer(client) == "good"


async def test_what_is_to_be_mended_of_a_bundle_is_said_at_the_start_and_at_a_swap(tmp_path: Path) -> None:
    """It is served; the log has the advice, of that bundle alone."""
    models = {name: MemoryModel(shop(), bundle_id=name, advice=f"mend {name}") for name in ("one", "two")}
    models["fine"] = MemoryModel(shop(), bundle_id="fine")
    for name in models:
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "one")
    settings: dict[str, Any] = {"recommend_bundle": link, "bid_queries_bundle": None, "bundle_poll_seconds": 0}
    with capture_logs() as logs:
        async with running(open_model=lambda folder, *_: models[folder.name], **settings) as (client, app):
            for name in ("fine", "two"):
                point(link, tmp_path / name)
                await look(app)
                assert await _answer(client) == name
    told = [(own["folder"], own["advice"]) for own in logs if own["event"] == "bundle_to_mend"]
    assert told == [("one", "mend one"), ("two", "mend two")]


async def test_requests_under_way_finish_on_the_old_bundle(tmp_path: Path) -> None:
    """A slow title that began before the swap is answered by what it began with; the next one by the new."""
    models = {name: MemoryModel(shop(), bundle_id=name, title_seconds=0.3) for name in ("old", "new")}
    for name in models:
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "old")
    settings: dict[str, Any] = {"recommend_bundle": link, "bid_queries_bundle": None, "bundle_poll_seconds": 0}
    async with running(open_model=lambda folder, *_: models[folder.name], **settings) as (client, app):
        first = asyncio.ensure_future(_answer(client))
        await eventually(lambda: app.state.parts.queue.longest_running_seconds > 0)
        point(link, tmp_path / "new")
        await look(app)
        assert not first.done()
        assert await _answer(client) == "new"
        assert await first == "old"


async def test_the_watch_sees_a_new_link_and_a_new_folder_under_the_old_name(
    bundles: list[Path], link: Path, tmp_path: Path
) -> None:
    """Both are ways in which a bundle is brought up to date."""
    folder = tmp_path / "products"
    shutil.copytree(bundles[0], folder)
    settings: dict[str, Any] = {"bid_queries_bundle": folder, "bundle_poll_seconds": 0.01}
    async with serving(link, **settings) as (client, app):
        first = await _answer(client)
        assert await _answer(client, "/bid-queries") == first
        point(link, bundles[1])
        shutil.copytree(bundles[1], tmp_path / "incoming")
        folder.rename(tmp_path / "outgoing")
        (tmp_path / "incoming").rename(folder)
        await eventually(lambda: all(own.model.labels.size == 50 for own in served(app).bundles().values()))
        assert await _answer(client) == await _answer(client, "/bid-queries") != first


async def test_endpoints_on_one_link_share_the_new_bundle_and_a_label_refresh_keeps_the_sessions(
    bundles: list[Path], link: Path
) -> None:
    """Opened once; what was encoded before the swap is known after it."""
    async with serving(link) as (client, app):
        encoder = served(app).bundles()["recommend"].model.encoder
        await _answer(client)
        point(link, bundles[1])
        await look(app)
        now = served(app).bundles()
        assert now["recommend"] is now["bid-queries"]
        assert now["recommend"].model.encoder is encoder
        await _answer(client)
        assert 'mufin_batch_size_count{stage="encode_titles"} 1.0' in (await client.get("/metrics")).text
