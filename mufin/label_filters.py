"""Which labels may be recommended: filters.npz over their metadata, excluded.npz by product.

Know neither scores nor the manifest. Filter semantics (docs/bundle.md, Filtering): AND over keys, OR over values, a
list-valued field matches any element, numbers take {"gte", "lte"}.
"""

from __future__ import annotations

import json
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mufin.errors import InputError
from mufin.inputs import BoolArray, Int64Array
from mufin.label_files import hash_id

FILTERS_FILE = "filters.npz"
EXCLUDED_FILE = "excluded.npz"

LONGEST_VALUE_CHARACTERS = 256
"""Longer strings are prose, not categories, and are not indexed."""

_RANGE_KEYS = frozenset({"gte", "lte"})
# The earliest date a zip archive can hold: files of equal content are equal bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An .npz without times, in the given order; ``np.load(allow_pickle=False)`` reads it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(name + ".npy", date_time=_ZIP_DATE)
            with archive.open(member, "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, np.asarray(array, order="C"), allow_pickle=False)


def pack_json(values: Any) -> npt.NDArray[np.uint8]:
    """Plain values as an array of UTF-8 bytes, for an .npz."""
    return np.frombuffer(json.dumps(values, ensure_ascii=False, sort_keys=True).encode("utf-8"), dtype=np.uint8)


def unpack_json(array: npt.NDArray[np.uint8]) -> Any:
    """The inverse of ``pack_json``."""
    return json.loads(array.tobytes())


def _spell(value: Any) -> str | None:
    """One spelling per filterable value, 50 and 50.0 alike, 1 and true apart; None for what is not indexed."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return json.dumps(int(value) if float(value).is_integer() else value)
    if isinstance(value, str) and len(value) <= LONGEST_VALUE_CHARACTERS:
        return json.dumps(value, ensure_ascii=False)
    return None


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_filters(path: Path, metadata: Iterable[Mapping[str, Any]]) -> None:
    """Index the metadata of labels 0, 1, 2, ... by key and value."""
    postings: dict[str, dict[str, array[int]]] = {}
    numbers: dict[str, tuple[array[float], array[int]]] = {}
    count = 0
    for label, fields in enumerate(metadata):
        count += 1
        for key, value in fields.items():
            for element in _elements(value):
                if (spelt := _spell(element)) is None:
                    continue
                own = postings.setdefault(key, {}).setdefault(spelt, array("q"))
                if not own or own[-1] != label:
                    own.append(label)
                if _is_number(element):
                    values, owners = numbers.setdefault(key, (array("d"), array("q")))
                    values.append(float(element))
                    owners.append(label)
    keys = sorted(postings)
    arrays: dict[str, npt.NDArray[Any]] = {"count": np.asarray(count, dtype=np.int64), "keys": pack_json(keys)}
    for number, key in enumerate(keys):
        ordered = {value: np.asarray(postings[key][value]) for value in sorted(postings[key])}
        ranged, ranged_labels = (np.asarray(own) for own in numbers.get(key, (array("d"), array("q"))))
        arrays |= _key_arrays(number, ordered, ranged, ranged_labels)
    write_arrays(path, arrays)


def _key_arrays(
    number: int, postings: Mapping[str, npt.NDArray[Any]], ranged: npt.NDArray[Any], ranged_labels: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of key ``number``: labels by value, values in order; numbers rising, and whose they are."""
    order = np.lexsort((ranged_labels, ranged))
    return {
        f"{number}.values": pack_json(list(postings)),
        f"{number}.offsets": np.concatenate([[0], np.cumsum([len(own) for own in postings.values()])]).astype(np.int64),
        f"{number}.labels": np.concatenate(list(postings.values())).astype(np.int64),
        f"{number}.numbers": ranged[order].astype(np.float64),
        f"{number}.number_labels": ranged_labels[order].astype(np.int64),
    }


def extend_filters(source: Path, target: Path, metadata: Iterable[Mapping[str, Any]]) -> None:
    """``source`` with further labels behind its own; equal to ``write_filters`` over all of them, to the byte.

    Works on the arrays, so that the metadata of the labels that are there already need not be read again.
    """
    added = target.with_name(target.name + ".added")
    write_filters(added, metadata)
    try:
        with np.load(source, allow_pickle=False) as old, np.load(added, allow_pickle=False) as new:
            write_arrays(target, _joined(old, new))
    finally:
        added.unlink()


def _joined(old: Mapping[str, npt.NDArray[Any]], new: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    first = int(old["count"])
    sides = (old, 0), (new, first)
    names = [unpack_json(side["keys"]) for side, _ in sides]
    keys = sorted({*names[0], *names[1]})
    arrays: dict[str, npt.NDArray[Any]] = {
        "count": np.asarray(first + int(new["count"]), dtype=np.int64),
        "keys": pack_json(keys),
    }
    for number, key in enumerate(keys):
        postings: dict[str, list[Int64Array]] = {}
        numbers, owners = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for (side, shift), own in zip(sides, names, strict=True):
            if key not in own:
                continue
            place = own.index(key)
            offsets, labels = side[f"{place}.offsets"], side[f"{place}.labels"] + shift
            for row, value in enumerate(unpack_json(side[f"{place}.values"])):
                postings.setdefault(value, []).append(labels[offsets[row] : offsets[row + 1]])
            numbers.append(side[f"{place}.numbers"])
            owners.append(side[f"{place}.number_labels"] + shift)
        ordered = {value: np.concatenate(postings[value]) for value in sorted(postings)}
        ranged, ranged_labels = np.concatenate(numbers), np.concatenate(owners)
        arrays |= _key_arrays(number, ordered, ranged, ranged_labels)
    return arrays


class FilterIndex:
    """filters.npz in memory. Thread-safe: nothing is written."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.count = int(arrays["count"])
            self._keys: dict[str, tuple[dict[str, Int64Array], npt.NDArray[np.float64], Int64Array]] = {}
            for number, key in enumerate(unpack_json(arrays["keys"])):
                values = unpack_json(arrays[f"{number}.values"])
                offsets, labels = arrays[f"{number}.offsets"], arrays[f"{number}.labels"]
                rows = {value: labels[offsets[i] : offsets[i + 1]] for i, value in enumerate(values)}
                self._keys[key] = (rows, arrays[f"{number}.numbers"], arrays[f"{number}.number_labels"])

    @property
    def keys(self) -> tuple[str, ...]:
        """Metadata keys that can be filtered by."""
        return tuple(self._keys)

    def allowed_by(self, filters: Mapping[str, Any]) -> BoolArray:
        """(L,) bool: which labels a filter lets through.

        Raises InputError for a key no label has, and for a range that is none: a typo must not answer nothing.
        """
        allowed = np.ones(self.count, dtype=np.bool_)
        for key, wanted in filters.items():
            if key not in self._keys:
                known = ", ".join(self.keys[:20]) or "none"
                raise InputError(f"filter key {key!r} is in no label's metadata; there are: {known}")
            matching = np.zeros(self.count, dtype=np.bool_)
            matching[self._matching(key, wanted)] = True
            allowed &= matching
        return allowed

    def _matching(self, key: str, wanted: Any) -> Int64Array:
        rows, numbers, labels = self._keys[key]
        if isinstance(wanted, Mapping):
            if not wanted or not set(wanted) <= _RANGE_KEYS or not all(_is_number(v) for v in wanted.values()):
                raise InputError(f"filter {key!r} is {wanted!r}; a range holds numbers under gte, lte or both")
            start = np.searchsorted(numbers, wanted.get("gte", -np.inf), side="left")
            end = np.searchsorted(numbers, wanted.get("lte", np.inf), side="right")
            return labels[start:end]
        spelt = [_spell(value) for value in _elements(wanted)]
        found = [rows[value] for value in spelt if value is not None and value in rows]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def write_excluded(path: Path, excluded: Mapping[str, Int64Array]) -> None:
    """Label indices never recommended to a product, by product id; order of the mapping does not matter."""
    ids = sorted((i for i in excluded if len(excluded[i])), key=lambda i: (hash_id(i), i))
    spelt = [i.encode("utf-8") for i in ids]
    arrays: dict[str, npt.NDArray[Any]] = {
        "hashes": np.asarray([hash_id(i) for i in ids], dtype=np.uint64),
        "id_offsets": np.concatenate([[0], np.cumsum([len(s) for s in spelt])]).astype(np.int64),
        "ids": np.frombuffer(b"".join(spelt), dtype=np.uint8),
        "offsets": np.concatenate([[0], np.cumsum([len(excluded[i]) for i in ids])]).astype(np.int64),
        "labels": np.concatenate([np.zeros(0, np.int64), *(np.sort(excluded[i]) for i in ids)]).astype(np.int64),
    }
    write_arrays(path, arrays)


class Exclusions:
    """excluded.npz in memory. Thread-safe: nothing is written."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._hashes: npt.NDArray[np.uint64] = arrays["hashes"]
            self._id_offsets: Int64Array = arrays["id_offsets"]
            self._ids: npt.NDArray[np.uint8] = arrays["ids"]
            self._offsets: Int64Array = arrays["offsets"]
            self._labels: Int64Array = arrays["labels"]

    @property
    def labels(self) -> Int64Array:
        """(nnz,) label indices of all pairs, product after product."""
        return self._labels

    def items(self) -> Iterator[tuple[str, Int64Array]]:
        """Every product id with its labels."""
        for position in range(len(self._hashes)):
            spelt = self._ids[self._id_offsets[position] : self._id_offsets[position + 1]]
            yield spelt.tobytes().decode("utf-8"), self._labels[self._offsets[position] : self._offsets[position + 1]]

    def of(self, product_id: str) -> Int64Array:
        """Label indices of a product's exclude pairs, ascending; empty for an unknown product."""
        wanted, spelt = hash_id(product_id), product_id.encode("utf-8")
        position = int(np.searchsorted(self._hashes, np.uint64(wanted)))
        while position < len(self._hashes) and int(self._hashes[position]) == wanted:
            start, end = self._id_offsets[position], self._id_offsets[position + 1]
            if self._ids[start:end].tobytes() == spelt:
                return self._labels[self._offsets[position] : self._offsets[position + 1]]
            position += 1
        return np.zeros(0, dtype=np.int64)
