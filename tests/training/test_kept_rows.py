"""Features kept row by row: nothing is computed twice, and every row is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

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


def test_keys_tell_size_and_content_apart() -> None:
    """Titles are cut to their tokens: a longer one that begins alike is another."""
    one, longer, other = np.array([1, 2]), np.array([1, 2, 0]), np.array([2, 1])
    assert len(set(keys_of([one, longer, other, one]).tolist())) == 3
