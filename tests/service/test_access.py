"""Keys, scopes, rates and CORS through the whole app; and that no secret reaches the log."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.answered import refusal
from tests.service.redis_process import free_port, redis_process
from tests.service.serving import running
from tests.service.test_process import served

BODY = {"product": {"title": "red running shoes"}, "k": 1}
BATCH = {"items": [BODY, BODY, BODY]}


def _entry(name: str, key: str, scopes: str, rate: str = "") -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:{scopes}" + (f":{rate}" if rate else "")


def _with(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_each_scope_opens_its_own_endpoints() -> None:
    """Both spellings of the header; what is told of the key is its name only; probes and metrics stay open."""
    keys = (
        f"{_entry('shop', 'one', 'recommend')},{_entry('ads', 'two', 'bid-queries')},{_entry('ops', 'three', 'admin')}"
    )
    async with running(api_keys=keys) as (client, _):
        table = {"one": (200, 403, 403), "two": (403, 200, 403), "three": (403, 403, 200), "four": (401, 401, 401)}
        for key, expected in table.items():
            for headers in (_with(key), {"X-API-Key": key}):
                found = (
                    (await client.post("/recommend", json=BODY, headers=headers)).status_code,
                    (await client.post("/bid-queries/batch", json=BATCH, headers=headers)).status_code,
                    (await client.get("/bundles", headers=headers)).status_code,
                )
                assert found == expected, key
        refused = await client.post("/recommend", json=BODY)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/livez", "/readyz", "/startupz", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path


async def test_a_key_is_changed_without_a_gap() -> None:
    """The old and the new one both work while both stand there, and they share one rate."""
    keys = f"{_entry('shop', 'old', 'recommend', '0.001')},{_entry('shop', 'new', 'recommend', '0.001')}"
    async with running(api_keys=keys, rate_burst=2) as (client, _):
        for key, status in (("old", 200), ("new", 200), ("old", 429), ("new", 429)):
            assert (await client.post("/recommend", json=BODY, headers=_with(key))).status_code == status


async def test_beyond_the_rate_the_answer_is_429_with_retry_after() -> None:
    """A problem with its own code, counted as shed; other callers and refused keys are not touched."""
    keys = f"{_entry('shop', 'one', 'recommend')},{_entry('fast', 'two', 'recommend', '1000')}"
    async with running(api_keys=keys, rate_per_second=0.5, rate_burst=2) as (client, _):
        for _ in range(2):
            assert (await client.post("/recommend", json=BODY, headers=_with("one"))).status_code == 200
        refused = await client.post("/recommend", json=BODY, headers=_with("one"))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "2"
        assert (await client.post("/recommend", json=BODY, headers=_with("two"))).status_code == 200
        assert 'mufin_shed_total{reason="rate_limit"} 1.0' in (await client.get("/metrics")).text


async def test_a_batch_costs_as_many_as_it_holds() -> None:
    """It is answered whole, and the next request waits for what it took."""
    async with running(api_keys=_entry("shop", "one", "recommend", "1"), rate_burst=2) as (client, _):
        batch = await client.post("/recommend/batch", json=BATCH, headers=_with("one"))
        assert [item["status"] for item in batch.json()["items"]] == [200] * 3
        refused = await client.post("/recommend", json=BODY, headers=_with("one"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")


async def test_two_services_share_a_rate_and_do_without_redis(tmp_path: Path) -> None:
    """One budget for both while Redis answers; afterwards requests go on being answered."""
    settings: dict[str, Any] = {"api_keys": _entry("shop", "one", "recommend", "0.001"), "rate_burst": 6}
    with redis_process(tmp_path) as server:
        settings["redis_url"] = server.url
        async with running(**settings) as (first, _), running(**settings) as (second, _):

            async def ask(client: httpx.AsyncClient) -> int:
                return (await client.post("/recommend", json=BODY, headers=_with("one"))).status_code

            assert [await ask(client) for client in (first, second, first)] == [200] * 3
            server.kill()
            # Each goes on from what Redis said last: 3 left for the first, 4 for the second.
            assert [await ask(first) for _ in range(4)] == [200] * 3 + [429]
            assert [await ask(second) for _ in range(5)] == [200] * 4 + [429]


async def test_no_page_of_another_origin_may_call_unless_it_is_named() -> None:
    """Off: no header at all. On: the named origin only, without cookies; preflights need no key."""
    preflight = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with running() as (client, _):
        answer = await client.post("/recommend", json=BODY, headers={"Origin": "https://shop.example"})
        assert [name for name in answer.headers if name.startswith("access-control")] == []
        assert (await client.options("/recommend", headers=preflight)).status_code == 405
    keys = _entry("shop", "one", "recommend")
    async with running(cors_origins="https://SHOP.example:443/", api_keys=keys) as (client, _):
        asked = await client.options("/recommend", headers=preflight)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://shop.example")
        answer = await client.post("/recommend", json=BODY, headers={"Origin": "https://shop.example", **_with("one")})
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        refused = await client.post("/recommend", json=BODY, headers={"Origin": "https://shop.example"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://shop.example")
        for origin in ("https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null"):
            assert (await client.options("/recommend", headers={**preflight, "Origin": origin})).status_code == 400
            answer = await client.post("/recommend", json=BODY, headers={"Origin": origin, **_with("one")})
            assert "access-control-allow-origin" not in answer.headers


async def test_a_page_reads_the_answer_to_a_defect_too() -> None:
    """From a handler that FastAPI calls and from one that it does not; a problem document either way."""
    async with running(cors_origins="https://shop.example") as (client, app):

        def broken() -> None:
            raise RuntimeError("secret of the inside")

        app.state.parts.open_bundles = broken
        asked = {"Origin": "https://shop.example"}
        for answer in (
            await client.post("/recommend", json={"product": {"title": "explode"}}, headers=asked),
            await client.get("/bundles", headers=asked),
        ):
            refusal(answer, 500, "internal_error")
            assert answer.headers["access-control-allow-origin"] == "https://shop.example"
            assert "secret" not in answer.text


@pytest.mark.parametrize(
    "url", ["redis://:verysecret@127.0.0.1:{port}/0", "verysecret://127.0.0.1", "redis://u:verysecret@h:x"]
)
def test_no_secret_reaches_the_log(url: str) -> None:
    """Keys right and wrong, their hashes and a Redis password, at the talkative level, with a Redis that is not there."""
    hashed = hashlib.sha256(b"topsecretkey").hexdigest()
    environment = {
        "MUFIN_REDIS_URL": url.format(port=free_port()),
        "MUFIN_API_KEYS": f"shop:{hashed}:recommend:5",
    }
    with served("--log-level", "debug", **environment) as own:
        if "{port}" in url:
            base = own.until_ready()
            for key, status in (("topsecretkey", 200), ("guessedsecretkey", 401)):
                assert httpx.post(f"{base}/recommend", json=BODY, headers=_with(key)).status_code == status
            assert httpx.get(f"{base}/nowhere?key=topsecretkey").status_code == 404
            assert own.event("request")["caller"] == "shop"
            own.process.send_signal(signal.SIGINT)
            assert own.end() == 0
        else:
            assert own.end() == 1
            assert "redis_url must look like" in own.rest[-1]
        written = json.dumps(own.lines) + "".join(own.rest)
        for secret in ("topsecret", "guessedsecret", "verysecret", hashed):
            assert secret not in written
