"""A request body to a validated request, with every fault under its JSON pointer.

Knows the schemas and no endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import Fault, InvalidRequest
from service.schemas import BatchEnvelope

Request = TypeVar("Request", bound=BaseModel)

_MOST_FAULTS = 50


def parse(kind: type[Request], body: bytes) -> Request:
    """Raises InvalidRequest naming every fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        invalid = _invalid(error, body)
    # Raised outside: a ValidationError does not take part in garbage collection, so one that is kept as the
    # context of an exception in a frame it leads to is never freed.
    raise invalid


def parse_item(kind: type[Request], value: Any) -> Request:
    """One item of a batch, already plain values; pointers are relative to the item. Raises InvalidRequest."""
    return parse(kind, json.dumps(value).encode("utf-8", "surrogatepass"))


def parse_batch(body: bytes, max_products: int) -> list[Any]:
    """The items of a batch, each to be checked on its own. Raises InvalidRequest."""
    items = parse(BatchEnvelope, body).items
    if len(items) > max_products:
        detail = f"{len(items)} items, allowed are {max_products}"
        raise InvalidRequest("the batch is too long", [Fault("/items", "too_long", detail)])
    return items


def _invalid(error: ValidationError, body: bytes) -> InvalidRequest:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found and found[0]["type"] == "json_invalid":
        return InvalidRequest("the body is no JSON", [Fault("", "json_invalid", found[0]["msg"])])
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    faults: dict[tuple[str, str], Fault] = {}
    for entry in found:
        place = pointer(entry["loc"], document, entry["type"] == "missing")
        faults.setdefault((place, entry["type"]), Fault(place, entry["type"], entry["msg"]))
    shown = list(faults.values())[:_MOST_FAULTS]
    return InvalidRequest(f"the request has {len(faults)} fault{'s' if len(faults) > 1 else ''}", shown)


def pointer(location: Sequence[int | str], document: Any, missing: bool = False) -> str:
    """A validator's location as a JSON pointer into the document.

    Validators add the names of union members, which are no part of the document: what cannot be followed is left
    out, except the last step when it names a ``missing`` field.
    """
    steps: list[str] = []
    current = document
    for position, step in enumerate(location):
        inside = isinstance(current, dict) and step in current
        if inside or (isinstance(current, list) and isinstance(step, int) and step < len(current)):
            current = current[step]
        elif not (missing and position + 1 == len(location)):
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)
