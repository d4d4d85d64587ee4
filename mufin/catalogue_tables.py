"""The rows of a catalogue's files - JSONL, CSV or Parquet - with the line each came from.

Knows no products, labels or relevance; it reports faults and goes on, so that one run shows many.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mufin.errors import CatalogueError

LISTED_FAULTS = 20
_PARQUET_BATCH_ROWS = 8192
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1
"""What an answer can hold (orjson)"""
_SHOWN_DIGITS = 24


class Faults:
    """Faults of a catalogue, the first 20 kept in words; ``raise_if_any`` raises them as one error."""

    def __init__(self) -> None:
        self._kept: list[CatalogueError] = []
        self._count = 0

    def add(self, path: Path, line: int | None, reason: str) -> None:
        """Notes one fault."""
        self._count += 1
        if len(self._kept) < LISTED_FAULTS:
            self._kept.append(CatalogueError(path, line, reason))

    def raise_if_any(self) -> None:
        """Raises a CatalogueError at the place of the first fault; the others follow in its text."""
        if not self._kept:
            return
        first, *others = self._kept
        lines = [first.reason, *(f"  {other}" for other in others)]
        if self._count > len(self._kept):
            lines.append(f"  and {self._count - len(self._kept)} more")
        if len(lines) > 1:
            lines[0] += f"\nfurther faults ({self._count - 1}):"
        raise CatalogueError(first.path, first.line, "\n".join(lines))


def find_table(folder: Path, stem: str, text_suffix: str, faults: Faults) -> Path | None:
    """``stem`` with the text suffix or .parquet; None when neither is there, a fault when both are."""
    text, parquet = folder / f"{stem}{text_suffix}", folder / f"{stem}.parquet"
    if text.is_file() and parquet.is_file():
        faults.add(text, None, f"{parquet.name} is there, too; remove the one that does not count")
    return text if text.is_file() else parquet if parquet.is_file() else None


def read_records(path: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row, record) of a JSONL or Parquet file."""
    if path.suffix == ".parquet":
        yield from _parquet_records(path, faults)
        return
    for line, text in _text_lines(path, faults):
        record = _json_record(path, line, text, faults)
        if record is not None:
            yield line, record


def read_pair_rows(path: Path, columns: tuple[str, str], faults: Faults) -> Iterator[tuple[int, str, str]]:
    """(line or row, first, second) of a CSV or Parquet file with exactly the two columns, in any order."""
    rows = _parquet_pairs(path, columns, faults) if path.suffix == ".parquet" else _csv_pairs(path, columns, faults)
    for line, values in rows:
        if all(values):
            yield line, values[0], values[1]
        else:
            faults.add(path, line, f"{columns[values.index('')]} is empty; fill it in or delete the line")


def _text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Lines end at a line feed only: U+2028 and its like may stand in a title."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                faults.add(
                    path, line, f"byte {error.start + 1} (0x{raw[error.start]:02x}) is no UTF-8; save the file as UTF-8"
                )
                continue
            if text.strip():
                yield line, text
            else:
                faults.add(path, line, "the line is empty; delete it")


def _json_record(path: Path, line: int, text: str, faults: Faults) -> dict[str, Any] | None:
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # only an escape can smuggle in half a surrogate pair
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        number = _number_fault(record) if isinstance(record, dict) else None
    except UnicodeEncodeError:
        faults.add(path, line, "an escape \\ud800..\\udfff stands alone and is no character; correct the text")
    except json.JSONDecodeError as error:
        faults.add(path, line, f"no JSON: {error.msg} at column {error.colno}; write one object a line")
    except (ValueError, RecursionError) as error:
        faults.add(path, line, f"no JSON that can be used: {error}; correct the value")
    else:
        if isinstance(record, dict) and number is None:
            return record
        faults.add(
            path, line, number or f'the line is a JSON {type(record).__name__}; write an object {{"id": ..., ...}}'
        )
    return None


def _number_fault(record: Mapping[str, Any]) -> str | None:
    """Which number of a record no answer could hold, and the remedy; None when there is none."""
    found = _odd_number(record)
    if found is None:
        return None
    place, value = found
    name, spelt = place.removeprefix("."), str(value)
    if isinstance(value, float):
        return f"{name} is {spelt}, not finite; write a number below 1.8e308, or text"
    if len(spelt) > _SHOWN_DIGITS:
        spelt = f"{spelt[:_SHOWN_DIGITS]}... (of {len(spelt)} characters)"
    return f"{name} is {spelt}, an integer lies in {LEAST_INTEGER}..{MOST_INTEGER}; write it as text"


def _odd_number(value: Any) -> tuple[str, Any] | None:
    """Path and value of the first number that is not finite (JSON's ``1e400`` is read so) or no integer of 64 bits."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ("", value)
    if isinstance(value, int):
        return None if LEAST_INTEGER <= value <= MOST_INTEGER else ("", value)
    inside: Iterable[tuple[object, Any]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for step, own in inside:
        if (found := _odd_number(own)) is not None:
            return (f".{step}" if isinstance(step, str) else f"[{step}]") + found[0], found[1]
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _csv_pairs(path: Path, columns: tuple[str, str], faults: Faults) -> Iterator[tuple[int, list[str]]]:
    place = _LineCounter()
    reader = csv.reader(place.follow(_text_lines(path, faults)), strict=True)
    order: list[int] | None = None
    try:
        for row in reader:
            if order is None:
                order = _column_order(path, place.line, row, columns, faults)
                if order is None:
                    return
            elif len(row) != len(columns):
                faults.add(path, place.line, f"{len(row)} fields instead of 2; quote a field that holds a comma")
            else:
                yield place.line, [row[i] for i in order]
    except csv.Error as error:
        faults.add(path, place.line, f"no CSV: {error}; correct the quotes")
        return
    if order is None:
        faults.add(path, 1, f"the file is empty; begin with the header {','.join(columns)}")


class _LineCounter:
    """The line the csv reader has last taken; its own count misses lines that were left out."""

    def __init__(self) -> None:
        self.line = 0

    def follow(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for self.line, text in lines:
            yield text


def _column_order(
    path: Path, line: int | None, header: list[str], columns: tuple[str, str], faults: Faults
) -> list[int] | None:
    missing = [name for name in columns if name not in header]
    unknown = [name for name in header if name not in columns]
    if missing:
        faults.add(path, line, f"column {missing[0]} is missing, found {header}; the header is {','.join(columns)}")
    elif unknown or len(header) != len(columns):
        faults.add(path, line, f"columns {header} instead of {','.join(columns)}; remove what is not read")
    else:
        return [header.index(name) for name in columns]
    return None


def _parquet_pairs(path: Path, columns: tuple[str, str], faults: Faults) -> Iterator[tuple[int, list[str]]]:
    file = _open_parquet(path, faults)
    if file is None or _column_order(path, None, list(file.schema_arrow.names), columns, faults) is None:
        return
    for row, record in _parquet_rows(file):
        values = [record[name] for name in columns]
        wrong = next((name for name in columns if not isinstance(record[name], str | None)), None)
        if wrong is None:
            yield row, [value or "" for value in values]
        else:
            faults.add(path, row, f"{wrong} is a {type(record[wrong]).__name__}; store ids as strings")


def _parquet_records(path: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    file = _open_parquet(path, faults)
    for row, record in _parquet_rows(file) if file is not None else ():
        wrong = next((name for name, value in record.items() if not _is_json(value)), None)
        if wrong is None and (number := _number_fault(record)) is not None:
            faults.add(path, row, number)
        elif wrong is None:
            yield row, record
        else:
            kind = type(record[wrong]).__name__
            faults.add(path, row, f"column {wrong} holds a {kind} that JSON cannot say; store text, numbers or lists")


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_json(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_json(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)


def _parquet_rows(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
        for record in batch.to_pylist():
            row += 1
            yield row, record


def _open_parquet(path: Path, faults: Faults) -> Any | None:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        faults.add(path, None, "reading Parquet needs pyarrow: install mufin[train], or store the table as text")
        return None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        faults.add(path, None, f"no Parquet file: {error}; write it again")
        return None
