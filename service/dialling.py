"""Opens connections for picture fetching and judges the address that is actually dialled.

Knows no URLs and no HTTP beyond "a head comes before its body": network backends for httpcore. Judging here, at the
socket, closes redirects and DNS answers that change between the check and the connection (docs/security.md).
"""

from __future__ import annotations

import asyncio
import ipaddress
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpcore

from service.addresses import Address, is_public

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_MOST_DIALLED = 8
_HEAD_READ_BYTES = 8192


class Lookups:
    """Names to addresses in threads of their own: a name server that hangs holds up no other work in threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mufin-lookup")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Every address of a host, in the system's order of preference. Raises OSError, UnicodeError."""
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        found = await asyncio.get_running_loop().run_in_executor(self._pool, look_up)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        """Forget what waits; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class HeadAllowance:
    """Bytes that a server may still send before its answer's body begins; None once it has begun."""

    bytes_left: int | None


_HEAD: ContextVar[HeadAllowance | None] = ContextVar("head_allowance", default=None)


@contextmanager
def limited_head(max_bytes: int) -> Iterator[HeadAllowance]:
    """Within it, connections of this task read no more until the caller sets ``bytes_left`` to None.

    httpcore itself reads interim answers (1xx) for as long as they come, a whole buffer of them in one go.
    """
    allowance = HeadAllowance(max_bytes)
    token = _HEAD.set(allowance)
    try:
        yield allowance
    finally:
        _HEAD.reset(token)


class _Readable:
    """Which kept connections have something to read, which before a request means their end.

    httpcore looks at every one of them at the beginning and the end of every fetch: the system is asked once for all that
    are looked at in one go, that is, until the event loop's next turn.
    """

    def __init__(self) -> None:
        self._watched = select.poll()
        self._found: frozenset[int] | None = None

    def watch(self, handle: int) -> None:
        """From now on, in place of what had the number before."""
        self._watched.register(handle, select.POLLIN)
        self._found = None

    def leave(self, handle: int) -> None:
        """It is closed."""
        with suppress(KeyError):
            self._watched.unregister(handle)

    def has(self, handle: int) -> bool:
        """Whether a watched one is readable, or at its end."""
        if self._found is None:
            self._found = frozenset(ready for ready, _ in self._watched.poll(0))
            asyncio.get_running_loop().call_soon(self._forget)
        return handle in self._found

    def _forget(self) -> None:
        self._found = None


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that keeps to the task's HeadAllowance."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, readable: _Readable) -> None:
        self._stream, self._readable = stream, readable
        self._socket: Any = None
        self._handle = -1
        """The socket's, once it is watched"""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        """At most so many bytes. Raises httpcore.RemoteProtocolError for a head that does not end."""
        allowance = _HEAD.get()
        if allowance is None or allowance.bytes_left is None:
            return await self._stream.read(max_bytes, timeout)
        if allowance.bytes_left <= 0:
            raise httpcore.RemoteProtocolError("the head is too long")
        # Little at a time, so that no buffer full of tiny interim answers holds up the event loop.
        content = await self._stream.read(min(max_bytes, _HEAD_READ_BYTES), timeout)
        allowance.bytes_left -= len(content)
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        """Send all of it."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Hang up."""
        if self._handle >= 0 and self._socket.fileno() == self._handle:  # else it may be another's by now
            self._readable.leave(self._handle)
        self._handle = -1
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        """The same, encrypted."""
        try:
            return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._readable)
        except BaseException:
            # httpcore leaves the socket open when a request is given up during the handshake.
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """As the connection below; whether it can be read is true of a closed one, too."""
        if info != "is_readable":
            return self._stream.get_extra_info(info)
        if self._socket is None:  # asked once: AnyIO gathers all its attributes to give one of them
            self._socket = self._stream.get_extra_info("socket")
        handle = -1 if self._socket is None else self._socket.fileno()
        if handle < 0:
            return True
        if handle != self._handle:
            self._handle = handle
            self._readable.watch(handle)
        return self._readable.has(handle)


class TrustedBackend(httpcore.AnyIOBackend):
    """Dials whatever it is told: for origins that the operator named."""

    def __init__(self) -> None:
        super().__init__()
        self._readable = _Readable()

    async def connect_tcp(self, *arguments: Any, **names: Any) -> httpcore.AsyncNetworkStream:
        """As httpcore's own."""
        return _Stream(await super().connect_tcp(*arguments, **names), self._readable)


class PublicBackend(httpcore.AsyncNetworkBackend):
    """Dials public addresses only; one bad answer of a name refuses the name."""

    def __init__(
        self,
        resolve: Resolve,
        public: Callable[[Address], bool] = is_public,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._public = public
        self._resolve = resolve
        self._dialler = dialler or httpcore.AnyIOBackend()
        self._readable = _Readable()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, judge every answer, dial one of them by number, judge the peer. Raises httpcore.ConnectError."""
        until = None if timeout is None else time.monotonic() + timeout
        # A name may have thousands of addresses; all are judged, but nobody uses us to knock at so many doors.
        addresses = (await self._judged(host, port, timeout))[:_MOST_DIALLED]
        for position, address in enumerate(addresses):
            left = None if until is None else max(0.0, until - time.monotonic())
            # The later addresses of a name must get their share of the time.
            share = None if left is None else left / (len(addresses) - position)
            try:
                stream = await self._dialler.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position + 1 == len(addresses):
                    raise
                continue
            peer = stream.get_extra_info("server_addr")
            if peer is None or not self._may_dial(peer[0]):
                await stream.aclose()
                raise httpcore.ConnectError("refused")
            return _Stream(stream, self._readable)
        raise httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never: no picture lies behind a local socket."""
        raise httpcore.ConnectError("refused")

    async def sleep(self, seconds: float) -> None:
        """Part of httpcore's interface."""
        await anyio.sleep(seconds)

    async def _judged(self, host: str, port: int, within_seconds: float | None) -> Sequence[str]:
        try:
            with anyio.fail_after(within_seconds):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("name lookup") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("name lookup") from error
        if not addresses or not all(self._may_dial(address) for address in addresses):
            # The same error as for a name that does not exist: no oracle for what lies inside.
            raise httpcore.ConnectError("refused")
        return addresses

    def _may_dial(self, address: str) -> bool:
        try:
            return self._public(ipaddress.ip_address(address))
        except ValueError:
            return False
