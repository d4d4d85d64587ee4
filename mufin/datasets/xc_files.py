"""The files of an extreme-classification folder: texts, label matrices, filters.

Knows no catalogue. Formats: the extreme classification repository's README, and the authors' release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mufin.datasets.source_files import SourceFile
from mufin.errors import CatalogueError
from mufin.progress import ProgressBar

TEXT_FILES = {
    "train": ("trn.json.gz", "trn.json", "raw_data/train.raw.txt", "trn.raw.txt", "trn_X.txt", "raw/trn_X.txt"),
    "test": ("tst.json.gz", "tst.json", "raw_data/test.raw.txt", "tst.raw.txt", "tst_X.txt", "raw/tst_X.txt"),
    "label": ("lbl.json.gz", "lbl.json", "raw_data/label.raw.txt", "lbl.raw.txt", "Y.txt", "raw/Y.txt", "Yf.txt"),
}
"""Part -> where its texts may lie; the first that is there is read"""
MATRIX_FILES = {"train": ("trn_X_Y.txt",), "test": ("tst_X_Y.txt",)}
FILTER_FILES = {
    "train": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    "test": ("filter_labels_test.txt", "tst_filter_labels.txt"),
}
_ASINS = re.compile(r"[^\s,]+(?:,[^\s,]+)*")
_ARROW = "->"


@dataclass(frozen=True, slots=True)
class Point:
    """A line of a text file: a product or a label."""

    line: int
    ids: tuple[str, ...]
    """ASINs or the like, the first names the point; empty where the file gives none"""
    title: str
    targets: tuple[int, ...] | None
    """Relevant labels, where the file tells them"""


def find_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a file."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_points(path: Path, encoding: str | None, with_content: bool, progress: ProgressBar) -> Iterator[Point]:
    """The points of a text file. ``encoding`` None: UTF-8, for *.raw.txt latin-1 as the official reader has it."""
    source = SourceFile(path, progress)
    if ".json" in path.suffixes:
        yield from _json_points(source, with_content)
        return
    encoding = encoding or ("latin-1" if path.name.endswith(".raw.txt") else "utf-8")
    has_ids = None
    for line, text in source.text_lines(encoding):
        left, arrow, right = text.partition(_ARROW)
        is_pair = bool(arrow) and _ASINS.fullmatch(left.strip()) is not None
        if has_ids is None:
            has_ids = is_pair and path.name.endswith(".raw.txt")
        if not has_ids:
            yield Point(line, (), text.strip(), None)
        elif not is_pair:
            raise source.fault(line, f"{text[:60]!r} is not ASIN[,ASIN...]->title as line 1 is; correct the line")
        else:
            yield Point(line, tuple(left.strip().split(",")), right.strip(), None)


def _json_points(source: SourceFile, with_content: bool) -> Iterator[Point]:
    for line, record in source.records():
        uid, title, content = record.get("uid"), record.get("title"), record.get("content")
        for name, value in (("uid", uid), ("title", title), ("content", content)):
            if not isinstance(value, str | None):
                raise source.fault(line, f'"{name}" is {value!r}, expected a string')
        text = " ".join(part for part in (title, content if with_content else None) if part)
        yield Point(line, (uid,) if uid else (), text, _targets(source, line, record))


def _targets(source: SourceFile, line: int, record: dict[str, Any]) -> tuple[int, ...] | None:
    indices = record.get("target_ind")
    if indices is None:
        return None
    relevances = record.get("target_rel", [1.0] * len(indices) if isinstance(indices, list) else None)
    if not isinstance(indices, list) or not isinstance(relevances, list) or len(indices) != len(relevances):
        raise source.fault(line, '"target_ind" and "target_rel" must be lists of one length')
    if not all(type(index) is int for index in indices):
        raise source.fault(line, f'"target_ind" is {repr(indices)[:60]}, expected whole numbers')
    if not all(isinstance(value, int | float) for value in relevances):
        raise source.fault(line, f'"target_rel" is {repr(relevances)[:60]}, expected numbers')
    return tuple(index for index, value in zip(indices, relevances, strict=True) if value > 0)


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A line of *_X_Y.txt."""

    line: int
    labels: tuple[int, ...]
    dropped: int
    """Entries whose value is not above 0"""


def read_matrix(path: Path, rows: int, columns: int, progress: ProgressBar) -> Iterator[MatrixRow]:
    """The rows of a sparse text matrix that must be ``rows`` x ``columns``; labels are checked against it."""
    lines = SourceFile(path, progress).text_lines()
    _, header = next(lines, (1, ""))
    try:
        shape = tuple(int(part) for part in header.split())
    except ValueError:
        shape = ()
    if len(shape) != 2:
        raise CatalogueError(path, 1, f"{header[:60]!r} is no header; it says rows and columns, as {rows} {columns}")
    if shape != (rows, columns):
        reason = f"says {shape[0]} rows x {shape[1]} labels, the text files have {rows} x {columns}; fetch both anew"
        raise CatalogueError(path, 1, reason)
    number = 1
    for number, text in lines:
        if number > rows + 1:
            if text.strip():
                raise CatalogueError(path, number, f"is one row more than the {rows} of the header")
            continue
        yield _matrix_row(path, number, text, columns)
    if number < rows + 1:
        raise CatalogueError(path, number, f"is the last line, the header says {rows} rows; fetch the file again")


def _matrix_row(path: Path, number: int, text: str, columns: int) -> MatrixRow:
    labels, dropped = [], 0
    for token in text.split():
        index, colon, value = token.partition(":")
        try:
            label, relevance = int(index), float(value) if colon else 1.0
        except ValueError as error:
            raise CatalogueError(path, number, f"{token!r} is no label:value; correct it") from error
        if not 0 <= label < columns:
            raise CatalogueError(path, number, f"label {label} does not lie in 0..{columns - 1}; correct it")
        if relevance > 0:
            labels.append(label)
        else:
            dropped += 1
    return MatrixRow(number, tuple(labels), dropped)


def read_filter(path: Path, rows: int, columns: int, progress: ProgressBar) -> Iterator[tuple[int, int, int]]:
    """(line, row, label) of a filter file; blank lines are passed over, as an empty file is a usual one."""
    for number, text in SourceFile(path, progress).text_lines():
        if not text.strip():
            continue
        try:
            row, label = (int(part) for part in text.split())
        except ValueError as error:
            raise CatalogueError(path, number, f"{text[:60]!r} is no pair of row and label; correct it") from error
        if not (0 <= row < rows and 0 <= label < columns):
            reason = f"row {row}, label {label} do not lie in 0..{rows - 1} and 0..{columns - 1}; correct them"
            raise CatalogueError(path, number, reason)
        yield number, row, label
