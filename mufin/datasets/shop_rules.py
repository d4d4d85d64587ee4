"""What the built-in shop's labels are relevant to, and how far an oracle gets that sees only a part.

Knows no files and no pictures. A label accepts some values of each of the six attributes; it is relevant to the
products that have an accepted value everywhere. One of the six is its hidden taste: drawn at random for each label,
to be read off neither its title nor its picture, only off its training pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mufin.datasets.shop_products import (
    BRAND,
    BRANDS,
    COLOUR,
    COLOURS,
    KIND,
    KINDS,
    KINDS_PER_ROOM,
    PATTERN,
    PATTERNS,
    PICTURE_ATTRIBUTES,
    ROOMS,
    SHAPE,
    SHAPES,
    SIZE,
    TITLE_ATTRIBUTES,
    VALUES,
    ShopProducts,
)
from mufin.inputs import BoolArray, Int64Array
from mufin.relevance import Relevance

NOISE_SHARE = 0.1
"""Training pairs whose label is replaced by a random one that is not relevant."""
CUTS = (1, 5)
COLOUR_FAMILIES = (("red", "orange", "yellow", "pink"), ("green", "blue", "purple", "black"))
"""Warm and cold colours: tastes of a companion's buyers."""
BRAND_FAMILIES = (
    ("Nordvik", "Casaluma", "Hartwell"),
    ("Kiyomi", "Oldbarn", "Fjella"),
    ("Nordvik", "Kiyomi", "Fjella"),
    ("Casaluma", "Hartwell", "Oldbarn"),
)
"""Dear, cheap, northern and other brands: tastes of the buyers behind a query that names no brand."""
ROOM_FAMILIES = (("kitchen", "bedroom"), ("garden", "office"), ("kitchen", "garden"), ("bedroom", "office"))
"""Rooms to live, to work, for guests and for oneself: tastes of the buyers behind a query that names a brand."""
SPELLINGS = 6
"""Queries of one meaning."""

_QUERY_ORDERS = (
    "{seen} {thing}", "{thing} {seen}", "{seen} {thing}s", "{thing}s {seen}",
    "buy {seen} {thing}", "{seen} {thing} shop", "cheap {seen} {thing}", "{seen} {thing} online",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """L labels: ``accepts[a]`` is (L, values of attribute a) bool."""

    accepts: tuple[BoolArray, ...]

    def match(self, attributes: Int64Array, columns: tuple[int, ...]) -> BoolArray:
        """(N, L): whether every one of ``columns`` of (N, 6) attributes is accepted."""
        matches = np.ones((len(attributes), len(self.accepts[0])), dtype=np.bool_)
        for column in columns:
            matches &= self.accepts[column][:, attributes[:, column]].T
        return matches


def companion_rules(products: ShopProducts, random: np.random.Generator) -> Rules:
    """Bought together: same room, same size, same pattern, and a colour to the taste of this listing's buyers."""
    own = products.attributes[products.is_label]
    accepts = [np.ones((len(own), values), dtype=np.bool_) for values in VALUES]
    accepts[KIND] = own[:, [KIND]] // KINDS_PER_ROOM == np.arange(len(KINDS)) // KINDS_PER_ROOM
    for column in (SIZE, PATTERN):
        accepts[column] = own[:, [column]] == np.arange(VALUES[column])
    accepts[COLOUR] = _tastes(len(own), COLOUR_FAMILIES, COLOURS, random)
    return Rules(tuple(accepts))


def query_rules(random: np.random.Generator) -> tuple[list[str], Rules]:
    """Bid queries: what the words say, and what this query's buyers have a taste for.

    Each meaning has six spellings, every one with its own buyers.
    """
    texts: list[str] = []
    rows: list[dict[int, BoolArray]] = []
    for thing, seen, readable in _query_meanings():
        for order in random.permutation(len(_QUERY_ORDERS))[:SPELLINGS]:
            text = _QUERY_ORDERS[order].format(seen=seen, thing=thing)
            texts.append(text.replace("accessorys", "accessories").replace("benchs", "benches"))
            if BRAND in readable:
                rooms = _tastes(1, ROOM_FAMILIES, ROOMS, random)[0]
                rows.append({**readable, KIND: np.repeat(rooms, KINDS_PER_ROOM)})
            else:
                rows.append({**readable, BRAND: _tastes(1, BRAND_FAMILIES, BRANDS, random)[0]})
    accepts = (
        np.stack([row.get(column, np.ones(values, dtype=np.bool_)) for row in rows])
        for column, values in enumerate(VALUES)
    )
    return texts, Rules(tuple(accepts))


def _query_meanings() -> list[tuple[str, str, dict[int, BoolArray]]]:
    """(word of the title, word of the picture, accepted values): room and colour, kind and pattern, brand and shape."""
    kinds = np.arange(len(KINDS))
    things: list[tuple[str, int, BoolArray, int, tuple[str, ...]]] = [
        *((f"{room} accessory", KIND, kinds // KINDS_PER_ROOM == n, COLOUR, COLOURS) for n, room in enumerate(ROOMS)),
        *((kind, KIND, kinds == n, PATTERN, PATTERNS) for n, kind in enumerate(KINDS)),
        *(
            (f"{name.lower()} piece", BRAND, np.arange(len(BRANDS)) == n, SHAPE, SHAPES)
            for n, name in enumerate(BRANDS)
        ),
    ]
    return [
        (thing, name, {said: accepted, shown: np.arange(len(names)) == value})
        for thing, said, accepted, shown, names in things
        for value, name in enumerate(names)
    ]


def _tastes(
    labels: int, families: Sequence[Sequence[str]], names: Sequence[str], random: np.random.Generator
) -> BoolArray:
    """(labels, names): each label's buyers like one family of names, drawn at random."""
    liked = np.array([[name in family for name in names] for family in families])
    return liked[random.integers(len(families), size=labels)]


def relevant_pairs(products: ShopProducts, rules: Rules) -> Relevance:
    """The truth, of all products: clean and complete."""
    matches = rules.match(products.attributes, TITLE_ATTRIBUTES + PICTURE_ATTRIBUTES)
    rows, labels = np.nonzero(matches)
    return Relevance.from_pairs(rows, labels, *matches.shape)


def add_noise(truth: Relevance, random: np.random.Generator) -> Relevance:
    """10 % of the pairs get another label, uniformly of those not relevant to the product; the true pair is lost."""
    rows, labels = truth.to_pairs()
    taken = {(int(r), int(label)) for r, label in zip(rows, labels, strict=True)}
    noisy = labels.copy()
    for place in np.flatnonzero(random.random(len(labels)) < NOISE_SHARE):
        row = int(rows[place])
        while (row, label := int(random.integers(truth.label_count))) in taken:
            pass
        taken.add((row, label))
        noisy[place] = label
    return Relevance.from_pairs(rows, noisy, truth.row_count, truth.label_count)


def ceilings(products: ShopProducts, rules: Rules) -> dict[str, dict[str, float]]:
    """P@1 and P@5 on the test split of oracles that know every rule and taste, but see only a part of the product.

    What they do not see they average over the training products: hidden picture attributes over those of the same
    kind, hidden title attributes over those of the same colour (kind and colour are the only dependent attributes).
    A product without a picture shows its title only, to the oracle of all attributes, too.
    """
    everything = TITLE_ATTRIBUTES + PICTURE_ATTRIBUTES
    test = products.attributes[products.split == 2]
    truth = rules.match(test, everything)
    judged = truth.any(axis=1)
    pictured = (products.picture_counts[products.split == 2] > 0)[:, None]
    train = products.attributes[products.split == 0]
    title = _expected(test, train, rules, TITLE_ATTRIBUTES, PICTURE_ATTRIBUTES, KIND)
    picture = _expected(test, train, rules, PICTURE_ATTRIBUTES, TITLE_ATTRIBUTES, COLOUR)
    prior = rules.match(train, everything).mean(axis=0)
    scores = {
        "all attributes": np.where(pictured, truth, title),
        "title only": title,
        "picture only": np.where(pictured, picture, prior),
    }
    return {name: _precision(score[judged], truth[judged]) for name, score in scores.items()}


def _expected(
    seen: Int64Array, train: Int64Array, rules: Rules, known: tuple[int, ...], hidden: tuple[int, ...], given: int
) -> npt.NDArray[np.float64]:
    """(n, L) probability of relevance, ``hidden`` drawn from the training products equal in ``given``."""
    matches = rules.match(train, hidden)
    chance = np.stack([matches[train[:, given] == value].mean(axis=0) for value in range(VALUES[given])])
    expected: npt.NDArray[np.float64] = rules.match(seen, known) * chance[seen[:, given]]
    return expected


def _precision(scores: npt.NDArray[np.float64], truth: BoolArray) -> dict[str, float]:
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(truth, order, axis=1)
    return {f"P@{k}": round(float(hits[:, :k].mean()), 4) for k in CUTS}
