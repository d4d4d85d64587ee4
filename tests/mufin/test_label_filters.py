"""Filters and exclusions against a plain reading of docs/bundle.md's semantics."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mufin.errors import InputError
from mufin.label_filters import (
    LONGEST_VALUE_CHARACTERS,
    Exclusions,
    FilterIndex,
    extend_filters,
    write_excluded,
    write_filters,
)

scalars = st.one_of(st.sampled_from(["a", "b", "Ä"]), st.integers(-3, 3), st.sampled_from([0.5, 2.0]), st.booleans())
metadata = st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(scalars, st.lists(scalars, max_size=3)))


def equal(own: Any, wanted: Any) -> bool:
    """JSON equality: 2 and 2.0 alike, 1 and true apart."""
    return bool(own == wanted) and isinstance(own, bool) == isinstance(wanted, bool)


def plainly(fields: dict[str, Any], key: str, wanted: Any) -> bool:
    """One label, one key, in the words of docs/bundle.md."""
    values = fields.get(key, [])
    values = values if isinstance(values, list) else [values]
    if isinstance(wanted, dict):
        low, high = wanted.get("gte", -np.inf), wanted.get("lte", np.inf)
        return any(not isinstance(v, (bool, str)) and low <= v <= high for v in values)
    return any(equal(v, w) for v in values for w in (wanted if isinstance(wanted, list) else [wanted]))


@settings(max_examples=60)
@given(
    labels=st.lists(metadata, min_size=1, max_size=8),
    wanted=st.one_of(scalars, st.lists(scalars, max_size=3), st.just({"gte": 0}), st.just({"gte": -1, "lte": 2.0})),
)
def test_filters_mean_what_serving_says(tmp_path_factory: pytest.TempPathFactory, labels: Any, wanted: Any) -> None:
    """AND over keys, OR over values, any element of a list, ranges over numbers only."""
    path = tmp_path_factory.mktemp("filters") / "filters.npz"
    write_filters(path, labels)
    index = FilterIndex(path)
    filters: dict[str, Any] = {key: wanted for key in ("x", "y") if key in index.keys}
    expected = [all(plainly(fields, key, wanted) for key in filters) for fields in labels]
    assert index.allowed_by(filters).tolist() == expected


def test_an_unknown_key_is_an_error_not_an_empty_answer(tmp_path: Path) -> None:
    """The known keys are named."""
    write_filters(tmp_path / "f.npz", [{"category": "shoe"}])
    with pytest.raises(InputError, match=r"'categorie' is in no label's metadata; there are: category"):
        FilterIndex(tmp_path / "f.npz").allowed_by({"categorie": "shoe"})


@pytest.mark.parametrize("wanted", [{}, {"gt": 1}, {"gte": "1"}, {"lte": True}])
def test_a_range_that_is_none_is_an_error(tmp_path: Path, wanted: Any) -> None:
    """Only numbers under gte and lte."""
    write_filters(tmp_path / "f.npz", [{"price": 5}])
    with pytest.raises(InputError, match="gte, lte or both"):
        FilterIndex(tmp_path / "f.npz").allowed_by({"price": wanted})


def test_prose_is_not_indexed(tmp_path: Path) -> None:
    """A description is no category; a key that holds nothing else cannot be filtered by."""
    write_filters(tmp_path / "f.npz", [{"text": "x" * (LONGEST_VALUE_CHARACTERS + 1), "kind": "a", "deep": {"b": 1}}])
    assert FilterIndex(tmp_path / "f.npz").keys == ("kind",)


def test_exclusions_are_found_by_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ascending labels for a known product, none for others, also when every hash collides."""
    pairs = {"p1": np.array([7, 2]), "p2": np.zeros(0, np.int64), "ü": np.array([3])}
    for collide in (False, True):
        if collide:
            monkeypatch.setattr("mufin.label_filters.hash_id", lambda identifier: 7)
        write_excluded(tmp_path / f"e{collide}.npz", pairs)
        excluded = Exclusions(tmp_path / f"e{collide}.npz")
        assert [excluded.of(p).tolist() for p in ("p1", "p2", "ü", "p9")] == [[2, 7], [], [3], []]
        assert excluded.labels.max() == 7


@settings(max_examples=60)
@given(labels=st.lists(metadata, max_size=8), cut=st.integers(0, 8))
def test_labels_added_later_are_indexed_as_if_they_had_been_there(labels: list[dict[str, Any]], cut: int) -> None:
    """Byte for byte, whichever keys and values either side lacks."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_filters(folder / "first.npz", labels[:cut])
        write_filters(folder / "whole.npz", labels)
        extend_filters(folder / "first.npz", folder / "grown.npz", labels[cut:])
        assert (folder / "grown.npz").read_bytes() == (folder / "whole.npz").read_bytes()
        assert sorted(path.name for path in folder.iterdir()) == ["first.npz", "grown.npz", "whole.npz"]
