"""Features kept row by row: nothing is computed twice, and every row is its own."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mufin.training.disk import locked
from mufin.training.kept_rows import kept_rows, keys_of

NAME = "squares"


class Squares:
    """Computes (n, 2) rows of numbers, and remembers of which."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.computed = folder, list[int]()

    def __call__(self, numbers: list[int], name: str = NAME) -> npt.NDArray[np.float32]:
        values = np.asarray(numbers)

        def compute(rows: npt.NDArray[np.int64], to: Path) -> None:
            self.computed += values[rows].tolist()
            with to.open("wb") as file:
                np.save(file, np.stack([values[rows], values[rows] ** 2], axis=1).astype(np.float32))

        found = kept_rows(self.folder, name, keys_of(values[:, None]), compute)
        return found.as_array(self.folder / "copy.npy")


def expected(numbers: list[int]) -> list[list[float]]:
    """What ``Squares`` says of them."""
    return [[float(number), float(number**2)] for number in numbers]


def squares_missing(rows: npt.NDArray[np.int64], to: Path) -> None:
    """For rows that are all there."""
    raise AssertionError(f"{len(rows)} rows were computed before")


@pytest.fixture
def squares(tmp_path: Path) -> Squares:
    """In an empty folder."""
    return Squares(tmp_path)


def test_a_part_is_read_off_the_whole(squares: Squares) -> None:
    """In the part's own order."""
    assert squares([3, 1, 4, 5]).tolist() == expected([3, 1, 4, 5])
    assert squares([5, 3]).tolist() == expected([5, 3])
    assert squares.computed == [3, 1, 4, 5]


def test_only_what_is_new_is_computed(squares: Squares) -> None:
    """And what comes twice once; both files are read after that."""
    squares([3, 1])
    assert squares([1, 7, 7, 3, 9]).tolist() == expected([1, 7, 7, 3, 9])
    assert squares.computed == [3, 1, 7, 9]
    assert squares([9, 1]).tolist() == expected([9, 1]) and squares.computed == [3, 1, 7, 9]


def test_the_whole_is_not_copied(squares: Squares) -> None:
    """It is the file's own memory map."""
    squares([3, 1])
    found: Any = squares([3, 1])
    assert Path(found.filename).name.startswith(NAME) and not (squares.folder / "copy.npy").exists()


def test_another_name_shares_nothing(squares: Squares) -> None:
    """One name stands for one encoder."""
    squares([3])
    squares([3], name="cubes")
    assert squares.computed == [3, 3]


def test_rows_without_keys_are_computed_again(squares: Squares) -> None:
    """A process was killed between the two files."""
    squares([3, 1])
    (keys,) = squares.folder.glob("*.keys.npy")
    keys.unlink()
    assert squares([3, 1]).tolist() == expected([3, 1]) and squares.computed == [3, 1, 3, 1]


def test_a_copy_is_never_in_memory_whole(squares: Squares) -> None:
    """It goes from one memory map to another in blocks."""
    numbers = list(range(60_000))
    squares(numbers)
    keys = keys_of(np.asarray(numbers[::-1])[:, None])
    tracemalloc.start()
    try:
        found = kept_rows(squares.folder, NAME, keys, squares_missing)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        copy = found.as_array(squares.folder / "copy.npy")
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(copy, np.asarray(expected(numbers[::-1]), np.float32))
    assert peak < 60_000 * 8 + 4_096 * 8 * 4, "one index of 8 bytes a row, and blocks"


def test_who_comes_second_waits(tmp_path: Path) -> None:
    """For the lock of the folder, and gets it when the first is done."""
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_keys_tell_size_and_content_apart() -> None:
    """Titles are cut to their tokens: a longer one that begins alike is another."""
    one, longer, other = np.array([1, 2]), np.array([1, 2, 0]), np.array([2, 1])
    assert len(set(keys_of([one, longer, other, one]).tolist())) == 3
