"""The protocol of a picture's connection, fed by hand: an answer is the same however it is cut, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialling import NetworkFault
from service.picture_connection import Connection
from tests.service.scripted_server import CHUNKED, OK, PNG, FakeTransport, whole

BOTH_LOOPS = True


def cut(content: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """The content in pieces that end at these places."""
    ends = sorted({place % (len(content) + 1) for place in places} | {len(content)})
    begin = 0
    for end in ends:
        if end > begin:
            yield content[begin:end]
        begin = end


async def answered(pieces: Iterable[bytes], *, ends: bool) -> tuple[int, bytes, bool]:
    """Status, body and whether the connection may be used again. Raises NetworkFault."""
    connection, transport = Connection(), FakeTransport()
    connection.connection_made(transport)
    asking = asyncio.ensure_future(connection.ask(b"GET", 60))
    await asyncio.sleep(0)
    try:
        for piece in pieces:
            if transport.is_aborted:
                break
            connection.data_received(piece)
        if ends:
            connection.connection_lost(None)
        await asyncio.wait_for(asking, 5)
        body = b""
        while piece := await asyncio.wait_for(connection.read(), 5):
            body += piece
        return connection.status, body, connection.is_reusable
    finally:
        asking.cancel()
        connection.abort()


STREAMS = [
    (whole(b"abc", b"ETag: x"), (200, b"abc", True), False),
    (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 2 + whole(b"abc"), (200, b"abc", True), False),
    (OK + CHUNKED, (200, b"abc0123456789abcdef", True), False),
    (OK + b"Connection: close\r\n" + CHUNKED, (200, b"abc0123456789abcdef", False), False),
    (OK + b"\r\nuntil the end", (200, b"until the end", False), True),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", (404, b"", True), False),
]


async def test_an_end_after_a_fault_makes_no_answer_whole() -> None:
    """The reader was elsewhere when the connection was given up."""
    connection = Connection()
    connection.connection_made(FakeTransport())
    asking = asyncio.ensure_future(connection.ask(b"GET", 60))
    await asyncio.sleep(0)
    connection.data_received(OK + b"\r\nhalf")
    await asking
    connection.abort()
    connection.connection_lost(None)
    assert await connection.read() == b"half"
    with pytest.raises(NetworkFault, match="given up"):
        await connection.read()


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 400), max_size=30))
def test_an_answer_is_the_same_however_it_is_cut(
    stream: tuple[bytes, tuple[int, bytes, bool], bool], places: list[int]
) -> None:
    """Packets may end anywhere."""
    content, expected, ends = stream
    assert asyncio.run(answered(cut(content, places), ends=ends)) == expected


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(OK + b"X: " + b"x" * 20_000 + b"\r\n\r\n", None, id="a long head"),
        pytest.param(OK + b"X: " + b"x" * 40_000 + b"\r\n\r\n", "head is too long", id="a head too long"),
        pytest.param(INTERIM * 100 + whole(), None, id="many interim answers"),
        pytest.param(INTERIM * 101 + whole(), "interim answers without end", id="too many"),
        pytest.param(whole().replace(b"HTTP/1.1", b"HTTP/2.0"), "another protocol", id="another version"),
        pytest.param(OK + b"Transfer-Encoding: gzip\r\n\r\n" + PNG, "transfer encoding", id="packed for the way"),
        pytest.param(
            OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "two transfer encodings",
            id="in two lines",
        ),
        pytest.param(
            OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer encoding", id="and in chunks"
        ),
    ],
)
async def test_a_head_is_bounded_and_plain(content: bytes, fault: str | None) -> None:
    """Length, interim answers, version and encoding."""
    if fault is None:
        assert (await answered([content], ends=True))[0] == 200
        return
    with pytest.raises(NetworkFault, match=fault):
        await answered([content], ends=True)


async def test_a_trailer_is_no_header() -> None:
    """A tag that comes behind the body is none; nor is what an interim answer says."""
    connection = Connection()
    connection.connection_made(FakeTransport())
    asking = asyncio.ensure_future(connection.ask(b"GET", 60))
    await asyncio.sleep(0)
    early = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    connection.data_received(early + OK + b"ETag: a\r\n" + CHUNKED.replace(b"X: y", b"ETag: b\r\nX: y"))
    await asking
    assert await connection.read() == b"abc0123456789abcdef"
    assert connection.headers == {b"etag": b"a", b"transfer-encoding": b"chunked"}
    connection.abort()


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda own: OK + own),
        st.lists(st.sampled_from([OK, b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc", b"3\r\n", b"0\r\n"]), max_size=12).map(b"".join),
        st.builds(lambda stream, place, byte: stream[0][: place % len(stream[0])] + byte + stream[0][place % len(stream[0]) + 1 :], st.sampled_from(STREAMS), st.integers(0, 400), st.binary(min_size=1, max_size=1)),
    ),
    st.lists(st.integers(0, 400), max_size=10),
)  # fmt: skip
def test_garbage_ends_in_a_fault_or_in_an_answer(content: bytes, places: list[int]) -> None:
    """Never in another error, and never in waiting."""
    try:
        status, _, _ = asyncio.run(answered(cut(content, places), ends=True))
    except NetworkFault:
        return
    assert status >= 200
