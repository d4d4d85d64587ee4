"""Scored candidates with evidence beside the network, and the combination that is learned from them.

Knows no folds and no files. Products whose candidates teach the combination were seen by neither the network nor the
evidence they are scored with; ``folds`` sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mufin.combination import FEATURES, Combination, candidate_features
from mufin.evidence import WIDE, Evidence, ProductEvidence, ProductLists
from mufin.evidence_file import stored
from mufin.inputs import BoolArray, FloatArray, Int64Array
from mufin.relevance import Relevance
from mufin.title_words import SparseRows, TitleWords
from mufin.training.encode import EncodedItems, store_titles
from mufin.training.evaluation import Candidates, EncodedLabels, score_candidates
from mufin.training.item_arrays import ItemArrays
from mufin.training.model import ItemEncoder, Mufin, backbone_width
from mufin.training.related import related_labels
from mufin.training.ridge import fit_title_ridge
from mufin.training.vector_lists import fit_lists
from mufin.vector_rows import VectorRows

_PRODUCTS_AT_ONCE = 256
_LISTS_A_STEP = 64
_LEAST_STEPS = 400
"""A small catalogue has few lists."""
_LEAST_EPOCHS = 5
_LEARNING_RATE = 1e-2
_LEAST_DECAY, _MOST_DECAY = 0.01, 5.0


@dataclass(frozen=True)
class Kind:
    """A form of combination."""

    name: str
    members: int
    """Perceptrons whose mean it is"""
    hidden: int
    """Units of each; 0: linear"""
    decay_lists: int
    """Weight decay times lists: like a prior, it weighs the less the more lists there are"""

    def decay(self, lists: int) -> float:
        """Weight decay when learned from ``lists`` lists."""
        return min(_MOST_DECAY, max(_LEAST_DECAY, self.decay_lists / lists))


_DECAY_LISTS = 2000
"""On ikea, 850 lists, decay between 2 and 5 did best out of fold (docs/experiments.md)."""
_FEW_LISTS = 2000
"""Below so many it matters whether there is a prior, and a further kind costs little."""
_FIRM = Kind("linear", 1, 0, _DECAY_LISTS), Kind("perceptrons", 3, 32, _DECAY_LISTS)
_FREE = Kind("linear, free", 1, 0, 0)


def kinds(lists: int) -> tuple[Kind, ...]:
    """Those worth trying with ``lists`` lists: a perceptron learns a thousand by heart without a prior, and where one
    score tells all a prior learns it too slowly; of some thousand lists both learn the same (docs/experiments.md)."""
    return (*_FIRM, _FREE) if lists < _FEW_LISTS else _FIRM


@dataclass(frozen=True)
class Combiner:
    """What turns a product's candidates into combined scores."""

    evidence: Evidence
    words: SparseRows
    """Title words of all of Catalogue.products"""
    sentences: FloatArray
    """(all of Catalogue.products, W)"""
    combination: Combination | None
    """None: not learned yet, features only"""

    def of(self, rows: Int64Array, embeddings: FloatArray, has_title: BoolArray) -> list[ProductEvidence]:
        """Evidence of the catalogue's products ``rows`` (N,) as encoded; without their words where titles are left out."""
        titled = list(zip(rows.tolist(), has_title.tolist(), strict=True))
        words = [self.words.row(row) if has else None for row, has in titled]
        sentences = [np.asarray(self.sentences[row]) if has else None for row, has in titled]
        return self.evidence.of(embeddings, words, sentences)


@dataclass(frozen=True)
class CombinedCandidates:
    """Candidates of N products, and the features of each product's."""

    candidates: Candidates
    features: list[FloatArray]
    """(n_i, F) of row i's candidates in their order; empty lists unless asked for"""


def gather_evidence(
    words: TitleWords, product_words: SparseRows, label_words: SparseRows, train_rows: Int64Array, train: Relevance,
    embeddings: FloatArray, sentences: FloatArray, label_sentences: FloatArray, lists_seed: int | None = None,
) -> Evidence:  # fmt: skip
    """Evidence of training products ``train_rows`` with ``embeddings`` (N, D), as serving will read it back.

    sentences: of all of Catalogue.products; label_sentences: (L, W); lists_seed: None where a product is to be compared
    with every training product, not with those in the lists nearest to it.
    """
    own, named = np.array(sentences[train_rows], dtype=np.float32), product_words.select(train_rows)
    ridge = fit_title_ridge(named, own, len(words), train)
    related = related_labels(label_words, np.asarray(label_sentences, dtype=np.float32), len(words), train)
    vectors, said = VectorRows.of(embeddings), VectorRows.of(own)
    lists = None
    if lists_seed is not None:
        lists = ProductLists(*(fit_lists(rows, WIDE[0], lists_seed) for rows in (vectors, said)))
    return stored(
        Evidence(
            words, vectors, train, named, label_words, said, VectorRows.of(label_sentences), ridge, related, lists
        )
    )  # fmt: skip


def title_sentences(
    encoder: ItemEncoder, items: ItemArrays, batch_size: int, device: torch.device, path: Path
) -> FloatArray:
    """(N, W) of items' titles, unit length, 0 without a title; computed into the file ``path`` unless they are kept."""
    if items.title_features is not None:
        found = np.asarray(items.title_features[:, : backbone_width(encoder.text.backbone)])
    else:
        width = backbone_width(encoder.text.backbone)
        found = np.asarray(store_titles(encoder, items, width, batch_size, device, path, encoder.text.sentence))
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return np.asarray(np.where(items.has_title[:, None], unit, 0.0), dtype=np.float32)


def combined_candidates(
    model: Mufin, products: EncodedItems, rows: Int64Array, has_title: BoolArray, has_images: BoolArray,
    labels: EncodedLabels, forbidden: Relevance, size: int, device: torch.device, combiner: Combiner,
    keep_features: bool = False,
) -> CombinedCandidates:  # fmt: skip
    """The ``size`` nearest labels and those that evidence speaks for, of N encoded products.

    rows: (N,) in the catalogue; has_title, has_images, forbidden: (N, ...) of the same. Combined scores are there when
    the combiner has a combination.
    """
    parts: list[Candidates] = []
    kept: list[FloatArray] = []
    for start in range(0, len(rows), _PRODUCTS_AT_ONCE):
        block = np.arange(start, min(start + _PRODUCTS_AT_ONCE, len(rows)))
        own = EncodedItems(products.bags[block], products.mask[block], products.embeddings[block])
        evidence = combiner.of(rows[block], own.embeddings, has_title[block])
        extra = [found.candidates() for found in evidence]
        part = score_candidates(model, own, labels, forbidden.select(block), size, device, extra)
        features = [
            candidate_features(
                part.labels[i][part.labels[i] >= 0], part.shortlist_scores[i][part.labels[i] >= 0],
                part.classifier_scores[i][part.labels[i] >= 0], evidence[i], combiner.evidence.frequency,
                bool(has_title[start + i]), bool(has_images[start + i]),
            )
            for i in range(len(block))
        ]  # fmt: skip
        if combiner.combination is not None:
            part = _with_scores(part, features, combiner.combination)
        parts.append(part)
        kept += features if keep_features else []
    return CombinedCandidates(_joined(parts), kept)


def _with_scores(part: Candidates, features: Sequence[FloatArray], combination: Combination) -> Candidates:
    combined = np.full(part.labels.shape, -np.inf, dtype=np.float32)
    for row, own in enumerate(features):
        combined[row, part.labels[row] >= 0] = combination(own)
    return Candidates(part.labels, part.shortlist_scores, part.classifier_scores, combined)


def _joined(parts: Sequence[Candidates]) -> Candidates:
    """Blocks of different widths, one below the other."""
    width = max(part.labels.shape[1] for part in parts)

    def stack(arrays: Sequence[FloatArray | Int64Array], fill: float) -> FloatArray:
        padded = [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill) for a in arrays]
        return np.concatenate(padded)

    scores = [
        stack([part.shortlist_scores for part in parts], -np.inf),
        stack([part.classifier_scores for part in parts], -np.inf),
    ]
    combined = [part.combined for part in parts if part.combined is not None]
    labels = stack([part.labels for part in parts], -1).astype(np.int64)
    return Candidates(labels, scores[0], scores[1], stack(combined, -np.inf) if combined else None)


@dataclass(frozen=True)
class Lists:
    """Candidates of many products, one after the other, for learning."""

    features: FloatArray
    """(C, F)"""
    relevant: FloatArray
    """(C,) 0 or 1"""
    starts: Int64Array
    """(n + 1,): product i owns ``starts[i]:starts[i + 1]``"""

    @cached_property
    def standardised(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean and standard deviation (F,) of every feature, 1 for one that never changes, and features by them (C, F).

        Kept, as every perceptron that learns from these lists asks for it.
        """
        mean = self.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = self.features.std(axis=0, dtype=np.float64).astype(np.float32)
        spread = np.where(spread > 1e-6, spread, np.float32(1))
        return mean, spread, (self.features - mean) / spread

    @classmethod
    def of(cls, found: CombinedCandidates, relevance: Relevance) -> Lists:
        """From candidates and what is relevant to their products; products without a relevant candidate teach nothing."""
        features, relevant = [np.zeros((0, len(FEATURES)), dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
        for row, matrix in enumerate(found.features):
            labels = found.candidates.labels[row]
            hits = np.isin(labels[labels >= 0], relevance.row(row))
            if hits.any():
                features.append(matrix)
                relevant.append(hits.astype(np.float32))
        starts = np.cumsum([len(own) for own in relevant], dtype=np.int64)
        return cls(np.concatenate(features), np.concatenate(relevant), starts)

    @classmethod
    def joined(cls, parts: Sequence[Lists]) -> Lists:
        """One after the other; ``parts`` are not empty."""
        offsets = np.cumsum([0, *(len(own.relevant) for own in parts)])
        starts = [np.zeros(1, dtype=np.int64)]
        starts += [own.starts[1:] + offset for own, offset in zip(parts, offsets[:-1], strict=True)]
        return cls(
            np.concatenate([own.features for own in parts]), np.concatenate([own.relevant for own in parts]),
            np.concatenate(starts),
        )  # fmt: skip

    def precision(self, scores: FloatArray) -> dict[str, float]:
        """P@1 and P@5 of every list ordered by (C,) scores, ties as they come."""
        found = {1: 0.0, 5: 0.0}
        for start, end in pairwise(self.starts):
            order = np.argsort(-scores[start:end], kind="stable")
            hits = self.relevant[start:end][order]
            for k in found:
                found[k] += float(hits[:k].sum()) / k
        return {f"P@{k}": total / len(self) for k, total in found.items()}

    def __len__(self) -> int:
        return len(self.starts) - 1


def fused_scores(features: FloatArray, fusion_weight: float) -> FloatArray:
    """(C, F) -> (C,): what the network's two scores say without a combination."""
    shortlist, classifier = (features[:, FEATURES.index(f"{name}.score")] for name in ("shortlist", "classifier"))
    alpha = np.float32(fusion_weight)
    return np.asarray(alpha * classifier + (np.float32(1) - alpha) * shortlist, dtype=np.float32)


def learn_combination(lists: Lists, seed: int, kind: Kind) -> Combination:
    """The mean of perceptrons, as one.

    Members differ by what is drawn alone; which of them a single one would be is worth half a point of P@1 either way.
    """
    decay = kind.decay(len(lists))
    own = [learn_perceptron(lists, kind.hidden, decay, (seed + number) % 2**64) for number in range(kind.members)]
    first = own[0]
    outputs = np.stack([one.output_weight for one in own]) / np.float32(kind.members)
    return Combination(
        first.mean, first.spread, np.concatenate([one.hidden_weight for one in own], axis=1),
        np.concatenate([one.hidden_bias for one in own]), outputs.reshape(-1) if kind.hidden else outputs.sum(axis=0),
        sum(one.output_bias for one in own) / kind.members,
    )  # fmt: skip


def learn_perceptron(lists: Lists, hidden: int, decay: float, seed: int) -> Combination:
    """Listwise softmax over each product's candidates, its relevant ones sharing the target (ListNet, Cao et al. 2007).

    ``hidden`` units; 0: linear. ``decay``: AdamW's, of weights and biases. Deterministic for a seed on one machine.
    """
    random = np.random.default_rng(seed)
    mean, spread, standardised = lists.standardised
    features = torch.from_numpy(standardised)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(features.shape[1], hidden)
    steps_an_epoch = -(-len(lists) // _LISTS_A_STEP)
    epochs = max(_LEAST_EPOCHS, -(-_LEAST_STEPS // steps_an_epoch))
    steps = epochs * steps_an_epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    blocks = list(pairwise(lists.starts.tolist()))
    for _ in range(epochs):
        order = random.permutation(len(lists))
        for start in range(0, len(order), _LISTS_A_STEP):
            chosen = [slice(*blocks[own]) for own in order[start : start + _LISTS_A_STEP]]
            starts = np.cumsum([0, *(own.stop - own.start for own in chosen[:-1])])
            relevant = np.concatenate([lists.relevant[own] for own in chosen])
            _set_gradients(network, torch.cat([features[own] for own in chosen]), relevant, starts)
            optimizer.step()
            schedule.step()
    return _combination(network, mean, spread)


def _network(inputs: int, hidden: int) -> nn.Sequential:
    if not hidden:
        return nn.Sequential(nn.Linear(inputs, 1))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


@torch.no_grad()
def _set_gradients(network: nn.Sequential, features: Tensor, relevant: FloatArray, starts: Int64Array) -> None:
    """Of ``listwise_slope``'s loss by the network's parameters; by hand, in half the time that autograd takes.

    features: (C, F), relevant: (C,), lists one after the other, each from its place in ``starts`` on.
    """
    first, last = network[0], network[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    units = features
    if first is not last:
        units = torch.addmm(first.bias, features, first.weight.T).relu_()
    scores = torch.addmv(last.bias, units, last.weight[0])
    slope = torch.from_numpy(listwise_slope(scores.numpy(), relevant, starts))
    last.weight.grad, last.bias.grad = (slope @ units)[None], slope.sum()[None]
    if first is not last:
        active, weight = units.sign_().T, last.weight[0]  # of a ReLU 0 or 1
        first.weight.grad = weight[:, None] * (active @ (slope[:, None] * features))
        first.bias.grad = weight * (active @ slope)


def listwise_slope(scores: FloatArray, relevant: FloatArray, starts: Int64Array) -> FloatArray:
    """Gradient by (C,) scores of the cross entropy of every list's softmax against its relevant candidates, averaged
    over lists: (softmax - target) / lists."""
    sizes = np.diff(starts, append=len(scores))
    powers = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
    shares = powers / np.repeat(np.add.reduceat(powers, starts), sizes)
    target = relevant / np.repeat(np.add.reduceat(relevant, starts), sizes)
    return np.asarray((shares - target) / np.float32(len(starts)), dtype=np.float32)


def _combination(network: nn.Sequential, mean: FloatArray, spread: FloatArray) -> Combination:
    last = network[-1]
    assert isinstance(last, nn.Linear)
    hidden_weight, hidden_bias = np.zeros((len(mean), 0), dtype=np.float32), np.zeros(0, dtype=np.float32)
    if len(network) > 1:
        first = network[0]
        assert isinstance(first, nn.Linear)
        hidden_weight = first.weight.detach().numpy().T.copy()
        hidden_bias = first.bias.detach().numpy().copy()
    return Combination(
        mean, spread, hidden_weight, hidden_bias, last.weight.detach().numpy()[0].copy(), float(last.bias.detach()[0])
    )
