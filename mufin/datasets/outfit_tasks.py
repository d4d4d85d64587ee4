"""Polyvore's two tasks as files of a catalogue, and their figures for whoever can score pairs.

Knows no model: a scorer gets ids of products and labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from mufin.errors import CatalogueError
from mufin.metrics import Float64Array
from mufin.polyvore_tasks import compatibility_auc, fill_in_the_blank_accuracy

PairScorer = Callable[[Sequence[tuple[str, str]]], Float64Array]
"""(n,) scores of n pairs (product id, label id), higher is better"""
_PAIRS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Question:
    """Fill in the blank: which candidate completes the outfit?"""

    outfit: tuple[str, ...]
    """Ids of the items that are there"""
    candidates: tuple[str, ...]
    answer: int
    """Place of the right candidate"""


@dataclass(frozen=True, slots=True)
class Outfit:
    """Compatibility: do these items go together?"""

    items: tuple[str, ...]
    compatible: bool


def questions_file(catalogue: Path, split: str) -> Path:
    """``fill_in_blank_SPLIT.jsonl``."""
    return catalogue / f"fill_in_blank_{split}.jsonl"


def outfits_file(catalogue: Path, split: str) -> Path:
    """``compatibility_SPLIT.jsonl``."""
    return catalogue / f"compatibility_{split}.jsonl"


def question_line(question: Question) -> str:
    """The line of a file."""
    record = {"outfit": question.outfit, "candidates": question.candidates, "answer": question.answer}
    return json.dumps(record, ensure_ascii=False) + "\n"


def outfit_line(outfit: Outfit) -> str:
    """The line of a file."""
    return json.dumps({"items": outfit.items, "compatible": outfit.compatible}, ensure_ascii=False) + "\n"


def read_questions(path: Path) -> Iterator[Question]:
    """Raises CatalogueError with the line."""
    for line, record in _records(path):
        outfit, candidates, answer = _ids(record, "outfit"), _ids(record, "candidates"), record.get("answer")
        if not (outfit and candidates and type(answer) is int and 0 <= answer < len(candidates)):
            raise CatalogueError(path, line, 'needs "outfit" and "candidates", lists of ids, and "answer", a place')
        yield Question(outfit, candidates, answer)


def read_outfits(path: Path) -> Iterator[Outfit]:
    """Raises CatalogueError with the line."""
    for line, record in _records(path):
        items, compatible = _ids(record, "items"), record.get("compatible")
        if len(items) < 2 or not isinstance(compatible, bool):
            raise CatalogueError(path, line, 'needs "items", two ids or more, and "compatible", true or false')
        yield Outfit(items, compatible)


def score_questions(questions: Sequence[Question], score: PairScorer) -> float:
    """Accuracy; a candidate's score is the mean over the outfit's items of the pair (item, candidate)."""
    groups = [[(item, candidate) for item in q.outfit] for q in questions for candidate in q.candidates]
    means = iter(_means(groups, score).tolist())
    widest = max((len(q.candidates) for q in questions), default=1)
    scores = np.full((len(questions), widest), -np.inf)
    for row, question in enumerate(questions):
        scores[row, : len(question.candidates)] = [next(means) for _ in question.candidates]
    return fill_in_the_blank_accuracy(scores, np.array([q.answer for q in questions], dtype=np.int64))


def score_outfits(outfits: Sequence[Outfit], score: PairScorer) -> float:
    """Area under the curve; an outfit's score is the mean over all ordered pairs of two of its items."""
    means = _means([list(permutations(outfit.items, 2)) for outfit in outfits], score)
    return compatibility_auc(means, np.array([outfit.compatible for outfit in outfits], dtype=np.bool_))


def _means(groups: Sequence[Sequence[tuple[str, str]]], score: PairScorer) -> Float64Array:
    """(groups,) the mean score of each group, which has a pair at least."""
    pairs = [pair for group in groups for pair in group]
    parts = [score(pairs[start : start + _PAIRS_AT_ONCE]) for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    if not parts:
        return np.zeros(0)
    sizes = np.array([len(group) for group in groups])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.asarray(np.add.reduceat(np.concatenate(parts).astype(np.float64), starts) / sizes)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                record = json.loads(text)
                if not isinstance(record, dict):
                    raise CatalogueError(path, line, f"is a JSON {type(record).__name__}, expected an object")
                yield line, record
    except (OSError, ValueError) as error:
        raise CatalogueError(path, None, f"cannot be read ({error}); write the catalogue again") from error


def _ids(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """The list of ids; none when it is something else."""
    values = record.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return ()
    return tuple(values)
