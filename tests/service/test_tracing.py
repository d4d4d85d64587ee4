"""Traces: a caller's trace goes on through the steps of a request, to the log and to servers of one's own."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.collector import collector
from tests.service.redis_process import redis_process
from tests.service.serving import PictureServer, picture, picture_server
from tests.service.test_process import Served, served

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
SECRET_TITLE = "red running shoes"


@contextmanager
def pictures() -> Iterator[PictureServer]:
    """A picture server on a thread of its own."""
    found: list[PictureServer] = []
    ready, end = threading.Event(), threading.Event()

    async def run() -> None:
        async with picture_server() as server:
            server.serve("/secret.png", picture("blue"))
            found.append(server)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield found[0]
    finally:
        end.set()
        thread.join(10)


def _ask(own: Served, *images: str, **headers: str) -> httpx.Response:
    body = {"product": {"title": SECRET_TITLE, "images": list(images)}, "k": 1}
    return httpx.post(f"{own.until_ready()}/recommend", json=body, headers=headers, timeout=10)


def _end(own: Served) -> int:
    own.process.send_signal(signal.SIGTERM)
    return own.end()


def test_a_trace_runs_from_the_caller_through_every_step(tmp_path: Path) -> None:
    """One trace, each step beneath the request's span; the log knows it; a picture server of one's own is told."""
    with redis_process(tmp_path) as redis, pictures() as server, collector() as traces:
        flags = ("--drain-seconds", "0", "--fetch-trusted-origins", server.origin, "--redis-url", redis.url)
        with served(*flags, OTEL_EXPORTER_OTLP_ENDPOINT=traces.url) as own:
            answer = _ask(own, f"{server.origin}/secret.png", traceparent=TRACEPARENT)
            assert answer.status_code == 200 and answer.json()["modalities_used"] == ["title", "image"]
            httpx.get(f"{own.url}/readyz")
            assert _end(own) == 0
        head = server.heads[0]
    spans = {bytes(span.span_id).hex(): span for span in traces.spans}
    (root,) = traces.named("POST /recommend")
    assert {bytes(span.trace_id).hex() for span in traces.spans} == {TRACE}
    assert bytes(root.parent_span_id).hex() == CALLER
    names = {span.name for span in spans.values()}
    assert names == {
        "POST /recommend", "cache", "redis", "fetch", "decode", "encode", "shortlist", "rerank",
    }, "probes have none"  # fmt: skip
    for span in spans.values():
        assert span is root or bytes(span.parent_span_id).hex() in spans, span.name
    facts = {own.key: own.value for own in root.attributes}
    assert facts["http.response.status_code"].int_value == 200
    assert facts["mufin.request_id"].string_value == answer.headers["x-request-id"]
    assert traces.services == {"mufin"}
    line = next(line for line in own.lines if line["event"] == "request")
    assert line["trace_id"] == TRACE
    (fetch,) = traces.named("fetch")
    told = re.search(r"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01", head, re.IGNORECASE)
    assert told and told.groups() == (TRACE, bytes(fetch.span_id).hex())
    everything = b"".join(span.SerializeToString() for span in traces.spans)
    assert SECRET_TITLE.encode() not in everything and b"secret.png" not in everything


def test_a_request_without_a_trace_begins_one_and_its_failure_is_seen() -> None:
    """A model that breaks is an error of the span of the step and of the request, by type alone."""
    with collector() as traces, served("--drain-seconds", "0", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url) as own:
        url = own.until_ready()
        assert httpx.post(f"{url}/recommend", json={"product": {}}).status_code == 422
        late = {"X-Request-Timeout-Ms": "1"}
        assert httpx.post(f"{url}/recommend", json={"product": {"title": "x"}}, headers=late).status_code in (200, 504)
        assert _end(own) == 0
    lines = [line for line in own.lines if line["event"] == "request"]
    roots = traces.named("POST /recommend")
    assert sorted(bytes(root.trace_id).hex() for root in roots) == sorted(line["trace_id"] for line in lines)
    assert len({line["trace_id"] for line in lines}) == 2
    assert all(not root.parent_span_id for root in roots)
    by_status = {own.value.int_value: root for root in roots for own in root.attributes if "status_code" in own.key}
    assert by_status[422].status.code == 0, "a caller's mistake is no error of ours"
    if 504 in by_status:
        assert by_status[504].status.code == 2


@pytest.mark.parametrize(
    ("sent", "logged"),
    [(TRACEPARENT, TRACE), ("", None), ("00-zz-1", None), (f"00-{'0' * 32}-{CALLER}-01", None),
     (f"ff-{TRACE}-{CALLER}-01", None)],
    ids=["good", "none", "garbage", "zero", "version ff"],
)  # fmt: skip
def test_without_a_collector_the_callers_trace_is_logged_alone(quiet: Served, sent: str, logged: str | None) -> None:
    """Nothing is sent anywhere; a traceparent that is none is passed over."""
    headers = {"traceparent": sent} if sent else {}
    answer = _ask(quiet, **headers, **{"x-request-id": f"id-{len(quiet.lines)}"})
    assert answer.status_code == 200
    until = time.monotonic() + 10
    own = answer.headers["x-request-id"]
    while not (lines := [line for line in quiet.lines if line.get("request_id") == own]) and time.monotonic() < until:
        time.sleep(0.01)
    assert lines[0].get("trace_id") == logged


@pytest.fixture(scope="module")
def quiet() -> Iterator[Served]:
    """A service without a collector."""
    with served("--drain-seconds", "0") as own:
        own.until_ready()
        yield own


def test_a_collector_that_hangs_costs_no_answer_and_little_of_the_end() -> None:
    """Spans wait aside, and are given up when the process ends."""
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "10"}
    silence = collector(silent=True)
    with (
        silence as traces,
        served("--drain-seconds", "0", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, **environment) as own,
    ):
        assert [_ask(own).status_code for _ in range(3)] == [200] * 3
        until = time.monotonic() + 10
        while not traces.asked and time.monotonic() < until:
            time.sleep(0.01)
        assert traces.asked
        assert _ask(own).status_code == 200
        began = time.monotonic()
        assert _end(own) == 0
        assert time.monotonic() - began < 10


def test_a_collector_that_is_not_there_costs_no_answer() -> None:
    """It is told in the log, once or a few times."""
    with served("--drain-seconds", "0", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as own:
        assert _ask(own).status_code == 200
        assert _end(own) == 0


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "4318"),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "http://collector:4318")],
    ids=["gRPC", "no scheme"],
)  # fmt: skip
def test_what_is_not_spoken_ends_the_start(environment: dict[str, str], remedy: str) -> None:
    """With its remedy."""
    with served(**environment) as own:
        assert own.end() == 1
        assert remedy in "".join(own.rest)


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=["sdk", "none"])
def test_opentelemetrys_own_switches_turn_it_off(off: dict[str, str]) -> None:
    """Though an endpoint is set for something else."""
    with collector() as traces, served("--drain-seconds", "0", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, **off) as own:
        assert _ask(own).status_code == 200
        assert _end(own) == 0
        assert traces.asked == 0


def test_callers_who_do_not_sample_are_not_sampled() -> None:
    """Their decision holds; the log names their trace all the same."""
    with collector() as traces, served("--drain-seconds", "0", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url) as own:
        assert _ask(own, traceparent=f"00-{TRACE}-{CALLER}-00").status_code == 200
        assert _end(own) == 0
        assert traces.spans == []
    assert next(line for line in own.lines if line["event"] == "request")["trace_id"] == TRACE
