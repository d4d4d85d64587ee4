"""Around every request: its id, its log line, its metrics, the answer to a defect, Connection: close when draining.

Knows no endpoint; plain ASGI, so that it costs microseconds.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.lifecycle import Lifecycle
from service.problems import problem_response, status_response
from service.telemetry import HEADERS, RECORD, Metrics, get_logger
from service.tracing import RequestSpan

# Names, no secrets: asking the system for better ones costs more than all else here.
_IDS = random.Random()  # noqa: S311 # nosec B311
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ADMIN_PATHS = frozenset({"/metrics", "/bundles"})
_PROBES = frozenset({"/livez", "/readyz", "/startupz"})
_QUIET_PATHS = _PROBES | {"/metrics"}


class RequestMiddleware:
    """The outermost layer that is ours."""

    def __init__(
        self, app: ASGIApp, *, lifecycle: Lifecycle, metrics: Metrics, routes: list[Route], admin_port: int | None
    ) -> None:
        self._app, self._lifecycle, self._metrics = app, lifecycle, metrics
        self._admin_port = admin_port
        self._paths = frozenset(route.path for route in routes)
        """None of them has parameters."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Of several alike the first, as starlette reads them. Read once: it looks through all at every question.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        request_id = _request_id(headers.get(b"x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"], state[HEADERS] = request_id, headers
        began, status = time.perf_counter(), 0
        span = RequestSpan(headers, quiet=scope["path"] in _QUIET_PATHS)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if self._lifecycle.ends:
                    # The peer must go elsewhere with its next request: this listener is about to close.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if self._is_on_wrong_port(scope):
                await status_response(404, "not on this port", request_id)(scope, receive, send_marked)
            else:
                await self._app(scope, receive, send_marked)
        except Exception as error:
            get_logger().error("defect", request_id=request_id, **_trace(span), exc_info=error)
            if status == 0:
                await problem_response(error, request_id)(scope, receive, send_marked)
        finally:
            seconds, route = time.perf_counter() - began, self._route(scope)
            span.end(scope["method"], route, status or 499, request_id)
            self._record(scope, request_id, route, status or 499, seconds, span)  # the answer is on its way already

    def _is_on_wrong_port(self, scope: Scope) -> bool:
        server = scope.get("server")
        if self._admin_port is None or server is None or scope["path"] in _PROBES:
            return False
        return bool((server[1] == self._admin_port) != (scope["path"] in ADMIN_PATHS))

    def _record(
        self, scope: Scope, request_id: str, route: str, status: int, seconds: float, span: RequestSpan
    ) -> None:
        further: Callable[[], None] | None = scope["state"].get(RECORD)
        if further is not None:
            further()
        self._metrics.request_seconds.observe(seconds, route, str(status))
        log = get_logger()
        say = log.debug if route in _QUIET_PATHS else log.info
        facts = scope["state"].get("log", {})
        say(
            "request",
            request_id=request_id,
            **_trace(span),
            method=scope["method"],
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **facts,
        )

    def _route(self, scope: Scope) -> str:
        """The route's own path: a caller must not be able to make up metric labels."""
        path: str = scope["path"]
        return path if path in self._paths else "other"


class DirectAnswers:
    """POST to a path that answers goes straight to its handler, everything else to FastAPI.

    FastAPI's way to a handler costs a tenth of a cached answer, for what no answer needs; its routes are the document.
    """

    def __init__(
        self, app: ASGIApp, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]],
        note_refusal: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self._app, self._handlers, self._note_refusal = app, handlers, note_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except ServiceError as error:
            self._note_refusal(error)
            response = problem_response(error, request.state.request_id)
        except Exception as error:
            # Answered here, where CORS still puts its headers on it; told by the outermost layer.
            await problem_response(error, request.state.request_id)(scope, receive, send)
            raise
        await response(scope, receive, send)


def _trace(span: RequestSpan) -> dict[str, str]:
    return {} if span.trace_id is None else {"trace_id": span.trace_id}


def _request_id(given: bytes | None) -> str:
    """The caller's id when it is harmless, else a new one."""
    if given is not None:
        text = given.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_IDS.getrandbits(64):016x}"
