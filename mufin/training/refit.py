"""What is served learns from validation products, too, once these have chosen all there is to choose.

A product with relevant labels is worth more as a neighbour and an example than as a judge, and a catalogue has few of
them. Fusion weight, calibration and combination were fitted to a network and to evidence that never saw the validation
split; they are kept as they are. A network that is trained once more is a run of its own in the run's folder, as folds
are: a killed training goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import Catalogue, Split
from mufin.inputs import FloatArray
from mufin.relevance import Relevance
from mufin.training.checkpoint import load_run
from mufin.training.combining import Combiner
from mufin.training.config import CombinationConfig, TrainConfig
from mufin.training.folds import Folds, Titles, by_product_lists, combiner_of
from mufin.training.loop import Session
from mufin.training.model import Mufin

REFIT_FOLDER = "refit"


def with_validation(catalogue: Catalogue) -> Catalogue:
    """The training split is training and validation products, one after the other; the validation split stays."""
    train, valid = catalogue.splits["train"], catalogue.splits["valid"]
    parts = [own.relevance.to_pairs() for own in (train, valid)]
    rows = np.concatenate([parts[0][0], parts[1][0] + len(train.products)])
    labels = np.concatenate([parts[0][1], parts[1][1]])
    products = np.concatenate([train.products, valid.products])
    joined = Split(products, Relevance.from_pairs(rows, labels, len(products), len(catalogue.labels)))
    return replace(catalogue, splits={**catalogue.splits, "train": joined})


def train_refit(
    catalogue: Catalogue, config: TrainConfig, folder: Path, train: Callable[[Catalogue, TrainConfig, Path], Any]
) -> None:
    """Train on both splits into ``folder``/refit."""
    alone = replace(config, combination=CombinationConfig(), refit="none")
    train(with_validation(catalogue), alone, folder / REFIT_FOLDER)


def refitted(
    session: Session, combiner: Combiner | None, folds: Folds | None, scratch: Path
) -> tuple[Mufin, FloatArray | None, Combiner | None]:
    """The network to keep, that of ``folder``/refit or the session's own, and the combiner with evidence of both splits.

    Between them the means (L, D) that the network's own run kept; None of the session's own.
    """
    model, means = session.model, None
    if session.config.refit == "network":
        run = load_run(session.folder / REFIT_FOLDER)
        model, means = run.model.to(session.device), run.label_means
    if combiner is None or folds is None:
        return model, means, combiner
    whole = with_validation(folds.catalogue)
    data = folds.prepare(whole, model, REFIT_FOLDER)
    titles, lists = Titles.of(whole, session.config), by_product_lists(folds.catalogue, session.config)
    found = combiner_of(replace(session, model=model), data, titles, scratch, lists)
    return model, means, replace(found, combination=combiner.combination)
