"""Settings: environment, flags, files, contradictions, documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import main
from service.app import create_app
from service.errors import SettingsError, all_codes
from service.picture_urls import UrlPolicy, check_url
from service.settings import Settings
from service.telemetry import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def test_environment_and_flags_set_the_same_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag goes before the environment."""
    monkeypatch.setenv("MUFIN_PORT", "9000")
    monkeypatch.setenv("MUFIN_FETCH_TRUSTED_ORIGINS", "http://127.0.0.1:8081, https://pics.example")
    assert Settings(_cli_parse_args=[]).port == 9000
    settings = Settings(_cli_parse_args=["--port", "9001", "--fetch-ports", "443,8443", "--fetch-allow-http"])
    assert (settings.port, settings.fetch_ports, settings.fetch_allow_http) == (9001, (443, 8443), True)
    assert settings.fetch_trusted_origins == ("http://127.0.0.1:8081", "https://pics.example:443")


def test_no_float_may_be_infinite() -> None:
    """Whatever setting is added: waits that never end, shares that are no number."""
    values = [name for name, own in Settings.model_fields.items() if own.annotation in (float, float | None)]
    assert len(values) > 10
    for name in values:
        with pytest.raises(ValidationError, match="finite"):
            Settings.model_validate({"api_keys": "a", name: float("nan")})


@pytest.mark.parametrize(
    ("origin", "url"),
    [("http://[::0001]:8081", "http://[::1]:8081/x"), ("http://Bücher.internal.:8081/", "http://bücher.internal:8081/x"),
     ("https://pics.internal", "https://pics.internal/x"), ("http://my_store:9000", "http://MY_STORE:9000/x")],
)  # fmt: skip
def test_a_trusted_origin_is_trusted_however_it_is_spelt(origin: str, url: str) -> None:
    """Read as the URLs that are compared with it."""
    settings = Settings(_cli_parse_args=[], fetch_trusted_origins=origin)
    assert check_url(url, UrlPolicy(trusted_origins=frozenset(settings.fetch_trusted_origins))).trusted


def test_allowed_hosts_are_kept_as_urls_are_read() -> None:
    """Names in their own script, addresses, and what stands for all below a name."""
    settings = Settings(
        _cli_parse_args=[], fetch_allowed_hosts="Bücher.example., [2606:4700:0::1], *.shop.example, .cdn.example"
    )
    hosts = settings.fetch_allowed_hosts
    assert hosts == ("xn--bcher-kva.example", "[2606:4700::1]", ".shop.example", ".cdn.example")
    for url in ("https://bücher.example/", "https://[2606:4700::1]/", "https://a.shop.example/"):
        check_url(url, UrlPolicy(allowed_hosts=hosts))


def test_a_cors_origin_is_kept_as_browsers_send_it() -> None:
    """Lower case, ASCII, no default port."""
    settings = Settings(_cli_parse_args=[], cors_origins="https://Bücher.example:443/, http://[::0001]:8080, *")
    assert settings.cors_origins == ("https://xn--bcher-kva.example", "http://[::1]:8080", "*")


def test_settings_are_frozen() -> None:
    """Read once at the edge."""
    with pytest.raises(ValidationError):
        setattr(Settings(_cli_parse_args=[]), "port", 1)  # noqa: B010 - mypy knows that it is read-only


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--deadline-milliseconds", "9000"], "max_deadline_milliseconds"), (["--port", "x"], "port"),
     (["--port", "tcp://10.0.0.1:80"], "enableServiceLinks"), (["--admin-port", "8080"], "admin_port"),
     (["--fetch-trusted-origins", "127.0.0.1:8081"], "must look like"), (["--log-level", "loud"], "log_level"),
     (["--rate-per-second", "5"], "set some"), (["--rate-per-second", "nan", "--api-keys", "a"], "rate_per_second"),
     (["--cors-origins", "shop.example"], "look like"), (["--cors-origins", "https://a:b@shop.example"], "user name"),
     (["--api-keys", "a", "--api-keys-file", "b"], "keep one"), (["--fetch-trusted-origins", "http://a/b"], "look like"),
     (["--fetch-trusted-origins", "http://a:b@shop.example"], "user name"),
     *((["--fetch-trusted-origins", own], "trusted origin") for own in
       ("http://a:0", "http://a:65536", "http://a:x", "http://a b:80", "http://[::g]:80", "http://127.1:80", "http://a#b")),
     *((["--fetch-allowed-hosts", own], "without scheme") for own in
       ("https://shop.example", "shop.example/", "shop.example:443", "*", ".", "*shop.example", "a b", "::1", ".8.8.8.8")),
     *((["--fetch-ports", own], "from 1 to 65535") for own in ("", "0", "443,65536", "-1")),
     *(([f"--{own}", ""], "unset it") for own in
       ("recommend-bundle", "bid-queries-bundle", "recommend-block-file", "api-keys-file", "recommend-block-set")),
     *(([f"--{own}", "inf"], "finite number") for own in
       ("drain-seconds", "fetch-total-seconds", "hung-after-seconds", "url-fresh-seconds", "bundle-poll-seconds")),
     (["--head-seconds", "nan"], "finite number"), (["--event-share", "nan"], "finite number")],
)  # fmt: skip
def test_a_contradiction_ends_the_start_with_its_reason(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 and a line that names the setting."""
    monkeypatch.setattr("service.__main__.serve", lambda _: 0)
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    """Comments and blank lines are left out; printing settings shows no secret."""
    keys, redis = tmp_path / "keys", tmp_path / "redis"
    keys.write_text("# rotation\n\na:1:admin\nb:2:admin\n")
    redis.write_text("redis://:pass@cache:6379/0\n")
    settings = Settings(_cli_parse_args=[], api_keys_file=keys, redis_url_file=redis)
    assert settings.read_api_keys() == ("a:1:admin", "b:2:admin")
    assert settings.read_redis_url() == "redis://:pass@cache:6379/0"
    shown = Settings(_cli_parse_args=[], api_keys="a:1:admin", redis_url="redis://:pass@cache:6379/0")
    assert "pass" not in repr(shown)
    assert "a:1" not in repr(shown)


@pytest.mark.parametrize("content", [None, "# nothing\n"])
def test_a_key_file_that_is_absent_or_empty_does_not_open_the_service(tmp_path: Path, content: str | None) -> None:
    """A mistake in mounting secrets must not switch keys off."""
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_text(content)
    with pytest.raises(SettingsError, match="api_keys_file"):
        Settings(_cli_parse_args=[], api_keys_file=keys).read_api_keys()


@pytest.mark.parametrize("value", ["", ",", " # nothing", "#a,\n#b"])
def test_keys_that_are_none_do_not_open_the_service(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty secret in the environment is a mistake, too; unset is how to say that none is wanted."""
    monkeypatch.setenv("MUFIN_API_KEYS", value)
    with pytest.raises(SettingsError, match="api_keys holds no key"):
        create_app(Settings(_cli_parse_args=[]))
    monkeypatch.delenv("MUFIN_API_KEYS")
    assert Settings(_cli_parse_args=[]).read_api_keys() == ()


@pytest.mark.parametrize(
    ("host", "beyond"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)]
)
def test_listening_beyond_loopback_is_noticed(host: str, beyond: bool) -> None:
    """What the start-up warning hangs on."""
    assert Settings(_cli_parse_args=[], host=host).listens_beyond_loopback == beyond


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described_in_code_and_in_docs(name: str) -> None:
    """A setting missing from docs/operations.md fails here."""
    assert Settings.model_fields[name].description
    assert f"`MUFIN_{name.upper()}`" in (DOCS / "operations.md").read_text(encoding="utf-8")


def test_every_problem_code_is_documented() -> None:
    """A code missing from docs/api.md fails here."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [code for code in sorted(all_codes()) if f"`{code}`" not in text] == []


def test_every_metric_is_documented() -> None:
    """A metric missing from docs/operations.md fails here."""
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    names = {family.name for family in Metrics().registry.collect() if family.name.startswith("mufin_")}
    assert len(names) >= 12
    assert [name for name in sorted(names) if f"`{name}" not in text] == []
