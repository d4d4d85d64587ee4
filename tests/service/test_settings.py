"""Settings: environment, flags, files, contradictions, documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import main
from service.errors import SettingsError, all_codes
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
     (["--api-keys", "a", "--api-keys-file", "b"], "keep one"), (["--fetch-trusted-origins", "http://a/b"], "look like")],
)  # fmt: skip
def test_a_contradiction_ends_the_start_with_its_reason(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and a line that names the setting."""
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
