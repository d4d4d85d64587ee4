"""The learned combination: every score that is known of a candidate label becomes one number.

Knows no network and no files but its own. A small perceptron over standardised features of one product's candidates,
kept as plain arrays. Features are seen within the product's own candidates (ratio to the best, place, distance from
the leading ones), because scores of two products are not on one scale.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mufin.errors import BundleError
from mufin.evidence import ProductEvidence
from mufin.inputs import FloatArray, Int64Array
from mufin.label_filters import write_arrays

COMBINATION_FILE = "combination.npz"

SCORERS = (
    "shortlist", "classifier", "products_near", "products_wide", "words_near", "words_wide", "titles_near",
    "titles_wide", "title_match", "sentence_match", "ridge", "own_best", "own_second", "own_mean", "like_ridge",
    "like_titles", "companions",
)  # fmt: skip
VIEWS = ("score", "ratio", "place", "distance")
PRODUCT_FEATURES = ("best_product", "best_words", "best_title", "has_title", "has_images")
LABEL_FEATURES = ("log_frequency", "never_trained")
FEATURES = (
    *(f"{scorer}.{view}" for scorer in SCORERS for view in VIEWS), *LABEL_FEATURES, *PRODUCT_FEATURES,
)  # fmt: skip
"""(F,) names, in order"""
COSINE_WORTH = 10.0
"""A combination's scores are log-odds but for a shift and a scale near 1: over a shortlist they spread some ten times as far
as cosines, and so many of them weigh as much as a cosine of 1."""
_LOG_FREQUENCY = FEATURES.index("log_frequency")
_LEADING = 50
"""Candidates whose mean and spread a score's distance is taken from."""
_WIDEST = 20.0
_SAME = 1e-5
"""Share of the best score"""


def candidate_features(
    labels: Int64Array, shortlist: FloatArray, classifier: FloatArray, evidence: ProductEvidence,
    frequency: Int64Array, has_title: bool, has_images: bool,
) -> FloatArray:  # fmt: skip
    """(n, F) features of one product's n candidates. ``frequency``: (L,) training products of each label.

    Labels beyond the evidence's, added without training, have no votes and no frequency.
    """
    scores = np.empty((len(SCORERS), len(labels)), dtype=np.float32)
    for place, own in enumerate(
        [
            shortlist, classifier, *evidence.by_embedding.of(labels), *evidence.by_words.of(labels),
            *evidence.by_title.of(labels), evidence.title_match(labels), evidence.sentence_match(labels),
            evidence.ridge_of(labels), *evidence.own_products(labels), *evidence.of_related(labels),
        ]
    ):  # fmt: skip
        scores[place] = own
    seen = np.where(labels < len(frequency), frequency[np.minimum(labels, len(frequency) - 1)], 0)
    best = evidence.by_embedding.best, evidence.by_words.best, evidence.by_title.best
    features = np.empty((len(labels), len(FEATURES)), dtype=np.float32)
    if len(labels):
        # Equal scores share a place, so that order of input says nothing; equal but for rounding, too: labels of the
        # same training products differ by what an encoder's last bit makes of them.
        falling = np.sort(-scores, axis=1)
        features[:, :_LOG_FREQUENCY] = evidence.arithmetic.standings(scores, falling, _LEADING, _WIDEST, _SAME)
    features[:, _LOG_FREQUENCY] = np.log1p(seen)
    features[:, _LOG_FREQUENCY + 1] = seen == 0
    features[:, _LOG_FREQUENCY + 2 :] = *best, has_title, has_images
    return features


@dataclass(frozen=True, eq=False)
class Combination:
    """Perceptron with one hidden layer of H units, or none (H = 0: a linear combination)."""

    mean: FloatArray
    """(F,)"""
    spread: FloatArray
    """(F,)"""
    hidden_weight: FloatArray
    """(F, H)"""
    hidden_bias: FloatArray
    """(H,)"""
    output_weight: FloatArray
    """(H,), or (F,) without a hidden layer"""
    output_bias: float
    tail: float = 0.0
    """Added for each unit of log(1 + training products of the label): below 0, rare labels gain"""

    def __call__(self, features: FloatArray) -> FloatArray:
        """(n, F) -> (n,) scores, higher is better; no scale of their own, the calibration gives them one."""
        x = (features - self.mean) / self.spread
        if self.hidden_bias.size:
            x = np.maximum(x @ self.hidden_weight + self.hidden_bias, 0.0)
        scores = x @ self.output_weight + np.float32(self.output_bias)
        if self.tail:
            scores = scores + np.float32(self.tail) * features[:, _LOG_FREQUENCY]
        return np.asarray(scores, dtype=np.float32)


def write_combination(path: Path, combination: Combination) -> None:
    """Write combination.npz."""
    names = ("mean", "spread", "hidden_weight", "hidden_bias", "output_weight")
    arrays = {name: np.asarray(getattr(combination, name), dtype=np.float32) for name in names}
    arrays["output_bias"] = np.asarray(combination.output_bias, dtype=np.float32)
    if combination.tail:
        arrays["tail"] = np.asarray(combination.tail, dtype=np.float32)
    arrays["features"] = np.frombuffer("\n".join(FEATURES).encode(), dtype=np.uint8)
    write_arrays(path, arrays)


def read_combination(path: Path) -> Combination:
    """Read combination.npz. Raises BundleError when it cannot be read or is of other features."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = tuple(arrays["features"].tobytes().decode().split("\n"))
            found = Combination(
                arrays["mean"], arrays["spread"], arrays["hidden_weight"], arrays["hidden_bias"],
                arrays["output_weight"], float(arrays["output_bias"]), float(arrays["tail"]) if "tail" in arrays else 0.0,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: cannot be read ({error}): export again") from error
    if names != FEATURES:
        odd = sorted(set(names) ^ set(FEATURES))
        raise BundleError(
            f"{path}: combines other features than this version ({', '.join(odd)}): train and export again"
        )
    count, hidden = len(FEATURES), found.hidden_bias.size
    shapes = (found.mean.shape, found.spread.shape, found.hidden_weight.shape, found.output_weight.shape)
    expected = ((count,), (count,), (count, hidden), (hidden or count,))
    if shapes != expected:
        raise BundleError(f"{path}: shapes are {shapes}, {count} features and {hidden} units make them {expected}")
    return found
