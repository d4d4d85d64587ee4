"""Spans of a request for OpenTelemetry, and the trace that a caller began (W3C traceparent).

Off until ``start_tracing``: a span then costs a look at a name. Knows neither titles nor URLs, so that none can reach a
span; an error's type is noted, its text is not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind, Tracer, format_trace_id, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACE_PARENT, _TRACE_STATE = b"traceparent", b"tracestate"
_FLUSH_SECONDS = 3.0

_tracer: Tracer | None = None
_provider: TracerProvider | None = None


def start_tracing() -> None:
    """Send spans to the collector that OpenTelemetry's own variables (OTEL_*) name, by OTLP over HTTP."""
    # Here: without a collector nobody pays for loading it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer, _provider
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "mufin"}))
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # Spans wait in a bounded queue and leave on a thread of their own: a collector that hangs costs spans alone.
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("mufin")


def stop_tracing() -> None:
    """Send what is left, for so long as that is quick."""
    global _tracer, _provider
    if _provider is not None:
        ending = threading.Thread(target=_provider.shutdown, daemon=True)
        ending.start()
        ending.join(_FLUSH_SECONDS)
    _tracer = _provider = None


class RequestSpan:
    """The span of one HTTP request; while tracing is off it knows the caller's trace alone."""

    __slots__ = ("_span", "_token", "trace_id")

    def __init__(self, headers: Mapping[bytes, bytes], *, quiet: bool) -> None:
        """``headers`` by lower-case name; ``quiet``: no span for this one, as for probes. Ends by ``end``."""
        caller = _caller(headers) if _TRACE_PARENT in headers else None
        self._span: Span | None = None
        known = get_current_span(caller) if caller is not None else None
        if _tracer is not None and not quiet:
            self._span = known = _tracer.start_span("request", caller or Context(), SpanKind.SERVER)
            self._token = attach(set_span_in_context(known))
        context = known.get_span_context() if known is not None else None
        self.trace_id: str | None = format_trace_id(context.trace_id) if context and context.is_valid else None
        """32 hex digits; None when neither the caller nor we trace"""

    def end(self, method: str, route: str, status: int, request_id: str) -> None:
        """Once, when the answer has been sent."""
        if self._span is None:
            return
        detach(self._token)
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "mufin.request_id": request_id,
            }
        )
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _caller(headers: Mapping[bytes, bytes]) -> Context:
    names = (_TRACE_PARENT, _TRACE_STATE)
    carrier = {name.decode(): headers[name].decode("latin-1") for name in names if name in headers}
    return _PROPAGATOR.extract(carrier, Context())


class span:
    """A step of the request that is being answered. What it raises is noted by type; being cut short is no error."""

    __slots__ = ("_attributes", "_kind", "_name", "_span", "_token")

    def __init__(self, name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int) -> None:
        self._name, self._kind, self._attributes = name, kind, attributes

    def __enter__(self) -> None:
        self._span: Span | None = None
        if _tracer is not None:
            self._span = _tracer.start_span(self._name, kind=self._kind, attributes=self._attributes)
            self._token = attach(set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        detach(self._token)
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._span.set_attribute("mufin.cut", True)
        elif kind is not None:
            self._span.set_attribute("error.type", str(getattr(error, "code", kind.__name__)))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def past_span(name: str, began: float, ended: float, **attributes: str) -> None:
    """A step that is over, told afterwards; both moments of time.perf_counter()."""
    if _tracer is not None:
        behind = time.time_ns() - int(time.perf_counter() * 1e9)
        own = _tracer.start_span(name, start_time=behind + int(began * 1e9), attributes=attributes)
        own.end(behind + int(ended * 1e9))


def outgoing_headers() -> Mapping[str, str]:
    """traceparent and tracestate for a server of one's own; nothing while tracing is off."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        _PROPAGATOR.inject(headers)
    return headers
