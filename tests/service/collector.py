"""A collector of OpenTelemetry spans on loopback, as simple as can be: OTLP over HTTP, or silence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What came in so far."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        """opentelemetry.proto.trace.v1.Span"""
        self.services: set[str] = set()
        self.answers = threading.Event()
        self.asked = 0
        self.url = ""

    def take(self, content: bytes) -> None:
        """One export."""
        for group in ExportTraceServiceRequest.FromString(content).resource_spans:
            facts = {own.key: own.value.string_value for own in group.resource.attributes}
            self.services.add(facts["service.name"])
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Any]:
        """Spans of a name."""
        return [own for own in self.spans if own.name == name]


@contextmanager
def collector(*, silent: bool = False) -> Iterator[Collector]:
    """``silent``: takes connections and never answers."""
    own = Collector()
    if not silent:
        own.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            own.asked += 1
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if not own.answers.wait(30):
                return
            own.take(content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield own
    finally:
        own.answers.set()
        server.shutdown()
        server.server_close()
