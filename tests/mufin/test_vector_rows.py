"""Vectors kept as float16: what numpy makes of them, by either kernel, on every CPU level and in any company."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mufin.compilation import CPU_LEVELS, KERNELS, Kernel, cpu_level
from mufin.errors import InputError
from mufin.vector_rows import VectorRows

_COMPARE = """
import numpy as np
from mufin.vector_rows import VectorRows
random = np.random.default_rng(0)
rows, queries = random.normal(size=(50, 37)), random.normal(size=(3, 37)).astype(np.float32)
stored = VectorRows.of(rows)
stored.values[0, :4] = np.array([6e-8, -6e-8, 65504, -0.0], np.float16)  # subnormal, largest, signed zero
expected = queries.astype(np.float64) @ stored.values.astype(np.float64).T
np.testing.assert_allclose(stored.products(queries), expected, rtol=1e-5, atol=1e-4)
print("compared")
"""


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each in turn."""
    found: Kernel = request.param
    return found


@pytest.mark.parametrize("dimension", [1, 8, 192, 385])
def test_products_are_those_of_the_rounded_vectors(kernel: Kernel, dimension: int) -> None:
    """In double precision, from what was kept; lengths that no vector register divides, too."""
    random = np.random.default_rng(dimension)
    values, queries = random.normal(size=(70, dimension)), random.normal(size=(4, dimension)).astype(np.float32)
    rows = VectorRows.of(values, kernel)
    kept = values.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(rows.products(queries), queries.astype(np.float64) @ kept.T, rtol=1e-4, atol=1e-4)
    assert (len(rows), rows.dimension) == (70, dimension)


def test_no_company_changes_a_product(kernel: Kernel) -> None:
    """Nine queries together and one by one: equal to the bit. None at all: nothing."""
    random = np.random.default_rng(3)
    rows = VectorRows.of(random.normal(size=(333, 96)), kernel)
    queries = random.normal(size=(9, 96)).astype(np.float32)
    together = rows.products(queries)
    for query, found in zip(queries, together, strict=True):
        np.testing.assert_array_equal(rows.products(query[None])[0], found)
    assert rows.products(queries[:0]).shape == (0, 333)


def test_chosen_rows_have_the_products_they_have_among_all(kernel: Kernel) -> None:
    """In their order, repeats allowed; a row that there is not and another dimension are refused."""
    random = np.random.default_rng(6)
    rows, query = VectorRows.of(random.normal(size=(40, 24)), kernel), random.normal(size=24).astype(np.float32)
    chosen = np.array([39, 0, 7, 7])
    every = rows.products(query[None])[0]
    np.testing.assert_allclose(rows.products_of(chosen, query), every[chosen], rtol=1e-5, atol=1e-6)
    assert rows.products_of(chosen[:0], query).shape == (0,)
    for places, own in ((np.array([40]), query), (np.array([-1]), query), (chosen, query[:5])):
        with pytest.raises(InputError, match=r"there are 40 vectors of dimension 24"):
            rows.products_of(places, own)


def test_queries_may_lie_anyhow_in_memory(kernel: Kernel) -> None:
    """Every other column of a wider array, and float64."""
    wide = np.random.default_rng(4).normal(size=(2, 32))
    rows = VectorRows.of(np.random.default_rng(5).normal(size=(6, 16)), kernel)
    narrow = np.ascontiguousarray(wide[:, ::2], dtype=np.float32)
    np.testing.assert_allclose(rows.products(wide[:, ::2].astype(np.float32)), rows.products(narrow), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7), (8,), (1, 2, 8)])
def test_queries_of_another_dimension_are_refused(kernel: Kernel, shape: tuple[int, ...]) -> None:
    """Compiled code would read beside the row."""
    rows = VectorRows.of(np.zeros((3, 8)), kernel)
    with pytest.raises(InputError, match=r"the vectors have dimension 8"):
        rows.products(np.zeros(shape, np.float32))


def test_no_vectors_have_no_products(kernel: Kernel) -> None:
    """N = 0."""
    assert VectorRows.of(np.zeros((0, 8)), kernel).products(np.zeros((2, 8), np.float32)).shape == (2, 0)


def test_what_is_kept_is_not_copied_where_it_is_float16_already() -> None:
    """A bundle's arrays are used as they were read, by whichever kernel."""
    values = np.zeros((4, 8), np.float16)
    rows = VectorRows.of(values)
    assert rows.values is values and replace(rows, kernel="numpy").values is values


@pytest.mark.parametrize("level", CPU_LEVELS)
def test_every_cpu_level_gives_the_same(level: str) -> None:
    """Code for the plain level has no instruction for float16."""
    own = cpu_level()
    if own is None or list(CPU_LEVELS).index(level) < list(CPU_LEVELS).index(own):
        pytest.skip(f"this CPU is {own}, code for {level} does not run on it")
    call = f"import os; os.environ.update(NUMBA_CPU_NAME={level!r}, NUMBA_CPU_FEATURES='')\n{_COMPARE}"
    found = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert found.stdout == "compared\n", found.stderr
