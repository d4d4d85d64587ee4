"""The combination's lessons: networks trained on parts of the training products, scored on the parts they never saw.

A network's scores on its own training products say little about new ones, and a combination learned from those would
trust it too much (Wolpert 1992, stacked generalisation). Nor may a product that is held out be a label there: its pairs
as a label, and its title beside theirs, tell what it goes with, and a product never seen has none. Each fold is a run of
its own in the run's folder, so that a killed training goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mufin.catalogue import Catalogue, Split, without_labels
from mufin.errors import ConfigError
from mufin.evidence import MOST_PRODUCTS
from mufin.inputs import FloatArray, Int64Array, normalise_title
from mufin.relevance import Relevance
from mufin.title_words import SparseRows, TitleWords, fit_title_words
from mufin.training.checkpoint import load_run
from mufin.training.combining import (
    CombinedCandidates,
    Combiner,
    Kind,
    Lists,
    combined_candidates,
    fused_scores,
    gather_evidence,
    kinds,
    learn_combination,
    title_sentences,
)
from mufin.training.config import CombinationConfig, TrainConfig
from mufin.training.encode import embed_items, encode_items
from mufin.training.evaluation import EncodedLabels
from mufin.training.loop import Session
from mufin.training.model import Mufin
from mufin.training.preparation import TrainingData
from mufin.training.validation import all_labels

FOLDS_FOLDER = "folds"


@dataclass(frozen=True)
class Titles:
    """Title words of a catalogue."""

    words: TitleWords
    products: SparseRows
    labels: SparseRows
    folds: Int64Array
    """(train products,) fold of each"""

    @classmethod
    def of(cls, catalogue: Catalogue, config: TrainConfig) -> Titles:
        """Vocabulary of training products' and labels' titles, and the folds by title."""
        train = catalogue.splits["train"]
        items = [catalogue.products[int(row)] for row in train.products]
        own = [item.title for item in items]
        words = fit_title_words([*own, *(label.title for label in catalogue.labels)])
        folds = fold_numbers(own, config.combination.folds, config.seed, [item.images for item in items])
        labels = words.rows([label.title for label in catalogue.labels])
        return cls(words, words.rows([item.title for item in catalogue.products]), labels, folds)


@dataclass(frozen=True)
class Folds:
    """What the folds were trained on."""

    catalogue: Catalogue
    """With its validation split"""
    titles: Titles
    prepare: Callable[[Catalogue, Mufin, str], TrainingData]
    """Another catalogue, the network trained on it, a name for its files -> its data with what that network's own frozen
    parts say: its word vectors were fitted on other titles, and are others"""


def fold_numbers(titles: list[str], folds: int, seed: int, images: Sequence[tuple[str, ...]] = ()) -> Int64Array:
    """(n,) fold of each training product; equal titles share one, or a product's double would give its labels away.

    ``images``: n names each, by which products without a title are doubles, as in ``ensure_validation``; without them
    such a product is on its own.
    """
    untitled = ["\0" + "\0".join(own) for own in images] or [f"\0{place}" for place in range(len(titles))]
    names = [normalise_title(title).casefold() or other for title, other in zip(titles, untitled, strict=True)]
    distinct, group = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    order = np.random.default_rng([seed, 5]).permutation(len(distinct))
    return np.asarray(order[group] % folds, dtype=np.int64)


def fold_catalogue(catalogue: Catalogue, numbers: Int64Array, fold: int) -> Catalogue:
    """The training split without a fold's products, which become the validation split and are no labels any more.

    Products that have no other label are left out. Raises ConfigError where that leaves nothing to train on.
    """
    train = catalogue.splits["train"]
    inside, outside = np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)

    def part(rows: Int64Array) -> Split:
        return Split(train.products[rows], train.relevance.select(rows))

    held_out = {catalogue.products[int(row)].id for row in train.products[outside]}
    found = without_labels(replace(catalogue, splits={"train": part(inside), "valid": part(outside)}), held_out)
    if not len(found.splits["train"].products):
        raise ConfigError(
            f"combination.folds: without the {len(held_out)} products of fold {fold + 1}, as products and as labels, no "
            f"pair of {len(catalogue.labels)} labels is left to train on; set combination.folds=0"
        )
    return found


def taught_by(part: Catalogue, most: int, seed: int) -> Catalogue:
    """A fold's catalogue with at most ``most`` of its held-out products, drawn by the seed, in their order."""
    held_out = part.splits["valid"]
    if len(held_out.products) <= most:
        return part
    drawn = np.sort(np.random.default_rng([seed, 13]).choice(len(held_out.products), most, replace=False))
    fewer = Split(held_out.products[drawn], held_out.relevance.select(drawn))
    return replace(part, splits={**part.splits, "valid": fewer})


def train_folds(
    catalogue: Catalogue, config: TrainConfig, folder: Path, train: Callable[[Catalogue, TrainConfig, Path], Any],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Train a network without each fold, into ``folder``/folds/N.

    Raises ConfigError before anything is trained when there are more training products than evidence is made for.
    """
    count = len(catalogue.splits["train"].products)
    if count > MOST_PRODUCTS:
        raise ConfigError(
            f"combination.folds is {config.combination.folds} with {count} training products: what is known of "
            f"each is held in memory, which is done up to {MOST_PRODUCTS}; set combination.folds=0"
        )
    numbers = Titles.of(catalogue, config).folds
    alone = replace(config, combination=CombinationConfig(), refit="none")
    for fold in range(config.combination.folds):
        say(f"network without fold {fold + 1} of {config.combination.folds}, to teach the combination")
        train(fold_catalogue(catalogue, numbers, fold), alone, folder / FOLDS_FOLDER / str(fold))


def by_product_lists(catalogue: Catalogue, config: TrainConfig) -> bool:
    """Whether products are compared with those of lists alone: by the whole catalogue, so that what folds teach holds."""
    return len(catalogue.splits["train"].products) > config.combination.exact_products


def combiner_of(session: Session, data: TrainingData, titles: Titles, scratch: Path, lists: bool) -> Combiner:
    """Evidence of the data's training products as the session's network encodes them now; ``scratch``: a file.

    ``lists``: see ``by_product_lists``.
    """
    encoder, size, device = session.model.encoder, session.config.encode_batch_size, session.device
    embeddings = embed_items(encoder, data.products, data.train_rows, size, device)
    sentences = title_sentences(encoder, data.products, size, device, scratch.with_name("product-sentences.npy"))
    label_sentences = sentences
    if data.labels is not data.products:
        label_sentences = title_sentences(encoder, data.labels, size, device, scratch.with_name("label-sentences.npy"))
    evidence = gather_evidence(
        titles.words, titles.products, titles.labels, data.train_rows, data.train, embeddings, sentences,
        label_sentences, session.config.seed if lists else None,
    )  # fmt: skip
    return Combiner(evidence, titles.products, sentences, None)


def candidates_of(
    session: Session, data: TrainingData, labels: EncodedLabels, combiner: Combiner, keep_features: bool = False
) -> CombinedCandidates:
    """Candidates of the data's validation products."""
    config, rows, products = session.config, data.valid_rows, data.products
    queries = encode_items(session.model.encoder, products, rows, config.encode_batch_size, session.device)
    return combined_candidates(
        session.model, queries, rows, products.has_title[rows], np.diff(products.image_offsets)[rows] > 0, labels,
        data.forbidden.select(rows), min(config.shortlist.size, len(data.labels)), session.device, combiner,
        keep_features,
    )  # fmt: skip


def lessons(session: Session, folds: Folds, bags: Path) -> list[Lists]:
    """Candidates of each fold's products, scored by the network that never saw them; folds that teach something."""
    found: list[Lists] = []
    config = session.config
    most = config.combination.most_lists // config.combination.folds
    listed = by_product_lists(folds.catalogue, config)
    for fold in range(config.combination.folds):
        part = taught_by(fold_catalogue(folds.catalogue, folds.titles.folds, fold), most, config.seed)
        run = load_run(session.folder / FOLDS_FOLDER / str(fold))
        own = replace(session, model=run.model.to(session.device))
        if len(part.splits["valid"].products):
            data = folds.prepare(part, own.model, f"fold-{fold}")
            named = folds.titles.words.rows([label.title for label in part.labels])
            labels = all_labels(own, data, bags.with_name("fold-bags.npy"))
            combiner = combiner_of(own, data, replace(folds.titles, labels=named), bags, listed)
            found.append(Lists.of(candidates_of(own, data, labels, combiner, True), data.valid))
        session.reporter.step("scoring folds", fold + 1, config.combination.folds)
    return [own for own in found if len(own)]


def choose_combination(
    session: Session, data: TrainingData, folds: Folds, labels: EncodedLabels, bags: Path, fusion_weight: float
) -> tuple[Combiner | None, dict[str, Any]]:
    """The kind of combination that does best, and how all did; None where fusing shortlist and classifier does no worse.

    Judged by the folds' products, each by a combination learned from the other folds: there are ten times as many as
    validation products, of which some hundred leave the choice to chance, and the fusion weight was not chosen on them.
    """
    taught, seed = lessons(session, folds, bags), session.config.seed
    report: dict[str, Any] = {
        "lists": sum(map(len, taught)), "candidates": sum(len(own.relevant) for own in taught), "kept": False,
    }  # fmt: skip
    if len(taught) < 2:
        session.reporter.say(
            "fewer than two folds have a product with a relevant candidate: scores are fused without a combination"
        )
        return None, report
    everything = Lists.joined(taught)
    fusion = everything.precision(fused_scores(everything.features, fusion_weight))
    report["out_of_fold"] = {"fusion": fusion}
    best, chosen = _worth(fusion), None
    tried = kinds(len(everything))
    learned: dict[Kind, list[FloatArray]] = {kind: [] for kind in tried}
    for fold, own in enumerate(taught):
        others = Lists.joined([*taught[:fold], *taught[fold + 1 :]])
        for kind in tried:
            learned[kind].append(learn_combination(others, seed, kind)(own.features))
    for kind in tried:
        figures = everything.precision(np.concatenate(learned[kind]))
        report["out_of_fold"][kind.name] = figures
        if _worth(figures) > best:
            best, chosen, report["kind"] = _worth(figures), kind, kind.name
    if chosen is None:
        return None, report
    combiner = combiner_of(session, data, folds.titles, bags, by_product_lists(folds.catalogue, session.config))
    combination = learn_combination(everything, seed, chosen)
    strength = session.config.combination.tail_calibration
    if strength:
        combination = replace(combination, tail=-strength * float(combination(everything.features).std()))
        report["tail"] = combination.tail
    return replace(combiner, combination=combination), {**report, "kept": True}


def _worth(figures: dict[str, float]) -> float:
    """As the fusion weight is chosen (``fusion``)."""
    return figures["P@1"] + figures["P@5"]


def without_training(combiner: Combiner) -> Combiner:
    """The same as if no label had a training product: what evidence says of labels that are added later."""
    evidence = combiner.evidence
    none = np.zeros(0, dtype=np.int64)
    nothing = Relevance.from_pairs(none, none, evidence.relevance.row_count, evidence.relevance.label_count)
    return replace(combiner, evidence=replace(evidence, relevance=nothing))
