"""Labels taken out while serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from service.app import create_app, lifecycle_of
from service.block_lists import BlockFile, BlockList, BlockListError, BlockSet, block_source
from service.bundles import open_from_disk
from service.errors import SettingsError
from service.lifecycle import Phase
from service.redis_client import RedisClient
from service.settings import Settings
from tests.bundle_factory import make_tiny_bundle
from tests.service.memory_model import MemoryModel, shop
from tests.service.redis_process import redis_process
from tests.service.serving import ANY_FOLDER, eventually, running

BODY: dict[str, Any] = {"product": {"title": "red leather handbag"}, "k": 12}


async def test_a_file_is_read_when_it_changes(tmp_path: Path) -> None:
    """Comments and empty lines are no ids."""
    path = tmp_path / "blocked"
    path.write_text("# out of stock\nl1\n\n  l2  \n")
    source = BlockFile(path)
    assert await source.read() == frozenset({"l1", "l2"})
    assert await source.read() is None
    path.write_text("l3\n")
    assert await source.read() == frozenset({"l3"})


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_a_list_that_cannot_be_read_leaves_the_last_one_in_force(tmp_path: Path, content: bytes | None) -> None:
    """Gone, or not a text: the ids stay, the failure is told, and the next good file counts."""
    path = tmp_path / "blocked"
    path.write_text("l1")
    block_list = BlockList(BlockFile(path))
    assert block_list.age_seconds == float("inf")
    assert await block_list.refresh()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert not await block_list.refresh()
    assert block_list.ids == {"l1"}
    assert block_list.failure is not None
    assert str(path) in block_list.failure
    path.write_text("l1\nl2")
    assert await block_list.refresh()
    assert block_list.ids == {"l1", "l2"}
    assert not block_list.failure
    assert block_list.age_seconds < float("inf")


async def test_a_redis_set_is_read_whole_and_its_absence_is_an_empty_list(tmp_path: Path) -> None:
    """More members than one piece holds; a Redis that dies, and a key that holds something else, are failures."""
    with redis_process(tmp_path) as server:
        client, redis = RedisClient(server.url, 1.0), Redis.from_url(server.url)
        source = BlockSet(client, "out")
        assert await source.read() == frozenset()
        await redis.sadd("out", *(f"l{number}" for number in range(5000)))
        assert await source.read() == frozenset(f"l{number}" for number in range(5000))
        assert await source.read() is None
        await redis.set("text", "l1")
        with pytest.raises(BlockListError, match="text"):
            await BlockSet(client, "text").read()
        await redis.aclose()
        server.kill()
        with pytest.raises(BlockListError, match="out"):
            await source.read()
        await client.aclose()


async def test_a_file_that_begins_with_a_byte_order_mark_loses_no_id(tmp_path: Path) -> None:
    """As some editors and spreadsheets write it."""
    path = tmp_path / "out.txt"
    path.write_bytes("\ufeffl0\nl1\n".encode())
    assert await BlockFile(path).read() == frozenset({"l0", "l1"})


@pytest.mark.parametrize(
    "reply", [7, [], [b"x", []], [0, 5], [0, ["l1"]], [0, [[]]], [0, {"l1": None}], [0, [b"\xff"]]]
)
async def test_a_reply_that_is_no_set_is_a_failure_that_is_told(reply: object) -> None:
    """Whatever answers there."""

    class Odd:
        async def ask(self, call: object) -> object:
            return reply

    client: Any = Odd()
    with pytest.raises(BlockListError, match="Redis set out"):
        await BlockSet(client, "out").read()


def test_a_set_needs_a_redis() -> None:
    """And neither file nor set is no list."""
    with pytest.raises(SettingsError, match="redis_url"):
        block_source(None, "out", None)
    assert block_source(None, None, None) is None


async def _ids(client: Any, path: str = "/recommend", **more: Any) -> list[str]:
    response = await client.post(path, json={**BODY, **more})
    assert response.status_code == 200, response.text
    return [result["id"] for result in response.json()["results"]]


async def test_blocked_labels_are_not_returned_and_k_results_still_are(tmp_path: Path) -> None:
    """With and without a filter, on this endpoint only; a label that comes off the list comes back."""
    path = tmp_path / "blocked"
    path.write_text("l0\nl2\nunknown\n")
    settings: dict[str, Any] = {"recommend_block_file": path, "block_poll_seconds": 0.01}
    async with running(**settings) as (client, app):
        everything = await _ids(client, "/bid-queries")
        assert "l0" in everything
        assert set(await _ids(client)) == {f"l{number}" for number in range(12)} - {"l0", "l2"}
        assert "l2" not in await _ids(client, filter={"kind": "shoes"})
        assert len(await _ids(client, k=10)) == 10
        page = (await client.get("/metrics")).text
        assert 'mufin_blocked_labels{endpoint="recommend"} 2.0' in page
        path.write_text("l3\n")
        blocked = app.state.parts.block_lists["recommend"]
        await eventually(lambda: app.state.parts.served.recommender("recommend").blocked_ids == {"l3"})
        assert blocked.ids == {"l3"}
        assert await _ids(client, filter={"kind": "shoes"}) == ["l2", "l4"]
        assert set(await _ids(client)) == {f"l{number}" for number in range(12)} - {"l3"}


async def test_a_list_that_becomes_unreadable_is_told_once(tmp_path: Path) -> None:
    """And stays in force."""
    path = tmp_path / "blocked"
    path.write_text("l0\n")
    async with running(recommend_block_file=path) as (client, app):
        with capture_logs() as logs:
            path.unlink()
            for _ in range(3):
                await app.state.parts.served.refresh_block_lists()
        assert [entry["event"] for entry in logs] == ["block_list_unreadable"]
        assert "l0" not in await _ids(client)


async def test_a_file_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    """What must not be shown must not be shown because of a typo."""
    settings = Settings(_cli_parse_args=[], recommend_bundle=ANY_FOLDER, recommend_block_file=tmp_path / "nowhere")
    app = create_app(settings, lambda *_: MemoryModel(shop()))
    async with app.router.lifespan_context(app):
        await eventually(lambda: lifecycle_of(app).phase is not Phase.STARTING)
        assert lifecycle_of(app).phase is Phase.FAILED
        assert "nowhere" in lifecycle_of(app).failure


async def test_the_list_holds_for_a_bundle_that_is_swapped_in(tmp_path: Path) -> None:
    """From its first answer on, and positions are the new bundle's own."""
    first, second = (make_tiny_bundle(tmp_path / f"v{count}", labels=count) for count in (40, 50))
    link, blocked = tmp_path / "current", tmp_path / "blocked"
    link.symlink_to(first)
    blocked.write_text("L45\nL1\n")
    settings: dict[str, Any] = {
        "recommend_bundle": link, "bid_queries_bundle": None, "recommend_block_file": blocked,
        "bundle_poll_seconds": 0, "open_model": open_from_disk,
    }  # fmt: skip
    async with running(**settings) as (client, app):
        assert set(await _ids(client, k=40)) == {f"L{number}" for number in range(40)} - {"L1"}
        link.unlink()
        link.symlink_to(second)
        for _ in range(2):
            await app.state.parts.served.look()
        assert set(await _ids(client, k=50)) == {f"L{number}" for number in range(50)} - {"L1", "L45"}
