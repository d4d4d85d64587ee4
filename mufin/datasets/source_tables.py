"""Tables with named columns - CSV, TSV, JSONL or Parquet - row by row.

Knows no data set; only the columns asked for are read.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mufin.datasets.source_files import LONGEST_LINE_BYTES, SourceFile
from mufin.errors import CatalogueError
from mufin.progress import ProgressBar

_PARQUET_BATCH_ROWS = 4096
Row = list[Any]


def read_table(
    path: Path, columns: Sequence[str], progress: ProgressBar, optional: Sequence[str] = ()
) -> Iterator[tuple[int, Row]]:
    """(line, or row of Parquet, from 1; values of ``columns`` then of ``optional``, None where a column is absent).

    The suffix decides: .csv, .tsv, .jsonl (each also .gz) or .parquet. CSV values are strings, "" when empty.
    Raises CatalogueError: an unknown suffix, a missing column, a row of another length, broken text.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        return _parquet(path, columns, optional, progress)
    if suffix in (".csv", ".tsv"):
        return _csv(SourceFile(path, progress), columns, optional, "\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".json"):
        return _jsonl(SourceFile(path, progress), columns, optional)
    raise CatalogueError(
        path, None, f"has suffix {suffix!r}; readable are .csv, .tsv, .jsonl (each also .gz), .parquet"
    )


def _jsonl(source: SourceFile, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for line, record in source.records():
        _check_columns(source.path, line, columns, list(record))
        yield line, [record.get(name) for name in (*columns, *optional)]


def _csv(
    source: SourceFile, columns: Sequence[str], optional: Sequence[str], delimiter: str
) -> Iterator[tuple[int, Row]]:
    place = _Place()
    csv.field_size_limit(LONGEST_LINE_BYTES)  # descriptions may be longer than the module's 128 KiB
    reader = csv.reader(place.follow(source.text_lines()), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise source.fault(1, f"the file is empty; begin with a header that has {', '.join(columns)}")
        _check_columns(source.path, 1, columns, header)
        wanted = [header.index(name) if name in header else None for name in (*columns, *optional)]
        for row in reader:
            if len(row) != len(header):
                reason = f"{len(row)} fields, the header has {len(header)}; quote a field that holds a {delimiter!r}"
                raise source.fault(place.line, reason)
            yield place.line, [None if column is None else row[column] for column in wanted]
    except csv.Error as error:
        raise source.fault(place.line, f"no CSV: {error}; correct the quotes") from error


class _Place:
    """The line that the csv reader has last taken."""

    def __init__(self) -> None:
        self.line = 0

    def follow(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for self.line, text in lines:
            yield text + "\n"  # put back: it parts the lines of a quoted field


def _parquet(
    path: Path, columns: Sequence[str], optional: Sequence[str], progress: ProgressBar
) -> Iterator[tuple[int, Row]]:
    """At most one row group's chosen columns are in memory."""
    if not path.is_file():
        raise CatalogueError(path, None, "is no file; check the path, or fetch the file")
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise CatalogueError(path, None, "reading Parquet needs pyarrow: install mufin[train]") from error
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = list(file.schema_arrow.names)
            _check_columns(path, None, columns, names)
            present = [name for name in (*columns, *optional) if name in names]
            row, total = 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=present):
                values = {name: batch.column(name).to_pylist() for name in present}
                absent = [None] * batch.num_rows
                for one in zip(*(values.get(name, absent) for name in (*columns, *optional)), strict=True):
                    row += 1
                    yield row, list(one)
                progress(f"reading {path.name}", row, total)
    except (OSError, ValueError) as error:
        raise CatalogueError(path, None, f"no Parquet file that can be read: {error}; fetch it again") from error


def _check_columns(path: Path, line: int | None, columns: Sequence[str], present: Sequence[str]) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        shown = ", ".join(present)
        raise CatalogueError(path, line, f"has no column {missing[0]!r}; it has {shown}: name one of them")
