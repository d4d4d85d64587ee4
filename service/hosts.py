"""Names and addresses of hosts, written the one way in which they are dialled and compared.

Knows no URL and no rule about which hosts are good.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import idna

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# What ends a label that a resolver may read as a number: 1, 0x7f, 017.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_HOST_CHARACTERS = 255


class HostRefused(Exception):
    """The text is no host; says why."""


@lru_cache(maxsize=4096)
def dialled_host(hostname: str, bracketed: bool) -> str:
    """As it is dialled: lower case ASCII, no brackets, no trailing dot. Raises HostRefused.

    Kept, as a shop's pictures come from few hosts and IDNA is slow.
    """
    if len(hostname) > _MAX_HOST_CHARACTERS:
        raise HostRefused("the URL's host name is not valid")
    if bracketed:
        if "%" in hostname:
            raise HostRefused("the URL's address holds a zone")
        try:
            return str(ipaddress.IPv6Address(hostname))
        except ValueError as error:
            raise HostRefused("the URL's host is no IPv6 address") from error
    try:
        name = idna.encode(hostname, uts46=True, std3_rules=False, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        # IDNA 2008 refuses underscores and odd hyphens, which host names of object stores hold.
        if not hostname.isascii() or "xn--" in hostname.lower():
            raise HostRefused("the URL's host name is not valid") from None
        name = hostname.lower()
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostRefused("the URL's host name is not valid")
    if _NUMERIC.fullmatch(labels[-1]):
        return _dotted_quad(name)
    return name


def allowed_hosts(entry: str) -> tuple[bool, str]:
    """An entry of an allow list: whether it means all below a name, and the host as it is dialled. Raises HostRefused."""
    name = entry[1:] if entry.startswith("*.") else entry
    below = name.startswith(".")
    name = name.removeprefix(".")
    bracketed = name.startswith("[") and name.endswith("]")
    host = dialled_host((name[1:-1] if bracketed else name).lower(), bracketed)
    if below and (bracketed or _NUMERIC.fullmatch(host.rpartition(".")[2])):
        raise HostRefused("nothing is below an address")
    return below, host


def written_host(host: str) -> str:
    """As it stands in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _dotted_quad(name: str) -> str:
    try:
        # Python refuses leading zeros, hexadecimal and fewer than four parts: all the odd spellings.
        return str(ipaddress.IPv4Address(name))
    except ValueError as error:
        raise HostRefused("the URL spells a numeric address oddly") from error
