"""What a fetcher does beyond one fetch: tags, breakers, slots, trust. Hostile servers stand in hostile_cases.py.

Here, too, a policy of the tests takes 127.0.0.1 for public.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from service.addresses import Address, is_public
from service.dialling import ConnectFault, Dialler, connect
from service.errors import PictureError
from service.fetching import Fetcher, FetchLimits
from service.picture_urls import UrlPolicy
from tests.service.redis_process import free_port
from tests.service.serving import PictureServer, picture, picture_server

BOTH_LOOPS = True
PNG = picture()
LIMITS = FetchLimits(
    connect_seconds=0.5, first_byte_seconds=0.5, total_seconds=1.0, min_bytes_per_second=2000, max_bytes=50_000
)


def _loopback_is_public(address: Address) -> bool:
    return address == ipaddress.ip_address("127.0.0.1") or is_public(address)


class Names:
    """A resolver with a script: each lookup of a name gives the next list of addresses."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host == "127.0.0.1":
            return [host]
        lists = self.answers.get(host)
        if not lists:
            raise OSError("no such name")
        return lists.pop(0) if len(lists) > 1 else lists[0]


@asynccontextmanager
async def fetching(
    names: Names | None = None, limits: FetchLimits = LIMITS, trusted: bool = False, public_loopback: bool = True
) -> AsyncIterator[tuple[Fetcher, PictureServer]]:
    """A fetcher and the server it fetches from."""
    async with picture_server() as pictures:
        policy = UrlPolicy(
            allow_http=True,
            ports=frozenset({pictures.port, 80, 443}),
            trusted_origins=frozenset({pictures.origin}) if trusted else frozenset(),
            is_public=_loopback_is_public if public_loopback else is_public,
        )
        fetcher = Fetcher(policy, limits, names or Names())
        try:
            yield fetcher, pictures
        finally:
            await fetcher.aclose()


async def _code(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(PictureError) as raised:
        await fetcher.fetch(url)
    return raised.value.code


async def test_a_picture_comes_back_as_served() -> None:
    """The plain case, and what is sent: no cookies, no caller's headers, identity encoding."""
    async with fetching() as (fetcher, pictures):
        pictures.serve("/1.png", PNG, "Set-Cookie: a=b", 'ETag: "x"')
        fetched = await fetcher.fetch(f"{pictures.origin}/1.png")
        assert fetched.content == PNG
        assert fetched.etag == '"x"'
        await fetcher.fetch(f"{pictures.origin}/1.png")
        assert all("cookie" not in head.lower() for head in pictures.heads)
        assert "accept-encoding: identity" in pictures.heads[0].lower()


async def test_a_known_tag_spares_the_transfer() -> None:
    """If-None-Match is sent, 304 comes back as unchanged; a 304 that nobody asked for is a failure."""
    async with fetching() as (fetcher, pictures):
        pictures.with_etag("/1.png", PNG, '"v1"')
        pictures.serve("/304.png", b"", status="304 Not Modified")
        assert (await fetcher.fetch(f"{pictures.origin}/1.png")).etag == '"v1"'
        assert (await fetcher.fetch(f"{pictures.origin}/1.png", '"v1"')).content is None
        assert await _code(fetcher, f"{pictures.origin}/304.png") == "image_unreachable"


async def test_a_name_is_looked_up_once_a_connection_so_rebinding_gains_nothing() -> None:
    """Public first, private at connect time: the address that was judged is the one dialled."""
    names = Names(shop_example=[["127.0.0.1"], ["10.0.0.1"]])
    async with fetching(names) as (fetcher, pictures):
        pictures.serve("/1.png", PNG)
        url = f"http://shop.example:{pictures.port}/1.png"
        assert (await fetcher.fetch(url)).content == PNG
        assert names.asked == ["shop.example"]
        assert await _code(fetcher, url) == "image_unreachable"


async def test_the_peer_of_the_socket_is_judged_as_well() -> None:
    """Should a dialler ever go elsewhere, the connection is dropped before a byte is sent."""
    async with picture_server() as pictures:

        async def elsewhere(address: str, port: int) -> socket.socket:
            return await connect("127.0.0.1", pictures.port)

        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["8.8.8.8"]

        with pytest.raises(ConnectFault, match="refused"):
            await Dialler(resolve, is_public, elsewhere).dial("shop.example", 443, 1.0)
        assert pictures.heads == []


async def test_loopback_is_refused_without_the_test_policy() -> None:
    """The real table, by number and by name."""
    names = Names(localhost=[["127.0.0.1"]])
    async with fetching(names, public_loopback=False) as (fetcher, pictures):
        assert await _code(fetcher, f"{pictures.origin}/1.png") == "image_url_refused"
        assert await _code(fetcher, f"http://localhost:{pictures.port}/1.png") == "image_unreachable"
        assert pictures.heads == []


async def test_a_trusted_origin_is_fetched_and_not_reached_by_redirect() -> None:
    """The exemption holds for the caller's own URL, all other limits stay."""
    async with fetching(trusted=True, public_loopback=False) as (fetcher, pictures):
        pictures.serve("/1.png", PNG)
        pictures.redirect("/self", "/1.png")
        pictures.endless("/endless", PNG[:20])
        assert (await fetcher.fetch(f"{pictures.origin}/1.png")).content == PNG
        assert await _code(fetcher, f"{pictures.origin}/self") == "image_unreachable"
        assert await _code(fetcher, f"{pictures.origin}/endless") == "image_too_large"


async def test_a_host_that_fails_is_left_alone() -> None:
    """After five failures in a row the breaker answers, without a connection; another host is not affected."""
    async with fetching(Names(other_example=[["127.0.0.1"]])) as (fetcher, pictures):
        pictures.raw("/reset", b"")
        pictures.serve("/1.png", PNG)
        for _ in range(5):
            assert await _code(fetcher, f"{pictures.origin}/reset") == "image_unreachable"
        before = len(pictures.heads)
        assert await _code(fetcher, f"{pictures.origin}/1.png") == "image_unreachable"
        assert len(pictures.heads) == before
        assert (await fetcher.fetch(f"http://other.example:{pictures.port}/1.png")).content == PNG


async def test_bad_pictures_do_not_trip_the_breaker() -> None:
    """A host that answers is well, whatever it answers with."""
    async with fetching() as (fetcher, pictures):
        pictures.serve("/1.png", PNG)
        for _ in range(8):
            assert await _code(fetcher, f"{pictures.origin}/missing") == "image_unreachable"
        assert (await fetcher.fetch(f"{pictures.origin}/1.png")).content == PNG


async def test_fetches_from_one_host_are_bounded() -> None:
    """No more than the limit are under way at once, and all of them end."""
    limits = FetchLimits(total_seconds=5.0, first_byte_seconds=5.0, max_fetches_per_host=3)
    running, most = 0, 0
    async with fetching(limits=limits) as (fetcher, pictures):

        async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(PNG)}\r\nConnection: close\r\n\r\n".encode() + PNG)

        pictures.routes["/1.png"] = reply
        fetched = await asyncio.gather(*(fetcher.fetch(f"{pictures.origin}/1.png") for _ in range(12)))
        assert all(own.content == PNG for own in fetched)
        assert most == 3
        assert not fetcher._host_slots


async def test_a_closed_port_is_unreachable() -> None:
    """Connection refused, tried twice, ends in the same code as everything else."""
    async with fetching() as (fetcher, pictures):
        free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = free.sockets[0].getsockname()[1]
        free.close()
        await free.wait_closed()
        fetcher._policy = UrlPolicy(allow_http=True, ports=frozenset({port}), is_public=_loopback_is_public)
        assert await _code(fetcher, f"http://127.0.0.1:{port}/1.png") == "image_unreachable"
        assert pictures.heads == []


@pytest.mark.parametrize(("held", "blamed"), [(0.0, True), (0.3, False), (5.0, False)])
async def test_waiting_for_a_slot_is_not_the_url_s_fault(held: float, blamed: bool) -> None:
    """A picture that was never asked for, or so late that its server had no time, is told apart from one that did not come."""
    async with picture_server() as pictures:

        async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
            await asyncio.sleep(5)
            writer.close()

        pictures.routes["/slow.png"] = slow
        limits = FetchLimits(first_byte_seconds=4.0, total_seconds=0.4, max_fetches_per_host=1)
        fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset({pictures.origin})), limits)
        async with AsyncExitStack() as slot:
            if held:
                await slot.enter_async_context(fetcher._host_slot("127.0.0.1"))
            asked = asyncio.ensure_future(fetcher.fetch(f"{pictures.origin}/slow.png"))
            await asyncio.wait([asked], timeout=held or None)
        with pytest.raises(PictureError) as refused:
            await asked
        assert (refused.value.code, refused.value.of_the_url) == ("image_timeout", blamed)
        await fetcher.aclose()


async def test_a_host_that_is_left_alone_says_nothing_of_the_url() -> None:
    """It is asked again as soon as its host is."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    fetcher = Fetcher(UrlPolicy(trusted_origins=frozenset({origin})), FetchLimits())
    found = []
    for number in range(8):
        with pytest.raises(PictureError) as refused:
            await fetcher.fetch(f"{origin}/{number}.png")
        found.append(refused.value.of_the_url)
    assert found == [True] * 5 + [False] * 3
    await fetcher.aclose()
