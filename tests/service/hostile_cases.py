"""The table of hostile URLs, names and servers: what is tried, how it ends and how soon. Adding a case is a line.

Knows no fetcher; test_hostile_fetching.py plays the cases and docs/security.md shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.errors import PictureCode
from tests.service.certificates import Kind
from tests.service.hostile_server import (
    MAGIC,
    PNG,
    Play,
    answer,
    chunks,
    encoded,
    raw,
    redirect,
    repeat,
    resets_after,
    routes,
    says_first,
    silent,
)

Soon = Literal["at once", "connect limit", "first-byte limit", "whole limit", "speed limit"]

# ---- URLs that are refused by their text alone, even where plain http is allowed

URLS: dict[str, Sequence[str]] = {
    "no URL, or no host": [
        "", "x", "//shop.example/1.jpg", "https://", "https:///x", "https:shop.example/", "https://?x", "https://#x",
        "https://:443/", "https:/shop.example/",
    ],
    "other schemes": [
        "ftp://shop.example/1", "file:///etc/passwd", "gopher://127.0.0.1/", "data:,x", "javascript:alert(1)",
        "ws://shop.example/", "unix:/run/x.sock", "http+unix://x/", "jar:https://shop.example/", "dict://shop.example/",
    ],
    "ports": [
        "https://shop.example:99999/", "https://shop.example:x/", "https://shop.example:22/", "https://shop.example:0/",
        "https://shop.example:8080/", "https://shop.example:80:443/", "https://shop.example:-443/",
        "https://shop.example:４４３/", "https://shop.example:443.0/", "https://shop.example:65979/",
    ],
    "user names": [
        "https://user@shop.example/", "https://a:b@shop.example/", "https://shop.example@127.0.0.1/", "https://@shop.example/",
        "https://127.0.0.1\\@shop.example/", "https://[::1]@shop.example/", "https://shop.example:443@127.0.0.1/",
        "https://a%40b@shop.example/",
    ],
    "spaces, control characters, backslashes": [
        "https://shop.example/\r\nX: 1", "https://shop.example/ a", "https://shop\t.example/", "https://shop.example/\x00",
        "https://shop.example\\.evil/", " https://shop.example/", "https://shop.example/\x85", "https://shop.example/\xa0",
        "https://shop.example/\ud800", "\x01https://shop.example/", "https:\\\\shop.example/",
    ],
    "host names that are none": [
        "https://shop..example/", "https://.shop.example/", "https://-shop.example/", "https://shop-.example/",
        "https://sh%6fp.example/", "https://shop.example%00.evil/", "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/", "https://*.example/", "https://shop.example,evil/", "https://shop'example/",
        "https://shop.example../", "https://${x}.example/", "https://shop!example/",
    ],
    "IDNA": [
        "https://xn--a/", "https://a\u202eb.example/", "https://xn--\u0430.example/", "https://shop\u2100evil.example/",
        "https://shop.example\uff0fevil/", "https://shop.example\uff1a22/", "https://evil\uff20shop.example/",
        "https://\u2488example/", "https://\ufffd.example/", "https://xn--0000h.example/",
    ],
    "too long": ["https://shop.example/" + "a" * 2048, "https://shop.example/" + "\u00e4" * 500, "https://" + "\u00fc" * 2000 + ".example/"],
    "internal addresses, plainly": [
        "https://127.0.0.1/", "http://127.0.0.1/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.0.1/",
        "https://169.254.169.254/latest/meta-data/", "https://100.100.100.200/", "https://168.63.129.16/",
        "https://192.0.0.192/", "https://0.0.0.0/", "https://255.255.255.255/", "https://224.0.0.1/",
        "https://[::1]/", "https://[::]/", "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[ff02::1]/",
        "https://[fec0::1]/", "https://[100::1]/", "https://[2001:db8::1]/",
    ],
    "IPv4 in decimal": ["https://2130706433/", "https://3232235521/", "https://0/", "https://4294967296/", "https://134744072/"],
    "IPv4 in octal": ["https://017700000001/", "https://0177.0.0.1/", "https://127.0.0.01/", "https://0177.0.0.01/", "https://010.8.8.8/"],
    "IPv4 in hexadecimal": ["https://0x7f000001/", "https://0x7f.0.0.1/", "https://0X7F.1/", "https://0x7f.0x0.0x0.0x1/", "https://0x/", "https://127.0.0.0x1/"],
    "IPv4 in too few or too many parts": ["https://127.1/", "https://127.0.1/", "https://0x7f.1/", "https://1.2.3.4.5/", "https://8.8.8/", "https://999.1.1.1/"],
    "IPv4 with trailing dots": ["https://127.0.0.1./", "https://127.0.0.1../", "https://2130706433./", "https://10.0.0.1.:443/"],
    "IPv4 in other digits and dots": [
        "https://１２７.0.0.1/", "https://127。0。0。1/", "https://①②⑦.0.0.1/", "https://127．0．0．1/", "https://𝟏𝟐𝟕.0.0.1/",
        "https://127｡0｡0｡1/", "https://②①③⓪⑦⓪⑥④③③/", "https://0ｘ7f000001/", "https://١٢٧.0.0.1/",
    ],
    "IPv4 mapped into IPv6": [
        "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[0:0:0:0:0:ffff:a00:1]/", "https://[::FFFF:169.254.169.254]/",
        "https://[::ffff:0:127.0.0.1]/",
    ],
    "IPv4-compatible IPv6": ["https://[::127.0.0.1]/", "https://[::7f00:1]/", "https://[::8.8.8.8]/"],
    "NAT64": ["https://[64:ff9b::7f00:1]/", "https://[64:ff9b::10.0.0.1]/", "https://[64:ff9b:1::1]/", "https://[64:ff9b::a9fe:a9fe]/"],
    "6to4": ["https://[2002:7f00:1::]/", "https://[2002:a00:1::1]/", "https://[2002:a9fe:a9fe::]/"],
    "Teredo": ["https://[2001:0:7f00:1::]/", "https://[2001:0:808:808:0:0:80ff:fffe]/", "https://[2001::1]/"],
    "ISATAP": ["https://[2606:4700::5efe:127.0.0.1]/", "https://[2606:4700::200:5efe:10.0.0.1]/", "https://[fe80::5efe:8.8.8.8]/"],
    "zone ids": ["https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[2606:4700::1%251]/", "https://[::1%lo]/"],
    "brackets": [
        "https://[::1", "https://::1/", "https://[127.0.0.1]/", "https://[v1.x]/", "https://[2606:4700::1]evil.example/", "https://[2606:4700::1]x:443/",
        "https://shop.example[2606:4700::1]/", "https://[2606:4700::1][::1]/", "https://[]/", "https://[[2606:4700::1]]/", "https://[shop.example]/",
    ],
}  # fmt: skip

# ---- where a redirect must not lead, from https://shop.example/a/b

REDIRECTS: Sequence[str] = [
    "http://shop.example/", "//127.0.0.1/", "https://127.0.0.1/", "ftp://shop.example/", "https://u@shop.example/",
    "https://[::1]/", "file:///etc/passwd", "https://[", "\\\\127.0.0.1\\x", "https://10.0.0.1:443/",
    "https://169.254.169.254/latest/meta-data/", "https://2130706433/", "https://[::ffff:7f00:1]/", "data:image/png,x",
    "//[fe80::1%25eth0]/", "https://shop.example:22/", "http:b", "//\u2460\u2461\u2466.0.0.1/",
]  # fmt: skip

# ---- addresses behind a name, none of which may be dialled

BAD_ANSWERS: Sequence[Sequence[str]] = [
    ["10.0.0.1"], ["127.0.0.2"], ["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::1"],
    ["8.8.8.8", "127.0.0.1", "169.254.169.254"], ["::ffff:127.0.0.2"], ["64:ff9b::7f00:2"], ["2002:7f00:2::"],
    ["2001:0:7f00:2::"], ["2606:4700::5efe:10.0.0.1"], ["fe80::1%lo"], ["0.0.0.0"], ["::"], ["224.0.0.1"], [], ["nonsense"],
    ["127.0.0.1"] * 50 + ["10.0.0.1"],
]  # fmt: skip


# ---- servers

Names = Mapping[str, Sequence[Sequence[str]]]
_OK = b"HTTP/1.1 200 OK\r\n"
_SHOP = {"shop.example": [["127.0.0.1"]]}
_PLAIN, _NAMED, _TLS = "http://127.0.0.1:{port}/", "http://shop.example:{port}/", "https://shop.example:{port}/"


@dataclass(frozen=True)
class FetchCase:
    """One hostile server, and how fetching from it ends."""

    name: str
    play: Play
    outcome: PictureCode | Literal["ok"] = "image_unreachable"
    soon: Soon = "at once"
    """Which limit ends it; at once: none of them."""
    url: str = _PLAIN
    names: Names = field(default_factory=dict)
    """Host -> what each lookup answers, the last for ever."""
    tls: Kind | None = None
    connections: int | None = None
    """How many the server may see; None: any number."""


FETCHES: dict[str, Sequence[FetchCase]] = {
    "answers": [
        FetchCase("a picture", answer(), "ok"),
        FetchCase("a picture over TLS", answer(), "ok", url=_TLS, names=_SHOP, tls="good"),
        FetchCase("status 404", answer(status="404 Not Found")),
        FetchCase("status 500", answer(status="500 Oops")),
        FetchCase("status 206, a part", answer(status="206 Partial Content")),
        FetchCase("status 304 that nobody asked for", answer(b"", status="304 Not Modified")),
        FetchCase("status 101, another protocol", raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + PNG)),
        FetchCase("HTML called image/png", answer(b"<html>" + b"x" * 100, "Content-Type: image/png"), "not_an_image"),
        FetchCase("a picture called text/html", answer(PNG, "Content-Type: text/html"), "ok"),
        FetchCase("SVG", answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not_an_image"),
        FetchCase("GIF", answer(b"GIF89a" + bytes(100)), "not_an_image"),
        FetchCase("nothing at all", answer(b""), "not_an_image"),
        FetchCase("another protocol", raw(b"SSH-2.0-OpenSSH_9\r\n\r\n")),
        FetchCase("HTTP/0.9", raw(PNG)),
        FetchCase("interim answers before the picture", raw(b"HTTP/1.1 103 Early\r\n\r\n" * 3 + _OK + b"\r\n" + PNG), "ok"),
        FetchCase("a cookie, then asked again", answer(PNG, "Set-Cookie: a=b"), "ok"),
    ],
    "redirects": [
        FetchCase("three", routes({"/": redirect("/1"), "/1": redirect("/2"), "/2": redirect("/3"), "/3": answer()}), "ok"),
        FetchCase("four", routes({"/": redirect("/1"), "/1": redirect("/2"), "/2": redirect("/3"), "/3": redirect("/4")}), connections=4),
        FetchCase("in a circle", redirect("/"), connections=4),
        FetchCase("in a circle of two hosts", redirect("http://b.example:{port}/"), names={"b.example": [["127.0.0.1"]]}, connections=4),
        FetchCase("to nowhere", answer(b"", status="302 Found")),
        FetchCase("to a private address", redirect("http://10.0.0.1/"), connections=1),
        FetchCase("to loopback by a name", redirect("http://inside.example/"), names={"inside.example": [["127.0.0.2"]]}, connections=1),
        FetchCase("to a metadata server", redirect("http://169.254.169.254/latest/meta-data/"), connections=1),
        FetchCase("to an odd spelling", redirect("http://2130706433:{port}/"), connections=1),
        FetchCase("to a mapped address", redirect("http://[::ffff:7f00:1]:{port}/"), connections=1),
        FetchCase("to a user name", redirect("http://a@127.0.0.1:{port}/1"), connections=1),
        FetchCase("to a file", redirect("file:///etc/passwd"), connections=1),
        FetchCase("to a port that is not allowed", redirect("http://127.0.0.1:22/"), connections=1),
        FetchCase("from https to http", redirect("http://shop.example:{port}/1"), url=_TLS, names=_SHOP, tls="good", connections=1),
        FetchCase("to a URL of 3,000 characters", redirect("/" + "a" * 3000), connections=1),
        FetchCase("308 with a body", routes({"/": answer(PNG, "Location: /1", status="308 Permanent"), "/1": answer()}), "ok"),
    ],
    "names": [
        FetchCase("one public address", answer(), "ok", url=_NAMED, names=_SHOP),
        FetchCase("no such name", answer(), url=_NAMED, connections=0),
        FetchCase("public when judged, private when connecting", answer(), "ok", url=_NAMED, names={"shop.example": [["127.0.0.1"], ["10.0.0.1"]]}, connections=1),
        FetchCase("public first, private at the redirect", redirect("/1"), url=_NAMED, names={"shop.example": [["127.0.0.1"], ["10.0.0.1"]]}, connections=1),
        *(FetchCase(f"answers {', '.join(own[:3]) or 'nothing'}{' …' if len(own) > 3 else ''}", answer(), url=_NAMED, names={"shop.example": [own]}, connections=0) for own in BAD_ANSWERS),
    ],
    "sizes": [
        FetchCase("Content-Length over the limit", answer(length=10**9), "image_too_large"),
        FetchCase("Content-Length longer than the body", answer(length=len(PNG) + 9)),
        FetchCase("Content-Length shorter than the body", answer(PNG + b"x" * 100, length=len(PNG)), "ok"),
        FetchCase("Content-Length of 19 digits", answer(length=10**19 - 1), "image_too_large"),
        FetchCase("Content-Length of 5,000 digits", answer(length="9" * 5000)),
        FetchCase("two Content-Lengths", raw(_OK + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nabcde")),
        FetchCase("a negative Content-Length", answer(length=-5)),
        FetchCase("Content-Length and chunks", raw(_OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        FetchCase("an endless body", repeat(_OK + b"\r\n" + MAGIC, b"x" * 65536), "image_too_large"),
        FetchCase("an endless body that is no picture", repeat(_OK + b"\r\n", b"x" * 65536), "not_an_image"),
        FetchCase("endless chunks", repeat(_OK + b"Transfer-Encoding: chunked\r\n\r\n14\r\n" + MAGIC + b"\r\n", b"400\r\n" + b"x" * 1024 + b"\r\n"), "image_too_large"),
        FetchCase("a body in chunks of one byte", chunks(b"x", 40_000)),
        FetchCase("a chunk that promises 2^60 bytes", raw(_OK + b"Transfer-Encoding: chunked\r\n\r\n1000000000000000\r\n" + MAGIC)),
        FetchCase("a chunk size that is no number", raw(_OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")),
        FetchCase("a chunk extension without end", repeat(_OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 4096)),
        FetchCase("trailers without end", repeat(_OK + b"Transfer-Encoding: chunked\r\n\r\n14\r\n" + MAGIC + b"\r\n0\r\n", b"a: " + b"x" * 4096 + b"\r\n")),
    ],
    "encodings nobody asked for": [
        FetchCase("gzip", encoded(PNG), "ok"),
        FetchCase("a gzip bomb", encoded(MAGIC + bytes(30_000_000)), "image_too_large"),
        FetchCase("a gzip bomb that is no picture", encoded(bytes(30_000_000)), "not_an_image"),
        FetchCase("no gzip at all", answer(PNG, "Content-Encoding: gzip")),
        FetchCase("gzip cut short", answer(b"\x1f\x8b\x08\x00", "Content-Encoding: gzip"), "not_an_image"),
        FetchCase("gzip twice", encoded(PNG, "gzip, gzip")),
        FetchCase("Brotli", answer(PNG, "Content-Encoding: br")),
    ],
    "heads": [
        FetchCase("one header of 300 kB", raw(_OK + b"X: " + b"x" * 300_000 + b"\r\n\r\n")),
        FetchCase("100,000 headers", raw(_OK + b"a: b\r\n" * 100_000 + b"\r\n")),
        FetchCase("a head without end", repeat(_OK, b"a: b\r\n" * 100)),
        FetchCase("interim answers without end", repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)),
        FetchCase("a header that breaks the line", raw(_OK + b"Location: a\r b\r\n\r\n")),
        FetchCase("NUL in a header", raw(_OK + b"X: \x00\r\n\r\n")),
        FetchCase("a status line of 300 kB", raw(b"HTTP/1.1 200 " + b"O" * 300_000)),
        FetchCase("a status that is no number", raw(b"HTTP/1.1 abc OK\r\n\r\n")),
    ],
    "slow servers": [
        FetchCase("takes the connection and is silent", silent, soon="first-byte limit"),
        FetchCase("a head, then silence", repeat(_OK + b"\r\n" + MAGIC, b"", 60), soon="first-byte limit"),
        FetchCase("a head byte by byte", repeat(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02), "image_timeout", "whole limit"),
        FetchCase("interim answers one by one", repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02), "image_timeout", "whole limit"),
        FetchCase("a body byte by byte", repeat(_OK + b"\r\n" + MAGIC, b"x", 0.02), "image_timeout", "speed limit"),
        FetchCase("a body byte by byte, within the least speed", repeat(_OK + b"\r\n" + MAGIC, b"x" * 10, 0.02), "image_timeout", "whole limit"),
        FetchCase("TLS that never begins", silent, url=_TLS, names=_SHOP, soon="connect limit"),
        FetchCase("a name server that never answers", answer(), url="http://hangs.example:{port}/", soon="connect limit", connections=0),
    ],
    "resets": [
        FetchCase("as soon as connected", resets_after(b"", asked=False)),
        FetchCase("when asked", resets_after(b"")),
        FetchCase("within the status line", resets_after(b"HTTP/1.")),
        FetchCase("within the head", resets_after(_OK + b"Content-")),
        FetchCase("after the head", resets_after(_OK + b"Content-Length: 100\r\n\r\n")),
        FetchCase("within the body", resets_after(_OK + b"Content-Length: 100\r\n\r\n" + MAGIC)),
        FetchCase("within the body, no length given", resets_after(_OK + b"\r\n" + MAGIC)),
        FetchCase("within a chunk", resets_after(_OK + b"Transfer-Encoding: chunked\r\n\r\n50\r\n" + MAGIC)),
        FetchCase("within the TLS handshake", resets_after(b"\x16\x03\x03", asked=False), url=_TLS, names=_SHOP),
        FetchCase("after the TLS handshake", resets_after(b"", asked=False), url=_TLS, names=_SHOP, tls="good"),
        FetchCase("an end without an answer", raw(b"")),
        FetchCase("an end within the head", raw(_OK + b"Content-")),
    ],
    "TLS": [
        FetchCase("self-signed", answer(), url=_TLS, names=_SHOP, tls="self_signed"),
        FetchCase("another host's certificate", answer(), url=_TLS, names=_SHOP, tls="wrong_host"),
        FetchCase("expired", answer(), url=_TLS, names=_SHOP, tls="expired"),
        FetchCase("not yet valid", answer(), url=_TLS, names=_SHOP, tls="not_yet"),
        FetchCase("by number, the certificate is for a name", answer(), url="https://127.0.0.1:{port}/", tls="good"),
        FetchCase("plain HTTP where TLS is expected", says_first(_OK + b"\r\n"), url=_TLS, names=_SHOP),
        FetchCase("garbage where TLS is expected", says_first(b"\x00" * 64), url=_TLS, names=_SHOP),
    ],
}  # fmt: skip
