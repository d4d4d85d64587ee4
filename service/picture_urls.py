"""Which URLs a picture may be fetched from, judged by their text alone.

Resolves no name and opens no connection: the address that is dialled is judged in ``dialling``.
What is refused: docs/security.md, URLs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import quote, urljoin, urlsplit

from service.addresses import Address, is_public
from service.hosts import HostRefused, allowed_hosts, dialled_host, written_host

MAX_URL_CHARACTERS = 2048

_DEFAULT_PORTS = {"https": 443, "http": 80}
_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
# Python before 3.14 reads over what stands between "]" and the port.
_NETLOC = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]+)(:[0-9]*)?")
# Spaces, control characters, backslashes, and halves of characters, which no encoding can carry.
_FOUL = re.compile("[\x00-\x20\x7f-\xa0\ud800-\udfff\\\\]")


class UrlRefused(Exception):
    """The text of a URL breaks a rule; says which."""


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Which URLs are fetched."""

    allow_http: bool = False
    ports: frozenset[int] = frozenset({80, 443})
    allowed_hosts: tuple[str, ...] = ()
    """Exact names, or .example.com for all below it; empty: any."""
    trusted_origins: frozenset[str] = frozenset()
    """scheme://host:port, exempt from the scheme, port and address rules."""
    is_public: Callable[[Address], bool] = is_public


@dataclass(frozen=True, slots=True)
class PictureUrl:
    """A URL that passed, in pieces that need no further reading."""

    scheme: str
    host: str
    """Lower case ASCII; no brackets around IPv6, no trailing dot."""
    port: int
    target: str
    """Path and query, percent-encoded."""
    trusted: bool

    @property
    def origin(self) -> str:
        """scheme://host:port"""
        return f"{self.scheme}://{written_host(self.host)}:{self.port}"

    @property
    def authority(self) -> str:
        """What the Host header says: the port only where it is not the scheme's own, as signed URLs expect."""
        usual = self.port == _DEFAULT_PORTS[self.scheme]
        return written_host(self.host) + ("" if usual else f":{self.port}")

    def __str__(self) -> str:
        return self.origin + self.target


def check_url(text: str, policy: UrlPolicy, *, redirected: bool = False) -> PictureUrl:
    """Read and judge a URL; ``redirected`` ones are never trusted. Raises UrlRefused."""
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlRefused(f"the URL has {len(text)} characters, allowed are {MAX_URL_CHARACTERS}")
    if _FOUL.search(text):
        raise UrlRefused("the URL holds a space, a control character or a backslash")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UrlRefused("the URL cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise UrlRefused("the URL's scheme must be https")
    if "@" in parts.netloc:
        raise UrlRefused("the URL must not hold a user name")
    if not _NETLOC.fullmatch(parts.netloc):
        raise UrlRefused("the URL's host cannot be read")
    try:
        host = dialled_host(parts.hostname or "", parts.netloc.startswith("["))
    except HostRefused as error:
        raise UrlRefused(str(error)) from error
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    url = PictureUrl(parts.scheme, host, port, _target(parts.path, parts.query), False)
    if policy.allowed_hosts and not any(_host_matches(host, allowed) for allowed in policy.allowed_hosts):
        raise UrlRefused("the URL's host is not allowed")
    if not redirected and url.origin in policy.trusted_origins:
        return replace(url, trusted=True)
    _judge(url, policy)
    return url


def redirect_url(current: PictureUrl, location: str, policy: UrlPolicy) -> PictureUrl:
    """Where a redirect leads, judged like any other URL. Raises UrlRefused."""
    try:
        text = urljoin(str(current), location)
    except ValueError as error:
        raise UrlRefused("the redirect cannot be read") from error
    url = check_url(text, policy, redirected=True)
    if current.scheme == "https" and url.scheme == "http":
        raise UrlRefused("the redirect leaves https")
    return url


def _judge(url: PictureUrl, policy: UrlPolicy) -> None:
    if url.scheme == "http" and not policy.allow_http:
        raise UrlRefused("the URL's scheme must be https")
    if url.port not in policy.ports:
        raise UrlRefused("the URL's port is not allowed")
    address = as_address(url.host)
    if address is not None and not policy.is_public(address):
        raise UrlRefused("the URL's address is not public")


def _host_matches(host: str, allowed: str) -> bool:
    suffix, name = _allowed(allowed)
    return host.endswith("." + name) if suffix else host == name


@lru_cache(maxsize=4096)
def _allowed(entry: str) -> tuple[bool, str]:
    try:
        return allowed_hosts(entry)
    except HostRefused:
        return False, ""  # no URL has such a host


def as_address(host: str) -> Address | None:
    """The address that a host spells, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _target(path: str, query: str) -> str:
    target = quote(path or "/", safe=_PATH_SAFE)
    if not target.startswith("/"):
        target = "/" + target
    target = f"{target}?{quote(query, safe=_PATH_SAFE + '?')}" if query else target
    if len(target) > MAX_URL_CHARACTERS:
        # One character may become nine when it is percent-encoded.
        raise UrlRefused(f"the URL has {len(target)} characters when encoded, allowed are {MAX_URL_CHARACTERS}")
    return target
