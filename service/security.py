"""Who may call, and how large a body may be.

Knows no endpoints but their scope names, and never holds a key: only SHA-256 hashes of keys.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from starlette.types import Receive

from service.errors import BodyTooLarge, ClientGone, Forbidden, NotJson, SettingsError, Unauthenticated

Scope = Literal["recommend", "bid-queries", "admin"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\";\s]+)", re.IGNORECASE)
_RATE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
# The old one and the new one: a third would be one that nobody took out.
_LIVE_KEYS = 2


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key that may call, by its hash. Two live keys of one caller allow rotation."""

    name: str
    """Written to logs and metrics in place of the key."""
    sha256: str
    scopes: frozenset[str]
    per_second: float | None = None
    """Products a second that its caller may ask for; None: as the service's own setting says."""


class KeyRing:
    """The keys that may call; empty: everybody may."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def check(self, authorization: str | None, api_key: str | None, scope: Scope) -> ApiKey | None:
        """The caller's key; None when no keys are set. Raises Unauthenticated or Forbidden.

        ``authorization``: "Bearer KEY"; ``api_key``: KEY; either as Latin-1 reads its bytes.
        """
        if not self._keys:
            return None
        presented = api_key
        if not presented and authorization is not None and authorization[:7].lower() == "bearer ":
            presented = authorization[7:].strip(" \t")  # no more: other blanks of Latin-1 are halves of UTF-8's letters
        if not presented:
            raise Unauthenticated("send the API key as Authorization: Bearer KEY or as X-API-Key")
        found: ApiKey | None = None
        for digest in _digests(presented):
            for key in self._keys:
                # Every key is compared, whichever matches: the time tells nothing.
                if hmac.compare_digest(key.sha256, digest):
                    found = key
        if found is None:
            raise Unauthenticated("the API key is unknown")
        if scope not in found.scopes:
            raise Forbidden(f"the API key lacks the scope {scope}")
        return found


def _digests(presented: str) -> list[str]:
    """Of the key's bytes as they came, and of what they say in Latin-1, which some clients write (browsers, requests)."""
    codings = ("latin-1",) if presented.isascii() else ("latin-1", "utf-8")
    return [hashlib.sha256(presented.encode(coding)).hexdigest() for coding in codings]


def read_keys(entries: Sequence[str]) -> KeyRing:
    """NAME:SHA256HEX:SCOPE+SCOPE[:PER_SECOND] entries to a key ring. Raises SettingsError that never shows the hash."""
    keys = [_read_key(position, entry) for position, entry in enumerate(entries, 1)]
    for number, key in enumerate(keys):
        alike = [own for own in keys[: number + 1] if own.name == key.name]
        if len(alike) > _LIVE_KEYS:
            raise SettingsError(f"api key {key.name} stands there {len(alike)} times: two serve a change, take one out")
        if any(own.per_second != key.per_second for own in alike):
            raise SettingsError(f"api key {key.name} has two rates: its keys share one bucket, give them one rate")
        if any(own.sha256 == key.sha256 for own in keys[:number]):
            raise SettingsError(f"api key {key.name} has the hash of another key: make one key for each caller")
    return KeyRing(keys)


def _read_key(position: int, entry: str) -> ApiKey:
    name, digest, scopes, rate = (*entry.split(":", 3), "", "", "")[:4]
    wanted = frozenset(scope.strip() for scope in scopes.split("+") if scope.strip())
    if not _NAME.fullmatch(name) or not _SHA256.fullmatch(digest.lower()):
        raise SettingsError(
            f"api key {position} must look like NAME:SHA256HEX:SCOPE+SCOPE; make the hash with: printf %s KEY | sha256sum"
        )
    if not wanted or not wanted <= SCOPES:
        raise SettingsError(f"api key {name} has scopes {sorted(wanted)}, there are {sorted(SCOPES)}")
    if rate and (not _RATE.fullmatch(rate) or float(rate) <= 0):
        raise SettingsError(f"api key {name} has the rate {rate[:40]!r}, which must be products a second above 0")
    return ApiKey(name, digest.lower(), wanted, float(rate) if rate else None)


def require_json(content_type: str | None, content_encoding: str | None) -> None:
    """Raises NotJson unless the body is declared as plain JSON in UTF-8."""
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise NotJson(f"content-type is {kind[:80] or 'missing'}, needs application/json")
    charset = _CHARSET.search(parameters) if parameters else None
    if charset is not None and charset.group(1).lower().replace("-", "") != "utf8":
        raise NotJson(f"charset is {charset.group(1)[:40]}, JSON is UTF-8")
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise NotJson(f"content-encoding is {content_encoding[:40]}, send the body as it is")


async def read_body(receive: Receive, content_length: str | None, max_bytes: int) -> bytes:
    """The body, never more than the limit in memory. Raises BodyTooLarge, ClientGone."""
    digits = content_length if content_length is not None and content_length.isascii() else ""
    if digits.isdigit() and int(digits[:20]) > max_bytes:
        raise BodyTooLarge(f"the body has {digits[:20]} bytes, allowed are {max_bytes}")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client hung up")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise BodyTooLarge(f"the body has more than {max_bytes} bytes")
    return bytes(body)
