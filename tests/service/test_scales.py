"""Answers of models whose scores are no weighted sum: explanations, and diversity, whatever the scores' scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mufin.inputs import FloatArray
from mufin.predictor import ProductBag, Ranking, Shortlist
from tests.service.memory_model import MemoryModel, shop
from tests.service.serving import running


class OtherScale(MemoryModel):
    """As a learned combination: the same order, other numbers."""

    def fuse(self, bag: ProductBag, shortlist: Shortlist, classifier: FloatArray, k: int) -> Ranking:
        """Thirty-two times as far apart, to the bit."""
        found = super().fuse(bag, shortlist, classifier, k)
        return replace(found, scores=(32 * found.scores).astype(np.float32))


BODY = {"product": {"title": "red running shoes"}, "k": 6}


@pytest.mark.parametrize("diversity", [0.5, 0.7, 0.8])
async def test_diversity_means_the_same_on_any_scale(diversity: float) -> None:
    """And has an effect; what a request excludes changes nothing of that."""
    found = []
    for model in (MemoryModel(shop()), OtherScale(shop(), score_unit=32.0)):
        async with running(model) as (client, _):
            plain = (await client.post("/recommend", json=BODY)).json()
            answer = (await client.post("/recommend", json={**BODY, "diversity": diversity})).json()
            found.append([own["id"] for own in answer["results"]])
            others = [own["id"] for own in plain["results"] if own["id"] not in found[-1]]
            without = await client.post("/recommend", json={**BODY, "diversity": diversity, "exclude": others})
            assert [own["id"] for own in without.json()["results"]] == found[-1]
            assert found[-1] != [own["id"] for own in plain["results"]]
    assert found[0] == found[1]


async def test_parts_of_a_score_are_given_where_they_add_up_to_it() -> None:
    """null rather than numbers that explain nothing."""
    for model, adds_up in ((MemoryModel(shop()), True), (OtherScale(shop()), False)):
        async with running(model) as (client, _):
            answer = (await client.post("/recommend", json={**BODY, "explain": True})).json()
            for own in answer["results"]:
                parts = own["explanation"]["classifier_part"], own["explanation"]["shortlist_part"]
                if adds_up:
                    assert sum(parts) == pytest.approx(own["score"], abs=1e-6)
                else:
                    assert parts == (None, None)
