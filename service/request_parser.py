"""llhttp without its way of changing protocols: Upgrade may be ignored (RFC 9110, 7.8), and here it is.

httptools ends a request that asks for another protocol behind its head, and takes its body for the next request. Java's
own client and curl --http2 ask so with every request; behind a gateway that hands Upgrade on, a body could be a request
that somebody else's answer goes to. Knows no rules of its own.
"""

from __future__ import annotations

from array import array

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class RequestParser(httptools.HttpRequestParser):
    """Reads the head of a request that would change protocols twice, the second time without Upgrade.

    While ``should_upgrade()`` is true it is the first time: nothing may be begun.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As uvicorn has it: what comes behind a request that closes the connection is not read, rather than an error.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes | bytearray | memoryview | array[int]) -> None:
        """Read on; never raises HttpParserUpgrade."""
        while True:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                rest = memoryview(data)[stop.args[0] :]
                head = self._head_without_upgrade()
                # Anew: behind "Connection: close" it would read nothing more.
                self.__init__(self._protocol)  # type: ignore[misc]
                super().feed_data(head)
                data = rest
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        own = self._protocol
        lines = [self.get_method() + b" " + own.url + b" HTTP/" + self.get_http_version().encode()]
        lines += [name + b": " + value for name, value in own.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"
