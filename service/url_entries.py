"""What a cache remembers of a picture's URL: the hash of its content, or why there is none.

Knows neither vectors nor fetching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, get_args

import orjson

from service.cache import cache_key
from service.errors import PictureCode, PictureError

_CODES: frozenset[str] = frozenset(get_args(PictureCode))


@dataclass(frozen=True, slots=True)
class UrlEntry:
    """What is remembered of a picture's URL."""

    content_hash: str | None
    etag: str | None
    fetched_at: float
    """Wall clock: other processes read it."""
    failure: PictureError | None = None

    def to_bytes(self) -> bytes:
        """For a cache."""
        failure = [self.failure.code, str(self.failure)] if self.failure else None
        return orjson.dumps([self.content_hash, self.etag, self.fetched_at, failure])


def url_key(url: str) -> str:
    """Where a cache keeps a URL's entry."""
    # What a URL holds does not depend on an encoder.
    return cache_key("any", "url", url.encode())


def read_entry(value: bytes | None) -> UrlEntry | None:
    """An entry, or None for anything else: a shared cache may hold garbage."""
    if value is None:
        return None
    try:
        content_hash, etag, fetched_at, failure = cast(list[Any], orjson.loads(value))
        error = None
        if failure is not None:
            code, detail = failure
            if code not in _CODES:
                return None
            error = PictureError(code, str(detail))
        elif not isinstance(content_hash, str):
            return None
        return UrlEntry(content_hash, etag if isinstance(etag, str) else None, float(fetched_at), error)
    except (ValueError, TypeError):
        return None
