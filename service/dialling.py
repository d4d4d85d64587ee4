"""Opens sockets for picture fetching and judges the address that is actually dialled.

Knows no URLs, no TLS and no HTTP. Judging here, at the socket, closes redirects and DNS answers that change between the
check and the connection (docs/security.md).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from service.addresses import Address

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[socket.socket]]

_MOST_DIALLED = 8


class NetworkFault(Exception):
    """A server cannot be reached, breaks off, is silent, or does not speak HTTP."""


class ConnectFault(NetworkFault):
    """No connection was made, for another reason than time."""


class Lookups:
    """Names to addresses in threads of their own: a name server that hangs holds up no other work in threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mufin-lookup")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Every address of a host, in the system's order of preference. Raises OSError, UnicodeError."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]  # what is a number needs no thread
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, look_up)
        except RuntimeError as error:  # closed, or no thread to be had
            raise OSError("no lookup") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise OSError("no lookup") from error  # closed while it waited, which nobody was told
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        """Forget what waits; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def connect(address: str, port: int) -> socket.socket:
    """A connected socket to an address given by number. Raises OSError."""
    own = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, (address, port))
    except BaseException:
        own.close()
        raise
    return own


class Dialler:
    """Sockets to hosts: every address of a name is judged, one bad one refuses the name."""

    def __init__(
        self, resolve: Resolve, may_dial: Callable[[Address], bool] | None, connect: Connect = connect
    ) -> None:
        """``may_dial``: None for hosts that the operator named, which may lie anywhere."""
        self._resolve = resolve
        self._judge = may_dial
        self._connect = connect

    async def dial(self, host: str, port: int, within_seconds: float) -> socket.socket:
        """Resolve, judge every answer, dial one of them by number, judge the peer. Raises NetworkFault, ConnectFault."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_seconds
        # A name may have thousands of addresses; all are judged, but nobody uses us to knock at so many doors.
        addresses = (await self._judged(host, port, within_seconds))[:_MOST_DIALLED]
        fault = NetworkFault("no address")
        for position, address in enumerate(addresses):
            # The later addresses of a name must get their share of the time.
            share = max(0.0, until - loop.time()) / (len(addresses) - position)
            try:
                async with asyncio.timeout(share):
                    own = await self._connect(address, port)
            except TimeoutError as error:
                fault = NetworkFault("connecting took too long")
                fault.__cause__ = error
            except OSError as error:
                fault = ConnectFault("no connection")
                fault.__cause__ = error
            else:
                return self._sound(own)
        raise fault

    def _sound(self, own: socket.socket) -> socket.socket:
        """The socket, if its peer may be dialled: before a byte is sent to it."""
        try:
            peer = str(own.getpeername()[0])
        except OSError as error:
            own.close()
            raise ConnectFault("no connection") from error
        if not self._may_dial(peer):
            own.close()
            raise ConnectFault("refused")
        return own

    async def _judged(self, host: str, port: int, within_seconds: float) -> Sequence[str]:
        try:
            async with asyncio.timeout(within_seconds):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise NetworkFault("name lookup took too long") from error
        except (OSError, UnicodeError) as error:
            raise ConnectFault("name lookup") from error
        if not addresses or not all(map(self._may_dial, addresses)):
            # The same error as for a name that does not exist: no oracle for what lies inside.
            raise ConnectFault("refused")
        return addresses

    def _may_dial(self, address: str) -> bool:
        if self._judge is None:
            return True
        try:
            return self._judge(ipaddress.ip_address(address))
        except ValueError:
            return False
