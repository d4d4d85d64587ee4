"""The event loop hands everything that may wait to threads."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from PIL import Image

import service.vectors
from mufin.label_files import LabelFile
from mufin.label_search import LabelSearch
from mufin.predictor import Predictor
from service.bundles import open_from_disk
from tests.bundle_factory import make_tiny_bundle, picture
from tests.service.loop_guard import loop_guard
from tests.service.redis_process import redis_process
from tests.service.serving import picture_server, running

_HEAVY: tuple[tuple[Any, str], ...] = (
    (ort.InferenceSession, "run"),
    (Predictor, "bag"),
    (Predictor, "shortlist_without"),
    (Predictor, "rerank"),
    (Predictor, "fuse"),
    (LabelSearch, "search"),
    (LabelSearch, "embeddings"),
    (LabelFile, "fields"),
    (LabelFile, "index_of"),
    (Image, "open"),
    (Image.Image, "load"),
    (service.vectors, "read_data_url"),
)


def test_the_guard_catches_what_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the guarded thread only, and only while guarded."""
    (tmp_path / "file").write_text("x")
    Image.init()  # else its plugins are imported, and files opened, at the first picture
    with loop_guard(monkeypatch, (Image, "open")) as guard:
        (tmp_path / "file").read_text()
        with guard.on_this_thread():
            (tmp_path / "file").read_text()
            with pytest.raises(OSError, match="cannot identify"):
                Image.open(tmp_path / "file")
        (tmp_path / "file").read_text()
    assert [own.split()[0] for own in guard.caught] == ["open", "open", "open"]


async def test_no_request_makes_the_event_loop_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Titles, pictures by URL and as data, filters, exclusions, diversity, explanations, batches, a bundle swap, block lists."""
    first, second = (make_tiny_bundle(tmp_path / f"v{labels}", labels=labels) for labels in (40, 50))
    link, blocked = tmp_path / "current", tmp_path / "blocked"
    link.symlink_to(first)
    blocked.write_text("L1\n")
    with redis_process(tmp_path) as redis:
        settings: dict[str, Any] = {
            "recommend_bundle": link, "bid_queries_bundle": link, "recommend_block_file": blocked,
            "bundle_poll_seconds": 0, "redis_url": redis.url,
        }  # fmt: skip
        async with (
            picture_server() as pictures,
            running(
                open_model=open_from_disk, fetch_trusted_origins=(pictures.origin,), max_body_bytes=8 << 20, **settings
            ) as (client, app),
        ):
            for name in ("warm", "red", "blue"):
                pictures.serve(f"/{name}.png", picture("red" if name == "warm" else name, (300 + len(name), 200)))
            data = "data:image/png;base64," + base64.b64encode(picture("green", (700, 500))).decode()

            async def ask(name: str) -> None:
                body: dict[str, Any] = {
                    "product": {"id": "L3", "title": f"{name} shirt", "images": [f"{pictures.origin}/{name}.png", data]},
                    "exclude": ["L4", "L5"], "filter": {"stock": [True]}, "diversity": 0.2, "explain": True,
                }  # fmt: skip
                for path in ("/recommend", "/bid-queries"):
                    response = await client.post(path, json=body)
                    assert response.json()["modalities_used"] == ["title", "image"], response.text
                    batch = await client.post(f"{path}/batch", json={"items": [{"product": {"title": f"{name} hat"}}]})
                    assert batch.json()["items"][0]["status"] == 200, batch.text

            await ask("warm")  # modules that are imported late
            with loop_guard(monkeypatch, *_HEAVY) as guard, guard.on_this_thread():
                await ask("red")
                link.unlink()
                link.symlink_to(second)
                for _ in range(2):
                    await app.state.parts.served.look()
                await app.state.parts.served.refresh_block_lists()
                await ask("blue")
            assert guard.caught == []
            assert app.state.parts.served.bundles()["recommend"].model.labels.size == 50
