"""MUFIN, its ablations and the plain baselines on the same products: one table a catalogue (make bench-accuracy).

    python -m bench.accuracy [--catalogues NAME ...] [--seeds 3] [--encoder FOLDER] [--pecos PYTHON] [--out FILE]
                             [--work FOLDER] [--processes N] [--fine-tune LAYERS] [--options] [--smoke]

Catalogues: the built-in shop's two, and those of MUFIN_DATA_DIR (default ../shared/data), which are left out with the
reason where they are absent. MUFIN is trained by the recommended recipe (mufin-train --config auto); ikea is scored by
5-fold cross-validation over its products, a seed a fold, the others with ``--seeds`` seeds. What frozen encoders say is
computed once and shared by every training; ``--fine-tune`` trains the title encoder's last layers, too. Settings of the
baselines are chosen on training products. ``--options`` adds what the recipe leaves out, a row each. Every row is compared with the full model in pairs, product by product.
``--work`` keeps every training's figures: a run that was interrupted, or has more seeds, computes only what is missing.
``--processes`` trainings run side by side, one thread each: steps this small gain little from a second thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy_features import keep_features
from bench.accuracy_kept import Rows, kept
from bench.accuracy_parts import SCORED, Part, average, concatenated, parts_of, without_images, without_titles
from bench.plain_baselines import FIGURES, choose, encoded_titles, problem
from mufin.catalogue import Catalogue, forbidden_pairs, read_catalogue
from mufin.datasets.shop import build_shop
from mufin.inputs import Int64Array
from mufin.metrics import RowScores, remove_from_relevance, score_rows
from mufin.significance import Bootstrap, compare, intervals
from mufin.training.auto import installed_sentence_encoder, recommend
from mufin.training.config import TrainConfig
from mufin.training.config_reading import build_config
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.refit import with_validation
from mufin.training.split_ranking import rank_split

REAL = ("ikea", "myntra_queries", "amazon_intents", "amazon_sessions")
FOLDED = {"ikea": 5}
"""260 validation products alone have a standard error of 2.8 points."""
FULL = "full MUFIN"
_SMOKE = ("siamese.epochs=1", "siamese.random_epochs=1", "frozen_ranker.epochs=1", "combination.folds=2")
_PLAIN = "combination.folds=0"


@dataclass(frozen=True)
class Variant:
    """A training of its own, and the rows that are read off it."""

    rows: tuple[tuple[str, str], ...]
    """(ranking, name of the row); ranking ``fusion``: the network's two scores without the combination"""
    changes: tuple[str, ...] = ()
    titles: bool = True
    images: bool = True


OPTIONS = (
    ("with label-to-product loss", "siamese.label_to_product_weight=1"),
    ("distilled into its shortlist", "frozen_ranker.distillation_weight=1"),
    ("margin loss in module 1", "siamese.loss=margin", "siamese.label_negatives=0"),
    ("cosine loss in module 4", "frozen_ranker.loss=cosine"),
    ("classifiers from label embeddings", "siamese.classifier_weight=0", "classifier_init=labels"),
    ("classifiers from random", "siamese.classifier_weight=0", "classifier_init=random"),
    ("negatives of the batch alone", "siamese.label_negatives=0"),
    ("without word vectors", "network.word_vectors=0"),
    ("labels by prototypes", "shortlist.prototype_weight=0.5"),
    ("labels by two centroids of products, too", "shortlist.product_vectors=2"),
)
"""(what is other than in the recipe, its changes); to be compared with the row "network alone"."""
SINGLE_MODALITIES = ("labels by title and images alone, too", "shortlist.modality_vectors=true")
"""The same, where there are pictures."""
EARLY_FUSION = "network.early_fusion=true"
"""Where title encoders are trained and there are pictures: the full model with it, too."""
FULL_OPTIONS = (
    ("with tail calibration", "combination.tail_calibration=0.1"),
    ("compared by lists", "combination.exact_products=1"),
)
"""(what is other than in the recipe, its changes); to be compared with the full model."""


def variants(pictured: bool, options: bool = False, fine_tuned: bool = False) -> list[Variant]:
    """The full model, what is left when a part is taken out, and with ``options`` what the recipe leaves out.

    ``fine_tuned``: the title encoder is trained, too.
    """
    found = [
        Variant((("full", FULL), ("fusion", "network alone"), ("shortlist", "network without classifiers"))),
        Variant((("full", "network without cross-attention"),), (_PLAIN, "network.cross_attention=false")),
        Variant((("full", "network without self-attention"),), (_PLAIN, "network.self_attention=false")),
    ]
    if pictured:
        found.append(Variant((("full", "full, title only"), ("fusion", "network, title only")), images=False))
        changes = (_PLAIN, "network.word_vectors=0")
        found.append(Variant((("full", "network, image only"),), changes, titles=False))
    if not options:
        return found
    if pictured and fine_tuned:
        of = "with early fusion"
        fused = ("full", f"full, {of}"), ("fusion", f"network, {of}"), ("shortlist", f"network, {of}: shortlist")
        found.append(Variant(fused, (EARLY_FUSION,)))
    of_networks = (*OPTIONS, *([SINGLE_MODALITIES] if pictured else []))
    for name, *own in of_networks:
        rows = ("full", f"network, {name}"), ("shortlist", f"network, {name}: shortlist")
        found.append(Variant(rows, (_PLAIN, *own)))
    return found + [Variant((("full", f"full, {name}"),), tuple(own)) for name, *own in FULL_OPTIONS]


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    shared: Path
    """Where frozen encoders' features are kept"""
    encoder: str | None
    pecos: Path | None
    changes: tuple[str, ...]
    """Of every config"""
    work: Path | None
    """Where figures are kept"""

    def network_rows(self, name: str, part: Part, variant: Variant) -> Rows:
        """Train a variant on a part and score it."""
        own = part.catalogue
        own = own if variant.images else without_images(own)
        own = own if variant.titles else without_titles(own)
        changes = [f"seed={part.seed}", *self.changes, *variant.changes]
        recommended = recommend(own, self.encoder).values
        if _PLAIN in variant.changes and recommended.get("refit") == "evidence":
            changes.append("refit=none")  # without a combination there is no evidence
        values = build_config(recommended, changes)
        identity = {
            "catalogue": name, "part": part.number, "rows": variant.rows, "titles": variant.titles,
            "images": variant.images, "config": asdict(values),
        }  # fmt: skip
        return kept(self.work, identity, partial(self._trained_rows, variant, own, values))

    def _trained_rows(self, variant: Variant, own: Catalogue, config: TrainConfig) -> Iterator[tuple[str, RowScores]]:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            train(own, config, run, Reporter(quiet=True), shared=self.shared)
            ranked: dict[bool, dict[str, Int64Array]] = {}
            for ranking, row in variant.rows:
                name, combine = ("full", False) if ranking == "fusion" else (ranking, True)
                if combine not in ranked:
                    ranked[combine] = rank_split(run, own, SCORED, combine=combine, shared=self.shared).rows
                yield row, score_rows(ranked[combine][name], _right(own))
        print(f"  {variant.rows[0][1]}, seed {config.seed}: {time.monotonic() - began:.0f} s", flush=True)

    def baseline_rows(self, name: str, part: Part) -> Rows:
        """Every baseline on a part."""
        identity = {
            "catalogue": name, "part": part.number, "encoder": self.encoder is not None, "pecos": self.pecos is not None,
        }  # fmt: skip
        return kept(self.work, identity, partial(self._fitted_rows, part))

    def _fitted_rows(self, part: Part) -> Iterator[tuple[str, RowScores]]:
        """Every baseline, its settings chosen on a part of the training products and fitted to all of them.

        Training and validation products together, as the recommended recipe learns from both in the end.
        """
        began, catalogue = time.monotonic(), part.catalogue
        sentences = None if self.encoder is None else encoded_titles(catalogue, self.encoder, self.shared)
        train_split, scored = with_validation(catalogue).splits["train"], catalogue.splits[SCORED]
        posed = problem(
            catalogue, train_split.products, train_split.relevance, scored.products, scored.relevance, sentences
        )
        for baseline in choose(catalogue, 0, sentences, self.pecos):
            yield baseline.describe().split(" (")[0], score_rows(posed.ranking(baseline), posed.right)
        print(f"  baselines: {time.monotonic() - began:.0f} s", flush=True)


def side_by_side(processes: int) -> AbstractContextManager[Executor | None]:
    """Processes of one thread each; None for a single one, which takes the threads it likes."""
    if processes == 1:
        return nullcontext()
    # Read when a library is loaded: by the processes, which are started afresh.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    threading.Thread(target=_end_with_the_bench, daemon=True).start()


def _end_with_the_bench() -> None:
    """A bench that is killed would leave its processes training."""
    bench = multiprocessing.parent_process()
    assert bench is not None
    bench.join()
    os._exit(1)


def cell(bench: Bench, name: str, part: Part, variant: Variant | None) -> Rows:
    """Rows of a variant on a part; of the baselines where there is none."""
    return bench.baseline_rows(name, part) if variant is None else bench.network_rows(name, part, variant)


def measure(
    name: str, catalogue: Catalogue, bench: Bench, seeds: int, pool: Executor | None = None, options: bool = False
) -> dict[str, Any]:
    """Every row's figures with their intervals, spread over seeds, and paired differences of the full model."""
    folds = FOLDED.get(name, 0)
    parts = parts_of(catalogue, seeds, folds)
    pictured = any(item.images for item in catalogue.products)
    # A baseline knows no seed. The longest first: nothing long is left for one process alone at the end.
    plain: list[tuple[Part, Variant | None]] = [(part, None) for part in (parts if folds else parts[:1])]
    config = build_config(recommend(catalogue, bench.encoder).values, bench.changes)
    found_variants = variants(pictured, options, fine_tuned=config.text.trainable_layers != 0)
    trained = [(part, variant) for variant in found_variants for part in parts]
    tasks = [*plain, *sorted(trained, key=lambda task: _PLAIN in task[1].changes)]
    if pool is not None:
        keep_features(catalogue, config, bench.encoder, bench.shared)
    run = partial(cell, bench, name)
    found: dict[str, list[RowScores]] = {}
    for cell_rows in (pool.map if pool else map)(run, *zip(*tasks, strict=True)):
        for row, scores in cell_rows:
            found.setdefault(row, []).append(scores)
    joined = {row: (concatenated if folds else average)(scores) for row, scores in found.items()}
    rows = []
    for row, scores in joined.items():
        around, paired = intervals(scores, Bootstrap()), compare(joined[FULL], scores, Bootstrap())
        spread = [own.values() for own in found[row]]
        rows.append(
            {
                "row": row,
                **{f: {**asdict(around[f]), "sd": float(np.std([s[f] for s in spread]))} for f in FIGURES},
                "full_less_this": {f: asdict(paired[f]) for f in FIGURES},
            }
        )
    return {"catalogue": name, "parts": f"{folds} folds" if folds else f"{seeds} seeds", "rows": rows}


def _right(catalogue: Catalogue) -> Any:
    split = catalogue.splits[SCORED]
    return remove_from_relevance(split.relevance, forbidden_pairs(catalogue).select(split.products))


def table(found: dict[str, Any]) -> str:
    """As text: value ± spread over seeds (or folds), and how far the full model is ahead in P@1."""
    lines = [f"{found['catalogue']} ({found['parts']})"]
    width = max(len(row["row"]) for row in found["rows"])
    lines.append(f"  {'':<{width}}" + "".join(f"{name:>15}" for name in FIGURES) + "   full less this, P@1 [95 %]")
    for row in found["rows"]:
        cells = [f"{row[f]['value']:.3f} ± {row[f]['sd']:.3f}" for f in FIGURES]
        ahead = row["full_less_this"]["P@1"]
        last = "" if row["row"] == FULL else f"{ahead['difference']:+.3f} [{ahead['low']:+.3f}, {ahead['high']:+.3f}]"
        lines.append(f"  {row['row']:<{width}}" + "".join(f"{cell:>15}" for cell in cells) + f"   {last}")
    return "\n".join(lines)


def catalogues(names: Sequence[str], scratch: Path, smoke: bool) -> Iterator[tuple[str, Catalogue]]:
    """The built-in shop's and the real ones, by name; one that is absent is said and left out."""
    build_shop(scratch, 150 if smoke else 3000, 0)
    for name in ("products", "queries"):
        if name in names:
            yield f"shop, {name}", read_catalogue(scratch / name)
    home = Path(os.environ.get("MUFIN_DATA_DIR", "../shared/data"))
    for name in REAL:
        if name in names:
            if (home / name).is_dir():
                yield name, read_catalogue(home / name)
            else:
                print(f"{name}: left out, {home / name} is not there (MUFIN_DATA_DIR)")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every catalogue, print a table each, write the JSON after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    everything = ("products", "queries", *REAL)
    parser.add_argument("--catalogues", nargs="+", choices=everything, default=everything)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", default=installed_sentence_encoder(), help="pretrained title encoder; '': none")
    parser.add_argument("--pecos", type=Path, metavar="PYTHON", help="an interpreter that has libpecos")
    parser.add_argument(
        "--fine-tune", type=int, metavar="LAYERS", help="train so many layers of the title encoder, too"
    )
    parser.add_argument(
        "--options", action="store_true", help="add what the recipe leaves out, a training and two rows each"
    )
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep figures and features, to go on later")
    parser.add_argument(
        "--processes", type=_at_least_one, default=os.cpu_count() or 1, metavar="N",
        help="trainings side by side, a thread each (default: as many as there are cores)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a small shop, one epoch: whether it runs")
    options = parser.parse_args(arguments)
    changes: tuple[str, ...] = _SMOKE if options.smoke else ()
    if options.fine_tune:
        changes += (
            f"text.trainable_layers={options.fine_tune}", "siamese.backbone_learning_rate=2e-4",
            "text.gradient_checkpointing=true", "precision=bf16",
        )  # fmt: skip
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        work: Path | None = options.work
        features = (work or Path(scratch)) / "features"
        bench = Bench(features, options.encoder or None, options.pecos, changes, work and work / "figures")
        wanted = ("products",) if options.smoke else options.catalogues
        with side_by_side(options.processes) as pool:
            for name, catalogue in catalogues(wanted, Path(scratch) / "shop", options.smoke):
                began = time.monotonic()
                seeds = 1 if options.smoke else options.seeds
                found = measure(name, catalogue, bench, seeds, pool, options.options)
                found["seconds"] = round(time.monotonic() - began)
                results.append(found)
                print(table(found) + f"\n  in {found['seconds']} s", flush=True)
                if options.out:
                    values = {"encoder": bool(options.encoder), "processes": options.processes, "results": results}
                    options.out.write_text(json.dumps(values, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
