"""The paper's four modules as functions, called in order by ``train``.

Knows no files but the run folder's; what a module is made of stands in model, losses, mining, shortlist.
Source: mufin.md section 6, with the decisions of section 11.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mufin.catalogue import Catalogue, Relevance, ensure_validation
from mufin.errors import ConfigError
from mufin.inputs import Int64Array, TitleTokenizer
from mufin.scoring import ScoreSpec
from mufin.training.checkpoint import (
    RunFacts,
    TrainState,
    add_adapters,
    atomic_write,
    finished_metrics,
    has_adapters,
    hash_label_ids,
    load_state,
    save_run,
)
from mufin.training.config import RankerConfig, TrainConfig
from mufin.training.curves import draw_curves
from mufin.training.encode import encode_batch, encode_items, image_vectors, store_images, store_titles, title_vectors
from mufin.training.evaluation import (
    encode_labels,
    forbidden_pairs,
    rank_candidates,
    score_candidates,
)
from mufin.training.fusion import choose_fusion_weight, fit_calibration, relevant_at
from mufin.training.item_arrays import ItemArrays, prepare
from mufin.training.loop import METRICS_FILE, Group, Module, Session, generator, run_module
from mufin.training.losses import (
    cosine_embedding_loss,
    hardest_positive_margin_loss,
    multi_positive_softmax_loss,
    sampled_positives_margin_loss,
    scaled_bce_loss,
)
from mufin.training.mining import (
    balanced_clusters,
    clustered_batches,
    draw_candidates,
    draw_hard_labels,
    draw_labels,
    random_batches,
    relevance_block,
)
from mufin.training.model import BagAttention, Mufin, backbone_width, build_backbone, build_network
from mufin.training.progress import Reporter
from mufin.training.tokenizer import load_named_tokenizer, train_wordpiece
from mufin.training.workers import Workers

MODULES = ("siamese", "frozen_ranker", "ranker")
_VALIDATION_PRODUCTS = 5000
"""Mid-training evaluations use so many validation products at the most; the last one uses all."""


@dataclass(frozen=True)
class TrainingData:
    """A catalogue, ready to train on. Rows are those of Catalogue.products and Catalogue.labels."""

    products: ItemArrays
    labels: ItemArrays
    train_rows: Int64Array
    train: Relevance
    """(train products, L)"""
    valid_rows: Int64Array
    valid: Relevance
    forbidden: Relevance
    """(all products, L): never recommended, never a negative"""
    frequency: Int64Array
    """(L,) training products of each label"""


def train(
    catalogue: Catalogue, config: TrainConfig, folder: Path, reporter: Reporter, workers: Workers | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train MUFIN on a catalogue into ``folder``, or go on where a killed run stopped. Returns the final metrics."""
    workers = workers or Workers()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalogue = ensure_validation(catalogue, config.validation_fraction, config.seed)
    facts = _facts(catalogue)
    identity = _identity(config, facts)
    finished = finished_metrics(folder, identity)
    if finished is not None:
        reporter.say(f"{folder} is finished already")
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    resumed = load_state(folder, identity)
    # Gathers with repeated rows add their gradients in any order otherwise: runs would differ in the last bit.
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.manual_seed(config.seed)
    tokenizer_json = _tokenizer(catalogue, config)
    tokenizer = TitleTokenizer(tokenizer_json, config.inputs.max_title_tokens)
    cache = folder / "cache" / str(workers.rank)
    products, labels = prepare(catalogue, config.inputs, tokenizer, cache, reporter.step)
    data = _data(catalogue, products, labels)
    model = _network(config, tokenizer, len(catalogue.labels)).to(device)
    session = Session(config, model, device, folder, reporter, workers, identity)
    if resumed is None:
        (folder / METRICS_FILE).unlink(missing_ok=True)
        session.log(config=config.to_json(), facts=asdict(facts))
    else:
        _restore(session, resumed)
        reporter.say(f"resuming {folder} in {resumed.module}, epoch {resumed.epoch + 1}, step {resumed.step + 1}")
    data = _with_frozen_backbones(session, data, cache)
    for module in MODULES[MODULES.index(resumed.module) if resumed is not None else 0 :]:
        here = resumed if resumed is not None and resumed.module == module else None
        if module == "siamese":
            train_siamese(session, data, here)
        else:
            train_ranker(session, data, config.frozen_ranker if module == "frozen_ranker" else config.ranker, module, cache, here)
    metrics = finish(session, data, tokenizer_json, facts, cache)
    workers.wait()
    if workers.is_main:
        shutil.rmtree(folder / "cache")
    return metrics


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
        return _siamese_loss(session, data, rows, random)

    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    group = Group(parameters, settings.learning_rate, settings.weight_decay)
    module = Module(
        "siamese", settings.epochs, settings.accumulation, settings.warmup_epochs, [group], batches, loss,
        lambda epoch: _evaluate_shortlist(session, data, epoch, settings.epochs),
    )  # fmt: skip
    model.train()
    run_module(session, module, resumed)
    session.clusters, session.positives = [], []


def _recluster(session: Session, data: TrainingData, random: np.random.Generator) -> None:
    settings, config = session.config.siamese, session.config
    encoded = encode_items(session.model.encoder, data.products, data.train_rows, config.encode_batch_size, session.device)
    vectors = torch.from_numpy(encoded.embeddings).to(session.device)
    session.clusters = balanced_clusters(vectors, settings.cluster_size, random)
    if settings.hard_positives:
        labels = encode_items(session.model.encoder, data.labels, None, config.encode_batch_size, session.device)
        session.positives = [torch.from_numpy(encoded.embeddings), torch.from_numpy(labels.embeddings)]


def _siamese_loss(session: Session, data: TrainingData, rows: Int64Array, random: np.random.Generator) -> Tensor:
    settings, encoder, workers = session.config.siamese, session.model.encoder, session.workers
    dropout = session.config.image_dropout
    drawn = draw_labels(data.train, rows, random)
    hard = None
    if settings.hard_positives and session.positives:
        vectors = [p.numpy() for p in session.positives]
        hard = draw_hard_labels(data.train, rows, vectors[0], vectors[1], settings.hard_positives, random)
        drawn = np.concatenate([drawn, hard.reshape(-1)])
    relevant = torch.from_numpy(_block(data, rows, drawn)).to(session.device)
    own_rows, own_labels = workers.share(data.train_rows[rows]), workers.share(drawn)
    embeddings = []
    for arrays, own, total in ((data.products, own_rows, len(rows)), (data.labels, own_labels, len(drawn))):
        _, _, embedding = encode_batch(encoder, arrays.batch(own, dropout, random), session.device)
        embeddings.append(workers.gather(embedding.float(), total))
    with torch.autocast(session.device.type, enabled=False):
        scores = embeddings[0] @ embeddings[1].T
        scores = scores.masked_fill(torch.from_numpy(_forbidden_block(data, rows, drawn)).to(session.device), -1e4)
        if settings.loss == "softmax":
            return multi_positive_softmax_loss(scores, relevant, temperature=settings.temperature)
        if hard is not None:
            columns = torch.arange(hard.size, device=session.device).reshape(hard.shape) + len(rows)
            return sampled_positives_margin_loss(
                scores, relevant, scores.gather(1, columns), margin=settings.margin,
                negatives=settings.hard_negatives, temperature=settings.temperature,
            )  # fmt: skip
        return hardest_positive_margin_loss(
            scores, relevant, margin=settings.margin, negatives=settings.hard_negatives, temperature=settings.temperature
        )


def _block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return relevance_block(data.train, rows, labels)


def _forbidden_block(data: TrainingData, rows: Int64Array, labels: Int64Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Exclude pairs and the product itself are no negatives (accuracy.md); a stated relevant pair stays one."""
    return relevance_block(data.forbidden, data.train_rows[rows], labels) & ~_block(data, rows, labels)


def train_ranker(
    session: Session, data: TrainingData, settings: RankerConfig, name: str, cache: Path, resumed: TrainState | None
) -> None:
    """Modules 2 to 4: shortlists, (for the frozen ranker) stored features, cross-attention and classifiers.

    Label embeddings start the classifiers once, in the first ranker that runs.
    """
    if settings.epochs == 0:
        return
    config, model, frozen = session.config, session.model, name == "frozen_ranker"
    if resumed is None and not has_adapters(model) and (frozen or config.frozen_ranker.epochs == 0):
        _begin_ranking(session, data, frozen)
    if frozen:
        data = _with_stored_features(session, data, cache)
    shortlists = _shortlists(session, data, cache / f"shortlists-{name}.npy", fresh=resumed is None)

    def batches(epoch: int) -> list[Int64Array]:
        nonlocal shortlists
        began = time.monotonic()
        if settings.reshortlist_epochs and epoch and epoch % settings.reshortlist_epochs == 0:
            mid_epoch = resumed is not None and resumed.epoch == epoch and resumed.step > 0
            shortlists = _shortlists(session, data, cache / f"shortlists-{name}.npy", fresh=not mid_epoch)
        session.spend("shortlist", began)
        return random_batches(len(data.train_rows), settings.batch_size, generator(config.seed, name, epoch))

    def loss(rows: Int64Array, random: np.random.Generator) -> Tensor:
        return _ranker_loss(session, data, settings, shortlists, rows, random)

    module = Module(
        name, settings.epochs, settings.accumulation, settings.warmup_epochs, _ranker_groups(session, settings, frozen),
        batches, loss, lambda epoch: _evaluate_full(session, data, epoch, settings.epochs),
    )  # fmt: skip
    model.train()
    run_module(session, module, resumed)


def _begin_ranking(session: Session, data: TrainingData, frozen: bool) -> None:
    """Classifiers from label embeddings (Q6), self-attention carried or afresh (Q3), adapters for frozen features."""
    config, model = session.config, session.model
    torch.manual_seed(config.seed + 4)
    if not config.carry_self_attention and model.encoder.self_attention is not None:
        model.encoder.self_attention = BagAttention(config.network).to(session.device)
    if frozen:
        add_adapters(model, config.network.dropout, config.network.spectral_norm)
    if config.classifier_init == "labels":
        encoded = encode_items(model.encoder, data.labels, None, config.encode_batch_size, session.device)
        with torch.no_grad():
            model.classifiers.free.weight.copy_(torch.from_numpy(encoded.embeddings))


def _with_stored_features(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Module 3: every title and image as one vector on disk; the encoders are not run again until the end."""
    encoder, size, device = session.model.encoder, session.config.encode_batch_size, session.device
    dimension = session.config.network.dimension
    adapters = encoder.text.adapter, encoder.image.adapter
    encoder.text.adapter, encoder.image.adapter = nn.Identity(), nn.Identity()
    title_stage, image_stage = data.products.stages

    def titles(title: Tensor, mask: Tensor) -> Tensor:
        return title_vectors(encoder, title_stage, title, mask)

    images = store_images(
        encoder, data.products, dimension, size, device, cache / "image-vectors.npy",
        lambda image: image_vectors(encoder, image_stage, image),
    )  # fmt: skip
    own = store_titles(encoder, data.products, dimension, size, device, cache / "product-vectors.npy", titles)
    products = labels = data.products.with_vectors(own, images)
    if data.labels is not data.products:
        own = store_titles(encoder, data.labels, dimension, size, device, cache / "label-vectors.npy", titles)
        labels = data.labels.with_vectors(own, images)
    encoder.text.adapter, encoder.image.adapter = adapters
    return replace(data, products=products, labels=labels)


def _with_frozen_backbones(session: Session, data: TrainingData, cache: Path) -> TrainingData:
    """Features of encoders whose every layer is frozen, computed once and kept on disk for the whole training."""
    config, encoder, device = session.config, session.model.encoder, session.device
    products, labels = data.products, data.labels
    size, shared = config.encode_batch_size, data.labels is data.products
    if config.image.trainable_layers == 0 and products.image_count:
        image = encoder.image
        features = store_images(
            encoder, products, backbone_width(image.backbone), size, device, cache / "image-features.npy",
            lambda pixels: image.features(image.normalise(pixels)),
        )  # fmt: skip
        products, labels = replace(products, image_features=features), replace(labels, image_features=features)
    if config.text.trainable_layers == 0:
        width = backbone_width(encoder.text.backbone)
        own = store_titles(encoder, products, width, size, device, cache / "product-features.npy", encoder.text.features)
        products = replace(products, title_features=own)
        if not shared:
            own = store_titles(encoder, labels, width, size, device, cache / "label-features.npy", encoder.text.features)
        labels = replace(labels, title_features=own)
    return replace(data, products=products, labels=products if shared else labels)


def _shortlists(session: Session, data: TrainingData, path: Path, fresh: bool) -> Int64Array:
    """Module 2: (train products, K) labels best first, padded -1; kept on disk so that a resumed run has the same."""
    if not fresh and path.is_file():
        return np.asarray(np.load(path))
    config, model = session.config, session.model
    labels = encode_labels(model, data.labels, data.frequency, config.shortlist, config.encode_batch_size, session.device)
    queries = encode_items(model.encoder, data.products, data.train_rows, config.encode_batch_size, session.device)
    found, _ = labels.search.search(queries.embeddings, min(config.shortlist.size, len(data.labels)))
    model.train()

    def write(target: Path) -> None:
        with target.open("wb") as handle:
            np.save(handle, found)

    atomic_write(path, write)
    return found


def _ranker_groups(session: Session, settings: RankerConfig, frozen: bool) -> list[Group]:
    encoder, model = session.model.encoder, session.model
    modules: list[nn.Module] = [encoder]
    if frozen:
        modules = [encoder.text.adapter, encoder.image.adapter]
        modules += [encoder.self_attention] if encoder.self_attention is not None else []
    shared = [p for m in modules for p in m.parameters() if p.requires_grad]
    cross = [] if model.cross_attention is None else list(model.cross_attention.parameters())
    return [
        Group(shared, settings.encoder_learning_rate, settings.weight_decay),
        Group(cross, settings.cross_learning_rate, settings.weight_decay),
        Group(
            list(model.classifiers.parameters()), settings.classifier_learning_rate, 0.0, session.config.sparse_classifiers
        ),
    ]


def _ranker_loss(
    session: Session, data: TrainingData, settings: RankerConfig, shortlists: Int64Array, rows: Int64Array,
    random: np.random.Generator,
) -> Tensor:  # fmt: skip
    model, device, workers = session.model, session.device, session.workers
    candidates, relevant, real = draw_candidates(
        data.train, data.forbidden.select(data.train_rows[rows]), rows, shortlists, positives=settings.positives,
        negatives=settings.negatives, random_negatives=settings.random_negatives, drop_hardest=settings.drop_hardest,
        random=random,
    )  # fmt: skip
    own = workers.share(np.arange(len(rows)))
    distinct, inverse = np.unique(candidates[own], return_inverse=True)
    index = torch.from_numpy(inverse.reshape(len(own), -1)).to(device)
    items = data.products.batch(data.train_rows[rows[own]], session.config.image_dropout, random)
    bag, mask, embedding = encode_batch(model.encoder, items, device)
    label_bag, label_mask, label_embedding = encode_batch(model.encoder, data.labels.batch(distinct), device)
    if model.cross_attention is None:
        adapted, _ = model.adapt(bag, mask, label_bag[index], label_mask[index])
    else:
        keys, values = model.cross_attention.project(label_bag)
        adapted, _ = model.adapt_projected(bag, mask, keys[index], values[index], label_mask[index])
    weights = model.classifiers(torch.from_numpy(distinct).to(device), label_embedding)[index]
    with torch.autocast(device.type, enabled=False):
        scores = (F.normalize(adapted.float(), dim=-1) * weights.float()).sum(dim=-1)
        scores = workers.gather(scores, len(rows))
        usable = torch.from_numpy(real).to(device)
        return _pair_loss(settings, scores[usable], torch.from_numpy(relevant).to(device)[usable])


def _pair_loss(settings: RankerConfig, scores: Tensor, relevant: Tensor) -> Tensor:
    if settings.loss == "bce":
        return scaled_bce_loss(scores, relevant, scale=settings.scale, margin=settings.margin)
    return cosine_embedding_loss(scores, relevant, margin=settings.margin)


def finish(session: Session, data: TrainingData, tokenizer_json: str, facts: RunFacts, cache: Path) -> dict[str, Any]:
    """Re-index with the final encoder, choose fusion weight and calibration on validation, save the run."""
    config, model = session.config, session.model
    size = config.shortlist.size
    labels = encode_labels(
        model, data.labels, data.frequency, config.shortlist, config.encode_batch_size, session.device, cache / "bags.npy"
    )
    queries = encode_items(model.encoder, data.products, data.valid_rows, config.encode_batch_size, session.device)
    forbidden = data.forbidden.select(data.valid_rows)
    candidates = score_candidates(model, queries, labels, forbidden, min(size, len(data.labels)), session.device)
    alpha, curve = choose_fusion_weight(candidates, data.valid)
    spec = ScoreSpec(shortlist_size=size, fusion_weight=alpha)
    ranked = rank_candidates(candidates, data.valid_rows, spec)
    known = ranked.rows["full"] >= 0
    relevant = relevant_at(ranked.rows["full"], data.valid)
    scale, offset = fit_calibration(ranked.scores["full"][known], relevant[known])
    spec = replace(spec, calibration_scale=scale, calibration_offset=offset)
    metrics = {name: _precision(labels_, data.valid) for name, labels_ in ranked.rows.items()}
    session.log(module="finish", fusion_weight=alpha, fusion_curve=curve, metrics=metrics)
    metrics_and_weight = {"fusion_weight": alpha, **metrics}
    if session.workers.is_main:
        draw_curves(session.folder / METRICS_FILE, session.folder / "curves.png")
        save_run(session.folder, model, config, spec, tokenizer_json, facts, metrics_and_weight, session.identity)
    return metrics_and_weight


def _precision(ranked: Int64Array, relevance: Relevance) -> dict[str, float]:
    """P@1, P@5 and R@10 for the log; mufin-evaluate computes the full set."""
    hits = relevant_at(ranked[:, :10], relevance)
    counts = np.maximum(np.diff(relevance.indptr), 1)
    return {
        "P@1": round(float(hits[:, :1].mean()), 5),
        "P@5": round(float(hits[:, :5].sum(axis=1).mean() / 5), 5),
        "R@10": round(float((hits.sum(axis=1) / counts).mean()), 5),
    }


def _evaluate_shortlist(session: Session, data: TrainingData, epoch: int, epochs: int) -> dict[str, Any]:
    if epoch % session.config.evaluate_epochs and epoch != epochs:
        return {}
    config, began = session.config, time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    labels = encode_labels(session.model, data.labels, data.frequency, config.shortlist, config.encode_batch_size, session.device)
    queries = encode_items(session.model.encoder, data.products, rows, config.encode_batch_size, session.device)
    forbidden = data.forbidden.select(rows)
    widest = int(np.diff(forbidden.indptr).max(initial=0))
    found, _ = labels.search.search(queries.embeddings, min(10 + widest, len(data.labels)))
    kept = np.full((len(rows), 10), -1, dtype=np.int64)
    for position, row in enumerate(found):
        own = row[(row >= 0) & ~np.isin(row, forbidden.row(position))][:10]
        kept[position, : len(own)] = own
    session.model.train()
    session.spend("evaluate", began)
    return {"shortlist": _precision(kept, data.valid.select(np.arange(len(rows))))}


def _evaluate_full(session: Session, data: TrainingData, epoch: int, epochs: int) -> dict[str, Any]:
    if epoch % session.config.evaluate_epochs and epoch != epochs:
        return {}
    config, began = session.config, time.monotonic()
    rows = data.valid_rows[:_VALIDATION_PRODUCTS]
    labels = encode_labels(session.model, data.labels, data.frequency, config.shortlist, config.encode_batch_size, session.device)
    queries = encode_items(session.model.encoder, data.products, rows, config.encode_batch_size, session.device)
    size = min(config.shortlist.size, len(data.labels))
    candidates = score_candidates(session.model, queries, labels, data.forbidden.select(rows), size, session.device)
    ranked = rank_candidates(candidates, rows, ScoreSpec(size, 0.5))
    session.model.train()
    session.spend("evaluate", began)
    valid = data.valid.select(np.arange(len(rows)))
    return {name: _precision(labels_, valid) for name, labels_ in ranked.rows.items()}


def _facts(catalogue: Catalogue) -> RunFacts:
    return RunFacts(
        str(catalogue.folder.resolve()), len(catalogue.products), len(catalogue.labels),
        hash_label_ids([label.id for label in catalogue.labels]), len(catalogue.splits["train"].relevance.indices),
    )  # fmt: skip


def _identity(config: TrainConfig, facts: RunFacts) -> str:
    values = {**asdict(facts), "catalogue": "", "config": config.to_json()}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _tokenizer(catalogue: Catalogue, config: TrainConfig) -> str:
    """The named encoder's tokenizer, or one built from the titles of products and labels."""
    if config.text.name is not None:
        return load_named_tokenizer(config.text.name)
    lists: Iterable[str] = [item.title for item in [*catalogue.products, *catalogue.labels]]
    return train_wordpiece(lists, config.vocabulary_size)


def _data(catalogue: Catalogue, products: ItemArrays, labels: ItemArrays) -> TrainingData:
    training, valid = catalogue.splits["train"], catalogue.splits["valid"]
    return TrainingData(
        products, labels, training.products, training.relevance, valid.products, valid.relevance,
        forbidden_pairs(catalogue), training.relevance.label_frequency(),
    )  # fmt: skip


def _network(config: TrainConfig, tokenizer: TitleTokenizer, labels: int) -> Mufin:
    text = config.text
    if text.name is None:
        text = replace(text, options={**text.options, "vocab_size": tokenizer.vocabulary_size, "pad_token_id": 0})
    backbones = []
    for encoder in (text, config.image):
        backbone = build_backbone(encoder)
        if encoder.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        _freeze(backbone, encoder.trainable_layers)
        backbones.append(backbone)
    longest = getattr(backbones[0].config, "max_position_embeddings", None)
    if longest is not None and longest < config.inputs.max_title_tokens:
        raise ConfigError(f"inputs.max_title_tokens is {config.inputs.max_title_tokens}, the title encoder takes {longest}")
    return build_network(
        backbones[0], backbones[1], config.network, labels, image_mean=config.inputs.image_mean,
        image_std=config.inputs.image_std, sparse_classifiers=config.sparse_classifiers,
    )  # fmt: skip


def _freeze(backbone: nn.Module, trainable_layers: int | None) -> None:
    """Leave gradients to the last ``trainable_layers`` blocks only; None: to everything."""
    if trainable_layers is None:
        return
    backbone.requires_grad_(False)
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]
    if trainable_layers and not stacks:
        raise ConfigError(f"{type(backbone).__name__} has no list of blocks: trainable_layers must be null or 0")
    if trainable_layers:
        blocks = max(stacks, key=len)
        for block in list(blocks)[-trainable_layers:]:
            block.requires_grad_(True)


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
            handle.truncate(state.metrics_bytes)
