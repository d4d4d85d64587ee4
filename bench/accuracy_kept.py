"""Figures that were computed before: a bench of hours goes on where it was interrupted.

Knows figures and what they are of, no method.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mufin.metrics import RowScores

Rows = list[tuple[str, RowScores]]
"""(name of the row, its figures)"""


def kept(
    folder: Path | None, identity: Mapping[str, Any], compute: Callable[[], Iterable[tuple[str, RowScores]]]
) -> Rows:
    """What ``compute`` gave for this ``identity`` before, or gives now; in ``folder``, where there is one.

    The identity says on what and with which settings; it does not see the code: a changed method needs an empty folder.
    """
    if folder is None:
        return list(compute())
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{name}.npz"
    if not path.is_file():
        _write(path, list(compute()))
    return _read(path)


def _write(path: Path, rows: Rows) -> None:
    arrays: dict[str, Any] = {"rows": np.array([name for name, _ in rows])}
    for number, (_, scores) in enumerate(rows):
        arrays |= {
            f"{number}.names": np.array(scores.names), f"{number}.numerators": scores.numerators,
            f"{number}.denominators": scores.denominators, f"{number}.rows": scores.rows,
            f"{number}.row_count": np.int64(scores.row_count),
        }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def _read(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as arrays:
        return [
            (
                str(name),
                RowScores(
                    tuple(map(str, arrays[f"{number}.names"])), arrays[f"{number}.numerators"],
                    arrays[f"{number}.denominators"], arrays[f"{number}.rows"], int(arrays[f"{number}.row_count"]),
                ),
            )
            for number, name in enumerate(arrays["rows"])
        ]  # fmt: skip
