"""Checks of ours that schemathesis runs beside its own (SCHEMATHESIS_HOOKS names this module).

Knows the problem documents of the service.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import CheckContext, GenerationMode

from mufin.inputs import normalise_title

# What no schema can know beforehand: which pictures can be had, which keys the labels' metadata have, how many images
# a bundle takes, and the limits of a batch, which are settings.
_KNOWN_ONLY_HERE = {
    *("image_url_refused", "image_unreachable", "image_timeout", "not_an_image"),
    *("unknown_key", "too_many_images", "too_long"),
}


@schemathesis.check
def valid_data_is_refused_for_stated_reasons_only(
    context: CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """A body that fits the schema is refused only for what the schema cannot say; a batch refuses item by item."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE or response.status_code != 422:
        return
    codes = {fault["code"] for fault in response.json().get("errors", ())}
    if _has_an_invisible_title(case.body):
        codes.discard("value_error")  # a title of characters that nobody sees is none
    assert codes <= _KNOWN_ONLY_HERE, f"valid data refused as {sorted(codes)}"


def _has_an_invisible_title(body: Any) -> bool:
    title = body["product"].get("title") if isinstance(body, dict) and "product" in body else None
    return title is not None and not normalise_title(title)


@schemathesis.check
def every_answer_has_its_request_id(
    context: CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """In the header always, in a problem document as the same text."""
    [request_id] = response.headers["x-request-id"]
    if response.headers["content-type"] == ["application/problem+json"]:
        assert response.json()["request_id"] == request_id
