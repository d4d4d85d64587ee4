"""A catalogue folder in the making: items, pairs, and the account of what was left out.

Knows no data set. It is written beside its place and renamed, so a crash leaves no half catalogue.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mufin.catalogue import PAIR_COLUMNS, SPLITS
from mufin.datasets.pair_spool import MergedPairs
from mufin.errors import CatalogueError
from mufin.inputs import BoolArray, Int64Array, normalise_title

SOURCE_FILE = "source.json"
ITEM_KEYS = ("id", "title", "images")
"""Keys of an item's line that are no metadata"""
TRAIN, VALID, TEST = range(3)
_PAIRS_AT_ONCE = 65536


class Account:
    """What was left out and why, what was written, and remarks; becomes ``source.json``."""

    def __init__(self) -> None:
        self._left_out: dict[str, tuple[int, str | None]] = {}
        self.written: dict[str, int] = {}
        """What -> how many"""
        self.notes: list[str] = []
        """Sentences for whoever uses the catalogue"""

    def leave_out(self, reason: str, path: Path | None = None, line: int | None = None, count: int = 1) -> None:
        """Counts something left out; the first place is kept."""
        if count:
            known, first = self._left_out.get(reason, (0, None))
            place = None if path is None else path.name if line is None else f"{path.name}:{line}"
            self._left_out[reason] = known + count, first if known else place

    def left_out(self) -> dict[str, int]:
        """Reason -> how many."""
        return {reason: count for reason, (count, _) in sorted(self._left_out.items())}

    def to_json(self) -> dict[str, Any]:
        """Plain values in a fixed order."""
        left_out = [
            {"reason": reason, "count": count, **({} if first is None else {"first": first})}
            for reason, (count, first) in sorted(self._left_out.items())
        ]
        return {"written": self.written, "left_out": left_out, "notes": self.notes}

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"  {count:>12,}  {what}" for what, count in self.written.items()]
        if self._left_out:
            lines.append("left out or changed:")
            for reason, (count, first) in sorted(self._left_out.items()):
                lines.append(f"  {count:>12,}  {reason}" + ("" if first is None else f" (first: {first})"))
        return lines + [f"note: {note}" for note in self.notes]


class CatalogueFolder:
    """Used in a ``with``; at its end without an error the folder is at its place, otherwise it is gone."""

    def __init__(self, target: Path, data_set: str, options: Mapping[str, Any], sources: Iterable[Path]) -> None:
        """``options`` and the names and sizes of ``sources`` go into source.json."""
        self.target = target
        self.account = Account()
        self._described = {
            "data_set": data_set,
            "options": dict(options),
            "sources": [{"file": path.name, "bytes": path.stat().st_size} for path in sources if path.is_file()],
        }
        self.folder = target
        """Where it is written until it is finished"""

    @property
    def scratch(self) -> Path:
        """A folder for whatever is not to stay."""
        return self.folder / ".scratch"

    def __enter__(self) -> Self:
        self._refuse_existing()
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.part-", dir=self.target.parent))
            self.folder.chmod(0o755)
            self.scratch.mkdir()
        except OSError as error:
            raise CatalogueError(
                self.target, None, f"cannot be written ({error.strerror}); give another place"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                shutil.rmtree(self.scratch)
                content = {**self._described, **self.account.to_json()}
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (self.folder / SOURCE_FILE).write_text(text, encoding="utf-8")
                self._refuse_existing()
                self.folder.rename(self.target)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse_existing(self) -> None:
        if self.target.exists() or self.target.is_symlink():
            raise CatalogueError(self.target, None, "is there already; move it away or give another folder")

    def items(self, stem: str) -> ItemFile:
        """The products or labels file, to be used in a ``with``."""
        return ItemFile(self.folder / f"{stem}.jsonl", self.account)

    def write_pairs(
        self, pairs: Iterable[MergedPairs], product_ids: Sequence[str], label_ids: Sequence[str], what: str = "pairs"
    ) -> None:
        """Writes train, valid and test; a pair of several splits stays in the first. Raises CatalogueError for none."""
        counts = np.zeros(len(SPLITS), dtype=np.int64)
        trained = np.zeros(len(label_ids), dtype=np.bool_)
        scored = np.zeros(len(label_ids), dtype=np.bool_)
        with ExitStack() as stack:
            writers: dict[int, PairFile] = {}
            for merged in pairs:
                splits = merged.first_split()
                several = int(np.count_nonzero(merged.splits & (merged.splits - 1)))
                self.account.leave_out("pairs of two splits, kept in the first of train, valid, test", count=several)
                for split, name in enumerate(SPLITS):
                    rows, labels = merged.products[splits == split], merged.labels[splits == split]
                    if len(rows):
                        if split not in writers:
                            writers[split] = stack.enter_context(PairFile(self.folder / f"{name}.csv"))
                        writers[split].write(rows, labels, product_ids, label_ids)
                        counts[split] += len(rows)
                        (trained if split == TRAIN else scored)[labels] = True
        if not counts.any():
            raise CatalogueError(
                self.target, None, f"would have no {what}; see what was left out: {self.account.left_out()}"
            )
        self.account.written |= {f"pairs in {n}.csv": int(c) for n, c in zip(SPLITS, counts, strict=True) if c}
        unseen = int(np.count_nonzero(scored & ~trained))
        if unseen:
            self.account.notes.append(f"{unseen} labels are in valid or test and in no training pair")


class ItemFile:
    """Writes products.jsonl or labels.jsonl, line by line; what a catalogue refuses is refused here."""

    def __init__(self, path: Path, account: Account) -> None:
        self._file = path.open("x", encoding="utf-8")
        self._name, self._account = path.stem, account
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._account.written[self._name] = self._count

    def write(self, item_id: str, title: str, images: Sequence[str] = (), **metadata: Any) -> None:
        """One item; the caller has checked it with ``is_describable`` and ``check_id``.

        ``metadata`` has none of ``ITEM_KEYS``: they would take the place of the item's own.
        """
        record = {"id": item_id, "title": title, **({"images": list(images)} if images else {}), **metadata}
        text = json.dumps(record, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair out of a JSON escape: no character at all
            self._account.leave_out(f"characters of {self._name} that are none (lone surrogates), written as ?")
            text = text.encode("utf-8", "replace").decode()
        self._file.write(text + "\n")
        self._count += 1


class PairFile:
    """A file of pairs, used in a ``with``."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(PAIR_COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(
        self, products: Int64Array, labels: Int64Array, product_ids: Sequence[str], label_ids: Sequence[str]
    ) -> None:
        """``products`` and ``labels`` (n,) are places in the id lists."""
        for start in range(0, len(products), _PAIRS_AT_ONCE):
            rows = products[start : start + _PAIRS_AT_ONCE].tolist()
            columns = labels[start : start + _PAIRS_AT_ONCE].tolist()
            self._writer.writerows(
                (product_ids[row], label_ids[label]) for row, label in zip(rows, columns, strict=True)
            )


def check_id(item_id: Any, path: Path, line: int | None, what: str) -> str:
    """The id, or CatalogueError where a catalogue would refuse it."""
    if not isinstance(item_id, str):
        raise CatalogueError(path, line, f"{what} is {item_id!r}, expected a string")
    if not item_id or item_id != item_id.strip() or not item_id.isprintable():
        reason = f"{what} {item_id!r} is empty, has white space at an end or control characters; correct it"
        raise CatalogueError(path, line, reason)
    return item_id


def is_describable(title: str, images: Sequence[str] = ()) -> bool:
    """Whether a catalogue takes an item: it has an image or a title that is not blank."""
    return bool(images) or bool(normalise_title(title))


def split_of(title: str, item_id: str, valid: float, test: float) -> int:
    """The split of a product where the data set has none: by a hash of its title, so equal titles stay together."""
    key = normalise_title(title).casefold() or item_id
    number = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()) / 2.0**64
    return TEST if number < test else VALID if number < test + valid else TRAIN


def keep_pairs(
    merged: MergedPairs, products: BoolArray, labels: BoolArray, account: Account, kind: str = "pairs"
) -> MergedPairs:
    """Those whose product and label are kept; the others are counted. ``products`` and ``labels`` are masks."""
    has_product, has_label = products[merged.products], labels[merged.labels]
    account.leave_out(f"{kind} of a product that was left out", count=int(np.count_nonzero(~has_product)))
    account.leave_out(f"{kind} of a label that was left out", count=int(np.count_nonzero(has_product & ~has_label)))
    return merged.select(has_product & has_label)
