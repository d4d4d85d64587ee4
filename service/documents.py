"""The OpenAPI document and the page that shows it, both without any network.

Knows the schemas and the endpoints' names; the page's assets lie in the package (closed networks).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.errors import all_codes
from service.schemas import (
    BATCH_EXAMPLES,
    REQUEST_EXAMPLES,
    BatchAnswer,
    BatchRequest,
    Problem,
    RecommendAnswer,
    RecommendRequest,
)

STATIC_FOLDER = Path(__file__).parent / "static"
_TEMPLATE = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    RecommendRequest,
    BatchRequest,
    RecommendAnswer,
    BatchAnswer,
    Problem,
)
_ID_PATTERN = "^[A-Za-z0-9_-]{1,64}$"
_PROBLEMS = {
    401: "API key missing or unknown",
    403: "API key lacks the scope",
    404: "No bundle behind this endpoint",
    413: "Body over the limit",
    415: "Body is not JSON",
    422: "Invalid input, or nothing usable is left of it: every fault with its JSON pointer",
    429: "Too much work is waiting, or the API key's rate is used up; see Retry-After",
    503: "Not ready, or stopping",
    504: "The deadline passed before even a shortlist was there",
    500: "A defect of ours",
}

DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>MUFIN</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/static/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script src="docs/static/start.js"></script>
</body>
</html>
"""


def operation(answer: type[BaseModel], request: type[BaseModel], summary: str) -> dict[str, Any]:
    """What FastAPI cannot know of an endpoint that reads its own body."""
    examples = BATCH_EXAMPLES if request is BatchRequest else REQUEST_EXAMPLES
    problems = {str(status): _problem(text) for status, text in _PROBLEMS.items()}
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _reference(request), "examples": examples}},
        },
        "parameters": [
            _header("X-Request-Timeout-Ms", {"type": "integer", "minimum": 1}, "Longest wait for an answer."),
            # No pattern: an id of another form is replaced, not refused.
            _header(
                "X-Request-ID", {"type": "string"}, f"Comes back; made if absent or not of the form {_ID_PATTERN}."
            ),
        ],
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": _reference(answer)}}},
            **problems,
        },
    }


def probe_operation(summary: str, may_fail: bool = True) -> dict[str, Any]:
    """A path that answers plain text and asks for no key."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    responses = {"200": {"description": "Yes" if may_fail else "The page", "content": text}}
    if may_fail:
        responses["503"] = {"description": "No, with the reason", "content": text}
    return {"summary": summary, "security": [], "responses": responses}


def admin_operation(summary: str) -> dict[str, Any]:
    """A path that answers an object and asks for the scope admin."""
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": {"type": "object"}}}},
            **{str(status): _problem(_PROBLEMS[status]) for status in (401, 403)},
        },
    }


def complete(document: dict[str, Any], with_keys: bool) -> dict[str, Any]:
    """FastAPI's document with our schemas, the problem codes and, where set, the API key."""
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_TEMPLATE)
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **definitions["$defs"]}
    components["schemas"]["Problem"]["properties"]["code"]["enum"] = sorted(all_codes())
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _reference(Problem)}}
    return {"description": description, "content": content}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(model=model.__name__)}


def _header(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
