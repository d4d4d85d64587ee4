"""One connection to a picture server: HTTP/1.1 as a protocol of asyncio's around llhttp, and what a server may send.

Knows no picture, no policy and no other connection. The bounds: docs/security.md, "Pictures and their fetching".
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any

import httptools

from service.dialling import NetworkFault

_MAX_HEAD_BYTES = 32 << 10
_MAX_INTERIM_ANSWERS = 100
_HEAD_PIECE_BYTES = 8192
# Beside its content a body may hold sizes, extensions and trailers of its chunks: so much, and some for every piece.
_FREE_FRAME_BYTES, _FRAME_BYTES_A_PIECE = 64 << 10, 16
# A body in tiny pieces costs us a thousand times what it costs the server: so many are borne, then one every so often.
_FREE_PIECES, _BYTES_A_PIECE = 1000, 512
_MOST_UNREAD_BYTES = 256 << 10


class Gone(NetworkFault):
    """A connection that was kept had ended when it was used again."""


class Connection(asyncio.Protocol):
    """One connection; one request after the other."""

    def __init__(self, release: Callable[[Connection], None] = lambda _: None) -> None:
        """``release`` is called when it has ended."""
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fault = ""
        """Why it ended; no exception, whose traceback would hold on to all that was received"""
        self._is_lost = self._is_new = self._is_gone = False
        self._silence_seconds = self._heard_at = 0.0
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._forget()

    def _forget(self) -> None:
        """What is known of an answer."""
        self.status, self.headers = 0, {}
        self._pieces: list[bytes] = []
        self._unread_bytes = self._body_bytes = self._fed_bytes = self._piece_count = self._interim_answers = 0
        self._has_head = self._is_complete = self._may_be_kept = self._is_paused = False

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """By the event loop."""
        self._transport, self._is_new = transport, True

    def data_received(self, data: bytes) -> None:
        """By the event loop."""
        parser = self._parser
        if parser is None:
            self.abort()  # nobody asked, or more than the answer
            return
        self._heard_at = self._loop.time()
        fault = ""
        # Little at a time while the head lasts, so that what comes before a body is bounded however it comes.
        while data and not fault:
            piece = data if self._has_head else data[:_HEAD_PIECE_BYTES]
            fault = self._feed(parser, piece)
            data = data[len(piece) :]
        if fault:
            self._end(fault)
            return
        if self._unread_bytes > _MOST_UNREAD_BYTES and not self._is_complete:
            self._transport.pause_reading()
            self._is_paused = True
        self._wake()

    def _feed(self, parser: httptools.HttpResponseParser, data: bytes) -> str:
        """Why the answer is refused; empty: it is not."""
        self._fed_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            # Also what a call of ours raised, which the parser keeps. What stands behind a whole answer spoils the
            # connection alone.
            self._may_be_kept = False
            cause = error.__context__ or error
            cause.__traceback__ = None
            return "" if self._is_complete else str(cause)
        if not self._has_head and self._fed_bytes >= _MAX_HEAD_BYTES:
            return "the head is too long"
        if self._fed_bytes - self._body_bytes > _FREE_FRAME_BYTES + _FRAME_BYTES_A_PIECE * self._piece_count:
            return "the body is little beside its frame"
        return ""

    def eof_received(self) -> None:
        """By the event loop; the transport then closes itself."""
        self._may_be_kept = False
        if self._has_head and not self._is_complete and not self._fault and self._lasts_until_the_end():
            self._is_complete = True
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """By the event loop."""
        self._is_lost, self._may_be_kept = True, False
        if error is None:
            self.eof_received()
        if not self._is_complete:
            self._is_gone = not (self._fault or self._is_new or self._fed_bytes)
            self._end("the server hung up")
        self._stop_timer()
        self._release(self)

    def _lasts_until_the_end(self) -> bool:
        return b"content-length" not in self.headers and b"transfer-encoding" not in self.headers

    # ---- llhttp's side

    def on_header(self, name: bytes, value: bytes) -> None:
        """By the parser; trailers are none of ours."""
        if not self._has_head:
            name = name.lower()
            if name == b"transfer-encoding" and name in self.headers:
                raise NetworkFault("two transfer encodings")
            self.headers[name] = value

    def on_headers_complete(self) -> None:
        """By the parser."""
        parser = self._parser
        assert parser is not None
        self.status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in ("1.0", "1.1") or self.status == 101:
            raise NetworkFault("another protocol")
        if self.headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise NetworkFault("a transfer encoding that nobody asked for")
        self._has_head = self.status >= 200
        self._may_be_kept = self._has_head and version == "1.1" and parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """By the parser, for a chunk or what has come of it."""
        self._pieces.append(piece)
        self._piece_count += 1
        self._body_bytes += len(piece)
        self._unread_bytes += len(piece)
        if self._piece_count > _FREE_PIECES + self._body_bytes // _BYTES_A_PIECE:
            raise NetworkFault("the body comes in crumbs")

    def on_message_complete(self) -> None:
        """By the parser, also for an interim answer (1xx)."""
        if self._has_head:
            self._is_complete = True
            return
        self.headers = {}
        self._interim_answers += 1
        if self._interim_answers > _MAX_INTERIM_ANSWERS:
            raise NetworkFault("interim answers without end")

    def on_message_begin(self) -> None:
        """By the parser."""
        if self._is_complete:
            raise NetworkFault("more than the answer")

    # ---- the client's side

    @property
    def is_reusable(self) -> bool:
        """Whether the whole answer has come, and another request may follow."""
        return self._is_complete and self._may_be_kept and not self._is_lost

    async def ask(self, request: bytes, silence_seconds: float) -> None:
        """Send a request's head and wait for the answer's: ``status``, ``headers``. Raises NetworkFault.

        ``silence_seconds``: longest between any two signs of the server, also of its answer's body.
        """
        if self._is_lost or self._transport.is_closing():
            raise Gone("the server hung up")
        self._forget()
        self._parser = httptools.HttpResponseParser(self)
        self._silence_seconds, self._heard_at = silence_seconds, self._loop.time()
        self._stop_timer()
        self._timer = self._loop.call_later(silence_seconds, self._look)
        self._transport.write(request)
        while not self._has_head:
            await self._more()

    async def read(self) -> bytes:
        """What has come of the body; nothing at its end. Raises NetworkFault."""
        while not self._pieces and not self._is_complete:
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            await self._more()
        pieces, self._pieces, self._unread_bytes = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def rest(self, seconds: float) -> None:
        """Stay open for so long, in case there is another request. Only if ``is_reusable``."""
        self._parser, self._is_new, self._pieces = None, False, []
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self.abort)

    def abort(self) -> None:
        """Hang up."""
        self._end("given up")

    def has_unread(self) -> bool:
        """Whether bytes wait that the event loop has not yet come to, or the end: asked before it is used again."""
        if self._is_lost or self._transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def _more(self) -> None:
        if not self._fault:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._fault:
            raise (Gone if self._is_gone else NetworkFault)(self._fault)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self) -> None:
        left = self._heard_at + self._silence_seconds - self._loop.time()
        if left <= 0:
            self._end("the server is silent")
        else:
            self._timer = self._loop.call_later(left, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, fault: str) -> None:
        self._may_be_kept = False
        self._fault = self._fault or fault
        self._parser = None
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
        self._wake()
