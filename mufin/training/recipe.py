"""The paper's four modules as functions, called in order by ``train``.

Knows no files but the run folder's; what a module is made of stands in model, losses, mining, shortlist.
Source: the authors' release, with the differences of docs/network.md.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mufin.catalogue import Catalogue, ensure_validation
from mufin.errors import CheckpointError
from mufin.inputs import FloatArray, Int64Array, TitleTokenizer
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import (
    RunFacts,
    TrainState,
    add_adapters,
    finished_metrics,
    has_adapters,
    load_state,
    save_run,
)
from mufin.training.config import RankerConfig, SiameseConfig, TrainConfig
from mufin.training.curves import CURVES_FILE, draw_curves
from mufin.training.disk import allocate, atomic_write
from mufin.training.encode import embed_items
from mufin.training.folds import Folds, Titles, train_folds
from mufin.training.item_arrays import prepare
from mufin.training.label_vectors import ItemEmbedder, label_means
from mufin.training.loop import METRICS_FILE, Group, Module, Session, generator, run_module
from mufin.training.memory import out_of_memory_explained
from mufin.training.mining import balanced_clusters, clustered_batches, random_batches
from mufin.training.model import BagAttention, ItemEncoder, Mufin
from mufin.training.preparation import (
    TrainingData,
    new_network,
    require_scorable,
    run_facts,
    run_identity,
    tokenizer_json_of,
    training_data,
)
from mufin.training.progress import Reporter
from mufin.training.ranker_step import ranker_groups, ranker_loss
from mufin.training.refit import refitted, train_refit
from mufin.training.run_folder import claimed, remove_scratch, tidy
from mufin.training.score_fitting import fit_scores
from mufin.training.siamese_step import siamese_loss
from mufin.training.stored_features import fit_words, frozen_features, with_frozen_backbones, with_stored_features
from mufin.training.validation import evaluate_full, evaluate_shortlist, search_now
from mufin.training.workers import Workers

_SHORTLISTS_AT_ONCE = 65_536
MODULES = ("siamese", "frozen_ranker", "ranker")


def train(
    catalogue: Catalogue, config: TrainConfig, folder: Path, reporter: Reporter, workers: Workers | None = None,
    device: torch.device | None = None, shared: Path | None = None, scored: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train MUFIN on a catalogue into ``folder``, or go on where a killed run stopped. Returns the final metrics.

    ``shared``: a folder that keeps what frozen encoders say of titles and images, for other trainings; by default it is
    the run's own and goes when it is finished. ``scored=False``: no scores are fitted and nothing is evaluated; for the
    networks that teach a combination, whose metrics are empty. Raises CheckpointError for a folder that holds something
    else than this run, or that another training is at work in; CatalogueError where nothing could be scored.
    """
    workers = workers or Workers()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalogue = ensure_validation(catalogue, config.validation_fraction, config.seed)
    if scored:
        require_scorable(catalogue)
    facts = run_facts(catalogue)
    identity = run_identity(config, facts)
    finished = finished_metrics(folder, identity)
    if finished is None:
        with claimed(folder, workers):
            finished = finished_metrics(folder, identity)  # another training may have ended in between
            if finished is None:
                return _train_claimed(
                    catalogue, config, folder, reporter, workers, device, shared, scored, facts, identity
                )
    reporter.say(f"{folder} is finished already")
    tidy(folder, workers, scored)
    return finished


def _train_claimed(
    catalogue: Catalogue, config: TrainConfig, folder: Path, reporter: Reporter, workers: Workers,
    device: torch.device, shared: Path | None, scored: bool, facts: RunFacts, identity: str,
) -> dict[str, Any]:  # fmt: skip
    """``train`` in a folder that is its own, of a catalogue with its validation split."""
    kept = shared or folder / "cache" / "shared"

    def train_beside(part: Catalogue, own: TrainConfig, to: Path) -> dict[str, Any]:
        return train(part, own, to, reporter, workers, device, kept, scored=False)

    if config.combination.folds:
        train_folds(catalogue, config, folder, train_beside, reporter.say)
    if config.refit == "network":
        reporter.say("network of training and validation products, to be kept in the end")
        train_refit(catalogue, config, folder, train_beside)
    if config.combination.folds or config.refit == "network":
        reporter.say("network of all training products")
    resumed = load_state(folder, identity)
    workers.wait()  # nobody writes before all have read
    # Gathers with repeated rows add their gradients in any order otherwise: runs would differ in the last bit.
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.manual_seed(config.seed)
    with out_of_memory_explained(
        "mufin-train", "Lower the batch sizes (encode_batch_size, too), or the number of images"
    ):
        tokenizer_json = tokenizer_json_of(catalogue, config)
        tokenizer = TitleTokenizer(tokenizer_json, config.inputs.max_title_tokens)
        cache = folder / "cache" / str(workers.rank)
        kept = kept if workers.is_main else folder / "cache" / f"own-{workers.rank}"
        products, labels = prepare(catalogue, config.inputs, tokenizer, cache, reporter.step, kept)
        data = training_data(catalogue, products, labels)
        model = new_network(config, tokenizer, len(catalogue.labels)).to(device)
        session = Session(config, model, device, folder, reporter, workers, identity, scored)
        _begin(session, data, facts, cache, resumed)
        data = with_frozen_backbones(session, data, cache, kept)
        _train_modules(session, data, cache, resumed)
        folds = _folds(session, catalogue, tokenizer, cache, kept) if config.combination.folds else None
        metrics = finish(session, data, tokenizer_json, facts, cache, folds)
    workers.wait()
    if workers.is_main:
        remove_scratch(folder)
        if scored:  # when all is safe: a picture that cannot be drawn must not cost a training
            draw_curves(folder / METRICS_FILE, folder / CURVES_FILE)
    return metrics


def _folds(session: Session, catalogue: Catalogue, tokenizer: TitleTokenizer, cache: Path, kept: Path) -> Folds:
    """What the combination's lessons are made of; ``kept``: what frozen encoders say, shared with other trainings."""
    config = session.config

    def prepared(part: Catalogue, network: Mufin, name: str) -> TrainingData:
        to = cache / name
        found = prepare(part, config.inputs, tokenizer, to, session.reporter.step, kept)
        return training_data(part, *frozen_features(network.encoder, config, *found, session.device, to, kept))

    return Folds(catalogue, Titles.of(catalogue, config), prepared)


def _begin(session: Session, data: TrainingData, facts: RunFacts, cache: Path, resumed: TrainState | None) -> None:
    """A clean run folder and word vectors, or everything as the killed run had it."""
    if session.workers.count > 1 and any(isinstance(m, _BatchNorm) for m in session.model.modules()):
        session.reporter.say(
            "batch norm takes the statistics of each process's own share of a batch (docs/training.md)"
        )
    if resumed is not None:
        _restore(session, resumed)
        session.reporter.say(
            f"resuming {session.folder} in {resumed.module}, epoch {resumed.epoch + 1}, step {resumed.step + 1}"
        )
        return
    for stale in cache.glob("shortlists-*"):
        stale.unlink()
    if session.workers.is_main:
        (session.folder / METRICS_FILE).unlink(missing_ok=True)
    session.log(config=session.config.to_json(), facts=asdict(facts), processes=session.workers.count)
    fit_words(session, data)


def _train_modules(session: Session, data: TrainingData, cache: Path, resumed: TrainState | None) -> None:
    """From the first one, or from where the killed run stood."""
    config = session.config
    for module in MODULES[MODULES.index(resumed.module) if resumed is not None else 0 :]:
        here = resumed if resumed is not None and resumed.module == module else None
        if module == "siamese":
            train_siamese(session, data, here)
        else:
            settings = config.frozen_ranker if module == "frozen_ranker" else config.ranker
            train_ranker(session, data, settings, module, cache, here)


def train_siamese(session: Session, data: TrainingData, resumed: TrainState | None) -> None:
    """Module 1: products near their labels, negatives from the batch, batches from clusters."""
    config, settings, model = session.config, session.config.siamese, session.model

    def batches(epoch: int) -> list[Int64Array]:
        random = generator(config.seed, "siamese-batches", epoch)
        if epoch < settings.random_epochs:
            return random_batches(len(data.train_rows), settings.batch_size, random)
        due = (epoch - settings.random_epochs) % settings.recluster_epochs == 0
        mid_epoch = resumed is not None and resumed.epoch == epoch and resumed.step > 0
        if not session.clusters or (due and not mid_epoch):
            began = time.monotonic()
            _recluster(session, data, random)
            session.spend("cluster", began)
        return clustered_batches(session.clusters, settings.batch_size, generator(config.seed, "siamese-order", epoch))

    def loss(rows: Int64Array, random: np.random.Generator) -> Tensor:
        return siamese_loss(session, data, rows, random)

    groups = siamese_groups(model.encoder, settings)
    if settings.classifier_weight:
        own = list(model.classifiers.parameters())
        groups.append(Group(own, settings.classifier_learning_rate, 0.0, config.sparse_classifiers))
    module = Module(
        "siamese", settings.epochs, settings.accumulation, settings.warmup_epochs, groups, batches, loss,
        lambda epoch: evaluate_shortlist(session, data, epoch, settings.epochs),
    )  # fmt: skip
    model.train()
    run_module(session, module, resumed)
    session.clusters, session.positives = [], []


def siamese_groups(encoder: ItemEncoder, settings: SiameseConfig) -> list[Group]:
    """What is trained of the encoder; pretrained layers at a rate of their own where one is set."""
    pretrained = {id(p) for part in (encoder.text, encoder.image) for p in part.backbone.parameters()}
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if settings.backbone_learning_rate is None:
        return [Group(trained, settings.learning_rate, settings.weight_decay)]
    rates = (settings.learning_rate, settings.backbone_learning_rate)
    parts = [[p for p in trained if (id(p) in pretrained) == inside] for inside in (False, True)]
    return [Group(part, rate, settings.weight_decay) for part, rate in zip(parts, rates, strict=True) if part]


def _recluster(session: Session, data: TrainingData, random: np.random.Generator) -> None:
    settings, config = session.config.siamese, session.config
    encoder, size, device = session.model.encoder, config.encode_batch_size, session.device
    pooled = embed_items(encoder, data.products, data.train_rows, size, device, unit_length=False)
    vectors = torch.from_numpy(pooled).to(device)
    clusters = balanced_clusters(vectors, settings.cluster_size, random)
    session.clusters = [c.numpy() for c in session.workers.same([torch.from_numpy(c) for c in clusters])]
    if settings.hard_positives:
        labels = embed_items(encoder, data.labels, None, size, device)
        products = torch.nn.functional.normalize(vectors, dim=1).cpu()
        session.positives = session.workers.same([products, torch.from_numpy(labels)])


def train_ranker(
    session: Session, data: TrainingData, settings: RankerConfig, name: str, cache: Path, resumed: TrainState | None
) -> None:
    """Modules 2 to 4: shortlists, (for the frozen ranker) stored features, cross-attention and classifiers.

    Label embeddings start the classifiers once, in the first ranker that runs.
    """
    if settings.epochs == 0:
        return
    config, model, frozen = session.config, session.model, name == "frozen_ranker"
    every = settings.reshortlist_epochs
    start = 0 if resumed is None else resumed.epoch
    made = start - start % every if every else 0
    if frozen and start > 0:
        data = _stored(session, data, cache)
    # The first shortlists come from the encoder as module 1 left it, before adapters change it (module 2).
    fresh = resumed is None or (resumed.step == 0 and start == made and start > 0)
    if start < settings.epochs:
        shortlists = _shortlists(session, data, cache / f"shortlists-{name}-{made}.npy", may_compute=fresh)
    else:
        shortlists = np.zeros((0, 0), dtype=np.int64)  # the module is done: resumed behind its last epoch
    session.workers.same_buffers(model)
    if resumed is None and not has_adapters(model) and (frozen or config.frozen_ranker.epochs == 0):
        _begin_ranking(session, data, frozen)
    if frozen and start == 0:
        data = _stored(session, data, cache)

    def batches(epoch: int) -> list[Int64Array]:
        nonlocal shortlists, made
        if every and epoch % every == 0 and epoch != made:
            shortlists = _shortlists(session, data, cache / f"shortlists-{name}-{epoch}.npy", may_compute=True)
            # The checkpoint already stands behind the epoch that used the old ones.
            (cache / f"shortlists-{name}-{made}.npy").unlink(missing_ok=True)
            made = epoch
        return random_batches(len(data.train_rows), settings.batch_size, generator(config.seed, name, epoch))

    def loss(rows: Int64Array, random: np.random.Generator) -> Tensor:
        return ranker_loss(session, data, settings, shortlists, rows, random)

    module = Module(
        name, settings.epochs, settings.accumulation, settings.warmup_epochs, ranker_groups(session, settings, frozen),
        batches, loss, lambda epoch: evaluate_full(session, data, cache / "bags.npy", epoch, settings.epochs),
        needs_every_checkpoint=every > 0,
    )  # fmt: skip
    model.train()
    run_module(session, module, resumed)


def _stored(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Module 3, its time booked."""
    began = time.monotonic()
    data = with_stored_features(session, data, cache)
    session.spend("features", began)
    return data


def _begin_ranking(session: Session, data: TrainingData, frozen: bool) -> None:
    """Classifiers from label embeddings (Q6), self-attention carried or afresh (Q3), adapters for frozen features."""
    config, model = session.config, session.model
    torch.manual_seed((config.seed + 4) % 2**64)
    if not config.carry_self_attention and model.encoder.self_attention is not None:
        model.encoder.self_attention = BagAttention(config.network).to(session.device)
    if frozen:
        add_adapters(model, config.network.dropout, config.network.spectral_norm)
    if config.classifier_init == "labels":
        labels = embed_items(model.encoder, data.labels, None, config.encode_batch_size, session.device)
        with torch.no_grad():
            model.classifiers.free.weight.copy_(torch.from_numpy(labels))


def _shortlists(session: Session, data: TrainingData, path: Path, may_compute: bool) -> Int64Array:
    """Module 2: (train products, K) labels best first, padded -1, as a memory map of int32 at ``path``.

    Kept on disk so that a resumed run has the same. Raises CheckpointError when they are gone and the encoder that
    made them has moved on.
    """
    config, encoder, device = session.config, session.model.encoder, session.device
    began = time.monotonic()
    if not session.workers.all_agree(path.is_file()):
        if not may_compute:
            raise CheckpointError(f"{path} is gone, and cannot be made again in mid-training: train into a new folder")
        search = search_now(session, data)
        shape = (len(data.train_rows), min(config.shortlist.size, len(data.labels)))

        def write(target: Path) -> None:
            stored = allocate(target, np.int32, shape)
            for start in range(0, shape[0], _SHORTLISTS_AT_ONCE):
                block = slice(start, start + _SHORTLISTS_AT_ONCE)
                rows = data.train_rows[block]
                queries = embed_items(encoder, data.products, rows, config.encode_batch_size, device)
                found, _ = search.search(queries, shape[1])
                stored[block] = session.workers.same([torch.from_numpy(found.astype(np.int32))])[0].numpy()
            stored.flush()

        atomic_write(path, write)
    session.spend("shortlist", began)
    shortlists: Int64Array = np.load(path, mmap_mode="r")
    return shortlists


def finish(
    session: Session, data: TrainingData, tokenizer_json: str, facts: RunFacts, cache: Path, folds: Folds | None
) -> dict[str, Any]:
    """Re-index with the final encoder, choose fusion and calibration on validation, save the run.

    ``folds``: those that were trained; a combination is learned from them.
    """
    if not session.scored:
        means = _label_means(session, data)
        if session.workers.is_main:
            spec = ScoreSpec(shortlist_size=session.config.shortlist.size)
            save_run(
                session.folder, session.model, session.config, spec, tokenizer_json, facts, {}, session.identity,
                label_means=means,
            )  # fmt: skip
        return {}
    fitted = fit_scores(session, data, cache / "bags.npy", folds=folds)
    combined, learned, model, means = None, fitted.combiner, session.model, None
    if session.config.refit != "none":
        model, means, learned = refitted(session, learned, folds, cache / "bags.npy")
    if means is None:
        means = _label_means(session, data)
    if learned is not None and learned.combination is not None:
        combined = learned.evidence, learned.combination
    rows = {name: fitted.metrics[name] for name in ("shortlist", "classifier", "full")}
    session.log(
        module="finish", fusion_weight=fitted.spec.fusion_weight, fusion_curve=fitted.fusion_curve, metrics=rows,
        calibration=fitted.metrics["calibration"], combination=fitted.metrics.get("combination"),
    )  # fmt: skip
    if session.workers.is_main:
        save_run(
            session.folder, model, session.config, fitted.spec, tokenizer_json, facts, fitted.metrics,
            session.identity, combined, means,
        )  # fmt: skip
    return fitted.metrics


def _label_means(session: Session, data: TrainingData) -> FloatArray | None:
    """What prototypes need; None where labels are found by their embeddings alone. Of every worker, for none waits long."""
    if not session.config.shortlist.prototype_weight:
        return None
    embed = ItemEmbedder(session.model.encoder, session.config.encode_batch_size, session.device)
    return label_means(embed, data.taught)


def _restore(session: Session, state: TrainState) -> None:
    """Put a resume state into the network and cut the metrics file back to it."""
    config, model = session.config, session.model
    if state.adapters:
        add_adapters(model, config.network.dropout, config.network.spectral_norm)
    model.load_state_dict(state.model, strict=True)
    session.clusters = [c.numpy() for c in state.clusters]
    session.positives = state.positives
    metrics = session.folder / METRICS_FILE
    if session.workers.is_main and metrics.exists():
        with metrics.open("r+b") as handle:
            handle.truncate(min(state.metrics_bytes, metrics.stat().st_size))
