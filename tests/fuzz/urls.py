"""Mutated URLs against ``check_url``: what passes must not be, for any resolver, an address inside.

Knows none of the service's tables: addresses are judged by ``ipaddress``, hosts are read by the system's own functions.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from service.picture_urls import MAX_URL_CHARACTERS, PictureUrl, UrlPolicy, UrlRefused, check_url, redirect_url
from tests.service.hostile_cases import REDIRECTS, URLS

SLOWEST_SECONDS = 2.0

_POLICY = UrlPolicy(allow_http=True)
_GOOD = (
    "https://shop.example/1.jpg", "http://shop.example:80/a?b=c#d", "https://8.8.8.8/", "https://[2606:4700::1]:443/x",
    "https://b\u00fccher.example/\u00e4", "https://my_bucket.s3.example/", "https://[::ffff:8.8.8.8]/", "HTTPS://A.B./%20",
)  # fmt: skip
_HOSTS = (
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]", "10.0.0.1",
    "169.254.169.254", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "shop.example", "8.8.8.8", "1.1.1.1.",
)  # fmt: skip
_CHARACTERS: tuple[str, ...] = (
    *"/\\@:?#[]%.-_0123456789abcfxX \t\r\n\0&=;,'\"<>{}|^`~!$()*+",
    "\u3002", "\uff0e", "\uff11", "\u2460", "\u00ad", "\u200b", "\u202e", "\u0130", "\u00df", "\ud800", "\U0001d7cf", "\uff0f",
    "\uff20", "\uff1a", "\u2100", "%00", "%2e", "%40", "//", "..", "0x", "::", "xn--", "%25",
)  # fmt: skip

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fuzz_urls(cases: int, seed: int) -> int:
    """Try so many URLs; how many of them passed. Raises AssertionError, or whatever was not meant to be raised."""
    chance = random.Random(seed)
    start = check_url("https://shop.example/a/b", _POLICY)
    return sum(
        _try(lambda text=text: check_url(text, _POLICY), text)  # type: ignore[misc]
        + _try(lambda text=text: redirect_url(start, text, _POLICY), text, secure=True)  # type: ignore[misc]
        for text in mutants(chance, cases)
    )


def mutants(chance: random.Random, number: int) -> Iterator[str]:
    """URLs good and bad, each changed a little."""
    seeds = [*_GOOD, *REDIRECTS, *(url for urls in URLS.values() for url in urls if len(url) < 200)]
    for _ in range(number):
        text = chance.choice(seeds)
        if chance.random() < 0.3:
            text = f"{chance.choice(('https', 'http'))}://{chance.choice(_HOSTS)}{chance.choice(('', ':443', ':80', '.'))}/"
        for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
            text = _changed(chance, text, seeds)
        yield text


def _changed(chance: random.Random, text: str, seeds: list[str]) -> str:
    at, end = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
    kind, times = chance.randrange(7), chance.choice([2, 3, 50])
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + chance.choice(_CHARACTERS) + text[at:]
    if kind == 2:
        return text[:at] + chance.choice(_CHARACTERS) + text[at + 1 :]
    if kind == 3:
        return text[:at] + text[at:end] * times + text[end:]
    if kind == 4:
        other = chance.choice(seeds)
        return text[:at] + other[chance.randint(0, len(other)) :]
    if kind == 5:
        return text[:at] + chance.choice(_HOSTS) + text[end:]
    return (
        text[:at] + "".join(chr(ord(own) + 0xFEE0) if "!" <= own <= "~" else own for own in text[at:end]) + text[end:]
    )


def _try(judge: Callable[[], PictureUrl], text: str, *, secure: bool = False) -> int:
    began = time.perf_counter()
    try:
        url = judge()
    except UrlRefused:
        url = None
    assert time.perf_counter() - began < SLOWEST_SECONDS, ascii(text)
    if url is None:
        return 0
    _examine(url, text)
    assert not secure or url.scheme == "https", ascii(text)
    return 1


def _examine(url: PictureUrl, text: str) -> None:
    """Nothing that passed may be read in two ways, or be an address inside in any of them."""
    written = str(url)
    assert written.isascii() and written.isprintable() and " " not in written, ascii(text)
    # What is written names its port, and may be longer by that.
    assert len(url.target) <= MAX_URL_CHARACTERS, ascii(text)
    assert len(written) > MAX_URL_CHARACTERS or str(check_url(written, _POLICY)) == written, ascii(text)
    parts = urlsplit(written)
    assert (parts.hostname, parts.port) == (url.host, url.port), ascii(text)
    assert written == f"{parts.scheme}://{parts.netloc}{url.target}" and not parts.fragment, ascii(text)
    for address in numeric_addresses(url.host):
        assert not is_inside(address), (ascii(text), address)


def numeric_addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """What the system's functions take a host for, without asking any name server."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for spelling in (host, host.rstrip(".")):
        with suppress(OSError):
            found.append(ipaddress.IPv4Address(socket.inet_aton(spelling)))
        try:
            answers = socket.getaddrinfo(spelling, 443, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            continue
        found += [ipaddress.ip_address(answer[4][0]) for answer in answers]
    return found


def is_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address, or one wrapped in it, is not of the public internet: by the standard library alone."""
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_global or address.is_multicast or address.is_reserved
    wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64 or int(address) >> 32 == 0 or (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE:
        wrapped.append(low)
    inner = [own for own in wrapped if own is not None]
    if any(is_inside(own) for own in inner):
        return True
    if (
        address.ipv4_mapped is not None
        or address in _NAT64
        or address.teredo is not None
        or address.sixtofour is not None
    ):
        return False
    return not address.is_global or address.is_multicast or address.is_site_local
