"""create_app(settings): the lifespan opens the bundles, the routes hand requests on, errors become problems.

Knows how the parts meet HTTP and none of their insides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mufin.errors import MufinError
from service.answering import Answering
from service.bundles import Endpoint, OpenModel, open_from_disk
from service.documents import DOCS_PAGE, STATIC_FOLDER, admin_operation, complete, operation, probe_operation
from service.errors import ServiceError
from service.lifecycle import Lifecycle, Phase
from service.middleware import DirectAnswers, RequestMiddleware
from service.parts import Parts, build
from service.problems import problem_response, status_response
from service.schemas import BatchAnswer, BatchRequest, RecommendAnswer, RecommendRequest
from service.settings import Settings
from service.telemetry import get_logger

# What a page in a browser may send and read, where its origin is allowed at all.
_CORS_REQUEST_HEADERS = ("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "X-Request-Timeout-Ms")
_CORS_ANSWER_HEADERS = ("Retry-After", "X-Request-ID")

Handler = Callable[[Request], Awaitable[Response]]

_ENDPOINTS: dict[Endpoint, str] = {
    "recommend": "Labels that are products: what to show beside this product",
    "bid-queries": "Labels that are ad keywords: what to bid on for this product",
}
# The page needs its own scripts and styles, nothing else; Swagger UI sets style attributes and data: images.
_DOCS_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"


def create_app(
    settings: Settings, open_model: OpenModel = open_from_disk, settle: Callable[[], None] = lambda: None
) -> FastAPI:
    """The whole service as an ASGI app; ``settle`` runs once between opening bundles and readiness. Raises SettingsError."""
    parts = build(settings)
    app = FastAPI(
        title="MUFIN",
        summary="Product recommendations and bid queries from titles and images.",
        version="1",
        lifespan=_lifespan(parts, open_model, settle),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # it would send callers to an address made of Host, by http
    )
    app.state.lifecycle = parts.lifecycle
    app.state.parts = parts
    answering = Answering(parts)
    _add_answers(app, answering)
    _add_probes(app, parts)
    _add_admin(app, parts, answering)
    _add_documents(app, parts)
    _add_problems(app, answering)
    inner: ASGIApp = DirectAnswers(app.build_middleware_stack(), _answers(answering), answering.note_refusal)
    if settings.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_ANSWER_HEADERS,
            allow_credentials=False,
        )
    app.middleware_stack = RequestMiddleware(
        inner,
        lifecycle=parts.lifecycle,
        metrics=parts.metrics,
        routes=[route for route in app.routes if isinstance(route, Route)],
        admin_port=settings.admin_port,
    )
    return app


def entrance(app: FastAPI) -> ASGIApp:
    """The app as a server calls it: requests without FastAPI's own telemetry, which nobody has switched on, before them."""
    layers = app.middleware_stack
    assert layers is not None

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        scope["app"] = app
        await layers(scope, receive, send)

    return enter


def lifecycle_of(app: FastAPI) -> Lifecycle:
    """Where the app stands; the process reports signals to it."""
    lifecycle: Lifecycle = app.state.lifecycle
    return lifecycle


def _lifespan(parts: Parts, open_model: OpenModel, settle: Callable[[], None]) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Opened beside the server, so that the probes answer while it takes its time.
        serving = asyncio.ensure_future(_open_and_watch(parts, open_model, settle))
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await parts.aclose()

    return lifespan


async def _open_and_watch(parts: Parts, open_model: OpenModel, settle: Callable[[], None]) -> None:
    log, settings = get_logger(), parts.settings
    if settings.listens_beyond_loopback and not parts.keys:
        log.warning(
            "open_to_everybody",
            host=settings.host,
            remedy="set MUFIN_API_KEYS_FILE, or let only a gateway reach this address",
        )
    if not parts.folders:
        log.warning("no_bundle", remedy="set MUFIN_RECOMMEND_BUNDLE or MUFIN_BID_QUERIES_BUNDLE")
    try:
        await parts.open(open_model, settle)
    except (MufinError, ServiceError, OSError) as error:
        parts.lifecycle.fail(str(error))
        log.error("bundle_refused", reason=str(error))
    except Exception as error:
        parts.lifecycle.fail("a defect while opening bundles")
        log.error("defect", exc_info=error)
    else:
        for facts in parts.open_bundles():
            log.info("bundle_open", **facts)
        await parts.served.watch(settings.bundle_poll_seconds, settings.block_poll_seconds)


def _answers(answering: Answering) -> dict[str, Handler]:
    """By path."""
    single = {f"/{endpoint}": _bound(answering.one, endpoint) for endpoint in _ENDPOINTS}
    return single | {f"/{endpoint}/batch": _bound(answering.batch, endpoint) for endpoint in _ENDPOINTS}


def _add_answers(app: FastAPI, answering: Answering) -> None:
    handlers = _answers(answering)
    for endpoint, summary in _ENDPOINTS.items():
        single = operation(RecommendAnswer, RecommendRequest, summary)
        _post(app, f"/{endpoint}", handlers[f"/{endpoint}"], single)
        batch = operation(BatchAnswer, BatchRequest, summary + ", several at once")
        _post(app, f"/{endpoint}/batch", handlers[f"/{endpoint}/batch"], batch)


def _bound(answer: Callable[[Request, Endpoint], Awaitable[Response]], endpoint: Endpoint) -> Handler:
    async def handle(request: Request) -> Response:
        return await answer(request, endpoint)

    return handle


def _post(app: FastAPI, path: str, handler: Handler, document: dict[str, Any]) -> None:
    name = path.strip("/").replace("/", "_").replace("-", "_")
    app.add_api_route(
        path,
        handler,
        methods=["POST"],
        operation_id=name,
        name=name,
        response_class=Response,
        openapi_extra=document,
        tags=["answers"],
    )


def _get(app: FastAPI, path: str, handler: Handler, document: dict[str, Any]) -> None:
    name = path.strip("/")
    app.add_api_route(
        path,
        handler,
        methods=["GET"],
        operation_id=name,
        name=name,
        response_class=Response,
        openapi_extra=document,
        tags=["operation"],
    )


def _add_probes(app: FastAPI, parts: Parts) -> None:
    lifecycle = parts.lifecycle

    def told(good: bool, bad_text: str) -> Response:
        return PlainTextResponse("ok" if good else bad_text, 200 if good else 503)

    async def livez(_: Request) -> Response:
        busy = parts.queue.longest_running_seconds
        return told(busy < parts.settings.hung_after_seconds, f"a model call runs for {busy:.0f} s")

    async def readyz(_: Request) -> Response:
        return told(lifecycle.phase is Phase.READY, lifecycle.phase.value)

    async def startupz(_: Request) -> Response:
        return told(lifecycle.started, lifecycle.phase.value)

    _get(app, "/livez", livez, probe_operation("Whether the process works; stays 200 while draining"))
    ready = "Whether to send requests here: bundles verified and warm, not draining"
    _get(app, "/readyz", readyz, probe_operation(ready))
    _get(app, "/startupz", startupz, probe_operation("Whether the start is over"))


def _add_admin(app: FastAPI, parts: Parts, answering: Answering) -> None:
    async def metrics(_: Request) -> Response:
        return Response(parts.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def bundles(request: Request) -> Response:
        answering.check_key(request, "admin")
        shown = {"bundles": parts.open_bundles()}
        return Response(orjson.dumps(shown), media_type="application/json")

    _get(app, "/metrics", metrics, probe_operation("For Prometheus", may_fail=False))
    _get(app, "/bundles", bundles, admin_operation("Which bundles are open"))


def _add_documents(app: FastAPI, parts: Parts) -> None:
    async def document(_: Request) -> Response:
        # FastAPI builds its part once and keeps it.
        return Response(orjson.dumps(complete(app.openapi(), bool(parts.keys))), media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(DOCS_PAGE, headers={"Content-Security-Policy": _DOCS_POLICY})

    app.add_api_route("/openapi.json", document, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.mount("/docs/static", StaticFiles(directory=STATIC_FOLDER), name="static")


def _add_problems(app: FastAPI, answering: Answering) -> None:
    async def on_service_error(request: Request, error: Exception) -> Response:
        answering.note_refusal(error)
        return problem_response(error, request.state.request_id)

    async def on_http_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        headers = dict(error.headers) if error.headers else None
        return status_response(error.status_code, error.detail, request.state.request_id, headers)

    async def on_defect(request: Request, error: Exception) -> Response:
        return problem_response(error, request.state.request_id)

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(Exception, on_defect)
    app.add_exception_handler(HTTPException, on_http_error)
