"""Ranking a split with a finished run: the figures of a run.

A bundle's figures come from ``mufin.predictor`` instead; the two are compared by the export.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mufin.catalogue import Catalogue, forbidden_pairs
from mufin.inputs import TitleTokenizer
from mufin.training.checkpoint import load_run
from mufin.training.combining import Combiner, combined_candidates, title_sentences
from mufin.training.encode import encode_items
from mufin.training.evaluation import RankedSplit, check_labels, encode_labels, rank_candidates, score_candidates
from mufin.training.item_arrays import prepare
from mufin.training.label_vectors import TaughtBy
from mufin.training.progress import Reporter
from mufin.training.stored_features import frozen_features


def rank_split(
    run_path: Path, catalogue: Catalogue, split: str, shortlist_size: int | None = None, *, combine: bool = True,
    shared: Path | None = None,
) -> RankedSplit:  # fmt: skip
    """Rank a catalogue's split with a finished run. Raises CheckpointError when the labels are others.

    ``combine=False``: fuse the network's two scores even where the run has a combination. ``shared``: as in ``train``.
    """
    run = load_run(run_path)
    check_labels(run, catalogue)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.model.to(device)
    tokenizer = TitleTokenizer(run.tokenizer_json, run.input_spec.max_title_tokens)
    rows = catalogue.splits[split].products
    with TemporaryDirectory() as folder, Reporter() as reporter:
        kept = shared or Path(folder)
        products, labels = prepare(catalogue, run.input_spec, tokenizer, Path(folder), reporter.step, kept)
        encoder = run.model.encoder
        products, labels = frozen_features(encoder, run.config, products, labels, device, Path(folder), kept)
        train = catalogue.splits["train"]
        taught = TaughtBy(products, train.products, train.relevance)
        size = run.config.encode_batch_size
        bags = Path(folder) / "bags.npy"
        encoded = encode_labels(run.model, labels, taught, run.config.shortlist, size, device, bags, run.label_means)
        queries = encode_items(run.model.encoder, products, rows, size, device)
        forbidden = forbidden_pairs(catalogue).select(rows)
        wanted = shortlist_size or run.score_spec.shortlist_size
        if run.evidence is None or not combine:
            candidates = score_candidates(run.model, queries, encoded, forbidden, wanted, device)
        else:
            words = run.evidence.words.rows([item.title for item in catalogue.products])
            sentences = title_sentences(run.model.encoder, products, size, device, Path(folder) / "sentences.npy")
            combiner = Combiner(run.evidence, words, sentences, run.combination)
            pictured = np.diff(products.image_offsets)[rows] > 0
            candidates = combined_candidates(
                run.model, queries, rows, products.has_title[rows], pictured, encoded, forbidden, wanted, device,
                combiner,
            ).candidates  # fmt: skip
    return rank_candidates(candidates, rows, run.score_spec)
