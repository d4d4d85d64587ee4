"""The wire contract: what a request may say and what an answer looks like.

Knows no model and no HTTP status; field limits that depend on a bundle are checked where the bundle is known.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from mufin.inputs import normalise_title

MAX_K = 100
MAX_IMAGES = 64
MAX_EXCLUDES = 1000
MAX_FILTER_KEYS = 20
MAX_FILTER_VALUES = 100

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _whole(value: object) -> object:
    """10.0 is the same number as 10 in JSON, and some writers write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _scalar_kind(value: object) -> str | None:
    """Told by its JSON type, so that a wrong value has one fault and not one for each type it might have been."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else None


Scalar = Annotated[
    Annotated[bool, Tag("bool")]
    | Annotated[Number, Tag("number")]
    | Annotated[str, StringConstraints(max_length=256), Tag("text")],
    Discriminator(
        _scalar_kind,
        custom_error_type="scalar_type",
        custom_error_message="Input should be text, a number, true or false",
    ),
]

REQUEST_EXAMPLES: dict[str, Any] = {
    "title_and_image": {
        "summary": "A title and a picture by URL",
        "value": {
            "product": {
                "id": "1164",
                "title": "Nike Men Blue T20 Jersey",
                "images": ["https://shop.example/1164.jpg"],
            },
            "k": 5,
        },
    },
    "title_only": {"summary": "A title alone", "value": {"product": {"title": "Nike Men Blue T20 Jersey"}}},
    "rules": {
        "summary": "With business rules",
        "value": {
            "product": {"title": "Leather handbag, red"},
            "k": 10,
            "exclude": ["B00123"],
            "filter": {"category": ["Bags", "Shoes"], "price": {"lte": 50}},
            "min_probability": 0.2,
            "diversity": 0.3,
            "explain": True,
        },
    },
}

BATCH_EXAMPLES: dict[str, Any] = {
    "two_products": {
        "summary": "Two products, answered one by one",
        "value": {"items": [{"product": {"title": "Blue jersey"}, "k": 3}, {"product": {"title": "Red handbag"}}]},
    }
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Product(_Request):
    """The product that labels are wanted for. A title or at least one image is needed."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"title": {"type": "string", "pattern": "\\S"}}, "required": ["title"]},
                {"properties": {"images": {"minItems": 1}}, "required": ["images"]},
            ]
        }
    )

    id: Identifier | None = None
    """The shop's id: the label of the same id and the product's exclude pairs are never recommended to it."""
    title: Annotated[str, StringConstraints(max_length=2000)] | None = None
    """The product's title."""
    images: Annotated[tuple[str, ...], Field(max_length=MAX_IMAGES, strict=False)] = ()
    """https URLs or data:image/...;base64 URLs, the most telling first."""

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if not self.images and not normalise_title(self.title or ""):
            raise ValueError("a title or at least one image is needed")
        return self


class Range(_Request):
    """Numbers from gte to lte, both included; at least one is needed."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"properties": {name: {"type": "number"}}, "required": [name]} for name in ("gte", "lte")]
        }
    )

    gte: Number | None = None
    lte: Number | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.gte is None and self.lte is None:
            raise ValueError("gte or lte is needed")
        return self


def _condition_kind(value: object) -> str:
    if isinstance(value, (dict, Range)):
        return "range"
    return "values" if isinstance(value, list) else "value"


Condition = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[list[Scalar], Field(min_length=1, max_length=MAX_FILTER_VALUES), Tag("values")]
    | Annotated[Scalar, Tag("value")],
    Discriminator(_condition_kind),
]


class RecommendRequest(_Request):
    """Ask for the labels of one product."""

    product: Product
    k: Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(_whole)] = 10
    """How many results, best first."""
    exclude: Annotated[tuple[Identifier, ...], Field(max_length=MAX_EXCLUDES, strict=False)] = ()
    """Label ids never to return; unknown ones do no harm."""
    filter: Annotated[
        dict[Identifier, Condition],
        Field(max_length=MAX_FILTER_KEYS, default_factory=dict, json_schema_extra={"default": {}}),
    ]
    """Conditions on label metadata: AND over keys, OR over values, a list-valued field matches any element."""
    min_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Results less probable than this are left out, even if fewer than k remain."""
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """0 ranks by score alone; towards 1 results unlike those before them come first (MMR)."""
    explain: bool = False
    """Add attention weights and the parts of the score to each result. Weights are not causes."""

    def plain_filter(self) -> dict[str, Any]:
        """The filter as plain values."""
        return {
            key: condition.model_dump(exclude_none=True) if isinstance(condition, Range) else condition
            for key, condition in self.filter.items()
        }


class BatchEnvelope(_Request):
    """Several requests in one body; each is checked and answered on its own."""

    items: Annotated[list[Any], Field(min_length=1)]


class BatchRequest(_Request):
    """Ask for the labels of several products; one bad product never fails its neighbours."""

    items: Annotated[list[RecommendRequest], Field(min_length=1)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class BundleName(_Answer):
    """Which bundle answered."""

    id: str
    """Equal for two bundles that answer equally."""
    name: str


class Warning_(_Answer):
    """Something that did not stop the answer."""

    model_config = ConfigDict(title="Warning")

    code: str
    image: int | None = None
    """Position in product.images, where an image is meant."""
    detail: str


class Explanation(_Answer):
    """Where a result's score comes from. Attention weights show where the model looked, not why it decided."""

    attention: list[list[float]] | None
    """product_slots x label_slots; each row sums to 1; null where the bundle has no cross attention."""
    product_slots: list[str]
    """"image 0", "image 2", "title": what the rows are."""
    label_slots: list[str]
    """"image 0", "title": what the columns are."""
    classifier_part: float | None
    """fusion weight x classifier_score; null when reranking was cut, and where the score is not the sum of the two parts."""
    shortlist_part: float | None
    """(1 - fusion weight) x shortlist_score, or the whole score when reranking was cut.

    null where the score is no such sum: in bundles with a learned combination, and of labels added without training.
    """


class Result(_Answer):
    """One recommended label."""

    id: str
    title: str
    images: list[str]
    score: float
    """Fused; results are ordered by it unless diversity is asked for."""
    probability: float | None
    """Calibrated on validation; null when reranking was cut."""
    shortlist_score: float
    classifier_score: float | None
    """null when reranking was cut."""
    label_source: Literal["trained", "encoder"]
    """encoder: the label was added without training."""
    metadata: dict[str, Any]
    explanation: Explanation | None = None
    """Only when explain is true."""


class RecommendAnswer(_Answer):
    """The labels of one product, best first."""

    bundle: BundleName
    results: list[Result]
    stage: Literal["reranked", "shortlist"]
    """shortlist: the deadline cut reranking."""
    modalities_used: list[Literal["title", "image"]]
    warnings: list[Warning_]
    timings_ms: dict[str, float]
    """fetch, decode, encode, shortlist, rerank, total; a step that was not needed is absent."""


class ProblemFault(_Answer):
    """One thing wrong with a request."""

    pointer: str
    """JSON pointer into the body."""
    code: str
    detail: str


class Problem(_Answer):
    """application/problem+json (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[ProblemFault] | None = None
    """Every fault of an invalid request."""


class BatchItem(_Answer):
    """One product's answer, or what was wrong with it."""

    status: int
    answer: RecommendAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(_Answer):
    """Answers in the order of the request."""

    items: list[BatchItem]
