"""Training end to end on a tiny catalogue: repeatable, resumable, honest about trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mufin.catalogue import read_catalogue
from mufin.errors import CheckpointError, ConfigError, TrainingError
from mufin.training.checkpoint import load_run
from mufin.training.config_reading import build_config
from mufin.training.disk import allocate, atomic_write
from mufin.training.progress import Reporter
from mufin.training.recipe import train
from mufin.training.run_folder import CLAIM_FILE
from mufin.training.split_ranking import rank_split
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import TINY, tiny_config


@pytest.fixture(scope="module")
def catalogue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny catalogue for the whole file."""
    return make_tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "tiny")


@pytest.fixture(scope="module")
def finished(catalogue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of every module."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(read_catalogue(catalogue_folder), tiny_config(), folder, Reporter(quiet=True))
    return folder


def command(catalogue: Path, run: Path, *changes: str) -> list[str]:
    """mufin-train's arguments for a tiny run."""
    found = [str(catalogue), str(run), "--quiet"]
    for change in (*TINY, *changes):
        found += ["--set", change]
    return found


def train_by_command(catalogue: Path, run: Path, *changes: str) -> None:
    """In a process of its own, as users do: what else ran in this one (threads of OpenMP) changes the last bits."""
    subprocess.run([sys.executable, "-m", "mufin.training", *command(catalogue, run, *changes)], check=True)


@pytest.fixture(scope="module")
def whole(catalogue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, by the command."""
    folder = tmp_path_factory.mktemp("runs") / "commanded"
    train_by_command(catalogue_folder, folder)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    return load_file(run / "model" / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def logged(run: Path) -> list[tuple[str, int, float]]:
    """Module, epoch and loss of every epoch's line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["module"], line["epoch"], line["loss"]) for line in lines if "epoch" in line]


def processes(run: Path) -> int:
    """How many processes a run says it was begun with."""
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["processes"])


def test_a_run_leaves_model_metrics_and_curves(finished: Path) -> None:
    """Every module is logged with loss and time by stage; the picture of the curves is there, the cache is gone."""
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["module"] for line in lines if "epoch" in line] == ["siamese"] * 4 + ["frozen_ranker"] * 3 + [
        "ranker"
    ] * 2
    assert all(
        {"epoch_seconds", "forward_seconds", "backward_seconds"} <= line.keys() for line in lines if "epoch" in line
    )
    assert (finished / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in finished.iterdir()) == [CLAIM_FILE, "curves.png", "metrics.jsonl", "model"]


def test_training_learns_something(finished: Path) -> None:
    """The siamese loss falls, and the run's own evaluation gives the figures it stored."""
    losses = [json.loads(line).get("loss") for line in (finished / "metrics.jsonl").read_text().splitlines()]
    siamese = [loss for loss in losses if loss is not None][:4]
    assert siamese[-1] < siamese[0]


def test_seeded_runs_are_equal_to_the_last_bit(catalogue_folder: Path, finished: Path, tmp_path: Path) -> None:
    """The same seed gives the same weights, another seed others."""
    catalogue = read_catalogue(catalogue_folder)
    train(catalogue, tiny_config(), tmp_path / "again", Reporter(quiet=True))
    train(catalogue, tiny_config("seed=5"), tmp_path / "other", Reporter(quiet=True))
    assert same(finished, tmp_path / "again")
    assert not same(finished, tmp_path / "other")


@pytest.mark.parametrize("module", ["siamese", "frozen_ranker", "ranker"])
@pytest.mark.parametrize("minutes", [0, 10], ids=["resumes-in-mid-epoch", "repeats-the-epoch"])
def test_killed_and_resumed_reaches_the_same_weights(
    minutes: int, module: str, catalogue_folder: Path, whole: Path, tmp_path: Path
) -> None:
    """kill -9 in each module, then the same command again: same weights, same metrics lines, as if nothing happened.

    With a checkpoint after every step the epoch goes on; with one an epoch its steps are repeated.
    """
    run = tmp_path / "killed"
    # A pause in the middle of the module's second epoch gives time to kill.
    script = (
        "import sys, time\n"
        "from mufin.training import loop\n"
        "from mufin.training.__main__ import main\n"
        "plain = loop._step\n"
        "def slow(session, module, optimizers, scaler, epoch, step, batches):\n"
        "    if module.name == sys.argv[1] and (epoch, step) == (1, 1):\n"
        "        print('here', flush=True); time.sleep(60)\n"
        "    return plain(session, module, optimizers, scaler, epoch, step, batches)\n"
        "loop._step = slow\n"
        "main(sys.argv[2:])\n"
    )
    arguments = command(catalogue_folder, run, f"checkpoint_minutes={minutes}")
    process = subprocess.Popen([sys.executable, "-c", script, module, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run / "model" / "run.json").exists()
    train_by_command(catalogue_folder, run, f"checkpoint_minutes={minutes}")
    assert same(whole, run)
    assert logged(run) == logged(whole)


def test_a_finished_run_is_not_trained_again(catalogue_folder: Path, finished: Path) -> None:
    """The same command on a finished run answers its figures and touches nothing; another config is refused."""
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    metrics = train(read_catalogue(catalogue_folder), tiny_config(), finished, Reporter(quiet=True))
    assert metrics == load_run(finished).metrics
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="another config or catalogue"):
        train(read_catalogue(catalogue_folder), tiny_config("seed=9"), finished, Reporter(quiet=True))


def test_how_the_work_is_done_may_change_between_two_starts(catalogue_folder: Path, finished: Path) -> None:
    """Batch size of encoding, checkpoints and evaluations: the same run; answered, not refused."""
    changed = tiny_config("encode_batch_size=7", "checkpoint_minutes=1", "evaluate_epochs=5")
    assert train(read_catalogue(catalogue_folder), changed, finished, Reporter(quiet=True))


def test_a_run_ranks_as_it_reported(catalogue_folder: Path, finished: Path) -> None:
    """Read back from disk, the run gives the validation figures it logged."""
    catalogue = read_catalogue(catalogue_folder)
    ranked = rank_split(finished, catalogue, "valid")
    valid = catalogue.splits["valid"].relevance
    for row in ("shortlist", "classifier", "full"):
        hits = [ranked.rows[row][i, 0] in valid.row(i) for i in range(valid.row_count)]
        assert np.mean(hits) == pytest.approx(load_run(finished).metrics[row]["P@1"], abs=1e-4)


def test_labels_without_training_have_a_calibration_of_their_own(finished: Path) -> None:
    """Fitted on the same validation products with embeddings for classifiers: other parameters, and their error told."""
    run = load_run(finished)
    assert run.score_spec.calibration_untrained_both != run.score_spec.calibration_both
    assert "untrained" in run.metrics["calibration"]


def test_another_catalogue_is_refused_by_its_labels(finished: Path, tmp_path: Path) -> None:
    """Labels that the run was not trained on are named with both counts."""
    other = read_catalogue(make_tiny_catalogue(tmp_path / "other", with_labels=False))
    with pytest.raises(CheckpointError, match=r"has 60 labels .* trained on 20"):
        rank_split(finished, other, "valid")


def test_products_that_are_their_own_labels_train(tmp_path: Path) -> None:
    """Product-to-product, with hinge loss, hard positives, image dropout, sparse classifiers and accumulation."""
    catalogue = read_catalogue(make_tiny_catalogue(tmp_path / "own", with_labels=False))
    config = tiny_config(
        "siamese.loss=margin", "siamese.hard_positives=2", "image_dropout=0.3", "sparse_classifiers=true",
        "siamese.accumulation=2", "frozen_ranker.loss=cosine",
    )  # fmt: skip
    train(catalogue, config, tmp_path / "run", Reporter(quiet=True))
    ranked = rank_split(tmp_path / "run", catalogue, "valid")
    own = [catalogue.products[row].id for row in ranked.products]
    best = [{catalogue.labels[i].id for i in row if i >= 0} for row in ranked.rows["full"]]
    assert all(name not in labels for name, labels in zip(own, best, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        ["network.cross_attention=false"],
        ["network.self_attention=false"],
        ["carry_self_attention=false"],
        ["classifier_init=random", "siamese.classifier_weight=0"],
        ["classifier_init=labels", "siamese.classifier_weight=0"],
        ["siamese.label_to_product_weight=1"],
        ["frozen_ranker.distillation_weight=1", "ranker.distillation_weight=1"],
    ],
)
def test_ablations_train(changes: list[str], catalogue_folder: Path, tmp_path: Path) -> None:
    """Each part that can be left out, left out."""
    config = tiny_config(*changes, "siamese.epochs=1", "frozen_ranker.epochs=1", "ranker.epochs=1")
    metrics = train(read_catalogue(catalogue_folder), config, tmp_path / "run", Reporter(quiet=True))
    assert 0 <= metrics["full"]["P@1"] <= 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_sparse_classifiers(precision: str, catalogue_folder: Path, tmp_path: Path) -> None:
    """Forward in half precision, weights in fp32; fp16 goes through the gradient scaler, sparse gradients, too."""
    config = tiny_config(f"precision={precision}", "sparse_classifiers=true")
    train(read_catalogue(catalogue_folder), config, tmp_path / "run", Reporter(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("module") == "siamese"]
    assert losses[-1] < losses[0]
    assert all(tensor.dtype != torch.float16 for tensor in weights(tmp_path / "run").values())


def test_nan_loss_ends_with_the_place_and_an_intact_checkpoint(catalogue_folder: Path, tmp_path: Path) -> None:
    """A loss that is no number names module, epoch and step; the state to resume from is still readable."""
    config = tiny_config("siamese.learning_rate=1e30")
    with pytest.raises(
        TrainingError, match=r"siamese, epoch \d+, step \d+: (the loss is nan|a gradient is not finite).*Lower"
    ):
        train(read_catalogue(catalogue_folder), config, tmp_path / "run", Reporter(quiet=True))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["module"] == "siamese"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())


def test_out_of_memory_names_the_remedy(
    catalogue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocation that fails ends with the batch size and what to change."""

    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("mufin.training.recipe.siamese_loss", too_large)
    with pytest.raises(TrainingError, match=r"step 1 of 16 products: out of memory.*Lower batch_size"):
        train(read_catalogue(catalogue_folder), tiny_config(), tmp_path / "run", Reporter(quiet=True))


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    """A write that finds no space says so, and the file before it stays whole."""
    target = tmp_path / "state.pt"
    target.write_bytes(b"whole")

    def write(path: Path) -> None:
        path.write_bytes(b"par")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match="the disk is full; free space and run mufin-train again"):
        atomic_write(target, write)
    assert target.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [target]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_training_onto_a_full_disk_ends_with_the_remedy(catalogue_folder: Path, small_disk: Path) -> None:
    """Really full: the run ends with a message; the last checkpoint can be read, or nothing half-written is there."""
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 900_000)
    with pytest.raises(TrainingError, match="the disk is full; free space and run mufin-train again"):
        train(read_catalogue(catalogue_folder), tiny_config(), small_disk / "run", Reporter(quiet=True))
    assert not list(small_disk.rglob("*.partial"))
    state = small_disk / "run" / "state.pt"
    assert not state.exists() or torch.load(state, weights_only=True)["module"]


def test_a_memory_map_that_does_not_fit_is_refused_at_once(small_disk: Path) -> None:
    """Not by a SIGBUS at the first write into a hole."""
    with pytest.raises(TrainingError, match="the disk is full"):
        allocate(small_disk / "a.npy", np.float32, (1_000_000,))


def test_titles_longer_than_the_encoder_are_refused(catalogue_folder: Path, tmp_path: Path) -> None:
    """A token limit beyond the encoder's positions is caught before training."""
    with pytest.raises(ConfigError, match=r"max_title_tokens is 600, the title encoder takes 512"):
        train(
            read_catalogue(catalogue_folder),
            tiny_config("inputs.max_title_tokens=600"),
            tmp_path / "r",
            Reporter(quiet=True),
        )


def still(*changes: str) -> list[str]:
    """TINY without dropout: what draws differently in two processes."""
    text = json.loads(TINY[0].partition("=")[2]) | {"dropout": 0.0, "attention_dropout": 0.0}
    return [*TINY, "network.dropout=0", f"text.options={json.dumps(text)}", *changes]


def train_with_two_processes(
    program: list[str], catalogue: Path, run: Path, changes: list[str]
) -> subprocess.CompletedProcess[str]:
    """``program`` (a script, or -m and a module) in two CPU processes, whose rendezvous finds a free port itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", *program]
    command += [str(catalogue), str(run), "--quiet", "--device", "cpu"]
    for change in changes:
        command += ["--set", change]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_two_processes_train_as_one_does(catalogue_folder: Path, tmp_path: Path) -> None:
    """Gathered embeddings and summed gradients: without dropout two workers reach one worker's weights."""
    changes = still("siamese.epochs=2", "siamese.hard_positives=0", "sparse_classifiers=true")
    train(
        read_catalogue(catalogue_folder),
        build_config(None, changes),
        tmp_path / "one",
        Reporter(quiet=True),
        device=torch.device("cpu"),
    )
    done = train_with_two_processes(["-m", "mufin.training"], catalogue_folder, tmp_path / "two", changes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert processes(tmp_path / "one") == 1
    assert processes(tmp_path / "two") == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    worst = {k: float((one[k] - two[k]).abs().max()) for k in one}
    # A key's bias has no gradient but rounding, which Adam blows up; everything else differs in the last bits.
    assert max(v for k, v in worst.items()) < 2e-3, worst
    assert max(v for k, v in worst.items() if "bias" not in k) < 1e-5, worst


@pytest.mark.parametrize("module", ["siamese", "ranker"])
def test_two_processes_killed_and_resumed_reach_the_same_weights(
    module: str, catalogue_folder: Path, tmp_path: Path
) -> None:
    """One of two workers is killed in mid-epoch, with hard positives and image dropout on; both are started again."""
    changes = still(
        "siamese.epochs=3", "siamese.loss=margin", "siamese.hard_positives=2", "siamese.recluster_epochs=1",
        "image_dropout=0.3", "frozen_ranker.epochs=1", "checkpoint_minutes=0",
    )  # fmt: skip
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from mufin.training import loop\n"
        "from mufin.training.__main__ import main\n"
        "plain = loop._step\n"
        "def killed(session, module, optimizers, scaler, epoch, step, batches):\n"
        f"    if module.name == {module!r} and (epoch, step) == (1, 1) and session.workers.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(session, module, optimizers, scaler, epoch, step, batches)\n"
        "loop._step = killed\n"
        "main()\n"
    )
    run, program = tmp_path / "killed", ["-m", "mufin.training"]
    assert train_with_two_processes([str(script)], catalogue_folder, run, changes).returncode != 0
    assert (run / "state.pt").exists() and not (run / "model" / "run.json").exists()
    for folder in (run, tmp_path / "whole"):
        done = train_with_two_processes(program, catalogue_folder, folder, changes)
        assert done.returncode == 0, done.stderr[-2000:]
    assert processes(run) == 2
    assert same(run, tmp_path / "whole")
    assert logged(run) == logged(tmp_path / "whole")
