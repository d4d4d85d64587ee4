"""Polyvore Outfits (disjoint or nondisjoint): items that share an outfit, and its two tasks, as a catalogue folder.

Knows no training. Source: Vasileva et al. 2018, Learning Type-Aware Embeddings for Fashion Compatibility.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import SPLITS
from mufin.datasets.catalogue_folder import Account, CatalogueFolder, check_id, is_describable, keep_pairs
from mufin.datasets.command import make_parser, run
from mufin.datasets.image_pack import ImagePack
from mufin.datasets.outfit_tasks import (
    Outfit,
    Question,
    outfit_line,
    outfits_file,
    question_line,
    questions_file,
)
from mufin.datasets.pair_spool import MergedPairs, PairSpool
from mufin.datasets.source_files import SourceFile
from mufin.inputs import BoolArray
from mufin.progress import ProgressBar

VARIANTS = ("disjoint", "nondisjoint")
METADATA_FILE = "polyvore_item_metadata.json"
_KEPT_METADATA = ("semantic_category", "category_id", "description")


def convert(
    source: Path, target: Path, progress: ProgressBar, *, variant: str = VARIANTS[0], images: bool = True
) -> Account:
    """Writes the catalogue ``target``. Memory: the ids of items and of their places in outfits; the rest is streamed."""
    folder_of = source / variant
    used = [source / METADATA_FILE, *(folder_of / f"{split}.json" for split in SPLITS)]
    with CatalogueFolder(target, "polyvore outfits", {"variant": variant, "images": images}, used) as folder:
        outfits = _Outfits(folder, folder_of, progress)
        kept = _write_products(folder, source, outfits, images, progress)
        _write_pairs(folder, outfits, kept)
        for split in SPLITS:
            _write_questions(folder, folder_of, split, outfits, kept, progress)
            _write_outfits(folder, folder_of, split, outfits, kept, progress)
    return folder.account


class _Outfits:
    """Items by row, the items of every outfit's places, and the pairs of each outfit."""

    def __init__(self, folder: CatalogueFolder, source: Path, progress: ProgressBar) -> None:
        self.rows: dict[str, int] = {}
        """Item id -> row, by first appearance"""
        self.places: dict[str, int] = {}
        """"SET_INDEX", as the tasks name an item -> row"""
        self.spool = PairSpool(folder.scratch / "pairs")
        for split, name in enumerate(SPLITS):
            file = SourceFile(source / f"{name}.json", progress)
            for line, key, outfit in file.json_members():
                if key is not None:
                    raise file.fault(line, f"has the key {key!r}, expected an array of outfits")
                rows = self._rows_of(file, line, outfit)
                for product, label in permutations(rows, 2):
                    if product == label:
                        folder.account.leave_out("pairs of an item with itself", file.path, line)
                    else:
                        self.spool.add(product, label, split)
                if len(rows) < 2:
                    folder.account.leave_out("outfits of less than two items: no pair", file.path, line)

    def _rows_of(self, file: SourceFile, line: int, outfit: Any) -> list[int]:
        items = outfit.get("items") if isinstance(outfit, dict) else None
        set_id = outfit.get("set_id") if isinstance(outfit, dict) else None
        if not isinstance(items, list) or not isinstance(set_id, str | int):
            raise file.fault(line, f'{repr(outfit)[:60]} is no outfit; it has a "set_id" and a list "items"')
        rows = []
        for item in items:
            if not isinstance(item, dict) or "item_id" not in item or "index" not in item:
                raise file.fault(line, f'outfit {set_id}: {repr(item)[:60]} has no "item_id" and "index"')
            item_id = check_id(str(item["item_id"]), file.path, line, "item_id")
            row = self.rows.setdefault(item_id, len(self.rows))
            place = f"{set_id}_{item['index']}"
            if self.places.setdefault(place, row) != row:
                raise file.fault(line, f"place {place} holds item {item_id}, and another item before; fetch it again")
            rows.append(row)
        return rows


def _write_products(
    folder: CatalogueFolder, source: Path, outfits: _Outfits, with_images: bool, progress: ProgressBar
) -> BoolArray:
    """(items,) which were written: those of an outfit that have a title or an image."""
    kept = np.zeros(len(outfits.rows), dtype=np.bool_)
    met = np.zeros(len(outfits.rows), dtype=np.bool_)
    file, account = SourceFile(source / METADATA_FILE, progress), folder.account
    with folder.items("products") as products, ImagePack(folder.folder) as pack:
        for line, item_id, record in file.json_members():
            if item_id is None or not isinstance(record, dict):
                raise file.fault(line, f"{repr(record)[:60]} is no item; the file is one object, item id: item")
            row = outfits.rows.get(item_id)
            if row is None:
                account.leave_out("items of no outfit of this variant", file.path, line)
                continue
            if met[row]:
                raise file.fault(line, f"item {item_id!r} is described twice; fetch the file again")
            met[row] = True
            title = _title(file, line, item_id, record, account)
            images = _pack(source / "images" / f"{item_id}.jpg", pack, account) if with_images else []
            if is_describable(title, images):
                metadata = {name: record[name] for name in _KEPT_METADATA if record.get(name)}
                products.write(item_id, title, images, **metadata)
                kept[row] = True
            else:
                account.leave_out("items with neither title nor image", file.path, line)
    account.leave_out(f"items of outfits that {METADATA_FILE} does not describe", count=int(np.count_nonzero(~met)))
    return kept


def _title(file: SourceFile, line: int, item_id: str, record: dict[str, Any], account: Account) -> str:
    """The title, else the name out of the address, which says much the same."""
    for name in ("title", "url_name"):
        value = record.get(name)
        if not isinstance(value, str | None):
            raise file.fault(line, f'"{name}" of item {item_id!r} is {value!r}, expected a string')
        if value and value.strip():
            if name == "url_name":
                account.leave_out("empty titles, url_name taken instead", file.path, line)
            return value
    return ""


def _pack(path: Path, pack: ImagePack, account: Account) -> list[str]:
    if not path.is_file():
        account.leave_out("images that are missing", path)
        return []
    encoded = path.read_bytes()
    if not encoded:
        account.leave_out("images without bytes", path)
        return []
    return [pack.add(encoded)]


def _write_pairs(folder: CatalogueFolder, outfits: _Outfits, kept: BoolArray) -> None:
    ids = list(outfits.rows)

    def pairs() -> Iterator[MergedPairs]:
        for merged in outfits.spool.merged():
            folder.account.leave_out("pairs of several outfits, written once", count=int((merged.counts - 1).sum()))
            yield keep_pairs(merged, kept, kept, folder.account)

    folder.write_pairs(pairs(), ids, ids)


class _Places:
    """Turns the tasks' names of items, SET_INDEX, into item ids."""

    def __init__(self, outfits: _Outfits, kept: BoolArray) -> None:
        self._places, self._ids, self._kept = outfits.places, list(outfits.rows), kept

    def item(self, file: SourceFile, line: int, place: Any) -> str | None:
        """The id; None when the item was left out. CatalogueError for a place that no outfit has."""
        row = self._places.get(place) if isinstance(place, str) else None
        if row is None:
            raise file.fault(line, f"{place!r} is no SET_INDEX of an outfit of this variant; fetch the folder again")
        return self._ids[row] if self._kept[row] else None


def _write_questions(
    folder: CatalogueFolder, source: Path, split: str, outfits: _Outfits,
    kept: BoolArray, progress: ProgressBar,
) -> None:  # fmt: skip
    path = source / f"fill_in_blank_{split}.json"
    if not path.is_file():
        folder.account.notes.append(f"{path.name} is not there: no such task for {split}")
        return
    file, places, count = SourceFile(path, progress), _Places(outfits, kept), 0
    with questions_file(folder.folder, split).open("x", encoding="utf-8") as out:
        for line, _, record in file.json_members():
            question = _question(file, line, record, places)
            if question is None:
                folder.account.leave_out(f"questions of fill_in_blank_{split} with an item left out", path, line)
            else:
                out.write(question_line(question))
                count += 1
    folder.account.written[f"questions in fill_in_blank_{split}.jsonl"] = count


def _question(file: SourceFile, line: int, record: Any, places: _Places) -> Question | None:
    asked = record.get("question") if isinstance(record, dict) else None
    answers = record.get("answers") if isinstance(record, dict) else None
    if not (isinstance(asked, list) and asked and isinstance(answers, list) and answers):
        raise file.fault(line, f'{repr(record)[:60]} is no question; it has lists "question" and "answers"')
    own = str(asked[0]).rpartition("_")[0]
    right = [place for place, answer in enumerate(answers) if str(answer).rpartition("_")[0] == own]
    if len(right) != 1:
        raise file.fault(line, f"{len(right)} of the answers {answers} are of outfit {own}, expected one")
    outfit = [places.item(file, line, place) for place in asked]
    candidates = [places.item(file, line, place) for place in answers]
    found, offered = [i for i in outfit if i is not None], [c for c in candidates if c is not None]
    if len(found) < len(outfit) or len(offered) < len(candidates):
        return None
    return Question(tuple(found), tuple(offered), right[0])


def _write_outfits(
    folder: CatalogueFolder, source: Path, split: str, outfits: _Outfits,
    kept: BoolArray, progress: ProgressBar,
) -> None:  # fmt: skip
    path = source / f"compatibility_{split}.txt"
    if not path.is_file():
        folder.account.notes.append(f"{path.name} is not there: no such task for {split}")
        return
    file, places, count = SourceFile(path, progress), _Places(outfits, kept), 0
    with outfits_file(folder.folder, split).open("x", encoding="utf-8") as out:
        for line, text in file.text_lines():
            flag, *names = text.split() or [""]
            if flag not in ("0", "1"):
                raise file.fault(line, f"begins with {flag!r}, expected 1 (compatible) or 0, then SET_INDEX ...")
            items = [places.item(file, line, name) for name in names]
            found = [item for item in items if item is not None]
            if len(found) < max(2, len(items)):
                reason = "with an item left out" if len(items) > 1 else "of less than two items"
                folder.account.leave_out(f"outfits of compatibility_{split} {reason}", path, line)
            else:
                out.write(outfit_line(Outfit(tuple(found), flag == "1")))
                count += 1
    folder.account.written[f"outfits in compatibility_{split}.jsonl"] = count


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m mufin.datasets.polyvore SOURCE CATALOGUE``."""
    parser = make_parser("polyvore", __doc__, "1", "the unpacked folder polyvore_outfits")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="which splits (%(default)s)")
    parser.add_argument("--no-images", action="store_true", help="titles only")

    def convert_options(options: argparse.Namespace, progress: ProgressBar) -> Account:
        return convert(
            options.sources[0], options.catalogue, progress, variant=options.variant, images=not options.no_images
        )

    return run(parser, arguments, convert_options)


if __name__ == "__main__":
    sys.exit(main())
