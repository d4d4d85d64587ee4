"""Every case of hostile_cases.py, against a server of our own on loopback.

Only here is 127.0.0.1 taken for public, by a policy that no setting can make.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from service import parts
from service.addresses import Address, is_public
from service.dialling import ConnectFault, Dialler, Lookups
from service.errors import PictureError
from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy, UrlRefused, check_url, redirect_url
from service.settings import Settings
from tests.service.certificates import Authority
from tests.service.hostile_cases import FETCHES, REDIRECTS, URLS, FetchCase, Names, Soon
from tests.service.hostile_server import (
    PNG,
    Connection,
    HostileServer,
    answer,
    redirect,
    repeat,
    resets_after,
    routes,
    silent,
)
from tests.service.serving import eventually

BOTH_LOOPS = True
PLAIN_HTTP = UrlPolicy(allow_http=True)
# Far beyond what any case needs, so that a case which must end at once cannot be saved by a limit.
WIDE = FetchLimits(
    connect_seconds=20, first_byte_seconds=20, total_seconds=20, min_bytes_per_second=0, max_bytes=2_000_000
)
LIMITS: dict[Soon, FetchLimits] = {
    "at once": WIDE,
    "connect limit": replace(WIDE, connect_seconds=0.2),
    "first-byte limit": replace(WIDE, first_byte_seconds=0.2),
    "whole limit": replace(WIDE, total_seconds=0.3),
    "speed limit": replace(WIDE, min_bytes_per_second=5000),
}
ENOUGH_SECONDS = 8.0


def loopback_is_public(address: Address) -> bool:
    """The test's policy: one loopback address counts as public."""
    return address == ipaddress.ip_address("127.0.0.1") or is_public(address)


class ScriptedNames:
    """A name server with a script: each lookup of a name gives the next list of addresses, the last one for ever."""

    def __init__(self, script: Names) -> None:
        self._script = {name: list(answers) for name, answers in script.items()}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host == "127.0.0.1":
            return [host]
        if host == "hangs.example":
            await asyncio.sleep(60)
        answers = self._script.get(host)
        if not answers:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Makes certificates for shop.example."""
    return Authority.make(tmp_path_factory.mktemp("certificates"))


def _policy(*servers: HostileServer) -> UrlPolicy:
    ports = frozenset({80, 443, *(server.port for server in servers)})
    return UrlPolicy(allow_http=True, ports=ports, is_public=loopback_is_public)


async def _outcome(fetcher: Fetcher, url: str) -> str:
    try:
        fetched = await fetcher.fetch(url)
    except PictureError as error:
        return error.code
    assert fetched.content == PNG
    return "ok"


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{group}: {case.name}") for group, cases in FETCHES.items() for case in cases]
)
async def test_fetching_ends_as_the_table_says(case: FetchCase, request: pytest.FixtureRequest) -> None:
    """The stated code, by the stated limit, with no more connections than stated."""
    secure = request.getfixturevalue("authority") if case.url.startswith("https") else None
    tls = secure.server(case.tls) if secure is not None and case.tls is not None else None
    async with HostileServer.playing(case.play, tls) as server:
        fetcher = Fetcher(
            _policy(server), LIMITS[case.soon], ScriptedNames(case.names), secure.trusting() if secure else None
        )
        try:
            async with asyncio.timeout(ENOUGH_SECONDS):
                assert await _outcome(fetcher, case.url.format(port=server.port)) == case.outcome
        finally:
            await fetcher.aclose()
        assert not fetcher._host_slots
        assert case.connections is None or server.connections == case.connections


@pytest.mark.parametrize(
    "url", [pytest.param(url, id=f"{group}: {ascii(url)[:60]}") for group in URLS for url in URLS[group]]
)
def test_a_hostile_url_is_refused_by_its_text(url: str) -> None:
    """Before any name is looked up."""
    with pytest.raises(UrlRefused):
        check_url(url, PLAIN_HTTP)


@pytest.mark.parametrize("location", REDIRECTS)
def test_a_redirect_is_judged_like_a_url_and_never_leaves_https(location: str) -> None:
    """Each hop is checked in full."""
    with pytest.raises(UrlRefused):
        redirect_url(check_url("https://shop.example/a/b", PLAIN_HTTP), location, PLAIN_HTTP)


def test_no_setting_makes_an_internal_address_public(tmp_path: Path) -> None:
    """What the tests do with loopback, no environment and no flag can do: the service's policy is the table's."""
    settings = Settings(_cli_parse_args=[], fetch_allow_http=True, fetch_ports=(1, 80, 443))
    assert parts._url_policy(settings).is_public is is_public
    fetcher = parts.build(settings).fetcher
    assert fetcher._policy.is_public is is_public
    assert not [name for name in Settings.model_fields if "public" in name or "resolve" in name or "tls" in name]


async def test_a_slow_host_takes_no_slots_from_others() -> None:
    """Whoever waits for a host that is full holds none of the slots that all hosts share."""
    limits = replace(WIDE, max_fetches=4, max_fetches_per_host=2)
    async with HostileServer.playing(silent) as slow, HostileServer.playing(answer()) as quick:
        names = ScriptedNames({"slow.example": [["127.0.0.1"]], "quick.example": [["127.0.0.1"]]})
        fetcher = Fetcher(_policy(slow, quick), limits, names)
        stuck = [asyncio.ensure_future(fetcher.fetch(f"http://slow.example:{slow.port}/{own}")) for own in range(12)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(ENOUGH_SECONDS):
            assert await _outcome(fetcher, f"http://quick.example:{quick.port}/") == "ok"
        assert slow.connections == 2
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await fetcher.aclose()
        assert not fetcher._host_slots


async def test_waiting_for_a_slot_counts_towards_the_whole_limit() -> None:
    """A fetch behind slow ones ends in its own time, and says nothing against the host it never asked."""
    async with HostileServer.playing(silent) as slow:
        fetcher = Fetcher(_policy(slow), replace(WIDE, max_fetches_per_host=1, total_seconds=0.2), ScriptedNames({}))
        url = f"http://127.0.0.1:{slow.port}/"
        outcomes = await asyncio.gather(*(_outcome(fetcher, url) for _ in range(5)))
        assert outcomes == ["image_timeout"] * 5
        assert slow.connections == 1
        await fetcher.aclose()


async def test_a_redirect_is_charged_to_the_host_that_fails() -> None:
    """A host that sends callers on to a broken one stays in use; the broken one is left alone."""
    async with HostileServer.playing(resets_after(b"")) as broken:
        play = routes({"/to": redirect(f"http://127.0.0.1:{broken.port}/"), "/1.png": answer()})
        async with HostileServer.playing(play) as shop:
            fetcher = Fetcher(_policy(broken, shop), WIDE, ScriptedNames({}))
            for _ in range(7):
                assert await _outcome(fetcher, f"http://127.0.0.1:{shop.port}/to") == "image_unreachable"
            assert broken.connections == 5
            assert await _outcome(fetcher, f"http://127.0.0.1:{shop.port}/1.png") == "ok"
            await fetcher.aclose()


async def test_a_flood_leaves_the_event_loop_to_others() -> None:
    """Interim answers as fast as they can be sent: other tasks get their turns, the flood ends by itself."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with HostileServer.playing(repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000)) as server:
        fetcher = Fetcher(_policy(server), WIDE, ScriptedNames({}))
        ticking = asyncio.ensure_future(tick())
        began = time.monotonic()
        assert await _outcome(fetcher, f"http://127.0.0.1:{server.port}/") == "image_unreachable"
        assert time.monotonic() - began < ENOUGH_SECONDS
        assert turns >= 4  # the flood is left after a hundred of them
        ticking.cancel()
        await fetcher.aclose()


async def test_a_name_with_many_addresses_is_judged_whole_and_dialled_in_part() -> None:
    """Nobody uses the service to knock at thousands of doors."""
    dialled: list[str] = []

    async def closed(address: str, port: int) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [f"8.8.{own}.1" for own in range(200)]

    with pytest.raises(ConnectFault):
        await Dialler(resolve, is_public, closed).dial("shop.example", 443, 1.0)
    assert len(dialled) == 8


@pytest.mark.parametrize(
    ("url", "host"),
    [("https://shop.example/", "shop.example"), ("https://shop.example:443/", "shop.example"),
     ("http://shop.example:443/", "shop.example:443"), ("https://[2606:4700::1]/", "[2606:4700::1]")],
)  # fmt: skip
def test_the_host_header_names_no_usual_port(url: str, host: str) -> None:
    """Signed URLs are signed for the name alone."""
    assert check_url(url, PLAIN_HTTP).authority == host


async def test_a_handshake_that_is_given_up_leaves_no_socket(authority: Authority) -> None:
    """A request that is cut while TLS is being agreed on closes its connection."""
    hung_up = asyncio.Event()

    async def wait_for_the_end(connection: Connection) -> None:
        while await connection.reader.read(4096):
            pass
        hung_up.set()

    async with HostileServer.playing(wait_for_the_end) as server:
        names = ScriptedNames({"shop.example": [["127.0.0.1"]]})
        fetcher = Fetcher(_policy(server), WIDE, names, authority.trusting())
        task = asyncio.ensure_future(fetcher.fetch(f"https://shop.example:{server.port}/"))
        await eventually(lambda: server.connections == 1)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(ENOUGH_SECONDS):
            await hung_up.wait()
        assert hung_up.is_set()
        await fetcher.aclose()


async def test_the_whole_path_is_asked_for() -> None:
    """Nothing of a URL is lost or read anew on its way to the server, semicolons and dots included."""
    asked: list[str] = []

    async def note(connection: Connection) -> None:
        asked.append((await connection.head()).splitlines()[0])
        connection.reader.feed_data(b"\r\n\r\n")
        await answer()(connection)

    target = "/a;v=1/..//b;c?d=;e&f=%2F"
    async with HostileServer.playing(note) as server:
        fetcher = Fetcher(_policy(server), WIDE, ScriptedNames({}))
        assert await _outcome(fetcher, f"http://127.0.0.1:{server.port}{target}#g") == "ok"
        await fetcher.aclose()
    assert asked == [f"GET {target} HTTP/1.1"]


async def test_names_are_looked_up_in_threads_of_their_own() -> None:
    """The system's answer comes back as numbers; what is no name is an error that the backend knows."""
    lookups = Lookups(1)
    assert await lookups("127.0.0.1", 80) == ["127.0.0.1"]
    assert await lookups("2606:4700::1", 443) == ["2606:4700::1"]
    assert not lookups._pool._threads  # what is a number takes none
    assert await lookups("localhost", 80)
    assert lookups._pool._threads
    with pytest.raises((OSError, UnicodeError)):
        await lookups("a" * 64 + ".example", 80)
    lookups.close()
