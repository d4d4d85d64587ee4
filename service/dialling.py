"""Opens connections for picture fetching and judges the address that is actually dialled.

Knows no URLs and no HTTP: a network backend for httpcore. Judging here, at the socket, closes redirects and
DNS answers that change between the check and the connection (serving.md, fetching 3).
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import httpcore

from service.addresses import Address, is_public

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """Every address of a host, in the system's order of preference."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(entry[4][0] for entry in found))


class PublicBackend(httpcore.AsyncNetworkBackend):
    """Dials public addresses only; one bad answer of a name refuses the name."""

    def __init__(
        self,
        public: Callable[[Address], bool] = is_public,
        resolve: Resolve = resolve_name,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._public = public
        self._resolve = resolve
        self._dialler = dialler or httpcore.AnyIOBackend()

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
        addresses = await self._judged(host, port, timeout)
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
            return stream
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
