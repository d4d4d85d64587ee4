"""Keys and bodies."""

from __future__ import annotations

import hashlib

import pytest
from starlette.types import Message, Receive

from service.errors import BodyTooLarge, ClientGone, Forbidden, NotJson, SettingsError, Unauthenticated
from service.security import read_body, read_keys, require_json


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_opens_its_scopes_and_no_other() -> None:
    """Two live keys of one caller both work; schemes and headers are read as documented."""
    ring = read_keys([f"shop:{_hash('old')}:recommend", f"shop:{_hash('new').upper()}:recommend+admin"])
    for authorization, api_key, scope in (
        ("Bearer old", None, "recommend"),
        (None, "new", "admin"),
        ("bearer new", None, "recommend"),
    ):
        key = ring.check(authorization, api_key, scope)  # type: ignore[arg-type]
        assert key is not None
        assert key.name == "shop"
    with pytest.raises(Forbidden, match="bid-queries"):
        ring.check("Bearer new", None, "bid-queries")


@pytest.mark.parametrize("header", [None, "", "Bearer ", "Basic old", "old", "Bearer wrong", "Bearer " + _hash("old")])
def test_no_key_or_a_wrong_one_is_refused(header: str | None) -> None:
    """The hash itself is no key."""
    with pytest.raises(Unauthenticated):
        read_keys([f"shop:{_hash('old')}:recommend"]).check(header, None, "recommend")


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_a_key_beyond_ascii_is_known_by_its_bytes(coding: str) -> None:
    """Its hash is of UTF-8; headers reach the app as Latin-1 reads them, and some clients write that."""
    ring = read_keys([f"shop:{_hash('schlüsselà')}:recommend"])
    read = "schlüsselà".encode(coding).decode("latin-1")
    for authorization, api_key in ((f"Bearer {read}", None), (None, read)):
        assert ring.check(authorization, api_key, "recommend") is not None
    with pytest.raises(Unauthenticated):
        ring.check(None, "schl\xff\xfessel", "recommend")


def test_an_empty_key_header_hides_no_other() -> None:
    """Gateways send X-API-Key without a value."""
    ring = read_keys([f"shop:{_hash('good')}:recommend"])
    assert ring.check("Bearer good", "", "recommend") is not None
    with pytest.raises(Unauthenticated):
        ring.check("Bearer good", "bad", "recommend")


def test_without_keys_everybody_may() -> None:
    """Off by default."""
    ring = read_keys([])
    assert not ring
    assert ring.check(None, None, "admin") is None


@pytest.mark.parametrize(
    "entry",
    ["", "shop", "shop:abc:recommend", f"shop:{_hash('k')}", f"shop:{_hash('k')}:all", f"a b:{_hash('k')}:admin",
     *(f"shop:{_hash('k')}:admin:{rate}" for rate in ("0", "-1", "nan", "1e3", "x", "1:2"))],
)  # fmt: skip
def test_a_malformed_entry_is_refused_without_showing_it(entry: str) -> None:
    """A key file with a mistake must not open the service, nor print what it holds."""
    with pytest.raises(SettingsError) as raised:
        read_keys([entry])
    assert _hash("k") not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([f"a:{_hash(key)}:admin" for key in "123"], "3 times"),
        ([f"a:{_hash('1')}:admin:5", f"a:{_hash('2')}:admin"], "two rates"),
        ([f"a:{_hash('1')}:admin", f"b:{_hash('1')}:recommend"], "hash of another"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(entries: list[str], said: str) -> None:
    """A third key of one caller, two rates for one bucket, one key for two callers."""
    with pytest.raises(SettingsError, match=said) as raised:
        read_keys(entries)
    assert _hash("1") not in str(raised.value)


def test_a_key_may_have_a_rate_of_its_own() -> None:
    """Behind the scopes; without one the setting holds."""
    ring = read_keys([f"a:{_hash('1')}:admin:2.5", f"b:{_hash('2')}:admin"])
    found = [ring.check(None, key, "admin") for key in "12"]
    assert [key.per_second for key in found if key is not None] == [2.5, None]


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/x+json;charset="utf8"']
)
def test_json_is_taken(kind: str) -> None:
    """Parameters and suffixes included."""
    require_json(kind, "identity")
    assert "json" in kind.lower()


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [(None, None), ("text/plain", None), ("application/json", "gzip"), ("application/json; charset=latin-1", None),
     ("multipart/form-data", None), ("application/xml+jsonx", None)],
)  # fmt: skip
def test_anything_else_is_refused(kind: str | None, encoding: str | None) -> None:
    """415, whatever the body holds."""
    with pytest.raises(NotJson):
        require_json(kind, encoding)


def _arriving(*chunks: bytes, hung_up: bool = False) -> Receive:
    """As a server hands a body on, and tells that it is whole, or that its connection is gone."""
    last: Message = {"type": "http.disconnect"} if hung_up else {"type": "http.request", "body": b""}
    messages: list[Message] = [{"type": "http.request", "body": own, "more_body": True} for own in chunks]
    messages.append(last)

    async def receive() -> Message:
        return messages.pop(0)

    return receive


@pytest.mark.parametrize("length", ["11", None, "5", "junk", "\u00b2", "\u0661", "9" * 40])
async def test_a_body_over_the_limit_is_refused_whatever_it_announces(length: str | None) -> None:
    """By Content-Length, and by counting."""
    with pytest.raises(BodyTooLarge):
        await read_body(_arriving(b"123456", b"78901"), length, 10)


async def test_a_body_that_ends_with_its_connection_is_refused() -> None:
    """Half a body is not handed on."""
    with pytest.raises(ClientGone):
        await read_body(_arriving(b"12345", hung_up=True), "10", 10)


async def test_a_body_at_the_limit_is_taken() -> None:
    """The limit is inclusive."""
    assert await read_body(_arriving(b"12345", b"67890"), "10", 10) == b"1234567890"
