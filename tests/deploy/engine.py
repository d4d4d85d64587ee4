"""The container engine: commands, and images built from the repository's Dockerfiles. Knows no service."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = os.environ.get("DOCKER", "docker")
BASE = os.environ.get("BASE_IMAGE", "docker.io/library/python:3.11-slim-bookworm")
REDIS = os.environ.get("REDIS_IMAGE", "redis:7-bookworm")


def docker(*arguments: str, check: bool = True, timeout: float = 60) -> str:
    """Standard output of a docker command; its standard error in the failure."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stderr.strip() or done.stdout}"
    return done.stdout.strip()


def need_engine() -> None:
    """Skip without a running daemon."""
    if shutil.which(DOCKER) is None:
        pytest.skip(f"no container engine: {DOCKER} is not installed")
    if subprocess.run([DOCKER, "info"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip(f"no container engine: {DOCKER} info finds no running daemon")


def need_image(name: str) -> None:
    """Skip where an image of others is neither here nor to be had."""
    if subprocess.run([DOCKER, "image", "inspect", name], capture_output=True, check=False).returncode:
        pulled = subprocess.run([DOCKER, "pull", "-q", name], capture_output=True, text=True, timeout=300, check=False)
        if pulled.returncode:
            pytest.skip(f"the image {name} cannot be had: {pulled.stderr.strip()}")


def build(dockerfile: str, options: Sequence[str] = (), context: Path = ROOT, timeout: float = 900) -> str:
    """Id of the image that a Dockerfile under docker/ makes."""
    need_engine()
    need_image(BASE)
    command = [DOCKER, "build", "-q", "--network", "host", "-f", f"docker/{dockerfile}", "--build-arg", f"BASE={BASE}"]
    built = subprocess.run(
        [*command, *options, str(context)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-4000:]
    return built.stdout.strip().splitlines()[-1]
