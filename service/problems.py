"""Errors to application/problem+json (RFC 9457).

Knows the error table and no endpoint; an unknown error shows nothing of itself.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from service.errors import InvalidRequest, Reply, ServiceError, Shed, reply_to, reply_to_status


def problem_values(error: Exception, request_id: str) -> dict[str, Any]:
    """The problem document of an error."""
    reply = reply_to(error)
    detail = str(error) if isinstance(error, ServiceError) else "the service met a defect; the log has more"
    values = _values(reply, detail, request_id)
    if isinstance(error, InvalidRequest):
        values["errors"] = [
            {"pointer": fault.pointer, "code": fault.code, "detail": fault.detail} for fault in error.faults
        ]
    return values


def problem_response(error: Exception, request_id: str) -> Response:
    """The answer to an error, Retry-After and WWW-Authenticate included."""
    reply = reply_to(error)
    headers: dict[str, str] = {}
    retry_after = error.retry_after_seconds if isinstance(error, Shed) else reply.retry_after_seconds
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if reply.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(problem_values(error, request_id), headers)


def status_response(status: int, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The answer to what the router decided: 404, 405."""
    return _response(_values(reply_to_status(status), detail, request_id), headers or {})


def _values(reply: Reply, detail: str, request_id: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": reply.title,
        "status": reply.status,
        "code": reply.code,
        "detail": detail,
        "request_id": request_id,
    }


def _response(values: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(
        orjson.dumps(values), status_code=values["status"], headers=headers, media_type="application/problem+json"
    )
