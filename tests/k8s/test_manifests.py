"""The Kubernetes folder as kubectl builds it: what docs/operations.md promises of probes, endings and rights.

Needs kubectl (its kustomize) and skips without it. `make test-deploy` applies the manifests where a cluster can be had.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import addresses

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (ROOT / "k8s" / "components").iterdir())


@cache
def build(folder: Path) -> list[dict[str, Any]]:
    """Documents of a kustomization."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: its kustomize builds the manifests")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[dict[str, Any]], kind: str, name: str = "mufin") -> dict[str, Any]:
    """The document of a kind and name."""
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} documents {kind}/{name}"
    return found[0]


def pod(overlay: str) -> dict[str, Any]:
    """The service's pod."""
    spec: dict[str, Any] = one(build(ROOT / "k8s" / "overlays" / overlay), "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_and_the_end_are_those_of_the_operations_page(overlay: str) -> None:
    """Startup 10 s x 60, readiness every 2 s, liveness 10 s x 6; 45 s for the end, no preStop, no surge of nothing."""
    spec = pod(overlay)
    container = spec["containers"][0]
    probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert {name: own["httpGet"]["path"] for name, own in probes.items()} == {
        "startup": "/startupz", "readiness": "/readyz", "liveness": "/livez",
    }  # fmt: skip
    timing = {name: (own["periodSeconds"], own["failureThreshold"]) for name, own in probes.items()}
    assert timing == {"startup": (10, 60), "readiness": (2, 2), "liveness": (10, 6)}
    assert spec["terminationGracePeriodSeconds"] == 45 and "lifecycle" not in container
    documents = build(ROOT / "k8s" / "overlays" / overlay)
    assert one(documents, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    settings = one(documents, "ConfigMap")["data"]
    assert int(settings["MUFIN_DRAIN_SECONDS"]) + int(settings["MUFIN_FINISH_SECONDS"]) + 10 == 45


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_has_a_right_that_it_does_not_need(overlay: str) -> None:
    """Every container, init containers and Redis too; no token; memory and CPU limited, CPU in whole cores or below one."""
    for document in build(ROOT / "k8s" / "overlays" / overlay):
        if document["kind"] != "Deployment":
            continue
        spec = document["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "dev"])
def test_production_pins_images_and_requests_what_it_limits(overlay: str) -> None:
    """By digest; request = limit, whole cores."""
    spec = pod(overlay)
    container = spec["containers"][0]
    assert "@sha256:" in container["image"]
    resources = container["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"] and resources["limits"]["cpu"].isdigit()
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    bundles = next(volume for volume in spec["volumes"] if volume["name"] == "bundles")
    assert "@sha256:" in bundles["image"]["reference"]
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_the_budget_and_the_scaler_mean_the_same_pods(overlay: str) -> None:
    """Selectors match the pod's labels and nothing of Redis; the scaler acts on CPU at 65 %."""
    documents = build(ROOT / "k8s" / "overlays" / overlay)
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    others = [d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] != "mufin"]
    selectors = [
        one(documents, "Service")["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(documents, "Deployment")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        for other in others:
            assert not selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()
    scaler = one(documents, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "mufin"
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 65


def test_redis_is_the_only_private_way_out() -> None:
    """Of the service's pods in production."""
    policy = one(build(ROOT / "k8s" / "overlays" / "production"), "NetworkPolicy")["spec"]
    redis = [to for rule in policy["egress"] for to in rule["to"] if to.get("podSelector")]
    assert redis == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mufin-redis"}}}]


def _closed() -> tuple[list[IPv4Network | IPv6Network], list[IPv4Network | IPv6Network]]:
    """Blocks that the network policy opens, and what it leaves out of them."""
    policy = yaml.safe_load((ROOT / "k8s" / "base" / "networkpolicy.yaml").read_text())
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    return [ip_network(own["cidr"]) for own in blocks], [ip_network(text) for own in blocks for text in own["except"]]


def test_the_network_refuses_what_the_fetcher_refuses() -> None:
    """Network by network of the fetcher's own table; of IPv6 nothing but what has been handed out is opened."""
    opened, left_out = _closed()
    assert opened == [IPv4Network("0.0.0.0/0"), addresses._V6_GLOBAL]
    refused: list[IPv4Network | IPv6Network] = [*addresses._V4_REFUSED, *addresses._V6_REFUSED]
    for own in (*refused, addresses._ASSIGNMENTS, addresses._SIX_TO_FOUR):
        assert any(own[0] in out and own[-1] in out for out in left_out), own


def test_the_network_leaves_open_what_the_fetcher_reaches() -> None:
    """But for tunnels, every network left out is one that the fetcher refuses, and its neighbours are not."""
    _, left_out = _closed()
    tunnels = {addresses._ASSIGNMENTS, addresses._SIX_TO_FOUR}
    for own in left_out:
        if own not in tunnels:
            assert not addresses.is_public(own[0]) and not addresses.is_public(own[-1]), own
    for text in ("8.8.8.8", "168.63.129.15", "192.0.1.1", "198.51.101.1", "2606:4700::1", "2620:4f:8001::1", "2a00::1"):
        assert not any(ip_address(text) in own for own in left_out) and addresses.is_public(ip_address(text)), text


def test_one_endpoint_alone_is_a_deployment_of_its_own() -> None:
    """The other bundle's setting is gone, so that its endpoint answers 404."""
    settings = one(build(ROOT / "k8s" / "overlays" / "bid-queries-only"), "ConfigMap")["data"]
    assert "MUFIN_RECOMMEND_BUNDLE" not in settings and "MUFIN_BID_QUERIES_BUNDLE" in settings


def test_init_containers_copy_and_verify_before_the_service_starts() -> None:
    """In this order; the service mounts what was verified, read-only."""
    spec = pod("dev")
    assert [own["name"] for own in spec["initContainers"]] == ["copy-bundles", "verify-bundles"]
    assert spec["initContainers"][1]["command"][:3] == ["python", "-m", "mufin.check_bundle"]
    mounts = {own["name"]: own for own in spec["containers"][0]["volumeMounts"]}
    assert mounts["bundles"] == {"name": "bundles", "mountPath": "/bundles", "readOnly": True}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_builds_on_the_base(component: str, tmp_path: Path) -> None:
    """Also those that no overlay uses; each changes something."""
    folder = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", folder)
    overlay = folder / "overlays" / "tried"
    overlay.mkdir()
    text = f"resources: [../../base]\ncomponents: [../../components/{component}]\n"
    (overlay / "kustomization.yaml").write_text(text)
    assert build(overlay) != build(ROOT / "k8s" / "base")


def test_traces_leave_only_where_the_component_opens_the_way(tmp_path: Path) -> None:
    """Named in the settings and opened in the network, or neither."""
    folder = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", folder)
    overlay = folder / "overlays" / "traced"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("resources: [../../base]\ncomponents: [../../components/tracing]\n")

    def traced(documents: list[dict[str, Any]]) -> tuple[bool, bool]:
        ports = [port["port"] for rule in one(documents, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
        return "OTEL_EXPORTER_OTLP_ENDPOINT" in one(documents, "ConfigMap")["data"], 4318 in ports

    assert traced(build(ROOT / "k8s" / "base")) == (False, False)
    assert traced(build(overlay)) == (True, True)


def test_compose_is_hardened_and_waits_for_health() -> None:
    """Every service without rights, with memory and process limits; the service waits for what it needs."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"] and service["pids_limit"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens beyond this machine: {port}"
    needs = compose["services"]["mufin"]["depends_on"]
    assert needs["bundles"]["condition"] == "service_completed_successfully"
    assert needs["redis"]["condition"] == needs["pictures"]["condition"] == "service_healthy"
    redis = compose["services"]["redis"]["command"]
    assert redis[redis.index("--maxmemory-policy") + 1] == "allkeys-lru" and "--maxmemory" in redis
    assert compose["services"]["mufin"]["stop_grace_period"] == "45s"


def test_prometheus_rules_pass_their_own_tests() -> None:
    """promtool, where it is installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    folder = ROOT / "docker" / "prometheus"
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_exceptions_of_the_network_policy_are_such_as_kubernetes_takes() -> None:
    """Within their block, and no mapped IPv4: the API server reads those as IPv4 and refuses the whole policy."""
    policy = one(build(ROOT / "k8s" / "overlays" / "production"), "NetworkPolicy")
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert len(blocks) == 2
    for block in blocks:
        whole = ip_network(block["cidr"])
        for text in block["except"]:
            own = ip_network(text)
            assert own.version == whole.version and own.prefixlen > whole.prefixlen, text
            assert getattr(own.network_address, "ipv4_mapped", None) is None, text
