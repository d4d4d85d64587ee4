"""Bodies to requests, and every fault under its pointer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Fault, InvalidRequest
from service.parsing import parse, parse_batch, parse_item
from service.schemas import BATCH_EXAMPLES, REQUEST_EXAMPLES, BatchRequest, RecommendRequest


def _pointers(body: bytes) -> set[str]:
    with pytest.raises(InvalidRequest) as raised:
        parse(RecommendRequest, body)
    return {fault.pointer for fault in raised.value.faults}


FAULTS = [
    (b'{"product":{"titel":"x"},"k":0,"minprobability":1}', {"/product/titel", "/k", "/minprobability"}),
    (
        b'{"product":{"title":"x"},"filter":{"a":{"b":1},"c":null,"d":[1,{}]}}',
        {"/filter/a/b", "/filter/c", "/filter/d/1"},
    ),
    (b'{"product":{"title":"x"},"filter":{"a/b~":null}}', {"/filter/a~1b~0"}),
    (
        b'{"product":{"title":"x"},"filter":{"e":{},"f":[],"g":{"gte":1e999}}}',
        {"/filter/e", "/filter/f", "/filter/g/gte"},
    ),
    (b'{"product":{"title":"x","images":["a",1]},"exclude":[""]}', {"/product/images/1", "/exclude/0"}),
    (b'{"product":{"title":"x"},"diversity":2,"min_probability":NaN}', {"/diversity", "/min_probability"}),
    (b'{"product":{"title":"x"},"k":"3"}', {"/k"}),
    (b'{"product":{"title":"x"},"k":3.5}', {"/k"}),
    (b'{"product":{"title":"x"},"k":101}', {"/k"}),
    (b'{"product":{"title":"' + b"x" * 2001 + b'"}}', {"/product/title"}),
    (b'{"product":{"title":"x"},"filter":' + json.dumps({str(i): 1 for i in range(21)}).encode() + b"}", {"/filter"}),
    (b'{"product":{"title":"x"},"exclude":' + json.dumps(["a"] * 1001).encode() + b"}", {"/exclude"}),
    (b'{"product":{"title":" \\u200b\\n"}}', {"/product"}),
    (b"{}", {"/product"}),
    (b"[]", {""}),
    (b"", {""}),
    (b"{", {""}),
    (b"[" * 100_000, {""}),
    (b'{"product":{"title":"\\ud800"}}', {""}),
    (b'{"product":{"title":"\xff"}}', {""}),
]


@pytest.mark.parametrize(("body", "pointers"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_is_listed_under_its_pointer(body: bytes, pointers: set[str]) -> None:
    """All of them at once, and no names of types in between."""
    assert _pointers(body) == pointers


def test_a_filter_comes_back_as_plain_values() -> None:
    """True stays apart from 1, ranges lose what was not said."""
    body = b'{"product":{"title":"x"},"filter":{"a":true,"b":[1,"x",false],"c":{"lte":3},"d":"y"}}'
    plain = parse(RecommendRequest, body).plain_filter()
    assert plain == {"a": True, "b": [1.0, "x", False], "c": {"lte": 3.0}, "d": "y"}
    assert plain["a"] is True


def test_the_documented_examples_are_valid() -> None:
    """What /docs offers to try works."""
    for example in REQUEST_EXAMPLES.values():
        assert parse(RecommendRequest, json.dumps(example["value"]).encode()).product.title
    for example in BATCH_EXAMPLES.values():
        assert parse(BatchRequest, json.dumps(example["value"]).encode()).items


def test_the_items_of_a_batch_are_left_unchecked_but_counted() -> None:
    """Each is checked on its own later."""
    assert parse_batch(b'{"items":[1,{"product":{}}]}', 2) == [1, {"product": {}}]
    with pytest.raises(InvalidRequest, match="too long"):
        parse_batch(b'{"items":[1,2,3]}', 2)
    for body in (b'{"items":[]}', b'{"items":1}', b"[]", b'{"items":[1],"x":1}'):
        with pytest.raises(InvalidRequest):
            parse_batch(body, 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda own: st.lists(own) | st.dictionaries(st.text(), own),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*RecommendRequest.model_fields, "other"), VALUES)
    | {"product": st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "title", "images", "x"), VALUES)) | VALUES},
)


@given(FIELDS)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    """Nothing but InvalidRequest is raised, and every pointer leads somewhere."""
    faults: tuple[Fault, ...] = ()
    try:
        parse_item(RecommendRequest, value)
    except InvalidRequest as error:
        faults = error.faults
    assert all(fault.pointer == "" or fault.pointer.startswith("/") for fault in faults)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Broken encodings included."""
    with pytest.raises(InvalidRequest):
        parse(RecommendRequest, body)
