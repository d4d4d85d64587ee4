"""The HTTP client of pictures: which connections are made, kept between two fetches, used again and ended.

Knows no picture and no policy: what may be asked is decided in ``picture_urls`` and ``dialling``, what an answer is
worth in ``fetching``.
"""

from __future__ import annotations

import asyncio
import ssl
from socket import socket as Socket
from typing import NamedTuple

from service.dialling import ConnectFault, Dialler, NetworkFault
from service.picture_connection import Connection, Gone

_KEPT_SECONDS = 5.0


class Origin(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    port: int
    trusted: bool
    """A connection to a trusted origin is never handed to a request that must not have it."""


class PictureClient:
    """Connections to servers; shared by all fetches of one event loop."""

    def __init__(self, tls: ssl.SSLContext, public: Dialler, trusted: Dialler, max_connections: int) -> None:
        """``max_connections``: beyond so many the one that rested longest makes room; callers see to those in use."""
        tls.set_alpn_protocols(["http/1.1"])
        self._tls = tls
        self._diallers = {False: public, True: trusted}
        self._max_connections = max_connections
        self._is_closed = False
        self._dialled = 0
        """Sockets that are being dialled"""
        self._open: set[Connection] = set()
        """Also those whose handshake is under way"""
        self._resting: dict[Connection, Origin] = {}
        """In the order in which they came to rest"""

    async def ask(self, origin: Origin, request: bytes, connect_seconds: float, silence_seconds: float) -> Connection:
        """A connection that has an answer's head; to be given back. Raises NetworkFault, ConnectFault."""
        if self._is_closed:
            raise NetworkFault("closed")
        kept = self._kept(origin)
        if kept is not None:
            try:
                return await self._asked(kept, request, silence_seconds)
            except Gone:
                pass  # it ended while it rested: a request that no server has read may be sent again (RFC 9112, 9.3.1)
        made = await self._connect(origin, connect_seconds)
        return await self._asked(made, request, silence_seconds)

    async def _asked(self, connection: Connection, request: bytes, silence_seconds: float) -> Connection:
        try:
            await connection.ask(request, silence_seconds)
        except BaseException:
            connection.abort()
            raise
        return connection

    def give_back(self, connection: Connection, origin: Origin) -> None:
        """It rests for a while if its whole answer has come, and ends otherwise."""
        if not connection.is_reusable:
            connection.abort()
            return
        if len(self._resting) >= self._max_connections // 2:
            self._end_the_oldest()
        connection.rest(_KEPT_SECONDS)
        self._resting[connection] = origin

    def _end_the_oldest(self) -> None:
        for connection in self._resting:
            del self._resting[connection]
            connection.abort()
            return

    def _kept(self, origin: Origin) -> Connection | None:
        for connection in [own for own in reversed(self._resting) if self._resting[own] == origin]:
            del self._resting[connection]
            if not connection.has_unread():
                return connection
            connection.abort()  # an answer that nobody asked for is nobody's
        return None

    async def _connect(self, origin: Origin, seconds: float) -> Connection:
        if len(self._open) + self._dialled >= self._max_connections:
            self._end_the_oldest()
        self._dialled += 1
        try:
            socket = await self._diallers[origin.trusted].dial(origin.host, origin.port, seconds)
        finally:
            self._dialled -= 1
        made = Connection(self._forget)
        self._open.add(made)  # before it is made: it may end before we hear that it is
        try:
            async with asyncio.timeout(seconds):
                await self._join(made, socket, origin, seconds)
            if self._is_closed:
                raise NetworkFault("closed")
        except BaseException as error:
            made.abort()
            socket.close()  # which the loop may not have taken yet
            self._forget(made)
            if isinstance(error, TimeoutError):
                raise NetworkFault("the TLS handshake took too long") from error
            if isinstance(error, OSError):  # ssl's errors among them
                raise ConnectFault("no connection") from error
            raise
        return made

    async def _join(self, connection: Connection, socket: Socket, origin: Origin, seconds: float) -> None:
        secure = origin.scheme == "https"
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            sock=socket,
            ssl=self._tls if secure else None,
            server_hostname=origin.host if secure else None,
            # Ours comes before; without it uvloop keeps a handshake that was given up for a minute.
            ssl_handshake_timeout=seconds + 1.0 if secure else None,
        )

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._resting.pop(connection, None)

    async def aclose(self) -> None:
        """End all connections, and those that are being made."""
        self._is_closed = True
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # so that the loop closes their sockets
