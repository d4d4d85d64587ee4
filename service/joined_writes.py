"""An answer in one piece: a connection that holds an answer's head back until its body comes.

uvicorn writes head and body one after the other, and uvloop hands each to the system at once: two calls, two packets, and
a client that wakes twice. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites:
    """A transport as uvicorn's protocols use one; what is written first waits for the second, or for the loop's next turn."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._call_soon = asyncio.get_running_loop().call_soon
        self.is_closing = transport.is_closing  # asked at every packet

    def write(self, content: bytes) -> None:
        """Send it, with what is held before it; or hold it."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + content)
        elif content:
            self._held = content
            self._call_soon(self.send_held)

    def close(self) -> None:
        """Send what is held, then close."""
        self.send_held()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what is held is lost, as what the system has not sent."""
        self._held = b""
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send_held(self) -> None:
        """Send what is held without waiting for more. Where the connection is lost it is dropped, as any write would be."""
        held, self._held = self._held, b""
        if held and not self.is_closing():
            self._transport.write(held)
