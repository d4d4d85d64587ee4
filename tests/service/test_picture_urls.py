"""Which URLs are fetched, by their text; those that are not stand in hostile_cases.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.picture_urls import UrlPolicy, UrlRefused, check_url, redirect_url

STRICT = UrlPolicy()
PLAIN = UrlPolicy(allow_http=True)


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
    policy = UrlPolicy(allowed_hosts=("shop.example", "CDN.example.", "*.pics.example", "*", "."))
    if passes:
        assert check_url(f"https://{host}/", policy).host == host
    else:
        with pytest.raises(UrlRefused, match="not allowed"):
            check_url(f"https://{host}/", policy)


def test_the_allow_list_is_read_as_urls_are() -> None:
    """Names in their own script and addresses stand for what check_url makes of them."""
    policy = UrlPolicy(allowed_hosts=("bücher.example", "[2606:4700:0::1]"))
    assert check_url("https://xn--bcher-kva.example/", policy).host == "xn--bcher-kva.example"
    assert check_url("https://[2606:4700::1]/", policy).host == "2606:4700::1"


def test_the_allow_list_holds_for_trusted_origins_too() -> None:
    """They are exempt from the scheme, port and address rules alone."""
    policy = UrlPolicy(allowed_hosts=("shop.example",), trusted_origins=frozenset({"http://127.0.0.1:8081"}))
    with pytest.raises(UrlRefused, match="not allowed"):
        check_url("http://127.0.0.1:8081/1.png", policy)
    assert check_url("http://127.0.0.1:8081/1.png", UrlPolicy(trusted_origins=policy.trusted_origins)).trusted


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
