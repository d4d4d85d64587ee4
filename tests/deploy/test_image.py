"""docker/Dockerfile for real: built, looked into, and run with every right taken away.

Knows no service code. `make test-deploy` runs it; without a container engine or the base image it skips and says so.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bundle_factory import make_tiny_bundle
from tests.deploy.engine import BASE, docker

pytestmark = pytest.mark.deploy

# With the public python:3.11-slim-bookworm, some 130 MB, 600 MB in all; a base that stands in for it may be any size.
MAX_ADDED_BYTES = 465_000_000
READY_SECONDS = 60
HARDENED = [
    "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "10001:10001",
    "--pids-limit", "128", "--memory", "1g", "--memory-swap", "1g",
]  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A started container and where it answers."""

    name: str
    url: str

    def answer(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and, where it is JSON, the parsed body."""
        encoded = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, encoded, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        return status, json.loads(content) if content[:1] in b"{[" else content

    def wait_ready(self) -> None:
        """Until /readyz answers 200; the log in the failure."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            try:
                if self.answer("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        pytest.fail(f"not ready within {READY_SECONDS} s: {docker('logs', self.name)}")


@pytest.fixture
def running(image: str, tmp_path: Path) -> Iterator[Running]:
    """The image with a tiny bundle, hardened, ready."""
    bundle = make_tiny_bundle(tmp_path / "products")
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    name = f"mufin-test-{uuid.uuid4().hex[:12]}"
    docker(
        "run", "-d", "--name", name, *HARDENED, "-p", "127.0.0.1::8080", "-v", f"{bundle}:/bundles/products:ro",
        "-e", "MUFIN_RECOMMEND_BUNDLE=/bundles/products", "-e", "MUFIN_DRAIN_SECONDS=1", image,
    )  # fmt: skip
    try:
        container = Running(name, f"http://{docker('port', name, '8080').splitlines()[0]}")
        container.wait_ready()
        yield container
    finally:
        docker("rm", "-f", name, check=False)


def test_declares_user_probe_and_labels(image: str) -> None:
    """Non-root by number, exec form, a health check without a shell, OCI labels."""
    config = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["mufin-serve"]
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_is_small(image: str) -> None:
    """What lies on the base keeps the whole below 600 MB."""
    whole, base = (json.loads(docker("image", "inspect", name))[0]["Size"] for name in (image, BASE))
    assert whole - base < MAX_ADDED_BYTES


@pytest.mark.parametrize("program", ["gcc", "cc", "g++", "curl", "wget"])
def test_holds_no_compiler_and_no_downloader(image: str, program: str) -> None:
    """What an intruder would look for first is not there."""
    found = docker("run", "--rm", "--entrypoint", "sh", image, "-c", f"command -v {program} || echo none")
    assert found == "none"


@pytest.mark.parametrize("package", ["torch", "transformers", "onnx", "pyarrow", "scipy", "pip", "setuptools"])
def test_holds_no_package_that_serving_does_not_need(image: str, package: str) -> None:
    """The image's Python finds none of training's packages and no installer."""
    code = f"import importlib.util; print(importlib.util.find_spec('{package}'))"
    assert docker("run", "--rm", "--entrypoint", "python", image, "-c", code) == "None"


def test_answers_with_every_right_taken_away(running: Running) -> None:
    """Read-only root, no capabilities, few processes, little memory: a recommendation all the same."""
    status, answer = running.answer("/recommend", {"product": {"title": "red shirt men"}, "k": 3})
    assert (status, answer["stage"], len(answer["results"])) == (200, "reranked", 3)
    assert running.answer("/bid-queries", {"product": {"title": "red shirt men"}})[0] == 404


def test_nothing_is_compiled_at_start(running: Running) -> None:
    """Reranking was compiled for every level of CPU when the image was built; the start would warn else."""
    assert "reranking" not in docker("logs", running.name)


def test_writes_nothing(running: Running) -> None:
    """Nothing differs from the image after a request, so no writable volume is needed."""
    running.answer("/recommend", {"product": {"title": "blue hat"}})
    changes = docker("diff", running.name).splitlines()
    # The mount point of the bundle is the engine's doing.
    assert [line for line in changes if not line.split()[1].startswith("/bundles")] == []


def test_turns_healthy(running: Running) -> None:
    """The HEALTHCHECK runs inside the hardened container and passes."""
    end = time.monotonic() + READY_SECONDS
    status = ""
    while status != "healthy" and time.monotonic() < end:
        status = docker("inspect", "-f", "{{.State.Health.Status}}", running.name)
        time.sleep(0.5)
    assert status == "healthy"


def test_sigterm_ends_it_cleanly(running: Running) -> None:
    """docker stop: drained and gone with exit code 0, not killed."""
    docker("stop", "-t", "40", running.name)
    assert docker("inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", running.name) == "0 false"
