"""uvicorn's HTTP/1.1 over llhttp, with the rules that it leaves to others: Host, versions, transfer codings, size of a head.

llhttp reads requests some three times as fast as a parser in Python, which under overload is what refusing costs. It is
strict where requests could be read in two ways (two lengths, folded headers, bare line feeds), but takes heads of any
size and any number of Hosts. Knows no paths and no bodies.
"""

from __future__ import annotations

from asyncio import Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.joined_writes import JoinedWrites
from service.peers import PEER, Peer
from service.request_parser import RequestParser

MOST_HEAD_BYTES = 1 << 16
_AROUND_HEADER = len(b": \r\n")
_VERSIONS = ("1.0", "1.1")


class StrictHttpProtocol(HttpToolsProtocol):
    """What breaks a rule is answered 400 in plain text, and its connection closed."""

    _unfinished = False
    """Whether a request has begun and not come to its end"""
    _came_on = False
    """Whether the last packet brought a head's beginning, its end, or a piece of a body"""
    _lines_bytes = 0
    """Of the packets since then: lines of a head, or of trailers behind chunks"""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client is there."""
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]  # has what it uses of one
        self.parser = RequestParser(self)
        self._peer = Peer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._peer.hang_up()

    def data_received(self, data: bytes) -> None:
        """As it comes. A head that never ends is cut here, by received bytes, as trailers are; one that ends, when it does.

        The packet that a head begins in is not counted: most of it may be the body of the request before.
        """
        self._came_on = False
        super().data_received(data)
        if self._came_on or not self._unfinished:
            self._lines_bytes = 0
            return
        self._lines_bytes += len(data)
        if self._lines_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]
        self._unfinished = self._came_on = True

    def on_headers_complete(self) -> None:
        """The head is there. What is raised in these calls ends as llhttp's own errors do."""
        self._came_on = True
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise ValueError(f"HTTP/{version} is not spoken here")
        # Loops, as this runs for every request, and comprehensions are calls.
        hosts, codings = 0, []
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
        _check_size(self.headers, len(self.url))
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ValueError(f"a request has {hosts} Host headers, HTTP/1.1 has one (RFC 9112, 3.2)")
        if codings and codings != [b"chunked"]:
            raise ValueError("chunked is the only transfer coding that is read")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT is not spoken here")
            return  # the same head comes once more, without Upgrade
        super().on_headers_complete()
        if codings:
            # Apart from the request's headers, where uvicorn would put its trailers, too (RFC 9110, 6.5.1); nobody reads them.
            self.headers = []

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._came_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self.parser.should_upgrade():
            return
        self._unfinished = False
        if self.headers is not self.scope["headers"]:
            _check_size(self.headers)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer without a body, to HEAD, is a head alone."""
        self.transport.send_held()  # type: ignore[attr-defined]
        super().on_response_complete()

    def _refuse(self) -> None:
        """400, where nothing of an answer is on its way: a second one would be taken for the next request's."""
        cycle: RequestResponseCycle | None = self.cycle
        own = cycle is not None and cycle.scope is self.scope
        if cycle is None or (not cycle.response_started if own else cycle.response_complete):
            self.send_400_response("Invalid HTTP request received.")
        else:
            self.transport.close()


def _check_size(headers: list[tuple[bytes, bytes]], size: int = 0) -> None:
    """Raise ValueError for a head, or trailers, that are longer than allowed. ``size``: of what stands before them."""
    for name, value in headers:
        size += len(name) + len(value) + _AROUND_HEADER
    if size > MOST_HEAD_BYTES:
        raise ValueError(f"a head is longer than {MOST_HEAD_BYTES} bytes")
