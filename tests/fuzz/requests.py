"""Mutated requests against the whole app in this process: a stated answer, soon, and nothing left behind.

Knows no network: requests are handed to the ASGI app, pictures come from nowhere.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI

from service.app import create_app, lifecycle_of
from service.errors import all_codes
from service.lifecycle import Phase
from service.schemas import BatchAnswer, Problem, RecommendAnswer
from service.settings import Settings
from tests.service.hostile_requests import REQUESTS
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import eventually

SLOWEST_SECONDS = 3.0
# A case leaves nothing; what Python's own caches come to hold in the first thousand is far below this.
_MOST_OBJECTS_LEFT = 2000
_CODES = all_codes()
_KIND = (b"content-type", b"application/json")
_PATHS = ("/recommend", "/bid-queries", "/recommend/batch", "/bid-queries/batch")
_PIECES = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e400",
        "NaN",
        "9" * 30,
        '""',
        "[]",
        "{}",
        "[[[[[[[[",
        '{"gte":1}',
        '"\\ud800"',
        '"\\u0000"',
    ),
    *(
        '"\\u202e"',
        '"x"',
        '"price"',
        '"data:image/png;base64,AAAA"',
        '"https://[::1]/"',
        ",",
        ":",
        '"',
        "\\",
        "}",
        "]",
        "\0",
    ),
    *(
        '"filter":{"price":{"lte":1e308}},',
        '"exclude":["l1","l1"],',
        '"product":',
        '"items":',
        '"k":100,',
        '"diversity":1,',
    ),
    *(
        '"explain":true,',
        '"min_probability":1,',
        '"filter":{"colours":["red",5,true]},',
        "\u200b",
        "\U0001f45f",
        "\ud800",
    ),
)
_GOOD: tuple[dict[str, Any], ...] = (
    {"product": {"title": "red running shoes"}},
    {
        "product": {"id": "p1", "title": "Blue cotton jersey", "images": ["https://shop.example/1.jpg", "data:,x"]},
        "k": 5,
    },
    {
        "product": {"title": "black leather belt"},
        **{"k": 10, "exclude": ["l1", "l9"], "min_probability": 0.1, "diversity": 0.3, "explain": True},
        "filter": {"colours": ["red", "black"], "price": {"gte": 10, "lte": 90.5}, "stock": True},
    },
)
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    *((b"content-type", own) for own in (b"", b"text/plain", b"application/json; charset=x", b"\xff", b"application/x+json")),
    *((b"x-request-timeout-ms", own) for own in (b"", b"0", b"-1", b"99999999999999", b"\xb2", b"1 2", b"1000")),
    *((b"x-request-id", own) for own in (b"", b"a b", b"x" * 5000, b"\xff\xfe", b"good-id")),
    *((b"content-length", own) for own in (b"", b"-1", b"5", b"9" * 40, b"\xb2")),
    *((b"content-encoding", own) for own in (b"gzip", b"identity", b"\xff")),
    *((b"authorization", own) for own in (b"Bearer", b"Bearer x", b"\xff")),
    (b"origin", b"https://evil.example"),
)  # fmt: skip


def fuzz_requests(cases: int, seed: int) -> int:
    """Try so many requests; how many were answered 200. Raises AssertionError, or whatever was not meant to be raised."""
    return asyncio.run(_fuzz(cases, seed))


async def _fuzz(cases: int, seed: int) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        async with _running() as app:
            good, before = 0, 0
            for number, (path, headers, body) in enumerate(mutants(random.Random(seed), cases)):
                if number == cases // 2:
                    before = _objects()
                good += await _try(app, path, headers, body)
            left = await _settled(app)
            assert not any(left.values()), left
            assert _objects() - before < _MOST_OBJECTS_LEFT + cases // 100
            return good
    finally:
        structlog.reset_defaults()


@asynccontextmanager
async def _running() -> AsyncIterator[FastAPI]:
    # No name is looked up, and the caches are small, so that what grows is not meant to.
    settings = Settings(
        _cli_parse_args=[],
        recommend_bundle=Path("memory"),
        bid_queries_bundle=Path("memory"),
        worker_threads=1,
        decode_threads=1,
        cache_bytes=1 << 16,
        fetch_allowed_hosts="pictures.invalid",
    )
    model = MemoryModel(shop())
    app = create_app(settings, lambda *_: model)
    async with app.router.lifespan_context(app):
        await eventually(lambda: lifecycle_of(app).phase is Phase.READY)
        app.state.tasks_at_rest = len(asyncio.all_tasks())
        yield app
        for noted in (model.titles_seen, model.title_batches, model.image_batches):
            noted.clear()


async def _try(app: FastAPI, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    """One request; 1 when it was answered 200."""
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    got: list[Any] = []
    hung_up = asyncio.Event()

    async def receive() -> Any:
        if sent:
            return sent.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        got.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode("utf-8", "replace"), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    async with asyncio.timeout(SLOWEST_SECONDS):
        await app(scope, receive, send)
    _examine(path, got[0], b"".join(message.get("body", b"") for message in got[1:]), body)
    return int(got[0]["status"] == 200)


def _examine(path: str, start: Any, content: bytes, body: bytes) -> None:
    """The answer keeps the contract, whatever was asked."""
    status, headers = start["status"], dict(start["headers"])
    assert status < 500, (status, path, body[:500])
    assert headers[b"x-request-id"]
    if status == 200:
        (BatchAnswer if path.endswith("/batch") else RecommendAnswer).model_validate_json(content)
        items = json.loads(content).get("items", [])
        assert [item for item in items if item["status"] >= 500] == [], body[:500]
    else:
        assert headers[b"content-type"] == b"application/problem+json"
        assert Problem.model_validate_json(content).code in _CODES


async def _settled(app: FastAPI) -> dict[str, float]:
    """What is left once everything under way had time to end."""
    for _ in range(200):
        if not any(_under_way(app).values()):
            break
        await asyncio.sleep(0.01)
    return _under_way(app)


def _under_way(app: FastAPI) -> dict[str, float]:
    parts = app.state.parts
    return {
        "tasks": len(asyncio.all_tasks()) - app.state.tasks_at_rest,
        "in flight": parts.metrics.registry.get_sample_value("mufin_requests_in_flight") or 0,
        "waiting": parts.queue.waiting_items,
    }


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def mutants(chance: random.Random, number: int) -> Iterator[tuple[str, list[tuple[bytes, bytes]], bytes]]:
    """Paths, headers and bodies: good ones and those of the table, each changed a little."""
    good = [json.dumps(own).encode() for own in _GOOD]
    good += [b'{"items":[' + b",".join(good) + b"]}"]
    seeds = list(good)
    for cases in REQUESTS.values():
        bodies = [b"".join(case.sends).partition(b"\r\n\r\n")[2] for case in cases]
        seeds += [body for body in bodies if body.startswith(b"{") and len(body) < 5000]
    for _ in range(number):
        body = chance.choice(good if chance.random() < 0.6 else seeds)
        for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
            body = _changed(chance, body, seeds)
        headers = [_KIND] if chance.random() < 0.97 else []
        headers += chance.choices(_HEADERS, k=chance.choice((0, 0, 0, 1, 2)))
        path = chance.choice(_PATHS) if chance.random() < 0.98 else f"/{chance.choice(_PIECES)}"
        if b'"items"' in body and chance.random() < 0.8:
            path = chance.choice(_PATHS[2:])
        yield path, headers, body


def _changed(chance: random.Random, body: bytes, seeds: list[bytes]) -> bytes:
    at, end = sorted((chance.randint(0, len(body)), chance.randint(0, len(body))))
    piece = chance.choice(_PIECES).encode("utf-8", "surrogatepass")
    kind = chance.randrange(7)
    if kind == 0:
        return body[:at] + body[at + 1 :]
    if kind == 1:
        return body[:at] + piece + body[at:]
    if kind == 2:
        return body[:at] + body[at:end] * chance.choice((2, 3)) + body[end:]
    if kind == 3:
        return body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :]
    if kind == 4:
        other = chance.choice(seeds)
        return body[:at] + other[chance.randint(0, len(other)) :]
    # Whole values for whole values, so that many mutants stay JSON.
    pieces = body.split(b":")
    where = chance.randrange(len(pieces))
    if kind == 5 and where:
        tail = pieces[where][-1:] if pieces[where][-1:] in b"}]," else b""
        pieces[where] = piece + tail
        return b":".join(pieces)
    return body.replace(b'{"', b'{"' + piece.strip(b'"').rstrip(b":,") + b'":1,"', 1) if chance.random() < 0.3 else body
