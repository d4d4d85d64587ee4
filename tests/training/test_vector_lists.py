"""Lists of near vectors: every vector stands in one, and a query finds its neighbours in few."""

from __future__ import annotations

import numpy as np
import pytest

from mufin.candidate_arithmetic import arithmetic
from mufin.compilation import KERNELS, Kernel
from mufin.inputs import FloatArray
from mufin.scoring import l2_normalise
from mufin.training.vector_lists import RECALL, fit_lists
from mufin.vector_rows import VectorRows


def families(count: int, seed: int = 0) -> FloatArray:
    """(count, 16) vectors around one centre in twenty."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, 16))
    return l2_normalise(
        (centres[random.integers(0, 20, count)] + 0.4 * random.normal(size=(count, 16))).astype(np.float32)
    )


@pytest.fixture(scope="module", params=KERNELS)
def vectors(request: pytest.FixtureRequest) -> VectorRows:
    """3,000 of them, compared by either kernel."""
    kernel: Kernel = request.param
    return VectorRows.of(families(3200)[:3000], kernel)


def test_every_vector_stands_in_one_list(vectors: VectorRows) -> None:
    """In that of its nearest centre, ascending."""
    lists = fit_lists(vectors, 10, seed=1)
    np.testing.assert_array_equal(np.sort(lists.rows), np.arange(3000))
    assert lists.first[0] == 0 and lists.first[-1] == 3000 and (np.diff(lists.first) >= 0).all()
    cosines = vectors.wide @ lists.centres.wide.T
    for number in range(len(lists.centres)):
        own = lists.rows[lists.first[number] : lists.first[number + 1]]
        assert (np.diff(own) > 0).all()
        np.testing.assert_allclose(cosines[own, number], cosines[own].max(axis=1), atol=1e-5)


def test_a_query_finds_its_neighbours_in_few_lists(vectors: VectorRows) -> None:
    """Of vectors of the same families that no list has seen; some tenth of all is looked at, not all."""
    lists = fit_lists(vectors, 10, seed=1)
    found, looked_at = [], []
    for query in families(3200)[3000:]:
        near = lists.near(query, arithmetic(vectors.kernel))
        nearest = np.argsort(-(vectors.wide @ query), kind="stable")[:10]
        found.append(np.isin(nearest, near).mean())
        looked_at.append(len(near) / 3000)
        assert len(np.unique(near)) == len(near)
    assert np.mean(found) > RECALL - 0.05
    assert np.mean(looked_at) < 0.25


def test_a_seed_gives_the_same_lists(vectors: VectorRows) -> None:
    """And another one others."""
    first, again, other = (fit_lists(vectors, 10, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.probes == again.probes
    assert not np.array_equal(first.rows, other.rows)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_vectors_and_empty_ones_have_lists_too(count: int) -> None:
    """A vector of length 0, of a product without a title, lies in some list."""
    values = families(count)
    values[0] = 0
    lists = fit_lists(VectorRows.of(values), 10, seed=1)
    np.testing.assert_array_equal(np.sort(lists.rows), np.arange(count))
    assert len(lists.near(values[-1], arithmetic("numba"))) >= 1
