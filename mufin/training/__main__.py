"""mufin-train: a catalogue in, a run folder out.

Knows only how to read the command line; ``recipe.train`` does the work.
"""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait spinning slow a machine that does anything else several times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable matrix products on a GPU

import argparse
import sys
from pathlib import Path
from typing import Any

from mufin.catalogue import Catalogue, read_catalogue
from mufin.errors import ConfigError, MufinError
from mufin.training.auto import installed_sentence_encoder, recommend
from mufin.training.config import TrainConfig
from mufin.training.config_reading import build_config
from mufin.training.presets import PRESETS
from mufin.training.progress import Reporter
from mufin.training.workers import Workers


def main(arguments: list[str] | None = None) -> int:
    """Train, or resume what a killed run left in RUN. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="mufin-train", description="Train MUFIN on a catalogue folder.")
    parser.add_argument("catalogue", type=Path, metavar="CATALOGUE", help="catalogue folder (docs/catalogue.md)")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder; one that was begun is resumed")
    parser.add_argument(
        "--config",
        help=f"auto (the recommended recipe for the catalogue's size), a JSON or TOML file, or a preset: "
        f"{', '.join(PRESETS)} (default small)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. siamese.epochs=5")
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1 (default: cuda where there is one; under accelerate each process has its own)",
    )
    parser.add_argument(
        "--features", type=Path, metavar="DIR",
        help="keep there what frozen encoders say of titles and images, for other trainings",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress, only errors")
    options = parser.parse_args(arguments)
    try:
        if options.config == "auto":
            catalogue = read_catalogue(options.catalogue)
            config = _recommended(catalogue, options.set, options.quiet)
        else:
            config = build_config(options.config, options.set)
            catalogue = read_catalogue(options.catalogue)
        return _train(catalogue, config, options)
    except MufinError as error:
        print(f"mufin-train: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"mufin-train: {error}; mend that and run the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nmufin-train: interrupted; the same command resumes {options.run}", file=sys.stderr)
        return 130


def _recommended(catalogue: Catalogue, overrides: list[str], quiet: bool) -> TrainConfig:
    """The recipe for a catalogue, its reasons said; a text.name among the overrides is its title encoder."""
    named = [text.partition("=")[2].strip('"') for text in overrides if text.partition("=")[0].strip() == "text.name"]
    found = recommend(catalogue, named[-1] if named else installed_sentence_encoder())
    for reason in () if quiet else found.reasons:
        print(f"auto: {reason}")
    return build_config(found.values, overrides)


def _device(text: str) -> Any:
    """The torch.device of ``--device``. Raises ConfigError for one that is not there."""
    import torch

    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (text != kind and not number.isdecimal()):
        raise ConfigError(f"--device {text}: is no device; name cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise ConfigError(
            f"--device {text}: torch finds {count} CUDA devices here; name another, or leave --device out"
        )
    return torch.device(text)


def _require_folder(path: Path) -> None:
    """Before hours of training."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--features {path}: cannot be a folder ({error.strerror}); name another") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"--features {path}: may not be written to; allow it, or name another folder")


def _train(catalogue, config, options) -> int:  # type: ignore[no-untyped-def]
    import torch

    from mufin.training.recipe import train

    device = _device(options.device) if options.device else None
    if options.features is not None:
        _require_folder(options.features)
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=options.device == "cpu" or not torch.cuda.is_available())
    if accelerator is not None:  # "cuda" would put every process on the first GPU
        device = accelerator.device
    with Reporter(options.quiet or bool(accelerator and not accelerator.is_main_process)) as reporter:
        metrics = train(catalogue, config, options.run, reporter, Workers(accelerator), device, options.features)
        for row in ("shortlist", "classifier", "full"):
            figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics[row].items())
            reporter.say(f"validation {row:<11}{figures}")
        reporter.say(
            f"run: {options.run} (fusion weight {metrics['fusion_weight']:.2f}); "
            f"next: mufin-export {options.run} BUNDLE"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
