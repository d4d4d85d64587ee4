"""Labels that are not to be returned for now: ids in a watched file or a Redis set, one list an endpoint.

Knows no bundle. A list that cannot be read leaves the last one in force, and says so.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.errors import SettingsError
from service.redis_client import RedisClient

_MOST_BYTES = 256 << 20
_SCAN_COUNT = 1000


class BlockListError(Exception):
    """The list cannot be read just now; the text says why and is meant for the log."""


class BlockSource(Protocol):
    """Where ids come from."""

    async def read(self) -> frozenset[str] | None:
        """All ids; None: as at the last reading. Raises BlockListError."""
        ...


class BlockFile:
    """One id a line, in UTF-8; empty lines and those that begin with # are comments."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None

    async def read(self) -> frozenset[str] | None:
        """Reads only what has changed. Raises BlockListError."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> frozenset[str] | None:
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return None
            if status.st_size > _MOST_BYTES:
                raise BlockListError(f"{self._path}: has {status.st_size} bytes, {_MOST_BYTES} are allowed")
            lines = (line.strip() for line in self._path.read_text(encoding="utf-8-sig").splitlines())
            ids = frozenset(line for line in lines if line and not line.startswith("#"))
        except (OSError, UnicodeDecodeError) as error:
            raise BlockListError(f"{self._path}: cannot be read ({error}): write it anew, one id a line") from error
        # Only after it was read whole: a file that fails is tried again. Written during reading, it has a new stamp.
        self._stamp = stamp
        return ids


class BlockSet:
    """The members of a Redis set, scanned in pieces, so that no call takes long."""

    def __init__(self, client: RedisClient, key: str) -> None:
        self._client, self._key = client, key
        self._last: frozenset[str] | None = None

    async def read(self) -> frozenset[str] | None:
        """Members that were there from the first piece to the last are all among them. Raises BlockListError."""
        found: set[bytes] = set()
        cursor = 0
        while True:
            start = cursor
            piece = await self._client.ask(lambda redis, at=start: redis.sscan(self._key, at, count=_SCAN_COUNT))  # type: ignore[misc]  # mypy infers no lambda with a default
            if piece is None:
                raise BlockListError(f"Redis set {self._key}: Redis does not answer, or the key holds no set")
            try:
                cursor, members = int(piece[0]), piece[1]
                found.update(members)
            except (TypeError, ValueError, LookupError) as error:
                raise BlockListError(f"Redis set {self._key}: the reply is no piece of a set ({error})") from error
            if cursor == 0:
                break
        try:
            ids = frozenset(member.decode("utf-8") for member in found)
        except (UnicodeDecodeError, AttributeError) as error:
            raise BlockListError(f"Redis set {self._key}: a member is not UTF-8 ({error})") from error
        unchanged, self._last = ids == self._last, ids
        return None if unchanged else ids


@dataclass
class BlockList:
    """One endpoint's ids."""

    source: BlockSource
    ids: frozenset[str] = frozenset()
    failure: str | None = None
    """Why the last reading failed"""
    _read_at: float | None = field(default=None)

    async def refresh(self) -> bool:
        """Read again; whether the ids have changed. A failure is kept in ``failure``, the ids stay."""
        try:
            ids = await self.source.read()
        except BlockListError as error:
            self.failure = str(error)
            return False
        self.failure, self._read_at = None, time.monotonic()
        if ids is None or ids == self.ids:
            return False
        self.ids = ids
        return True

    @property
    def age_seconds(self) -> float:
        """Since it was last read; infinity before."""
        return float("inf") if self._read_at is None else time.monotonic() - self._read_at


def block_source(path: Path | None, key: str | None, client: RedisClient | None) -> BlockSource | None:
    """The file, or the set; None for neither. Raises SettingsError for a set without a Redis."""
    if path is not None:
        return BlockFile(path)
    if key is None:
        return None
    if client is None:
        raise SettingsError(f"block set {key!r} needs redis_url: set it, or name a block file")
    return BlockSet(client, key)
