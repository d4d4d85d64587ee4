"""Which products share a fold."""

from __future__ import annotations

import numpy as np

from mufin.training.folds import fold_numbers


def test_doubles_without_a_title_share_a_fold() -> None:
    """They are known by their images; titles by what ensure_validation takes for equal; ASCII titles stay where they were."""
    titles = ["Stra\u00dfe", "STRASSE", *[""] * 40]
    images = [("a.png",), ("b.png",), *((f"{i % 10}.png", "back.png") for i in range(40))]
    numbers = fold_numbers(titles, 4, 1, images)
    assert numbers[0] == numbers[1]
    for i in range(10):
        assert len({int(number) for number in numbers[2 + i :: 10]}) == 1
    assert len(set(numbers[2:].tolist())) > 1
    plain = [f"Thing {i % 7}" for i in range(30)]
    np.testing.assert_array_equal(fold_numbers(plain, 4, 1), fold_numbers(plain, 4, 1, [("a.png",)] * 30))
    assert fold_numbers(plain[:7], 4, 1).tolist() == [1, 2, 0, 2, 1, 0, 3]
