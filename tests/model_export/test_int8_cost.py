"""The measuring itself: a sample that is a split's, company that is found out, figures that are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_export.int8_cost import Ranked, cosine_summary, cost_of, find_company, validation_sample
from mufin.catalogue import forbidden_pairs, read_catalogue
from mufin.inputs import FloatArray, Int64Array, TitleTokenizer
from mufin.metrics import score_rows
from mufin.relevance import Relevance
from mufin.training.checkpoint import load_run


def test_a_sample_is_spread_over_the_split_and_knows_what_is_right(products_run: Path, tmp_path: Path) -> None:
    """First and last product are in it; forbidden pairs are not relevant; no more products than asked for."""
    run, catalogue = load_run(products_run), read_catalogue(products_run.parent / "shop")
    tokenizer = TitleTokenizer(run.tokenizer_json, run.input_spec.max_title_tokens)

    def nothing(step: str, done: int, total: int) -> None:
        """No progress."""

    own = catalogue.splits["valid"]
    whole = validation_sample(catalogue, "valid", run.input_spec, tokenizer, tmp_path / "all", nothing)
    few = validation_sample(catalogue, "valid", run.input_spec, tokenizer, tmp_path / "few", nothing, most=3)
    assert (len(whole.arrays), len(few.arrays)) == (len(own.products), 3)
    titles = tokenizer.encode([catalogue.products[own.products[row]].title for row in (0, -1)])
    ends = few.tokens(np.array([0, 2]))
    length = ends.ids.shape[1]
    np.testing.assert_array_equal(ends.ids, titles.ids[:, :length])
    np.testing.assert_array_equal(ends.mask, titles.mask[:, :length])
    forbidden = forbidden_pairs(catalogue)
    for place, product in enumerate(own.products):
        assert set(whole.forbidden.row(place)) == set(forbidden.row(int(product)))
        wanted = set(own.relevance.row(place)) - set(forbidden.row(int(product)))
        assert set(whole.relevance.row(place)) == wanted


def test_the_item_that_disturbs_others_is_found() -> None:
    """One of 200 items turns the vectors of whatever shares its batch; alone, and with others, nothing moves."""

    def run(rows: Int64Array, disturber: int = 120) -> FloatArray:
        vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (len(rows), 1))
        if len(rows) > 1 and disturber in rows:
            vectors[rows != disturber] = [0.6, 0.8]
        return vectors

    probed = np.arange(0, 200, 1)
    company = find_company(run, probed)
    assert company.least == pytest.approx(0.6)
    assert set(company.cosines) >= {"batch of 8", "batch of 8 with the worst companion"}
    calm = find_company(lambda rows: run(rows, disturber=-1), probed)
    assert calm.least == pytest.approx(1.0)
    assert find_company(run, probed[:0]).least == 1.0


def test_cost_is_what_fp32_has_more() -> None:
    """Two of four products right instead of three: 25 points of P@1."""
    relevance = Relevance.from_pairs(np.arange(4), np.arange(4), 4, 6)
    right, wrong = np.arange(4)[:, None], np.full((4, 1), 5)
    vectors = np.eye(4, 3, dtype=np.float32) + 0.5
    fp32 = Ranked(score_rows(np.where(np.arange(4)[:, None] < 3, right, wrong), relevance), vectors)
    int8 = Ranked(score_rows(np.where(np.arange(4)[:, None] < 2, right, wrong), relevance), 2 * vectors)
    cost = cost_of(int8, fp32)
    assert cost["figures"]["P@1"] == 0.5
    assert cost["points_lost"]["P@1"] == pytest.approx(25.0)
    low, high = cost["points_lost_P@1_interval"]
    assert low == 0.0 <= 25.0 < high <= 100.0
    assert cost["embedding_cosine"]["least"] == pytest.approx(1.0)
    assert cosine_summary(vectors[:0], vectors[:0]) == {}
