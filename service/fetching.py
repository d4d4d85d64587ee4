"""A picture's URL to its bytes, safely: docs/security.md, "Pictures and their fetching".

Knows no cache, no decoding and no request; answers bytes or a PictureError with a coarse code.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import certifi
import httpcore

from service.breaker import BreakerGroup
from service.dialling import HeadAllowance, Lookups, PublicBackend, Resolve, TrustedBackend, limited_head
from service.errors import PictureError
from service.picture_urls import PictureUrl, UrlPolicy, UrlRefused, check_url, redirect_url
from service.tracing import outgoing_headers

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST_FAILURES, _HOST_REST_SECONDS = 5, 30.0
_SPEED_GRACE_SECONDS = 0.5
_SLOW_SECONDS = 0.5
_MAGIC_BYTES = 12
_MAX_HEAD_BYTES = 32 << 10
_UNPACK_BYTES = 64 << 10
# A body in tiny pieces costs us a thousand times what it costs the server: so many are borne, then one every so often.
_FREE_PIECES, _BYTES_A_PIECE = 1000, 512
_PIECES_AT_ONCE = 32
_ETAG = re.compile(rb'(?:W/)?"[\x21\x23-\x7e]{0,200}"')
_NETWORK_FAULTS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How long and how much."""

    connect_seconds: float = 1.0
    first_byte_seconds: float = 1.5
    total_seconds: float = 2.5
    min_bytes_per_second: int = 8192
    max_bytes: int = 8 << 20
    max_fetches: int = 64
    max_fetches_per_host: int = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came back for a URL."""

    content: bytes | None
    """None: not changed since the ETag that was sent."""
    etag: str | None


@dataclass(frozen=True, slots=True)
class _Hop:
    """One answer of a server: content, or where to go on."""

    fetched: Fetched | None = None
    location: str | None = None


class Fetcher:
    """Fetches pictures; shared by all requests of one event loop."""

    def __init__(
        self,
        policy: UrlPolicy,
        limits: FetchLimits,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``resolve`` and ``tls`` stand in for the system's names and certifi's authorities, in tests."""
        self._policy = policy
        self._limits = limits
        self._breakers = BreakerGroup(_HOST_FAILURES, _HOST_REST_SECONDS)
        self._slots = asyncio.Semaphore(limits.max_fetches)
        self._host_slots: dict[str, _HostSlots] = {}
        self._lookups = Lookups(limits.max_fetches)
        tls = tls or ssl.create_default_context(cafile=certifi.where())
        # Two pools: a connection to a trusted origin is never handed to a request that must not have it.
        self._public = self._pool(tls, PublicBackend(resolve or self._lookups, policy.is_public))
        self._trusted = self._pool(tls, TrustedBackend())

    def _pool(self, tls: ssl.SSLContext, backend: httpcore.AsyncNetworkBackend) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=self._limits.max_fetches,
            max_keepalive_connections=self._limits.max_fetches // 2,
            keepalive_expiry=5.0,
            network_backend=backend,
        )

    def hosts_left_alone(self) -> int:
        """Origins that failed too often to be asked now."""
        return self._breakers.open_count()

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        self._lookups.close()
        await self._public.aclose()
        await self._trusted.aclose()

    async def fetch(self, text: str, etag: str | None = None) -> Fetched:
        """Bytes of the picture behind a URL. Raises PictureError.

        ``etag``: what an earlier answer gave; the content may then come back as None.
        """
        try:
            url = check_url(text, self._policy)
        except UrlRefused as error:
            raise PictureError("image_url_refused", str(error)) from error
        try:
            # Waiting for a slot counts: nobody needs the picture later only because others were slow.
            async with asyncio.timeout(self._limits.total_seconds) as limit:
                return await self._follow(url, etag, limit)
        except TimeoutError as error:
            raise PictureError("image_timeout", "the image did not come in time") from error

    async def _follow(self, url: PictureUrl, etag: str | None, limit: asyncio.Timeout) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            hop = await self._visit(url, etag, limit)
            if hop.fetched is not None:
                return hop.fetched
            try:
                url = redirect_url(url, hop.location or "", self._policy)
            except UrlRefused as error:
                raise _unreachable() from error
        raise _unreachable()

    async def _visit(self, url: PictureUrl, etag: str | None, limit: asyncio.Timeout) -> _Hop:
        """One hop, within its host's slots; the breaker of the very host that was asked is told how it went.

        Hosts are told apart by name for the slots, by origin for the breaker: a wrong port or scheme in some URLs
        must not cut off the right one.
        """
        breaker = self._breakers.of(url.origin)
        if breaker.is_open:
            raise _unreachable()
        # The host's slot first: whoever waits for a slow host must not hold one of the slots of all.
        async with self._host_slot(url.host), self._slots:
            if asyncio.get_running_loop().time() >= (limit.when() or math.inf):
                # The slot came as the time ended: the host is not asked for what nobody waits for.
                raise TimeoutError
            if not breaker.allow():
                raise _unreachable()
            began = time.monotonic()
            try:
                hop = await self._hop(url, etag)
            except asyncio.CancelledError:
                # Requests that give up on a host before its own limits do must count, or it would never be left alone.
                if time.monotonic() - began > min(_SLOW_SECONDS, self._limits.total_seconds / 2):
                    breaker.failed()
                raise
            except PictureError:
                # The host answered; that the picture is bad says nothing against the host.
                breaker.succeeded()
                raise
            except TimeoutError:
                breaker.failed()
                raise
            except (*_NETWORK_FAULTS, zlib.error, OSError) as error:
                breaker.failed()
                # One code for every failure of the network: callers must not learn what lies behind it.
                raise _unreachable() from error
            breaker.succeeded()
            return hop

    async def _hop(self, url: PictureUrl, etag: str | None) -> _Hop:
        """One request; a connection that cannot be made is tried once more, nothing else is.

        A refused address is tried again like a name that does not exist, so that the two look the same from outside.
        """
        try:
            return await self._request(url, etag)
        except httpcore.ConnectError:
            return await self._request(url, etag)

    async def _request(self, url: PictureUrl, etag: str | None) -> _Hop:
        limits = self._limits
        timeouts = {
            "connect": limits.connect_seconds,
            "read": limits.first_byte_seconds,
            "write": limits.first_byte_seconds,
            "pool": limits.total_seconds,
        }
        headers = [
            ("Host", url.authority),
            ("User-Agent", "mufin"),
            ("Accept", "image/jpeg, image/png, image/webp"),
            ("Accept-Encoding", "identity"),
        ]
        if etag is not None:
            headers.append(("If-None-Match", etag))
        if url.trusted:
            headers.extend(outgoing_headers().items())  # others are not told that we trace
        pool = self._trusted if url.trusted else self._public
        # In pieces: httpcore's own reading of a URL loses what stands behind a semicolon.
        address = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        with limited_head(_MAX_HEAD_BYTES) as head:
            async with pool.stream("GET", address, headers=headers, extensions={"timeout": timeouts}) as response:
                return await self._read(response, head, etag)

    async def _read(self, response: httpcore.Response, head: HeadAllowance, etag: str | None) -> _Hop:
        head.bytes_left = None
        headers = {name.lower(): value for name, value in response.headers}
        if response.status in _REDIRECTS:
            return _Hop(location=_text(headers.get(b"location", b"")))
        if response.status == 304 and etag is not None:
            return _Hop(Fetched(None, etag))
        if response.status != 200:
            raise _unreachable()
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise self._too_large()
        body = _decoded(_in_fair_pieces(response.aiter_stream()), headers.get(b"content-encoding", b""))
        tag = headers.get(b"etag", b"")
        return _Hop(Fetched(await self._collect(body), tag.decode("ascii") if _ETAG.fullmatch(tag) else None))

    async def _collect(self, body: AsyncIterator[bytes]) -> bytes:
        content = bytearray()
        began = time.monotonic()
        judged = False
        async for chunk in body:
            content += chunk
            if len(content) > self._limits.max_bytes:
                raise self._too_large()
            if not judged and len(content) >= _MAGIC_BYTES:
                require_image(content)
                judged = True
            waited = time.monotonic() - began
            if waited > _SPEED_GRACE_SECONDS and len(content) < self._limits.min_bytes_per_second * waited:
                raise TimeoutError
        require_image(content)
        return bytes(content)

    def _too_large(self) -> PictureError:
        return PictureError("image_too_large", f"the image has more than {self._limits.max_bytes} bytes")

    @asynccontextmanager
    async def _host_slot(self, host: str) -> AsyncIterator[None]:
        slots = self._host_slots.setdefault(host, _HostSlots(asyncio.Semaphore(self._limits.max_fetches_per_host)))
        slots.users += 1
        try:
            async with slots.free:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                del self._host_slots[host]


@dataclass(slots=True)
class _HostSlots:
    """Of one host; forgotten when nobody uses or awaits one."""

    free: asyncio.Semaphore
    users: int = 0


def _unreachable() -> PictureError:
    return PictureError("image_unreachable", "the image could not be fetched")


def _text(value: bytes) -> str:
    """Of a header: UTF-8 as browsers read it, or the characters of its bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def require_image(content: bytes | bytearray) -> None:
    """The type by its first bytes, whatever the server called it. Raises PictureError."""
    jpeg = content.startswith(b"\xff\xd8\xff")
    png = content.startswith(b"\x89PNG\r\n\x1a\n")
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if not (jpeg or png or webp):
        raise PictureError("not_an_image", "the content is no JPEG, PNG or WebP image")


async def _in_fair_pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream, others getting their turn meanwhile. Raises httpcore.RemoteProtocolError for a body in crumbs."""
    pieces = seen_bytes = 0
    async for piece in stream:
        pieces += 1
        seen_bytes += len(piece)
        if pieces > _FREE_PIECES + seen_bytes // _BYTES_A_PIECE:
            raise httpcore.RemoteProtocolError("the body comes in crumbs")
        if pieces % _PIECES_AT_ONCE == 0:
            await asyncio.sleep(0)
        yield piece


async def _decoded(stream: AsyncIterator[bytes], encoding: bytes) -> AsyncIterator[bytes]:
    """The body without its content encoding, in small pieces: a bomb is unpacked no further than it is read."""
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        async for chunk in stream:
            yield chunk
        return
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise _unreachable()
    # 47: zlib or gzip, told apart by their headers.
    unpacker = zlib.decompressobj(47)
    async for chunk in stream:
        while chunk:
            yield unpacker.decompress(chunk, _UNPACK_BYTES)
            chunk = unpacker.unconsumed_tail
            await asyncio.sleep(0)
