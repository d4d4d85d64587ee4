"""Epochs, steps, accumulation, schedules and checkpoints of one module.

Knows no network and no data: told the batches of an epoch and the loss of a batch. Every step seeds its own
randomness from (seed, module, epoch, step), so that a resumed run draws what the killed one would have drawn.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mufin.errors import TrainingError
from mufin.inputs import Int64Array
from mufin.training.checkpoint import EpochSoFar, TrainState, has_adapters, save_state
from mufin.training.config import TrainConfig
from mufin.training.disk import full_disk_explained
from mufin.training.memory import out_of_memory_explained
from mufin.training.model import Mufin
from mufin.training.progress import Reporter
from mufin.training.workers import Workers

METRICS_FILE = "metrics.jsonl"
# Epochs of a second or two are not saved one by one: a frozen sentence encoder is 90 MB of every checkpoint.
_SHORT_SECONDS = 10.0


@dataclass
class Session:
    """What all modules of one training share."""

    config: TrainConfig
    model: Mufin
    device: torch.device
    folder: Path
    reporter: Reporter
    workers: Workers
    identity: str
    scored: bool = True
    """False: a network that only teaches a combination; nothing is evaluated, and no scores are fitted to it"""
    clusters: list[Int64Array] = field(default_factory=list)
    positives: list[Tensor] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent by stage since the last log line."""

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.workers.is_main:
            path = self.folder / METRICS_FILE
            with full_disk_explained(path), path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(values) + "\n")

    def spend(self, stage: str, since: float) -> float:
        """Book the time since ``since`` on a stage; returns now."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass
class Group:
    """Parameters that share an optimiser and a learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float
    weight_decay: float
    sparse: bool = False


def generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng([zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key])


def schedule(step: int, steps: int, warmup_steps: float) -> float:
    """Linear rise over ``warmup_steps``, then linear decay to 0 at ``steps``."""
    if step < warmup_steps:
        return (step + 1) / max(1.0, warmup_steps)
    return max(0.0, (steps - step) / max(1.0, steps - warmup_steps))


@dataclass
class Module:
    """One of the recipe's trained modules, as the loop needs it."""

    name: str
    epochs: int
    accumulation: int
    warmup_epochs: float
    groups: list[Group]
    batches: Callable[[int], Sequence[Int64Array]]
    """Epoch -> rows of each step, the same on every call."""
    loss: Callable[[Int64Array, np.random.Generator], Tensor]
    """Rows of a step and its randomness -> loss; runs under autocast."""
    after_epoch: Callable[[int], dict[str, Any]]
    """Epoch just done -> figures to log (evaluation)."""
    needs_every_checkpoint: bool = False
    """Whether batches of a further epoch take away what a run resumed from an earlier one would need."""


def run_module(session: Session, module: Module, resumed: TrainState | None) -> None:
    """Train a module from its start, or from where ``resumed`` left it."""
    if module.epochs == 0:
        return
    optimizers = [_optimizer(group) for group in module.groups if group.parameters]
    scaler = torch.amp.GradScaler(session.device.type, enabled=session.config.precision == "fp16")
    epoch = step = 0
    so_far = EpochSoFar()
    if resumed is not None:
        epoch, step, so_far = resumed.epoch, resumed.step, resumed.epoch_so_far
        session.seconds = dict(so_far.stage_seconds)
        for optimizer, state in zip(optimizers, resumed.optimizers, strict=True):
            optimizer.load_state_dict(state)
        if resumed.scaler:
            scaler.load_state_dict(resumed.scaler)
    else:
        _save(session, module, optimizers, scaler, 0, 0, so_far)
    last_save = time.monotonic()
    rest = 0.0 if module.needs_every_checkpoint else min(_SHORT_SECONDS, session.config.checkpoint_minutes * 60)
    while epoch < module.epochs:
        started = time.monotonic() - so_far.seconds
        batches = module.batches(epoch)
        while step < len(batches):
            due = time.monotonic() - last_save > session.config.checkpoint_minutes * 60
            if due and step % module.accumulation == 0:
                so_far.seconds, so_far.stage_seconds = time.monotonic() - started, dict(session.seconds)
                _save(session, module, optimizers, scaler, epoch, step, so_far)
                last_save = time.monotonic()
            loss = _step(session, module, optimizers, scaler, epoch, step, batches)
            so_far.loss_sum, so_far.steps, step = so_far.loss_sum + loss, so_far.steps + 1, step + 1
            session.reporter.step(
                module.name, epoch * len(batches) + step, module.epochs * len(batches), f"loss {loss:.4f}"
            )
        epoch, step = epoch + 1, 0
        figures = module.after_epoch(epoch)
        spent = {f"{name}_seconds": round(value, 3) for name, value in session.seconds.items()}
        session.seconds.clear()
        rate = module.groups[0].learning_rate * schedule(
            epoch * len(batches), module.epochs * len(batches), module.warmup_epochs * len(batches)
        )
        session.log(
            module=module.name, epoch=epoch, loss=so_far.loss_sum / so_far.steps, learning_rate=rate,
            epoch_seconds=round(time.monotonic() - started, 3), **spent, **figures,
        )  # fmt: skip
        so_far = EpochSoFar()
        if epoch == module.epochs or time.monotonic() - last_save >= rest:
            _save(session, module, optimizers, scaler, epoch, 0, so_far)
            last_save = time.monotonic()


def _optimizer(group: Group) -> torch.optim.Optimizer:
    if group.sparse:
        return torch.optim.SparseAdam(group.parameters, lr=group.learning_rate)
    return torch.optim.AdamW(group.parameters, lr=group.learning_rate, weight_decay=group.weight_decay, eps=1e-8)


def _step(
    session: Session, module: Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
    epoch: int, step: int, batches: Sequence[Int64Array],
) -> float:  # fmt: skip
    random = generator(session.config.seed, module.name, epoch, step)
    session.workers.same_buffers(session.model)
    torch.manual_seed(int(random.integers(2**62)) + session.workers.rank)
    what = f"{module.name}, epoch {epoch + 1}, step {step + 1} of {len(batches[step])} products"
    remedy = "Lower batch_size and raise accumulation, or use gradient_checkpointing, in a new run folder"
    with out_of_memory_explained(what, remedy):
        value = _accumulate(session, module, scaler, batches[step], random, f"epoch {epoch + 1}, step {step + 1}")
        if (step + 1) % module.accumulation == 0 or step + 1 == len(batches):
            steps = len(batches)
            factor = schedule(epoch * steps + step, module.epochs * steps, module.warmup_epochs * steps)
            _update(session, module, optimizers, scaler, factor, f"epoch {epoch + 1}, step {step + 1}")
    return value


def _accumulate(
    session: Session, module: Module, scaler: torch.amp.GradScaler, rows: Int64Array, random: np.random.Generator, place: str
) -> float:  # fmt: skip
    """Forward and backward of one batch; returns its loss."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(session.config.precision)
    began = time.monotonic()
    with torch.autocast(session.device.type, dtype=dtype, enabled=dtype is not None):
        loss = module.loss(rows, random)
    value = session.workers.total(loss.detach())
    if not np.isfinite(value):
        raise TrainingError(
            f"{module.name}, {place}: the loss is {value}; the last checkpoint is intact. "
            "Lower the learning rate, raise warmup_epochs, or use precision bf16 or fp32"
        )
    began = session.spend("forward", began)
    scaler.scale(loss / module.accumulation).backward()  # type: ignore[no-untyped-call]
    session.spend("backward", began)
    return value


def _update(
    session: Session, module: Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
    factor: float, place: str,
) -> None:  # fmt: skip
    """One step of every optimiser, at its group's learning rate times ``factor``."""
    began = time.monotonic()
    session.workers.reduce_gradients(p for group in module.groups for p in group.parameters)
    if not scaler.is_enabled():
        _check_gradients(module, place)
    for optimizer, group in zip(optimizers, (g for g in module.groups if g.parameters), strict=True):
        for settings in optimizer.param_groups:
            settings["lr"] = group.learning_rate * factor
        scaler.step(optimizer)
    scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    session.spend("optimiser", began)


def _check_gradients(module: Module, place: str) -> None:
    """Before they reach the weights: a checkpoint must never hold what cannot be trained on."""
    gradients = [p.grad for group in module.groups for p in group.parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(g.coalesce().values() if g.is_sparse else g) for g in gradients]
    if norms and not bool(torch.isfinite(torch.stack(norms)).all()):
        raise TrainingError(
            f"{module.name}, {place}: a gradient is not finite; the last checkpoint is intact. "
            "Lower the learning rate or raise warmup_epochs"
        )


def _save(
    session: Session, module: Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
    epoch: int, step: int, so_far: EpochSoFar,
) -> None:  # fmt: skip
    if not session.workers.is_main:
        return
    metrics = session.folder / METRICS_FILE
    save_state(
        session.folder,
        TrainState(
            module=module.name, epoch=epoch, step=step, model=session.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in optimizers], scaler=scaler.state_dict(),
            clusters=[torch.from_numpy(c) for c in session.clusters], positives=session.positives,
            adapters=has_adapters(session.model), metrics_bytes=metrics.stat().st_size if metrics.exists() else 0,
            epoch_so_far=so_far, identity=session.identity,
        ),
    )  # fmt: skip
