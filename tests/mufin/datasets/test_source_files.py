"""Downloaded files: lines, JSON members and tables, each fault with its place."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from mufin.datasets import source_files
from mufin.datasets.source_files import SourceFile
from mufin.datasets.source_tables import read_table
from mufin.errors import CatalogueError
from mufin.progress import ProgressBar

PYARROW: Any = importlib.import_module("pyarrow")
PARQUET: Any = importlib.import_module("pyarrow.parquet")
QUIET = ProgressBar(quiet=True)


def _file(path: Path, content: bytes) -> SourceFile:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return SourceFile(path, QUIET)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_end_at_line_feeds_only(tmp_path: Path, name: str) -> None:
    """U+0085 of latin-1 and a lone carriage return are text; a byte order mark and CRLF are not."""
    file = _file(tmp_path / name, b"\xef\xbb\xbfa\r\nb\x85c\rd\n\nlast")
    assert list(file.lines()) == [(1, b"a"), (2, b"b\x85c\rd"), (3, b""), (4, b"last")]
    assert list(file.text_lines("latin-1"))[1] == (2, "b\x85c\rd")


def test_faults_of_a_file_name_it_and_the_line(tmp_path: Path) -> None:
    """Missing, cut off, no text of the encoding, an unknown encoding, no JSON, another JSON."""
    with pytest.raises(CatalogueError, match=r"none\.txt: is no file"):
        SourceFile(tmp_path / "none.txt", QUIET)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 9000 + b"\n" + bytes(range(256)) * 40)[:-60])
    with pytest.raises(CatalogueError, match=r"cut\.gz:\d+: cannot be unpacked"):
        list(SourceFile(tmp_path / "cut.gz", QUIET).lines())
    file = _file(tmp_path / "a.txt", b"{}\n\xff\n")
    with pytest.raises(CatalogueError, match=r"a\.txt:2: byte 1 \(0xff\) is no utf-8"):
        list(file.text_lines())
    with pytest.raises(CatalogueError, match="no such encoding"):
        list(file.text_lines("klingon"))
    for content, message in ((b"{}\n{", ":2: no JSON"), (b"[]", ":1: the line is a JSON list"), (b"\n", ":1: no JSON")):
        with pytest.raises(CatalogueError, match=message):
            list(_file(tmp_path / "b.jsonl", content).records())


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary file given by mistake ends in an error."""
    monkeypatch.setattr(source_files, "LONGEST_LINE_BYTES", 100)
    with pytest.raises(CatalogueError, match="longer than 100 bytes"):
        list(_file(tmp_path / "a.txt", b"x" * 200).lines())


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_large_json_comes_member_by_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    """Wherever chunks part it: keys, strings with brackets, escapes, numbers at an end."""
    monkeypatch.setattr(source_files, "_CHUNK_CHARACTERS", chunk)
    members: dict[str, Any] = {"a]": {"x": [1, 23]}, "ü\n,": 'q"}', "n": 12345, "e": {}, "": [None, True]}
    text = json.dumps(members, indent=indent).encode()
    assert [(key, value) for _, key, value in _file(tmp_path / "a.json.gz", text).json_members()] == list(
        members.items()
    )
    values = list(members.values())
    file = _file(tmp_path / "b.json", json.dumps(values, indent=indent).encode() + b"\n ")
    found = list(file.json_members())
    assert [(key, value) for _, key, value in found] == [(None, value) for value in values]
    assert found[0][0] == (1 if indent is None else 2)
    for empty in (b"[]", b" {} "):
        assert list(_file(tmp_path / "c.json", empty).json_members()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with ''"), (b'"x"', "expected a JSON array or object"), (b'[1 2]', "expected ',', found '2'"),
        (b'[1,\n{"a": ]', ":2: no JSON"), (b"[1] 2", "text follows"), (b'{"a" 1}', "expected ':'"),
        (b"[1", "expected ',', found ''"), (b'{1: 2}', "is no string"), (b'["\xff"]', "cannot be read"),
    ],
)  # fmt: skip
def test_broken_large_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Cut off, no JSON, no UTF-8."""
    with pytest.raises(CatalogueError, match=message):
        list(_file(tmp_path / "a.json", content).json_members())


def _table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        PARQUET.write_table(PYARROW.Table.from_pylist(rows), path)
    elif ".jsonl" in path.suffixes:
        _file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    """Columns by name, in the order asked for; optional ones that are absent are None."""
    path = _table(tmp_path / name, [{"q": 'red, "mug"', "z": "1", "id": "a"}, {"q": "ü\tx", "z": "2", "id": "b"}])
    rows = [row for _, row in read_table(path, ["id", "q"], QUIET, ["none", "z"])]
    assert rows == [["a", 'red, "mug"', None, "1"], ["b", "ü\tx", None, "2"]]
    with pytest.raises(CatalogueError, match="has no column 'price'; it has q, z, id"):
        list(read_table(path, ["id", "price"], QUIET))


def test_faults_of_a_table_are_refused(tmp_path: Path) -> None:
    """Another suffix, another number of fields, an open quote, no header, no Parquet."""
    for name, content, message in (
        ("a.xls", "", "has suffix '.xls'"), ("a.csv", "a,b\n1\n", "a.csv:2: 1 fields, the header has 2"),
        ("b.csv", 'a\n"x', "no CSV"), ("c.csv", "", "the file is empty"), ("d.parquet", "x", "no Parquet file"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(CatalogueError, match=message):
            list(read_table(tmp_path / name, ["a"], QUIET))
    with pytest.raises(CatalogueError, match="is no file"):
        list(read_table(tmp_path / "none.parquet", ["a"], QUIET))
