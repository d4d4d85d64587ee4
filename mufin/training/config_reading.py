"""A TrainConfig from a preset's name, a JSON or TOML file, plain values and overrides; what is wrong is named with its path.

Knows no field's meaning.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from mufin.errors import ConfigError
from mufin.training.config import TrainConfig, require
from mufin.training.presets import PRESETS, copy_of


def build_config(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Preset name, JSON/TOML file, plain values or None (preset "small"), then ``key.sub=value`` overrides (values as JSON).

    A file may name the preset it starts from in ``preset``; without one it must be complete.
    """
    values = copy_of(dict(source)) if isinstance(source, Mapping) else _load(source)
    for override in overrides:
        key, separator, text = override.partition("=")
        require(bool(separator), f"--set {override!r}: write key=value, e.g. siamese.epochs=5")
        try:
            value = json.loads(text)
        except ValueError:  # no JSON, or a number of more digits than Python reads
            value = text
        _assign(values, key.strip().split("."), value, override)
    return config_from_json(values)


def _load(source: str | Path | None) -> dict[str, Any]:
    if source is None or str(source) in PRESETS:
        return copy_of(PRESETS[str(source) if source is not None else "small"])
    path = Path(source)
    require(path.is_file(), f"{path}: no such config file, nor a preset ({', '.join(PRESETS)})")
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON or TOML: {error}") from error
    require(isinstance(values, dict), f"{path}: holds {type(values).__name__}, needs an object")
    preset = values.pop("preset", None)
    known = preset is None or (isinstance(preset, str) and preset in PRESETS)
    require(known, f"{path}: unknown preset {preset!r}, have {', '.join(PRESETS)}")
    return _merge(copy_of(PRESETS[preset]), values) if preset else typing.cast(dict[str, Any], values)


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if key in ("text", "image") and isinstance(value, Mapping) and _is_another_encoder(value):
            base[key] = dict(value)
        elif isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _is_another_encoder(value: Mapping[str, Any]) -> bool:
    """A named encoder, or one of a stated type, replaces a preset's instead of being mixed with it."""
    return "name" in value or "model_type" in value.get("options", {})


def _assign(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    here = values
    for step in path[:-1]:
        here = here.setdefault(step, {})
        require(isinstance(here, dict), f"--set {override!r}: {step!r} holds no further keys")
    if path[0] in ("text", "image") and path[-1] == "name" and value is not None:
        here.pop("options", None)
    here[path[-1]] = value


def config_from_json(values: Mapping[str, Any]) -> TrainConfig:
    """Nested plain values to a TrainConfig; unknown keys and wrong types are named with their path."""
    result = _build(TrainConfig, values, "")
    assert isinstance(result, TrainConfig)
    return result


def _build(kind: type, values: Any, path: str) -> Any:
    require(isinstance(values, Mapping), f"config {path or 'root'}: holds {values!r}, needs an object")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"config: unknown key {path}{unknown[0] if unknown else ''}; known: {', '.join(known)}")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if is_dataclass(hint):
            default = known[name].default
            if default is not dataclasses.MISSING and isinstance(value, Mapping):
                value = {**asdict(default), **value}  # a partial group keeps the rest of its defaults
            arguments[name] = _build(typing.cast(type, hint), value, f"{path}{name}.")
        else:
            arguments[name] = _check_type(value, hint, path + name)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"config {path or 'root'}: {error}") from error
    except ConfigError as error:  # both rankers say "ranker", and some groups no name at all
        raise ConfigError(f"config {path.rstrip('.')}: {error}" if path else str(error)) from error


def _check_type(value: Any, hint: Any, path: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        require(value in options, f"config {path}: is {value!r}, must be one of {', '.join(map(repr, options))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _check_type(value, next(o for o in options if o is not type(None)), path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(
            abs(value) < 1 << 1023, f"config {path}: is an integer of {value.bit_length()} bits, needs a finite number"
        )
        return float(value)
    expected = origin or hint
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config {path}: is {value}, needs a finite number")
    matches = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
    require(matches, f"config {path}: is {value!r}, needs {getattr(expected, '__name__', expected)}")
    return value
