"""The Kubernetes folder applied to a real cluster: rollouts, endings and failures under load lose no request.

The overlay `dev` with Redis and two pods, tiny bundles in an image. Knows no service code. `make test-deploy` runs it; without
a cluster (KUBECTL, CLUSTER_LOAD, see cluster.py) it skips and says so. Services are asked by their addresses, so that the
cluster needs no DNS. NetworkPolicies are applied; whether they are enforced is the cluster's matter and not asked.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mufin.bundle import MANIFEST_FILE
from mufin.manifest import read_manifest
from tests.bundle_factory import make_tiny_bundle
from tests.deploy.cluster import (
    Cluster,
    Document,
    kustomize,
    load_images,
    ready,
    server_minor,
    wait_for,
)
from tests.deploy.engine import REDIS, ROOT, build, docker, need_engine, need_image

pytestmark = pytest.mark.deploy

PODS = 2
SERVICE = "app.kubernetes.io/name=mufin"
# By a name of its own, since several components make the label above.
SETTLED_SECONDS = 300
FREEZE = """
import os, signal
for pid in filter(str.isdigit, os.listdir('/proc')):
    if b'mufin-serve' in open(f'/proc/{pid}/cmdline', 'rb').read() and int(pid) != os.getpid():
        os.kill(int(pid), signal.SIGSTOP)
        print(pid)
"""


@dataclass(frozen=True)
class Deployed:
    """The service in its namespace."""

    cluster: Cluster
    folder: Path
    bundles: dict[str, str]
    """bundle_id by the tag of the image that carries it"""

    def documents(self, bundle: str) -> list[Document]:
        """Manifests with one bundle; Redis by its Service's address."""
        overlay = yaml.safe_load((self.folder / "kustomization.yaml").read_text(encoding="utf-8"))
        own = next(image for image in overlay["images"] if image["name"] == "mufin-bundles")
        own["newTag"] = bundle
        (self.folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        found = kustomize(self.folder)
        for document in found:
            if document["kind"] == "ConfigMap":
                document["data"]["MUFIN_REDIS_URL"] = f"redis://{self.address('mufin-redis')}:6379/0"
        return found

    def address(self, service: str) -> str:
        """Of a Service."""
        return str(self.cluster.get("service", service)["spec"]["clusterIP"])

    def apply(self, bundle: str) -> None:
        """A rollout: another digest of the bundle."""
        self.cluster.apply(self.documents(bundle))

    def pods(self) -> list[Document]:
        """The service's."""
        return self.cluster.pods(SERVICE)

    def settled(self) -> None:
        """Wait for as many ready pods as wanted and none besides."""
        self.cluster.rolled_out("mufin", SETTLED_SECONDS)
        wait_for(
            f"{PODS} ready pods", lambda: len(own := self.pods()) == PODS and all(map(ready, own)), SETTLED_SECONDS
        )

    def behind(self) -> int:
        """Pods that the Service sends requests to."""
        subsets = self.cluster.get("endpoints", "mufin").get("subsets", [])
        return sum(len(own.get("addresses", [])) for own in subsets)


@dataclass(frozen=True)
class Load:
    """Clients in a pod of their own."""

    cluster: Cluster

    def report(self) -> dict[str, Any]:
        """Of everything so far."""
        found: dict[str, Any] = json.loads(self.cluster.kubectl("logs", "load", "--tail=1") or "{}")
        return found

    def answered(self) -> int:
        """Requests."""
        return sum(self.report().get("answered", {}).values())

    def lost_nothing(self) -> dict[str, int]:
        """Answers by bundle; every request was answered, and a hundred more after the event."""
        before = self.answered()
        wait_for("a hundred answers more", lambda: self.answered() > before + 100, 30)
        report = self.report()
        assert report["failed"] == 0, report
        answered: dict[str, int] = report["answered"]
        return answered


@contextmanager
def under_load(own: Deployed) -> Iterator[Load]:
    """From some answers on."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "load"},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001},
            "containers": [
                {
                    "name": "load",
                    "image": "localhost/mufin-serving:test",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-u", "/load/load_pod.py", own.address("mufin"), "80"],
                    "volumeMounts": [{"name": "load", "mountPath": "/load"}],
                }
            ],
            "volumes": [{"name": "load", "configMap": {"name": "load"}}],
        },
    }
    own.cluster.kubectl("apply", "-f", "-", given=json.dumps(pod))
    load = Load(own.cluster)
    try:
        own.cluster.kubectl("wait", "--for=condition=Ready", "pod/load", "--timeout=60s")
        wait_for("the first answers", lambda: load.answered() > 50, 60)
        yield load
    finally:
        own.cluster.kubectl("delete", "pod", "load", "--now", check=False)


def _carrier(folder: Path, tag: str) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    docker("tag", build("Dockerfile.bundle", ["--target", "carrier"], folder), f"localhost/mufin-bundles:{tag}")


def _make_bundles(folder: Path) -> dict[str, str]:
    """Three images: two bundles of their own, and one whose records were damaged on the way."""
    for number, tag in enumerate(("v1", "v2")):
        for endpoint in ("products", "queries"):
            make_tiny_bundle(folder / tag / endpoint, seed=number)
    shutil.copytree(folder / "v2", folder / "bad")
    records = folder / "bad" / "products" / "records.bin"
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)
    for tag in ("v1", "v2", "bad"):
        _carrier(folder / tag, tag)
    return {tag: read_manifest(folder / tag / "products" / MANIFEST_FILE).bundle_id for tag in ("v1", "v2")}


def _overlay(folder: Path) -> None:
    """The overlay `dev` with Redis, two pods, this machine's images, and one process namespace, to freeze the service."""
    folder.mkdir()
    small = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}
    patches: list[tuple[str, str, list[tuple[str, str, Any]]]] = [
        ("HorizontalPodAutoscaler", "mufin", [("replace", "/spec/minReplicas", PODS), ("replace", "/spec/maxReplicas", PODS)]),
        ("Deployment", "mufin-redis", [("replace", "/spec/template/spec/containers/0/resources", small)]),
        (
            "Deployment", "mufin",
            [
                ("add", "/spec/template/spec/shareProcessNamespace", True),
                ("replace", "/spec/template/spec/containers/0/resources/requests/cpu", "200m"),
            ],
        ),
    ]  # fmt: skip
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(ROOT / "k8s/overlays/dev", folder)],
        "components": [os.path.relpath(ROOT / "k8s/components/redis", folder)],
        "images": [
            {"name": "mufin-serving", "newName": "localhost/mufin-serving", "newTag": "test"},
            {"name": "mufin-bundles", "newName": "localhost/mufin-bundles", "newTag": "v1"},
            {"name": "redis", "newName": "localhost/mufin-redis", "newTag": "test"},
        ],
        "patches": [
            {
                "target": {"kind": kind, "name": name},
                "patch": yaml.safe_dump([{"op": op, "path": path, "value": value} for op, path, value in changes]),
            }
            for kind, name, changes in patches
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """Two ready pods with the first bundle, Redis beside them."""
    minor = server_minor()
    need_engine()
    need_image(REDIS)
    docker("tag", request.getfixturevalue("image"), "localhost/mufin-serving:test")
    docker("tag", REDIS, "localhost/mufin-redis:test")
    scratch = tmp_path_factory.mktemp("cluster")
    bundles = _make_bundles(scratch / "bundles")
    load_images(
        ["localhost/mufin-serving:test", "localhost/mufin-redis:test"]
        + [f"localhost/mufin-bundles:{tag}" for tag in ("v1", "v2", "bad")]
    )
    name = f"mufin-test-{uuid.uuid4().hex[:8]}"
    cluster = Cluster(name, minor)
    cluster.kubectl("create", "namespace", name)
    try:
        cluster.kubectl("label", "namespace", name, "mufin.dev/gateway=true")
        cluster.kubectl("create", "configmap", "load", f"--from-file={ROOT / 'tests/deploy/load_pod.py'}")
        _overlay(scratch / "overlay")
        overlay = scratch / "overlay" / "kustomization.yaml"
        overlay.write_text(overlay.read_text(encoding="utf-8") + f"namespace: {name}\n", encoding="utf-8")
        own = Deployed(cluster, scratch / "overlay", bundles)
        cluster.apply(document for document in kustomize(own.folder) if document["kind"] == "Service")
        own.apply("v1")
        cluster.rolled_out("mufin-redis")
        own.settled()
        yield own
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=true", check=False, timeout=180)


def test_starts_and_is_ready_as_the_autoscaler_wants(deployed: Deployed) -> None:
    """The autoscaler's least number of pods, none restarted, all behind the Service."""
    pods = deployed.pods()
    assert [own["status"]["containerStatuses"][0]["restartCount"] for own in pods] == [0] * PODS
    assert deployed.behind() == PODS
    assert {own["metadata"]["name"] for own in deployed.cluster.get("pdb")["items"]} == {"mufin"}


def test_a_rollout_and_a_rollback_lose_nothing(deployed: Deployed) -> None:
    """Another bundle and back: answers of both, every request answered."""
    with under_load(deployed) as load:
        deployed.apply("v2")
        deployed.settled()
        assert set(load.lost_nothing()) == set(deployed.bundles.values())
        deployed.cluster.kubectl("rollout", "undo", "deployment/mufin")
        deployed.settled()
        before = load.lost_nothing()
        after = load.lost_nothing()
    assert after[deployed.bundles["v1"]] > before[deployed.bundles["v1"]]
    assert after[deployed.bundles["v2"]] == before[deployed.bundles["v2"]]


@pytest.mark.parametrize("end", ["delete", "evict"])
def test_a_pod_taken_away_loses_nothing(deployed: Deployed, end: str) -> None:
    """Of two pods one is deleted, or evicted as a node's drain would."""
    deployed.settled()
    with under_load(deployed) as load:
        gone = deployed.pods()[0]["metadata"]["name"]
        if end == "delete":
            deployed.cluster.kubectl("delete", "pod", gone, "--wait=false")
        else:
            deployed.cluster.evict(gone)
        wait_for(f"{gone} gone", lambda: gone not in deployed.cluster.kubectl("get", "pods", "-o", "name"), 90)
        deployed.settled()
        assert set(load.lost_nothing()) == {deployed.bundles["v1"]}


def test_a_second_eviction_waits_for_the_first(deployed: Deployed) -> None:
    """The disruption budget allows one."""
    deployed.settled()
    first, second = (pod["metadata"]["name"] for pod in deployed.pods())
    deployed.cluster.evict(first)
    with pytest.raises(AssertionError, match="disruption budget"):
        deployed.cluster.evict(second)
    deployed.settled()


def test_a_bad_bundle_never_becomes_ready(deployed: Deployed) -> None:
    """A damaged file stops the rollout before the service starts; the old pods go on, nothing is lost."""
    deployed.settled()
    old = {pod["metadata"]["name"] for pod in deployed.pods()}
    with under_load(deployed) as load:
        deployed.apply("bad")

        def refused() -> list[Document]:
            new = (pod for pod in deployed.pods() if pod["metadata"]["name"] not in old)
            states = [own for pod in new for own in pod["status"].get("initContainerStatuses", [])]
            return [own for own in states if own["name"] == "verify-bundles" and own["restartCount"] >= 1]

        wait_for("the new pod's refusal", lambda: bool(refused()), 120)
        pods = deployed.pods()
        assert {pod["metadata"]["name"] for pod in pods if ready(pod)} == old
        new = next(pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"] not in old)
        said = deployed.cluster.kubectl("logs", new, "-c", "verify-bundles", "--previous", check=False)
        assert "records.bin" in said and "SHA-256" in said
        deployed.cluster.kubectl("rollout", "undo", "deployment/mufin")
        deployed.settled()
        assert set(load.lost_nothing()) == {deployed.bundles["v1"]}


def test_the_death_of_redis_loses_nothing_and_it_is_shared_again(deployed: Deployed) -> None:
    """Its pod deleted under load; the new one is filled once the breakers close."""
    deployed.settled()

    def kept() -> int:
        pods = [pod for pod in deployed.cluster.pods("app.kubernetes.io/name=mufin-redis") if ready(pod)]
        return (
            int(deployed.cluster.kubectl("exec", pods[0]["metadata"]["name"], "--", "redis-cli", "dbsize"))
            if pods
            else 0
        )

    with under_load(deployed) as load:
        wait_for("vectors in Redis", lambda: kept() > 0, 60)
        redis = deployed.cluster.pods("app.kubernetes.io/name=mufin-redis")[0]["metadata"]["name"]
        deployed.cluster.kubectl("delete", "pod", redis, "--now")
        deployed.cluster.rolled_out("mufin-redis")
        wait_for("vectors in the new Redis", lambda: kept() > 0, 90)
        assert set(load.lost_nothing()) == {deployed.bundles["v1"]}


def test_a_frozen_pod_gets_no_requests_and_is_restarted(deployed: Deployed) -> None:
    """A stopped process fails readiness within seconds and liveness within a minute."""
    deployed.settled()
    name = deployed.pods()[0]["metadata"]["name"]
    assert deployed.cluster.python(name, FREEZE)
    wait_for("the frozen pod is out of the Service", lambda: deployed.behind() == PODS - 1, 20)

    def restarted() -> bool:
        own = deployed.cluster.get("pod", name)
        return bool(own["status"]["containerStatuses"][0]["restartCount"] == 1 and ready(own))

    wait_for("restarted and ready", restarted, 240)
    assert deployed.behind() == PODS
