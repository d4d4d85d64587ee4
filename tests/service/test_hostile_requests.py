"""Every case of the table of hostile requests against a real process; afterwards it is as it was."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.service.hostile_requests import CHUNKED, GOOD, REQUESTS, Case
from tests.service.test_process import Served, served

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n")
_CODE = re.compile(rb'"code":"(\w+)","detail"')
CASES = [pytest.param(own, id=f"{group}: {own.name}") for group, cases in REQUESTS.items() for own in cases]


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    """One process for all cases, with short limits."""
    flags = ("--head-seconds", "1", "--deadline-milliseconds", "1500", "--drain-seconds", "0")
    with served(*flags, "--bid-queries-bundle", "memory") as own:
        own.until_ready()
        yield own


def _exchange(address: tuple[str, int], case: Case) -> bytes:
    """All that comes back until the service closes the connection."""
    received = bytearray()
    with socket.create_connection(address, timeout=10) as client:
        try:
            for piece in case.sends:
                client.sendall(piece)
                if case.pause_seconds:
                    time.sleep(case.pause_seconds)
            if case.ends:
                client.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # it has been answered, or cut off, before all was sent
        try:
            while piece := client.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    return bytes(received)


def _outcome(received: bytes) -> str:
    """Statuses, and the problem's code where there is one."""
    statuses, codes = [own.decode() for own in _HEAD.findall(received)], _CODE.findall(received)
    if len(set(statuses)) == 1 and len(statuses) > 1:
        return f"{statuses[0]} x {len(statuses)}"
    if len(statuses) == 1 and codes and int(statuses[0]) >= 400:
        return f"{statuses[0]} {codes[0].decode()}"
    return ", ".join(statuses) or "nothing"


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_request_ends_as_stated(service: Served, case: Case) -> None:
    """Status and code, and a closed connection."""
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    assert _outcome(_exchange(address, case)) == case.outcome


def test_what_a_trailer_says_is_no_header(service: Served) -> None:
    """Whatever stands before the service may have checked or set the head's fields."""
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    trailers = b"X-Request-ID: from-the-trailer\r\nX-Request-Timeout-Ms: 0\r\nConnection: close\r\n\r\n"
    head_first = CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close")
    received = _exchange(address, Case("a trailer that names itself", [head_first + trailers], "200"))
    assert _outcome(received) == "200"
    assert b"from-the-trailer" not in received


def test_afterwards_the_service_is_as_it_was(service: Served) -> None:
    """It answers, nothing is under way, no connection is left, and nothing counted as a defect."""
    answer = httpx.post(f"{service.url}/recommend", content=GOOD, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    page = httpx.get(f"{service.url}/metrics").text
    assert "mufin_requests_in_flight 0.0" in page
    assert "mufin_queue_items 0.0" in page
    assert [line for line in service.lines if line["event"] == "defect" or line["level"] == "error"] == []
    assert [line for line in service.lines if "pgrade" in json.dumps(line)] == []
    assert service.rest == []
