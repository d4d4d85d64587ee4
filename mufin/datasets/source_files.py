"""Downloaded files line by line, plain or .gz, with the place for an error message.

Knows no data set and no catalogue; a file is never held whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from mufin.errors import CatalogueError
from mufin.progress import ProgressBar

_LINES_BETWEEN_REPORTS = 4096
_CHUNK_CHARACTERS = 1 << 20
LONGEST_LINE_BYTES = 1 << 26
"""A line beyond 64 MiB is no line of these data sets but another format."""


class SourceFile:
    """One downloaded file; every error it raises is a CatalogueError that names the file and the line."""

    def __init__(self, path: Path, progress: ProgressBar) -> None:
        """``path``: its suffix .gz decides whether it is unpacked. Raises CatalogueError when it is no file."""
        if not path.is_file():
            raise CatalogueError(path, None, "is no file; check the path, or fetch the file")
        self.path = path
        self._progress = progress

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, bytes without the line end). Lines end at a line feed only; a byte order mark is dropped."""
        total = max(1, self.path.stat().st_size)
        with self.path.open("rb") as raw, self._unpacked(raw) as file:
            for number in count(1):
                line = self._line(file, number)
                if not line:
                    break
                if number % _LINES_BETWEEN_REPORTS == 0:
                    self._progress(f"reading {self.path.name}", min(raw.tell(), total - 1), total)
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
        self._progress(f"reading {self.path.name}", total, total)

    def text_lines(self, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
        """The same, decoded; a byte that is no text of the encoding is an error."""
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise self.fault(None, f"cannot be read as {encoding!r}: Python has no such encoding") from error
        for number, line in self.lines():
            try:
                yield number, line.decode(encoding)
            except UnicodeDecodeError as error:
                reason = f"byte {error.start + 1} (0x{line[error.start]:02x}) is no {encoding}; give the right encoding"
                raise CatalogueError(self.path, number, reason) from error

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, object) of a file with one JSON object a line; blank lines are an error."""
        for number, text in self.text_lines():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self.fault(number, f"no JSON: {error}; fetch the file again") from error
            if not isinstance(record, dict):
                raise self.fault(number, f"the line is a JSON {type(record).__name__}, expected an object")
            yield number, record

    def json_members(self) -> Iterator[tuple[int, str | None, Any]]:
        """(line, key or None, value) of one large JSON object or array, member by member."""
        total = max(1, self.path.stat().st_size)
        with self.path.open("rb") as raw, self._unpacked(raw) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="")
            for number, member in enumerate(_JsonMembers(self.path, text), 1):
                if number % _LINES_BETWEEN_REPORTS == 0:
                    self._progress(f"reading {self.path.name}", min(raw.tell(), total - 1), total)
                yield member
        self._progress(f"reading {self.path.name}", total, total)

    def fault(self, line: int | None, reason: str) -> CatalogueError:
        """An error at a line of this file, to be raised."""
        return CatalogueError(self.path, line, reason)

    def _unpacked(self, raw: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
        return gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else raw

    def _line(self, file: io.BufferedReader | gzip.GzipFile, number: int) -> bytes:
        try:
            line = file.readline(LONGEST_LINE_BYTES + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise self.fault(number, f"cannot be unpacked ({error}); fetch the file again") from error
        if len(line) > LONGEST_LINE_BYTES:
            raise self.fault(number, f"is longer than {LONGEST_LINE_BYTES} bytes; this is another format")
        return line


class _JsonMembers:
    """Iterates over the members of a top-level array or object; at most one member and a chunk are in memory."""

    def __init__(self, path: Path, text: TextIO) -> None:
        self._path, self._text = path, text
        self._decoder = json.JSONDecoder()
        self._buffer, self._place, self._line, self._ended = "", 0, 1, False

    def __iter__(self) -> Iterator[tuple[int, str | None, Any]]:
        opening = self._peek()
        if opening not in "[{" or not opening:
            raise self._fault(f"begins with {opening!r}, expected a JSON array or object")
        self._advance(self._place + 1)
        closing = "]" if opening == "[" else "}"
        first = True
        while self._peek() != closing:
            if not first:
                self._expect(",")
            first = False
            line, key = self._line, None
            if closing == "}":
                key = self._value()
                if not isinstance(key, str):
                    raise self._fault(f"key {key!r} is no string")
                self._expect(":")
            self._peek()
            yield line, key, self._value()
        self._advance(self._place + 1)
        if self._peek():
            raise self._fault("text follows the end of the JSON; fetch the file again")

    def _peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            place = self._place
            while place < len(self._buffer) and self._buffer[place] in " \t\r\n":
                place += 1
            self._advance(place)
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self._fault(f"expected {character!r}, found {found!r}; fetch the file again")
        self._advance(self._place + 1)
        self._peek()

    def _value(self) -> Any:
        """Decodes at the place; a value that reaches the end of what was read may be cut off, so more is read."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    raise self._fault(f"no JSON: {error}; fetch the file again") from error
                continue
            if end == len(self._buffer) and self._more():
                continue
            self._advance(end)
            return value

    def _advance(self, place: int) -> None:
        self._line += self._buffer.count("\n", self._place, place)
        self._place = place

    def _more(self) -> bool:
        if self._ended:
            return False
        if len(self._buffer) - self._place > LONGEST_LINE_BYTES:
            raise self._fault(f"a member is longer than {LONGEST_LINE_BYTES} characters; this is another format")
        try:
            chunk = self._text.read(_CHUNK_CHARACTERS)
        except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
            raise self._fault(f"cannot be read ({error}); fetch the file again") from error
        self._ended = not chunk
        if chunk:
            self._buffer, self._place = self._buffer[self._place :] + chunk, 0
        return bool(chunk)

    def _fault(self, reason: str) -> CatalogueError:
        return CatalogueError(self._path, self._line, reason)
