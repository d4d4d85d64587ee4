"""uvicorn's HTTP/1.1 over llhttp, with the rules that it leaves to others: Host, versions, transfer codings, size of a head.

llhttp reads requests some three times as fast as a parser in Python, which under overload is what refusing costs. It is
strict where requests could be read in two ways (two lengths, folded headers, bare line feeds), but takes heads of any
size and any number of Hosts. Knows no paths and no bodies.
"""

from __future__ import annotations

from asyncio import Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.joined_writes import JoinedWrites
from service.peers import PEER, Peer

MOST_HEAD_BYTES = 1 << 16
_VERSIONS = ("1.0", "1.1")


class StrictHttpProtocol(HttpToolsProtocol):
    """What breaks a rule is answered 400 in plain text, and its connection closed."""

    _heads = 0
    """That began on this connection"""
    _in_head = False
    _head_bytes = 0
    """Of lines that are whole"""
    _received_bytes = 0
    """Of the head, behind the packet that it began in"""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client is there."""
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]  # has what it uses of one
        self._peer = Peer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._peer.hang_up()

    def data_received(self, data: bytes) -> None:
        """As it comes. A line that never ends is not handed on by llhttp, so received bytes are counted, too.

        Not those of the packet that a head begins in: most of them may be the body of the request before it.
        """
        continued = self._heads if self._in_head else None
        super().data_received(data)
        if self._in_head and self._heads == continued and not self.transport.is_closing():
            self._received_bytes += len(data)
            if self._received_bytes > MOST_HEAD_BYTES:
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]
        self._heads += 1
        self._in_head, self._head_bytes, self._received_bytes = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there. What is raised in these calls ends as llhttp's own errors do."""
        self._in_head = False
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise ValueError(f"HTTP/{version} is not spoken here")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ValueError(f"a request has {hosts} Host headers, HTTP/1.1 has one (RFC 9112, 3.2)")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise ValueError("chunked is the only transfer coding that is read")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """An answer without a body, to HEAD, is a head alone."""
        self.transport.send_held()  # type: ignore[attr-defined]
        super().on_response_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MOST_HEAD_BYTES:
            raise ValueError(f"a head is longer than {MOST_HEAD_BYTES} bytes")
