"""Clients that have gone before their request is worked on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest

from service.peers import PEER, Peer
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import running

ONE = {"product": {"title": "red running shoes"}}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/recommend", ONE), ("/recommend/batch", {"items": [{"product": {"title": f"shoes {n}"}} for n in range(9)]})],
)
async def test_nothing_is_computed_for_a_client_that_has_gone(path: str, body: Mapping[str, Any]) -> None:
    """One product or a batch of them."""
    model, peer, sent = MemoryModel(shop()), Peer(), []
    peer.hang_up()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async with running(model) as (_, app):
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "state": {}, PEER: peer, "app": app, "root_path": "",
            "server": ("mufin", 80), "client": None, "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        assert app.middleware_stack is not None
        await app.middleware_stack(scope, receive, send)
        await asyncio.sleep(0.2)
        assert sent[0]["status"] == 499
        assert model.title_batches == []
        assert app.state.parts.queue._promised == {}
