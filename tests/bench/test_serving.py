"""The serving bench's own arithmetic: what counts as answered, how rounds meet, which goals are reached."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from bench.int8 import SMOKE
from bench.open_loop import Reply
from bench.serving import LOADS, Load, mean, milliseconds, queueing_spread
from bench.serving_bundle import TITLE_TOKENS, make_serving_bundle, title
from bench.serving_labels import label_times
from bench.serving_report import goals
from mufin.predictor import open_predictor


def replies(seconds: list[float], status: int = 200, degraded: str = "") -> list[Reply]:
    """Answers that took so long."""
    return [Reply(0.0, own, status, None, degraded) for own in seconds]


def test_percentiles_are_of_whole_answers_only() -> None:
    """One in a hundred may fail; more make the figures worthless."""
    good = replies([0.001 * number for number in range(1, 201)])
    assert milliseconds(good)["p50"] == pytest.approx(100.5)
    assert milliseconds(good)["left_out"] == 0
    some = milliseconds([*good, *replies([9.0], status=429)])
    assert some["p99"] < 200 and some["left_out"] == 1
    assert milliseconds([*good, *replies([9.0], degraded="shortlist")]) == some
    with pytest.raises(RuntimeError, match="10 of 210"):
        milliseconds([*good, *replies([0.001] * 10, degraded="shortlist")])
    with pytest.raises(RuntimeError, match="0 of 0"):
        milliseconds([])


def test_loads_are_new_or_asked_again() -> None:
    """New titles and pictures never repeat; the cached load goes round."""
    fresh = list(itertools.islice(Load("x", 2, 1).bodies("http://pictures", 7), 50))
    assert len({body["product"]["title"] for body in fresh}) == 50
    assert len({url for body in fresh for url in body["product"]["images"]}) == 100
    again = list(itertools.islice(Load("x", 1, 1, again=True).bodies("http://pictures", 7), 50))
    assert len({body["product"]["title"] for body in again}) == 20


def figures(lone: float, rate: float) -> dict[str, Any]:
    """Of one load in one round."""
    return {
        "lone": {"p50": lone}, "lone_stages": {}, "per_second": rate, "cpu_ms": 2.0, "at_70_percent": {},
        "p99_over_p50": lone,
    }  # fmt: skip


def test_rounds_are_averaged_key_by_key() -> None:
    """A stage that one round did not see is averaged over those that did."""
    rounds = [{"lone": {"p50": 5.0}, "stages": {"cache": 1.0}}, {"lone": {"p50": 6.0}, "stages": {}}]
    assert mean(rounds) == {"lone": {"p50": 5.5}, "stages": {"cache": 1.0}}


def test_goals_say_what_is_missed() -> None:
    """Limits from above and from below."""
    names = [load.name for load in LOADS]
    batches: dict[str, Any] = {
        "per_second": {"1": 150.0, "8": 200.0},
        "cpu_ms": {"1": 2.5, "8": 1.8},
        "best_batch": "8",
    }
    floor = {name: {"lone_ms": 5.0, **batches} for name in names}
    found = {
        "floor": floor, "service": {name: figures(5.4, 190.0) for name in names},
        "reference": {name: {"per_second": 30.0} for name in names},
        "labels": {"large": {"labels": 300_000, "ms": 1.0}, "small": {"ms": 0.4}},
    }  # fmt: skip
    rows = {row[0]: row[3] for row in goals(found)}
    assert rows["lone p50 ÷ floor, title"] and rows["saturated ÷ floor's best, title"]
    assert rows["CPU added, ms a request, title"]
    assert not rows["p99 ÷ p50 at 70 % load, title"]
    assert rows["throughput ÷ plain reference, title"]
    assert not rows["throughput ÷ plain reference, 5 images, cached"]
    assert not rows["the same ÷ that of 10,000 labels"]


def test_the_bundle_is_one_that_the_service_opens(tmp_path: Path) -> None:
    """Verified in full, golden items replayed, titles of as many tokens as the floor's."""
    bundle = make_serving_bundle(tmp_path / "bundle", 400, SMOKE)
    predictor = open_predictor(bundle)
    assert predictor.replay_golden().passed
    tokens = predictor.tokenizer.encode([title(number) for number in range(5)])
    assert tokens.mask.sum(axis=1).tolist() == [TITLE_TOKENS] * 5
    assert predictor.tokenizer.encode_counted([title(3)])[1] == [(TITLE_TOKENS - 2, 0)]
    assert label_times(bundle)["recall"] == 1.0


def test_queueing_alone_spreads_as_theory_says() -> None:
    """M/D/1 at .7: a median of 1.73 services and a 99th percentile of 7.5; unit and batches that save nothing change nothing
    but company's end; those that save much come below."""
    alone = queueing_spread(arrivals=100_000)
    assert 4.0 < alone < 4.6
    assert queueing_spread(20.0, 20.0, arrivals=100_000) == pytest.approx(alone, abs=0.02)
    assert queueing_spread(4.0, 1.0, 32, arrivals=100_000) < queueing_spread(2.0, 1.0, 32, arrivals=100_000) < alone
