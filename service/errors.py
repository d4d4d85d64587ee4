"""Every error that the service raises on purpose, and the one table that turns errors into answers.

Knows no framework: status numbers and codes are data here, whoever writes the answer reads the table.

    ServiceError
    ├── InvalidRequest        the body breaks the contract; carries every fault
    │   └── NothingUsable     a product of which no title and no image is left
    ├── Unauthenticated       no API key, or an unknown one
    ├── Forbidden             a key without the scope
    ├── NoBundle              nothing is served behind this endpoint
    ├── BodyTooLarge
    ├── NotJson
    ├── Shed                  too much work is waiting
    │   └── RateLimited       the caller asks for more than its share
    ├── NotReady              starting, draining or stopped
    ├── DeadlinePassed        no answer in the time the caller gave
    ├── ClientGone            nobody waits for the answer any more
    ├── PictureError          one picture cannot be used; becomes a warning, never a status
    └── SettingsError         a setting that contradicts another; ends the start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ShedReason = Literal["queue_full", "wait_too_long", "too_many_requests", "rate_limit"]

PictureCode = Literal[
    "image_url_refused",
    "image_unreachable",
    "image_timeout",
    "image_too_large",
    "image_too_small",
    "image_truncated",
    "not_an_image",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request."""

    pointer: str
    """JSON pointer (RFC 6901) into the body; empty for the body itself."""
    code: str
    detail: str


class ServiceError(Exception):
    """Base of all errors raised on purpose; its text may be shown to the caller."""


class InvalidRequest(ServiceError):
    """The body breaks the contract."""

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.faults = tuple(faults)


class NothingUsable(InvalidRequest):
    """No title and no image of the product is left."""

    def __init__(
        self, detail: str, faults: Sequence[Fault] = (), image_outcomes: Sequence[str] = (),
        lookups: Sequence[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        """For the metrics: what became of each image, and (kind, outcome) of each question to the cache."""
        super().__init__(detail, faults)
        self.image_outcomes, self.lookups = tuple(image_outcomes), tuple(lookups)


class Unauthenticated(ServiceError):
    """No API key, or an unknown one."""


class Forbidden(ServiceError):
    """The API key lacks the scope."""


class NoBundle(ServiceError):
    """Nothing is served behind this endpoint."""


class BodyTooLarge(ServiceError):
    """The body is over the limit."""


class NotJson(ServiceError):
    """The body is not declared as JSON, or is encoded."""


class Shed(ServiceError):
    """Too much work is waiting; ``retry_after_seconds`` estimates when it is not."""

    def __init__(self, reason: ShedReason, detail: str, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.reason: ShedReason = reason
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Shed):
    """The caller asks for more than its share; ``retry_after_seconds`` is when a product is allowed again."""

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__("rate_limit", detail, retry_after_seconds)


class NotReady(ServiceError):
    """Starting, draining or stopped."""


class DeadlinePassed(ServiceError):
    """No answer in the time the caller gave."""


class ClientGone(ServiceError):
    """Nobody waits for the answer any more."""


class PictureError(ServiceError):
    """One picture cannot be used; its text shows nothing of the network behind the service."""

    def __init__(self, code: PictureCode, detail: str, *, of_the_url: bool = True) -> None:
        """``of_the_url``: whether it was the URL's own doing, and worth knowing when it is asked for again."""
        super().__init__(detail)
        self.code: PictureCode = code
        self.of_the_url = of_the_url


class SettingsError(ServiceError):
    """A setting that contradicts another or names something that is not there."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How an error is answered."""

    status: int
    code: str
    title: str
    retry_after_seconds: int | None = None
    """Sent as Retry-After; an error with its own estimate goes before."""


_DEFECT = Reply(500, "internal_error", "Internal error")

_TABLE: dict[type[Exception], Reply] = {
    NothingUsable: Reply(422, "nothing_usable", "No usable title or image"),
    InvalidRequest: Reply(422, "invalid_request", "Invalid request"),
    Unauthenticated: Reply(401, "unauthenticated", "API key missing or unknown"),
    Forbidden: Reply(403, "forbidden", "API key lacks the scope"),
    NoBundle: Reply(404, "no_bundle", "No bundle behind this endpoint"),
    BodyTooLarge: Reply(413, "body_too_large", "Body too large"),
    NotJson: Reply(415, "not_json", "Body is not JSON"),
    RateLimited: Reply(429, "rate_limited", "The API key's rate is used up", 1),
    Shed: Reply(429, "overloaded", "Too much work is waiting", 1),
    NotReady: Reply(503, "not_ready", "Not ready", 1),
    DeadlinePassed: Reply(504, "deadline_passed", "Deadline passed"),
    # Nobody reads it; 499 is what the log line and the metric show.
    ClientGone: Reply(499, "client_gone", "Client hung up"),
}

_BY_STATUS: dict[int, Reply] = {
    404: Reply(404, "not_found", "Not found"),
    405: Reply(405, "method_not_allowed", "Method not allowed"),
}


def reply_to(error: Exception) -> Reply:
    """The table's row for an error; anything unknown is a defect of ours and shows no detail."""
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return _DEFECT


def reply_to_status(status: int) -> Reply:
    """The row for a status that the router itself decided on."""
    return _BY_STATUS.get(status, Reply(status, f"http_{status}", "Request refused") if status < 500 else _DEFECT)


def all_codes() -> frozenset[str]:
    """Every problem code there is; docs/api.md is checked against it."""
    return frozenset(reply.code for reply in (*_TABLE.values(), *_BY_STATUS.values(), _DEFECT))
