"""The table of hostile requests: what is sent over a connection, and what comes back. Adding a case is a line.

Knows no service; test_hostile_requests.py plays the cases and docs/security.md shows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BODY_LIMIT = 1 << 20
JSON_TYPE = "Content-Type: application/json"
CLOSE = "Connection: close"
GOOD = b'{"product":{"title":"red running shoes"},"k":1}'


@dataclass(frozen=True, slots=True)
class Case:
    """What one connection sends, and the statuses and problem codes of all that comes back until it is closed."""

    name: str
    sends: Sequence[bytes]
    outcome: str
    pause_seconds: float = 0.0
    """After each piece."""
    ends: bool = False
    """Whether the client closes its side after the last piece."""


def head(body: bytes, *headers: str, path: str = "/recommend") -> bytes:
    """A request's head, its length included."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(body: bytes, *headers: str, path: str = "/recommend") -> list[bytes]:
    """A whole request, the last on its connection; JSON unless another type is named."""
    kind = () if any(own.lower().startswith("content-type") for own in headers) else (JSON_TYPE,)
    return [head(body, *kind, CLOSE, *headers, path=path) + body]


def raw(*lines: str, body: bytes = b"") -> list[bytes]:
    """Lines as they are, then an empty one and a body."""
    return [("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body]


def title(text: str) -> list[bytes]:
    """A product with this title, written as JSON escapes where JSON allows them."""
    return post(json.dumps({"product": {"title": text}, "k": 1}).encode())


def wants(**values: Any) -> list[bytes]:
    """A good product and more fields."""
    return post(json.dumps({"product": {"title": "red running shoes"}, **values}).encode())


def text(body: str) -> list[bytes]:
    """A body as it is."""
    return post(body.encode())


def field(name: str, value: str) -> list[bytes]:
    """A good product and one field whose value no JSON writer would write."""
    return text(f'{{"product":{{"title":"red running shoes"}},"{name}":{value}}}')


def nested(before: str, open_: str, depth: int, after: str = "") -> list[bytes]:
    """Brackets that open and mostly do not close."""
    return text(before + open_ * depth + after)


INVALID = "422 invalid_request"
PIPELINED = b"".join([head(GOOD, JSON_TYPE) + GOOD] * 99 + post(GOOD))
BODY_OF_64_KB = GOOD + b" " * (64_000 - len(GOOD))
LONG_HEAD = post(GOOD, "X-Note: " + "x" * 30_000)[0]
BEGUN = [head(BODY_OF_64_KB, JSON_TYPE), BODY_OF_64_KB + LONG_HEAD[:20], LONG_HEAD[20:20_000], LONG_HEAD[20_000:]]
CHUNKED = raw(
    "POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, "Transfer-Encoding: chunked",
    body=b"%x\r\n%s\r\n0\r\n" % (len(GOOD), GOOD),
)[0]  # fmt: skip
UPGRADE = ("Connection: Upgrade", "Upgrade: h2c")
UPGRADING, LAST = head(GOOD, JSON_TYPE, *UPGRADE), post(GOOD)[0]
LOOKED_UP = raw("GET /livez HTTP/1.1", "Host: x", *UPGRADE)[0]
SMUGGLED = raw("GET /bundles HTTP/1.1", "Host: x")[0]

TITLES: Sequence[Case] = (
    Case("bidirectional overrides", title("\u202ered\u202c \u2067running\u2069 shoes"), "200"),
    Case("zero width between all letters", title("\u200b".join("red running shoes")), "200"),
    Case("zero width only", title("\u200b\u200c\u200d\ufeff"), INVALID),
    Case("NUL inside", title("red\0 shoes"), "200"),
    Case("NUL only", title("\0\0"), INVALID),
    Case("NUL unescaped", post(b'{"product":{"title":"red\0shoes"}}'), INVALID),
    Case("all control characters", title("".join(map(chr, range(32))) + "x"), "200"),
    Case("a pair of surrogates", text('{"product":{"title":"\\ud83d\\udc5f shoes"},"k":1}'), "200"),
    Case("half a pair of surrogates", text('{"product":{"title":"\\ud83d shoes"}}'), INVALID),
    Case("surrogates the wrong way round", text('{"product":{"title":"\\udc5f\\ud83d"}}'), INVALID),
    Case("a surrogate as UTF-8", post(b'{"product":{"title":"\xed\xa0\xbd"}}'), INVALID),
    Case("no UTF-8", post(b'{"product":{"title":"\xff\xfe"}}'), INVALID),
    Case("overlong UTF-8", post(b'{"product":{"title":"\xc0\xaf"}}'), INVALID),
    Case("noncharacters and private use", title("\ufdd0\uffff\ue000 shoes"), "200"),
    Case("2,000 characters of 4 bytes", title("\U0001f45f" * 2000), "200"),
    Case("2,001 characters", title("x" * 2001), INVALID),
    Case("100 kB", title("x" * 100_000), INVALID),
    Case("a character that becomes 18, 2,000 times", title("\ufdfa" * 2000), "200"),
    Case("2,000 combining marks on one letter", title("a" + "\u0301" * 1999), "200"),
    Case("white space only", title(" \t\r\n\u00a0\u3000"), INVALID),
    Case("null", wants(product={"title": None}), INVALID),
    Case("a number", wants(product={"title": 5}), INVALID),
    Case("a list", wants(product={"title": ["red"]}), INVALID),
)

NUMBERS: Sequence[Case] = (
    Case("NaN", field("diversity", "NaN"), INVALID),
    Case("Infinity", field("min_probability", "Infinity"), INVALID),
    Case("1e999", field("min_probability", "1e999"), INVALID),
    Case("1e-999, which is 0", field("min_probability", "1e-999"), "200"),
    Case("-0", field("diversity", "-0"), "200"),
    Case("k = 10.0", field("k", "10.0"), "200"),
    Case("k = 1e1", field("k", "1e1"), "200"),
    Case("k = 10.5", field("k", "10.5"), INVALID),
    Case("k = 2^63", field("k", str(2**63)), INVALID),
    Case("k of 400 digits", field("k", "9" * 400), INVALID),
    Case("k of 100,000 digits", field("k", "9" * 100_000), INVALID),
    Case("k = 1e308", field("k", "1e308"), INVALID),
    Case("k = true", field("k", "true"), INVALID),
    Case("k as text", field("k", '"10"'), INVALID),
    Case("a leading zero", field("k", "010"), INVALID),
    Case("hexadecimal", field("k", "0x10"), INVALID),
    Case("a fraction of 100,000 digits", field("diversity", "0." + "3" * 100_000), "200"),
    Case("a range from -1e308 to 1e308", wants(filter={"price": {"gte": -1e308, "lte": 1e308}}), "200"),
    Case("a range to NaN", field("filter", '{"price":{"lte":NaN}}'), INVALID),
    Case("a range the wrong way round, which nothing is in", wants(filter={"price": {"gte": 9, "lte": 1}}), "200"),
)

DOCUMENTS: Sequence[Case] = (
    Case("nothing", post(b""), INVALID),
    Case("null", post(b"null"), INVALID),
    Case("a text", post(b'"x"'), INVALID),
    Case("two documents", post(GOOD + GOOD), INVALID),
    Case("garbage behind", post(GOOD + b"x"), INVALID),
    Case("a comment", post(b"/* */" + GOOD), INVALID),
    Case("single quotes", post(GOOD.replace(b'"', b"'")), INVALID),
    Case("UTF-16", post(GOOD.decode().encode("utf-16")), INVALID),
    Case("a byte order mark", post(b"\xef\xbb\xbf" + GOOD), INVALID),
    Case("100,000 brackets", nested("", "[", 100_000), INVALID),
    Case("100,000 braces", nested("", '{"a":', 100_000), INVALID),
    Case("100,000 brackets, closed", nested("", "[", 100_000, "]" * 100_000), INVALID),
    Case("100,000 brackets in a filter", nested('{"product":{"title":"x"},"filter":{"a":', "[", 100_000), INVALID),
    Case("5,000 brackets in a batch, closed", post(b'{"items":[' + b"[" * 5000 + b"]" * 5000 + b"]}",
         path="/recommend/batch"), INVALID),
    Case("100 brackets in a batch, closed", post(b'{"items":[' + b"[" * 100 + b"]" * 100 + b"]}",
         path="/recommend/batch"), "200"),
    Case("a key twice: the last one counts", text('{"product":{"title":"x"},"k":0,"k":1}'), "200"),
    Case("a key twice: the last one is wrong", text('{"product":{"title":"x"},"k":1,"k":0}'), INVALID),
    Case("a product twice", text('{"product":{},"product":{"title":"x"}}'), "200"),
    Case("names that mean something elsewhere", wants(__proto__={}, __class__="x"), INVALID),
    Case("30,000 unknown fields", wants(**{f"f{i}": 1 for i in range(30_000)}), INVALID),
    Case("21 filters", wants(filter={str(i): 1 for i in range(21)}), INVALID),
    Case("a filter that no label has", wants(filter={"nothing": 1}), INVALID),
    Case("a filter on __class__", wants(filter={"__class__": 1}), INVALID),
    Case("1,000 excludes of 512 characters", wants(exclude=[f"{i:0512}" for i in range(1000)]), "200"),
    Case("1,001 excludes", wants(exclude=["x"] * 1001), INVALID),
    Case("65 images", wants(product={"title": "x", "images": ["x"] * 65}), INVALID),
    Case("a batch of 33", post(b'{"items":[' + b",".join([GOOD] * 33) + b"]}", path="/recommend/batch"), INVALID),
    Case("a batch of nothing", post(b'{"items":[]}', path="/recommend/batch"), INVALID),
    Case("a batch of 1,000,000 numbers in little more than 1 MiB", post(b'{"items":[' + b"1," * 524_000 + b"1]}",
         path="/recommend/batch"), INVALID),
    Case("1 byte over the limit", post(GOOD + b" " * (BODY_LIMIT + 1 - len(GOOD))), "413 body_too_large"),
    Case("as long as the limit", post(GOOD + b" " * (BODY_LIMIT - len(GOOD))), "200"),
)  # fmt: skip

NOT_JSON = "415 not_json"
TYPES: Sequence[Case] = (
    Case("none", [head(GOOD, CLOSE) + GOOD], NOT_JSON),
    Case("an empty one", post(GOOD, "Content-Type:"), NOT_JSON),
    Case("text/plain", post(GOOD, "Content-Type: text/plain"), NOT_JSON),
    Case("a form", post(GOOD, "Content-Type: application/x-www-form-urlencoded"), NOT_JSON),
    Case("multipart", post(GOOD, "Content-Type: multipart/form-data; boundary=x"), NOT_JSON),
    Case("application/jsonx", post(GOOD, "Content-Type: application/jsonx"), NOT_JSON),
    Case("text/plain first, JSON second", post(GOOD, "Content-Type: text/plain", JSON_TYPE), NOT_JSON),
    Case("upper case and blanks", post(GOOD, "Content-Type:  APPLICATION/JSON ;charset=UTF-8"), "200"),
    Case("application/vnd.api+json", post(GOOD, "Content-Type: application/vnd.api+json"), "200"),
    Case("charset=utf-16", post(GOOD, "Content-Type: application/json; charset=utf-16"), NOT_JSON),
    Case("bytes beyond ASCII", post(GOOD, "Content-Type: application/j\xe4son"), NOT_JSON),
    Case("50 kB", post(GOOD, "Content-Type: application/json; x=" + "x" * 50_000), "200"),
    Case("Content-Encoding: gzip", post(GOOD, "Content-Encoding: gzip"), NOT_JSON),
    Case("Content-Encoding: identity", post(GOOD, "Content-Encoding: identity"), "200"),
)

FIELDS: Sequence[Case] = (
    Case("X-Request-Timeout-Ms: 0", post(GOOD, "X-Request-Timeout-Ms: 0"), INVALID),
    Case("X-Request-Timeout-Ms: -1", post(GOOD, "X-Request-Timeout-Ms: -1"), INVALID),
    Case("X-Request-Timeout-Ms: 1e3", post(GOOD, "X-Request-Timeout-Ms: 1e3"), INVALID),
    Case("X-Request-Timeout-Ms in other digits", post(GOOD, "X-Request-Timeout-Ms: \xb2"), INVALID),
    Case("X-Request-Timeout-Ms of 10,000 digits", post(GOOD, "X-Request-Timeout-Ms: " + "9" * 10_000), "200"),
    Case("X-Request-ID that is no id: another is made", post(GOOD, "X-Request-ID: a b<script>"), "200"),
    Case("X-Request-ID of 50 kB: another is made", post(GOOD, "X-Request-ID: " + "x" * 50_000), "200"),
    Case("X-Forwarded-For, which is not believed", post(GOOD, "X-Forwarded-For: 127.0.0.1"), "200"),
    Case("Authorization of 50 kB, no keys being set", post(GOOD, "Authorization: Bearer " + "x" * 50_000), "200"),
)

HTTP: Sequence[Case] = (
    Case("100 requests at once on one connection", [PIPELINED], "200 x 100"),
    Case("a long body and the next head's beginning in one packet", BEGUN, "200 x 2", 0.3),
    Case("a good one, then garbage", [head(GOOD, JSON_TYPE) + GOOD + b"\0\1\2\r\n\r\n"], "400"),
    Case("a good one, then its end of the connection closed: the client has gone", [head(GOOD, JSON_TYPE) + GOOD],
         "nothing", ends=True),
    Case("HTTP/1.0", raw("POST /recommend HTTP/1.0", JSON_TYPE, f"Content-Length: {len(GOOD)}", body=GOOD), "200"),
    Case("HTTP/2's first bytes", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], "400"),
    Case("HTTP/0.9", [b"GET /livez\r\n\r\n"], "400"),
    Case("TLS where none is", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], "400"),
    Case("no Host", raw("GET /livez HTTP/1.1", CLOSE), "400"),
    Case("two Hosts", raw("GET /livez HTTP/1.1", "Host: a", "Host: b", CLOSE), "400"),
    Case("a body in chunks", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE, "Transfer-Encoding: chunked",
         body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)), "200"),
    Case("a body in chunks of one byte", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: chunked", body=b"".join(b"1\r\n%c\r\n" % own for own in GOOD) + b"0\r\n\r\n"), "200"),
    Case("a trailer behind the chunks", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\nA: b\r\n\r\n" % (len(GOOD), GOOD)), "200"),
    Case("trailers without end", [CHUNKED, *[b"A: b\r\n" * 4000] * 40], "400", 0.02),
    Case("trailers of 200 kB in one packet", [CHUNKED + b"A: b\r\n" * 33_000 + b"\r\n"], "400"),
    Case("a trailer without end", [CHUNKED + b"A: ", *[b"x" * 24_000] * 40], "400", 0.02),
    Case("a chunk's extension without end", [CHUNKED[:-3] + b"5;a=", *[b"x" * 24_000] * 40], "400", 0.02),
    Case("chunks over the limit", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: chunked", body=(b"10000\r\n" + b" " * 65536 + b"\r\n") * 17), "413 body_too_large"),
    Case("a chunk that promises 2^60 bytes, and an end", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: chunked", body=b"1000000000000000\r\nx"), "nothing", ends=True),
    Case("a chunk size that is no number", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: chunked", body=b"xyz\r\n\r\n"), "400"),
    Case("chunks and a length", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE, "Content-Length: 4",
         "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)), "400"),
    Case("Transfer-Encoding: gzip, chunked", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Transfer-Encoding: gzip, chunked"), "400"),
    Case("Content-Length: -1", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, "Content-Length: -1"), "400"),
    Case("Content-Length: +5", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, "Content-Length: +5"), "400"),
    Case("Content-Length of 30 digits", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         "Content-Length: " + "9" * 30), "400"),
    Case("two Content-Lengths", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, "Content-Length: 5",
         "Content-Length: 6"), "400"),
    Case("a length over the limit, no body yet", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, CLOSE,
         f"Content-Length: {BODY_LIMIT + 1}"), "413 body_too_large"),
    Case("a body shorter than its length, and an end", [head(GOOD, JSON_TYPE)[:-2] + b"\r\n" + GOOD[:9]], "nothing",
         ends=True),
    Case("Expect: 100-continue", post(GOOD, "Expect: 100-continue"), "100, 200"),
    Case("Upgrade: websocket, which is not heard", raw("GET /livez HTTP/1.1", "Host: x", "Connection: Upgrade, close",
         "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"), "200"),
    Case("Upgrade: h2c, as Java and curl ask, and another request", [UPGRADING + GOOD + LAST], "200 x 2"),
    Case("the same in packets of their own", [UPGRADING, GOOD, LAST], "200 x 2", 0.1),
    Case("the same byte by byte", [bytes([own]) for own in UPGRADING + GOOD + LAST], "200 x 2", 0.001),
    Case("Upgrade and a body that is a request", [head(SMUGGLED, JSON_TYPE, *UPGRADE), SMUGGLED, LAST], "422, 200", 0.1),
    Case("Upgrade and a body in chunks, and another request", [
         CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 1) + b"\r\n" + LAST], "200 x 2"),
    Case("Upgrade and Expect: 100-continue", [head(GOOD, JSON_TYPE, "Expect: 100-continue", "Upgrade: h2c",
         "Connection: Upgrade, close"), GOOD], "100, 200", 0.1),
    Case("GET with Upgrade, and another request", [LOOKED_UP + LAST], "200 x 2"),
    Case("1,000 of them at once", [LOOKED_UP * 999 + LAST], "200 x 1000"),
    Case("Upgrade and a length over the limit", raw("POST /recommend HTTP/1.1", "Host: x", JSON_TYPE, "Upgrade: h2c",
         "Connection: Upgrade, close", f"Content-Length: {BODY_LIMIT + 1}"), "413 body_too_large"),
    Case("Upgrade of 70 kB", raw("GET /livez HTTP/1.1", "Host: x", UPGRADE[0], "Upgrade: " + "x" * 70_000), "400"),
    Case("Upgrade and no Host", raw("GET /livez HTTP/1.1", *UPGRADE), "400"),
    Case("Upgrade and CONNECT", raw("CONNECT 169.254.169.254:80 HTTP/1.1", "Host: x", *UPGRADE), "400"),
    Case("a blank before the colon", raw("GET /livez HTTP/1.1", "Host : x", CLOSE), "400"),
    Case("a folded header", raw("GET /livez HTTP/1.1", "Host: x", "A: b", " c", CLOSE), "400"),
    Case("NUL in a header", raw("GET /livez HTTP/1.1", "Host: x", "A: b\0c", CLOSE), "400"),
    Case("a bare carriage return in a header", raw("GET /livez HTTP/1.1", "Host: x", "A: b\rC: d", CLOSE), "400"),
    Case("line feeds alone", [b"GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n"], "400"),
    Case("a head of 1 MB", raw("GET /livez HTTP/1.1", "Host: x", "A: " + "x" * 1_000_000), "400"),
    Case("2,000 headers", raw("GET /livez HTTP/1.1", "Host: x", CLOSE, *["A: b"] * 2000), "200"),
    Case("200,000 headers", raw("GET /livez HTTP/1.1", "Host: x", CLOSE, *["A: b"] * 200_000), "400"),
    Case("a path of 50 kB", raw(f"GET /{'x' * 50_000} HTTP/1.1", "Host: x", CLOSE), "404 not_found"),
    Case("a path out of the folder of assets", raw("GET /docs/static/../../../etc/passwd HTTP/1.1", "Host: x", CLOSE),
         "404 not_found"),
    Case("the same, percent-encoded", raw("GET /docs/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1", "Host: x", CLOSE),
         "404 not_found"),
    Case("%00 in a path", raw("GET /docs/static/start.js%00.png HTTP/1.1", "Host: x", CLOSE), "404 not_found"),
    Case("a path that is no UTF-8", raw("GET /%ff%fe HTTP/1.1", "Host: x", CLOSE), "404 not_found"),
    Case("another host's URL as target", raw("GET http://169.254.169.254/livez HTTP/1.1", "Host: x", CLOSE), "200"),
    Case("TRACE", raw("TRACE /livez HTTP/1.1", "Host: x", CLOSE), "405 method_not_allowed"),
    Case("CONNECT", raw("CONNECT 169.254.169.254:80 HTTP/1.1", "Host: x", CLOSE), "400"),
    Case("a method nobody knows", raw("BREW /recommend HTTP/1.1", "Host: x", CLOSE), "400"),
    Case("a method of 1,000 letters", raw(f"{'X' * 1000} /recommend HTTP/1.1", "Host: x", CLOSE), "400"),
)  # fmt: skip

SLOW: Sequence[Case] = (
    Case("nothing at all", [], "nothing"),
    Case("half a head, then silence", [b"POST /recommend HTTP/1.1\r\nHost: x\r\n"], "nothing"),
    Case("a head byte by byte", [bytes([own]) for own in head(GOOD, JSON_TYPE)], "nothing", 0.1),
    Case("a head, then silence", [head(GOOD, JSON_TYPE, CLOSE)], "504 deadline_passed"),
    Case("a body byte by byte", [head(GOOD, JSON_TYPE, CLOSE), *(bytes([own]) for own in GOOD)],
         "504 deadline_passed", 0.1),
    Case("a good one, then half a head and silence", [head(GOOD, JSON_TYPE) + GOOD, b"POST /"], "200", 0.3),
)  # fmt: skip

REQUESTS: Mapping[str, Sequence[Case]] = {
    "titles": TITLES,
    "numbers": NUMBERS,
    "documents": DOCUMENTS,
    "content types": TYPES,
    "header fields": FIELDS,
    "HTTP itself": HTTP,
    "slow clients": SLOW,
}
