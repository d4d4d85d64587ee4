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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import certifi

from service.breaker import BreakerGroup
from service.dialling import ConnectFault, Dialler, Lookups, NetworkFault, Resolve
from service.errors import PictureError
from service.picture_client import Origin, PictureClient
from service.picture_connection import Connection
from service.picture_urls import PictureUrl, UrlPolicy, UrlRefused, check_url, redirect_url
from service.tracing import outgoing_headers

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST_FAILURES, _HOST_REST_SECONDS = 5, 30.0
_SPEED_GRACE_SECONDS = 0.5
_SLOW_SECONDS = 0.5
_LEAST_SECONDS = 0.005
"""In less no server is asked: nothing would come of it but a failure that is not the server's"""
_MAGIC_BYTES = 12
_UNPACK_BYTES = 64 << 10
_ETAG = re.compile('(?:W/)?"[\x21\x23-\x7e]{0,200}"')
# What may stand in a header's value: a shared cache may hold garbage, a trace's state comes from a caller.
_HEADER_VALUE = re.compile("[\t\x20-\x7e]*")


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
        self._client = PictureClient(
            tls or ssl.create_default_context(cafile=certifi.where()),
            Dialler(resolve or self._lookups, policy.is_public),
            Dialler(self._lookups, None),
            limits.max_fetches,
        )

    def hosts_left_alone(self) -> int:
        """Origins that failed too often to be asked now."""
        return self._breakers.open_count()

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        self._lookups.close()
        await self._client.aclose()

    async def fetch(self, text: str, etag: str | None = None) -> Fetched:
        """Bytes of the picture behind a URL. Raises PictureError.

        ``etag``: what an earlier answer gave; the content may then come back as None.
        """
        try:
            url = check_url(text, self._policy)
        except UrlRefused as error:
            raise PictureError("image_url_refused", str(error)) from error
        asking = _Asking()
        try:
            # Waiting for a slot counts: nobody needs the picture later only because others were slow.
            async with asyncio.timeout(self._limits.total_seconds) as limit:
                return await self._follow(url, etag, limit, asking)
        except TimeoutError as error:
            raise PictureError(
                "image_timeout", "the image did not come in time", of_the_url=self._waited(asking.since)
            ) from error

    async def _follow(self, url: PictureUrl, etag: str | None, limit: asyncio.Timeout, asking: _Asking) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            hop = await self._visit(url, etag, limit, asking)
            if hop.fetched is not None:
                return hop.fetched
            try:
                url = redirect_url(url, hop.location or "", self._policy)
            except UrlRefused as error:
                raise _unreachable() from error
        raise _unreachable()

    async def _visit(self, url: PictureUrl, etag: str | None, limit: asyncio.Timeout, asking: _Asking) -> _Hop:
        """One hop, within its host's slots; the breaker of the very host that was asked is told how it went.

        Hosts are told apart by name for the slots, by origin for the breaker: a wrong port or scheme in some URLs
        must not cut off the right one.
        """
        breaker = self._breakers.of(url.origin)
        if breaker.is_open:
            raise _unreachable(asked=False)
        # The host's slot first: whoever waits for a slow host must not hold one of the slots of all.
        async with self._host_slot(url.host), self._slots:
            if asyncio.get_running_loop().time() + _LEAST_SECONDS >= (limit.when() or math.inf):
                # The slot came as the time ended: the host is not asked for what nobody waits for.
                raise TimeoutError
            if not breaker.allow():
                raise _unreachable(asked=False)
            began = time.monotonic()
            asking.since = began
            try:
                hop = await self._hop(url, etag)
            except asyncio.CancelledError:
                # Requests that give up on a host before its own limits do must count, or it would never be left alone.
                if self._waited(began):
                    breaker.failed()
                raise
            except PictureError:
                # The host answered; that the picture is bad says nothing against the host.
                breaker.succeeded()
                raise
            except TimeoutError:
                breaker.failed()
                raise
            except (NetworkFault, OSError, zlib.error) as error:
                breaker.failed()
                # One code for every failure of the network: callers must not learn what lies behind it.
                raise _unreachable() from error
            breaker.succeeded()
            asking.since = math.inf
            return hop

    def _waited(self, since: float) -> bool:
        """Whether a server that is being asked since then has had its time."""
        return time.monotonic() - since > min(_SLOW_SECONDS, self._limits.total_seconds / 2)

    async def _hop(self, url: PictureUrl, etag: str | None) -> _Hop:
        """One request; a connection that cannot be made is tried once more, nothing else is.

        A refused address is tried again like a name that does not exist, so that the two look the same from outside.
        """
        try:
            return await self._request(url, etag)
        except ConnectFault:
            return await self._request(url, etag)

    async def _request(self, url: PictureUrl, etag: str | None) -> _Hop:
        origin = Origin(url.scheme, url.host, url.port, url.trusted)
        limits = self._limits
        connection = await self._client.ask(origin, _head(url, etag), limits.connect_seconds, limits.first_byte_seconds)
        try:
            return await self._read(connection, etag)
        finally:
            self._client.give_back(connection, origin)

    async def _read(self, answer: Connection, etag: str | None) -> _Hop:
        headers = answer.headers
        if answer.status in _REDIRECTS:
            return _Hop(location=_text(headers.get(b"location", b"")))
        if answer.status == 304 and etag is not None:
            return _Hop(Fetched(None, etag))
        if answer.status != 200:
            raise _unreachable()
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise self._too_large()
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        if encoding in (b"", b"identity"):
            content = await self._collect(answer.read)
        elif encoding in (b"gzip", b"x-gzip", b"deflate"):
            content = await self._collect(_Unpacked(answer, self._limits.max_bytes).read)
        else:
            raise _unreachable()
        tag = headers.get(b"etag", b"").decode("latin-1")
        return _Hop(Fetched(content, tag if _ETAG.fullmatch(tag) else None))

    async def _collect(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        content = bytearray()
        began = time.monotonic()
        judged = False
        while chunk := await read():
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
class _Asking:
    """Since when a server is being asked, of time.monotonic(): waiting for our own slots says nothing of the picture."""

    since: float = math.inf


@dataclass(slots=True)
class _HostSlots:
    """Of one host; forgotten when nobody uses or awaits one."""

    free: asyncio.Semaphore
    users: int = 0


def _unreachable(*, asked: bool = True) -> PictureError:
    return PictureError("image_unreachable", "the image could not be fetched", of_the_url=asked)


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


class _Unpacked:
    """The body without its content encoding, in small pieces: a bomb is unpacked no further than it is read.

    What stands behind its end is not read, and packed it has no more bytes than it may have unpacked: much may be packed
    into nothing.
    """

    def __init__(self, answer: Connection, max_bytes: int) -> None:
        self._answer, self._bytes_left = answer, max_bytes
        self._unpacker = zlib.decompressobj(47)  # zlib or gzip, told apart by their headers
        self._packed = b""

    async def read(self) -> bytes:
        """The next piece; nothing at its end. Raises NetworkFault, zlib.error."""
        while not self._unpacker.eof:
            if not self._packed:
                self._packed = await self._answer.read()
                self._bytes_left -= len(self._packed)
            if not self._packed:
                break
            if self._bytes_left < 0:
                raise NetworkFault("more is packed than may be unpacked")
            piece = self._unpacker.decompress(self._packed, _UNPACK_BYTES)
            self._packed = self._unpacker.unconsumed_tail
            await asyncio.sleep(0)
            if piece:
                return piece
        return b""


def _head(url: PictureUrl, etag: str | None) -> bytes:
    """What is sent: no cookie and no header of a caller's. The URL's parts are ASCII without spaces."""
    lines = [
        f"GET {url.target} HTTP/1.1",
        f"Host: {url.authority}",
        "User-Agent: mufin",
        "Accept: image/jpeg, image/png, image/webp",
        "Accept-Encoding: identity",
    ]
    if etag is not None and _ETAG.fullmatch(etag):
        lines.append(f"If-None-Match: {etag}")
    if url.trusted:  # others are not told that we trace
        lines += [f"{name}: {value}" for name, value in outgoing_headers().items() if _HEADER_VALUE.fullmatch(value)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
