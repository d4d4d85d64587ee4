"""docs/training.md and the config agree: every key with its default, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from mufin.training.config import EncoderConfig, TrainConfig
from mufin.training.presets import PRESETS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`[^|]+`) \| `([^|]+)` \| [^|]+ \|$", re.MULTILINE)
UNNAMED = EncoderConfig(options={"model_type": "distilbert"})


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every field that holds no further fields."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from leaves(value, f"{path}{entry.name}.")
        else:
            yield path + entry.name, value


def documented() -> dict[str, str]:
    """Dotted key -> default as written in the table of all keys."""
    rows = ROW.findall(DOCUMENT.partition("## Every key")[2])
    return {key: default for keys, default in rows for key in re.findall(r"`([^`]+)`", keys)}


def parsed(text: str) -> Any:
    """JSON, or else a plain word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def test_every_config_key_is_documented_and_no_other() -> None:
    """A key missing from docs/training.md fails here, and one that is no longer there."""
    keys = {key for key, _ in leaves(TrainConfig(UNNAMED, UNNAMED))}
    assert len(keys) > 50
    assert documented().keys() ^ keys == set()


def test_documented_defaults_are_the_codes() -> None:
    """A default that was changed in the code alone fails here. Values are written as for --set: JSON, or a plain word."""
    written = {key: parsed(text) for key, text in documented().items()}
    defaults = {key: value for key, value in leaves(TrainConfig(UNNAMED, UNNAMED)) if not key.endswith(".options")}
    assert {key: value for key, value in defaults.items() if written[key] != value} == {}


def test_every_preset_is_documented() -> None:
    """A preset missing from docs/training.md fails here."""
    assert [name for name in PRESETS if f"`{name}`" not in DOCUMENT] == []
