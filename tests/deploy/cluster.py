"""A Kubernetes cluster as kubectl reaches it, and one namespace in it. Knows no service.

KUBECTL: the command, `kubectl` unless told. CLUSTER_LOAD: a command that takes names of images of the local engine and brings
them into the cluster (`kind load docker-image`, `minikube image load`); without it the cluster must pull them by itself.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]

KUBECTL = shlex.split(os.environ.get("KUBECTL", "kubectl"))


@dataclass(frozen=True)
class Cluster:
    """Commands go to one namespace."""

    namespace: str
    minor: int
    """Of the server's version 1.x"""

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Standard output; ``given``: standard input."""
        done = subprocess.run(
            [*KUBECTL, "-n", self.namespace, *arguments], input=given, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout.strip()

    def apply(self, documents: Iterable[Document]) -> None:
        """All of them, in the versions that this server knows."""
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(as_served(own, self.minor) for own in documents))

    def get(self, *what: str) -> Any:
        """One object, or the list of those that a selector names."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def pods(self, selector: str) -> list[Document]:
        """Without those that are ending."""
        found: list[Document] = self.get("pods", "-l", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def rolled_out(self, deployment: str, seconds: int = 300) -> None:
        """Wait until all pods are of the newest kind and ready."""
        self.kubectl("rollout", "status", f"deployment/{deployment}", f"--timeout={seconds}s", timeout=seconds + 30)

    def python(self, pod: str, code: str, timeout: float = 30) -> str:
        """What a line of Python prints in a pod's first container."""
        return self.kubectl("exec", pod, "--", "python", "-c", code, timeout=timeout)

    def evict(self, pod: str) -> None:
        """Through the eviction API, which asks the disruption budget."""
        body = {
            "apiVersion": "policy/v1" if self.minor >= 22 else "policy/v1beta1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(body))


def ready(pod: Document) -> bool:
    """By its condition."""
    return any(own["type"] == "Ready" and own["status"] == "True" for own in pod["status"].get("conditions", []))


def wait_for(what: str, met: Callable[[], bool], seconds: float) -> None:
    """Ask once a second. Fails with ``what`` did not come."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(1)


def as_served(document: Document, minor: int) -> Document:
    """A manifest in the API versions of an older server; what it does not know is left out."""
    own = copy.deepcopy(document)
    if own["kind"] == "HorizontalPodAutoscaler" and minor < 23:
        own["apiVersion"] = "autoscaling/v2beta2"
    if own["kind"] == "PodDisruptionBudget":
        if minor < 21:
            own["apiVersion"] = "policy/v1beta1"
        if minor < 26:
            own["spec"].pop("unhealthyPodEvictionPolicy", None)
    return own


def server_minor() -> int:
    """Skips without a cluster or without a kubectl of today, whose kustomize builds the manifests."""
    for command in (KUBECTL[0], "kubectl"):
        if shutil.which(command) is None:
            pytest.skip(f"no cluster: {command} is not installed")
    try:
        done = subprocess.run(
            [*KUBECTL, "version", "-o", "json"], capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("no cluster: kubectl version takes more than 30 s")
    server = json.loads(done.stdout or "{}").get("serverVersion")
    if server is None:
        pytest.skip(f"no cluster: {done.stderr.strip().splitlines()[-1:] or 'kubectl version names no server'}")
    return int(server["gitVersion"].split(".")[1])


def kustomize(folder: Path) -> list[Document]:
    """Documents of a kustomization."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def load_images(names: Sequence[str]) -> None:
    """Into the cluster, where a command for it is named."""
    command = os.environ.get("CLUSTER_LOAD")
    if command:
        done = subprocess.run([*shlex.split(command), *names], capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"CLUSTER_LOAD: {done.stderr or done.stdout}"
