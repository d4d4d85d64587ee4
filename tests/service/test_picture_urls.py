"""Which URLs are fetched, by their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.picture_urls import UrlPolicy, UrlRefused, check_url, redirect_url

STRICT = UrlPolicy()
PLAIN = UrlPolicy(allow_http=True)

# Every one is refused even where http is allowed. Adding a case is adding a line.
HOSTILE = [
    "", "x", "//shop.example/1.jpg", "ftp://shop.example/1", "file:///etc/passwd", "gopher://127.0.0.1/", "data:,x",
    "javascript:alert(1)", "https://", "https:///x", "https://shop.example:99999/", "https://shop.example:x/",
    "https://shop.example:22/", "https://shop.example:8080/", "https://user@shop.example/", "https://a:b@shop.example/",
    "https://shop.example@127.0.0.1/", "https://127.0.0.1\\@shop.example/", "https://shop.example\\.evil/",
    "https://shop.example/\r\nX: 1", "https://shop.example/ a", "https://shop\t.example/", "https://shop.example/\x00",
    "https://127.0.0.1/", "http://127.0.0.1/", "https://127.0.0.1./", "https://127.1/", "https://127.0.1/",
    "https://2130706433/", "https://017700000001/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/",
    "https://127.0.0.01/", "https://0x7f.1/", "https://1.2.3.4.5/", "https://999.1.1.1/", "https://0/", "https://0x/",
    "https://１２７.0.0.1/", "https://127。0。0。1/", "https://①②⑦.0.0.1/", "https://[::1]/", "https://[::]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
    "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1", "https://[127.0.0.1]/", "https://[v1.x]/",
    "https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/", "https://10.0.0.1/", "https://192.168.0.1/",
    "https://shop..example/", "https://.shop.example/", "https://-shop.example/", "https://shop-.example/",
    "https://sh%6fp.example/", "https://shop.example%00.evil/", "https://" + "a" * 64 + ".example/",
    "https://" + "a." * 130 + "example/", "https://shop.example/" + "a" * 2048, "https://xn--a/", "https://a\u202eb.example/",
    "https://shop.example:80:443/", "https://[::1]@shop.example/",
    "https://*.example/", "https://shop.example,evil/", "https://shop'example/",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_url_is_refused(url: str) -> None:
    """Schemes, ports, user names, odd spellings of addresses, broken names, splitting tricks."""
    with pytest.raises(UrlRefused):
        check_url(url, PLAIN)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("https://shop.example/1.jpg", "https://shop.example:443/1.jpg"),
        ("HTTPS://Shop.Example./1.jpg", "https://shop.example:443/1.jpg"),
        ("https://shop.example:443", "https://shop.example:443/"),
        ("https://shop.example/a?b=c&d=%20#e", "https://shop.example:443/a?b=c&d=%20"),
        ("https://bücher.example/ä.jpg?ö", "https://xn--bcher-kva.example:443/%C3%A4.jpg?%C3%B6"),
        ("https://my_bucket.s3.example/1", "https://my_bucket.s3.example:443/1"),
        ("https://8.8.8.8/1", "https://8.8.8.8:443/1"),
        ("https://[2606:4700::1]:443/1", "https://[2606:4700::1]:443/1"),
        ("https://shop.example#@127.0.0.1:22/", "https://shop.example:443/"),
        ("https://shop.example/[x]|{y}", "https://shop.example:443/%5Bx%5D%7C%7By%7D"),
    ],
)
def test_a_good_url_is_read_one_way(url: str, seen: str) -> None:
    """Host, port and target are normalised, so that nothing behind reads them differently."""
    assert str(check_url(url, STRICT)) == seen


def test_http_needs_the_setting() -> None:
    """Plain http is refused unless allowed."""
    with pytest.raises(UrlRefused, match="https"):
        check_url("http://shop.example/1.jpg", STRICT)
    assert check_url("http://shop.example/1.jpg", PLAIN).port == 80


@pytest.mark.parametrize(
    ("host", "passes"),
    [("shop.example", True), ("cdn.example", True), ("a.cdn.example", False), ("img.pics.example", True),
     ("pics.example", False), ("evilpics.example", False), ("xshop.example", False), ("8.8.8.8", False)],
)  # fmt: skip
def test_the_allow_list_matches_whole_labels(host: str, passes: bool) -> None:
    """Exact names, or suffixes at a dot boundary, nothing that merely ends alike."""
    policy = UrlPolicy(allowed_hosts=("shop.example", "CDN.example.", "*.pics.example"))
    if passes:
        assert check_url(f"https://{host}/", policy).host == host
    else:
        with pytest.raises(UrlRefused, match="not allowed"):
            check_url(f"https://{host}/", policy)


def test_a_trusted_origin_is_matched_exactly_and_never_by_redirect() -> None:
    """Scheme, host and port must all be the same, and only the caller's own URL may name it."""
    policy = UrlPolicy(trusted_origins=frozenset({"http://127.0.0.1:8081"}))
    assert check_url("http://127.0.0.1:8081/1.png", policy).trusted
    for other in ("http://127.0.0.1:8082/", "https://127.0.0.1:8081/", "http://localhost:8081/", "http://127.0.0.1/"):
        with pytest.raises(UrlRefused):
            check_url(other, policy)
    start = check_url("https://shop.example/1.jpg", policy)
    with pytest.raises(UrlRefused):
        redirect_url(start, "http://127.0.0.1:8081/1.png", policy)


@pytest.mark.parametrize(
    "location",
    ["http://shop.example/", "//127.0.0.1/", "https://127.0.0.1/", "ftp://shop.example/", "https://u@shop.example/",
     "https://[::1]/", "file:///etc/passwd", "https://[", "\\\\127.0.0.1\\x", "https://10.0.0.1:443/"],
)  # fmt: skip
def test_a_redirect_is_judged_like_a_url_and_never_leaves_https(location: str) -> None:
    """Each hop is checked in full."""
    with pytest.raises(UrlRefused):
        redirect_url(check_url("https://shop.example/a/b", PLAIN), location, PLAIN)


def test_a_relative_redirect_stays_on_its_host() -> None:
    """Relative locations are resolved against the URL that redirected."""
    start = check_url("https://shop.example/a/b", STRICT)
    assert str(redirect_url(start, "../c?d", STRICT)) == "https://shop.example:443/c?d"


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but UrlRefused, and what passes holds printable ASCII only."""
    for url in (text, f"https://{text}", f"https://shop.example/{text}"):
        try:
            passed = str(check_url(url, PLAIN))
        except UrlRefused:
            continue
        assert passed.isascii()
        assert passed.isprintable()
        assert " " not in passed
