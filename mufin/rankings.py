"""The labels a bundle or a run ranks for the products of a catalogue's split.

Knows no metric. torch is imported only for a run; a bundle goes through ``mufin.predictor``, as in the service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mufin.catalogue import Catalogue, ImageReader, Item, ensure_validation, forbidden_pairs
from mufin.errors import BundleError, CatalogueError, CheckpointError, ImageError, MufinError
from mufin.image_source import is_url
from mufin.inputs import FloatArray, Int64Array, Uint8Array, decode_image
from mufin.metrics import DEPTH, order_by_score
from mufin.predictor import Predictor, Ranking, open_predictor
from mufin.relevance import Relevance

RANKINGS = ("shortlist", "classifier", "fused")
_READERS = 8
_DESCRIBED_AT_ONCE = 8192
_SHOWN_IDS = 3

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, of how many."""


@dataclass(frozen=True, slots=True, eq=False)
class SplitRankings:
    """Rankings of a split's products, in the split's order: each name of ``RANKINGS`` -> (N, <= DEPTH) padded -1."""

    allowed: dict[str, Int64Array]
    """exclude pairs never ranked, as in production"""
    unfiltered: dict[str, Int64Array] | None
    """exclude pairs ranked like any other; None when not asked for"""


@dataclass(frozen=True, slots=True)
class Cut:
    """How training cuts a validation split from a catalogue that has none."""

    fraction: float
    seed: int


class Subject(Protocol):
    """What is evaluated."""

    kind: str
    path: Path
    identity: str
    """bundle_id; empty for a run"""

    def validation_cut(self) -> Cut:
        """The cut that its training made, or would have made."""

    def cut_as_trained(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with that cut. Raises MufinError where it is known to be another than the one of training."""

    def trained_on_validation(self) -> bool:
        """Whether it learned from the validation split in the end (``refit``)."""

    def rank(self, catalogue: Catalogue, split: str, unfiltered: bool, progress: Progress) -> SplitRankings:
        """Rank the split's products."""


def open_subject(path: Path, batch_size: int = 32, threads: int = 1) -> Subject:
    """A bundle or a run, told apart by its files. Raises MufinError for neither."""
    if (path / "manifest.json").is_file():
        return BundleSubject(path, batch_size, threads)
    if (path / "model" / "run.json").is_file():
        return RunSubject(path)
    if (path / "config.json").is_file() or (path / "metrics.jsonl").is_file():
        raise CheckpointError(
            f"{path}: has no model/run.json, so the run is not finished: run mufin-train again to resume"
        )
    raise MufinError(f"{path}: holds neither manifest.json (a bundle) nor model/run.json (a finished run)")


class RunSubject:
    """A finished run, ranked with torch."""

    kind = "run"
    identity = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    def validation_cut(self) -> Cut:
        """From the run's config."""
        place = self.path / "model" / "run.json"
        try:
            return _cut(json.loads(place.read_bytes())["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{place}: cannot be read ({error}): run mufin-train again") from error

    def cut_as_trained(self, catalogue: Catalogue) -> Catalogue:
        """Compared by the hash of the catalogue that the run keeps."""
        from mufin.training.preparation import cut_as_trained

        cut, place = self.validation_cut(), self.path / "model" / "run.json"
        try:
            trained = str(json.loads(place.read_bytes())["facts"]["content_sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{place}: cannot be read ({error}): run mufin-train again") from error
        return cut_as_trained(catalogue, cut.fraction, cut.seed, trained, self.path)

    def trained_on_validation(self) -> bool:
        """From the run's config."""
        try:
            return bool(
                json.loads((self.path / "model" / "run.json").read_bytes())["config"].get("refit", "none") != "none"
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path}: model/run.json cannot be read ({error}): run mufin-train again"
            ) from error

    def rank(self, catalogue: Catalogue, split: str, unfiltered: bool, progress: Progress) -> SplitRankings:
        """Encodes everything; a second time for ``unfiltered``."""
        from mufin.training.split_ranking import rank_split

        if "train" not in catalogue.splits:
            raise CatalogueError(
                catalogue.folder / "train.csv", None, "is missing; a run searches frequent labels apart, so it needs it"
            )
        cut = self.validation_cut()
        catalogue = ensure_validation(catalogue, cut.fraction, cut.seed)
        found = _named(rank_split(self.path, catalogue, split).rows)
        if not unfiltered or len(catalogue.exclude.indices) == 0:
            return SplitRankings(found, found if unfiltered else None)
        none = np.zeros(0, dtype=np.int64)
        open_catalogue = replace(
            catalogue, exclude=Relevance.from_pairs(none, none, len(catalogue.products), len(catalogue.labels))
        )
        return SplitRankings(found, _named(rank_split(self.path, open_catalogue, split).rows))


def _named(rows: dict[str, Int64Array]) -> dict[str, Int64Array]:
    """Training calls the fused ranking full."""
    return {name: rows["full" if name == "fused" else name][:, :DEPTH] for name in RANKINGS}


def _cut(config: dict[str, Any]) -> Cut:
    return Cut(float(config["validation_fraction"]), int(config["seed"]))


class BundleSubject:
    """A bundle, ranked as the service does."""

    kind = "bundle"

    def __init__(self, path: Path, batch_size: int, threads: int) -> None:
        self.path = path
        self._batch_size = batch_size
        self._predictor = open_predictor(path, intra_op_threads=threads)
        self.identity = self._predictor.bundle_id

    def validation_cut(self) -> Cut:
        """From the config in the manifest's provenance."""
        try:
            provenance = json.loads((self.path / "manifest.json").read_bytes())["provenance"]
            if any("removed" in update for update in provenance.get("updates", ())):
                raise BundleError(
                    f"{self.path}: labels were removed since training, and a catalogue without them is cut otherwise, so "
                    "training products would be scored: write the valid.csv that training cut, or score --split test"
                )
            return _cut(provenance["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{self.path}: does not say how its validation split was cut: write valid.csv, or evaluate the run"
            ) from error

    def cut_as_trained(self, catalogue: Catalogue) -> Catalogue:
        """Cut again from the catalogue as it is: a manifest keeps no hash of what it was cut from."""
        cut = self.validation_cut()
        return ensure_validation(catalogue, cut.fraction, cut.seed)

    def trained_on_validation(self) -> bool:
        """From the config in the manifest's provenance; a bundle without one, of the authors' checkpoints, was not."""
        provenance = json.loads((self.path / "manifest.json").read_bytes()).get("provenance", {})
        return bool(provenance.get("config", {}).get("refit", "none") != "none")

    def rank(self, catalogue: Catalogue, split: str, unfiltered: bool, progress: Progress) -> SplitRankings:
        """Encodes each product once, whatever is asked for."""
        to_bundle = match_labels(self._predictor, catalogue, self.path)
        to_catalogue = np.full(self._predictor.labels.size, -1, dtype=np.int64)  # removed labels are never ranked
        to_catalogue[to_bundle] = np.arange(len(to_bundle))
        rows = catalogue.splits[split].products
        views = [forbidden_pairs(catalogue)] + ([forbidden_pairs(catalogue, with_exclude=False)] if unfiltered else [])
        found = [{name: np.full((len(rows), DEPTH), -1, dtype=np.int64) for name in RANKINGS} for _ in views]
        k = max(DEPTH, self._predictor.score_spec.shortlist_size)
        done = 0
        with ImageReader(catalogue.folder) as reader:
            for items, pixels in self._batches([catalogue.products[row] for row in rows], reader):
                bags = self._predictor.embed([item.title for item in items], pixels)
                batch = slice(done, done + len(items))
                for view, target in zip(views, found, strict=True):
                    dropped = [np.sort(to_bundle[view.row(row)]) for row in rows[batch]]
                    # All candidates, not the best k of them: the shortlist's and the classifier's own order is wanted, too.
                    shortlists = self._predictor.shortlist_without(bags, k, excluded=dropped)
                    scores = self._predictor.rerank(bags, shortlists)
                    for place, own in enumerate(zip(bags, shortlists, scores, strict=True), start=done):
                        ranking = self._predictor.fuse(*own, len(own[1].labels))
                        _place(target, place, ranking, to_catalogue)
                done += len(items)
                progress(f"ranking {split}", done, len(rows))
        return SplitRankings(found[0], found[1] if unfiltered else None)

    def _batches(self, items: Sequence[Item], reader: ImageReader) -> Iterator[tuple[Sequence[Item], list[Uint8Array]]]:
        """Batches with their pixels; the next batch is decoded while this one is encoded."""
        spec, size = self._predictor.input_spec, self._batch_size

        def read(item: Item) -> Uint8Array:
            return _pixels(item, reader, spec.image_side_pixels, spec.max_images)

        with _pool() as pool:
            waiting: list[Future[Uint8Array]] = [pool.submit(read, item) for item in items[:size]]
            for start in range(0, len(items), size):
                current = waiting
                waiting = [pool.submit(read, item) for item in items[start + size : start + 2 * size]]
                yield items[start : start + size], [future.result() for future in current]


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what still waits when its user ends early."""
    pool = ThreadPoolExecutor(_READERS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pixels(item: Item, reader: ImageReader, side_pixels: int, most: int) -> Uint8Array:
    """(I, side, side, 3). A broken image ends the evaluation, as it ends training: figures must not depend on it."""
    decoded = []
    for image in item.images[:most]:
        try:
            decoded.append(decode_image(reader.read(image), side_pixels))
        except ImageError as error:
            if is_url(image):  # as a path its slashes would be lost
                reason = f"image {image} of {item.id!r}: {error}; replace or remove the image"
                raise CatalogueError(reader.folder, None, reason) from error
            raise CatalogueError(reader.folder / image, None, f"{error}; replace or remove the image") from error
    return np.stack(decoded) if decoded else np.zeros((0, side_pixels, side_pixels, 3), dtype=np.uint8)


def _place(target: dict[str, Int64Array], row: int, ranking: Ranking, to_catalogue: Int64Array) -> None:
    """One product's three orders of the same shortlist, in the catalogue's label indices."""
    labels = to_catalogue[ranking.labels]
    by: dict[str, FloatArray] = {
        "shortlist": ranking.shortlist_scores, "classifier": ranking.classifier_scores, "fused": ranking.scores,
    }  # fmt: skip
    for name, scores in by.items():
        best = order_by_score(scores[None], labels[None])[0, :DEPTH]
        target[name][row, : len(best)] = best


def match_labels(predictor: Predictor, catalogue: Catalogue, path: Path) -> Int64Array:
    """(L,) the bundle's index of each of the catalogue's labels, by id; a removed label is none of the bundle's.

    Raises BundleError unless all match.
    """
    labels = predictor.labels
    removed = labels.removed(np.arange(labels.size))
    found = [labels.index_of(label.id) for label in catalogue.labels]
    missing = [label.id for label, index in zip(catalogue.labels, found, strict=True) if index is None]
    size = labels.size - int(removed.sum())
    if not missing and size == len(found):
        return np.asarray(found, dtype=np.int64)
    known, kept = {label.id for label in catalogue.labels}, np.flatnonzero(~removed)
    blocks = (kept[start : start + _DESCRIBED_AT_ONCE] for start in range(0, size, _DESCRIBED_AT_ONCE))
    surplus = [label.id for block in blocks for label in labels.describe(block) if label.id not in known]
    gone = f" beside {labels.size - size} removed ones, which a catalogue must not have" if removed.any() else ""
    raise BundleError(
        f"{path}: bundle has {size} labels{gone}, {catalogue.folder} has {len(found)}; {_some(missing)} of the catalogue "
        f"are not in the bundle, {_some(surplus)} of the bundle not in the catalogue: name the catalogue that the bundle "
        "was made from, with labels added and removed as in the bundle, or run mufin-train and mufin-export again"
    )


def _some(ids: Sequence[str]) -> str:
    if not ids:
        return "0"
    shown = ", ".join(repr(i) for i in ids[:_SHOWN_IDS])
    return f"{len(ids)} ({shown}{', ...' if len(ids) > _SHOWN_IDS else ''})"
