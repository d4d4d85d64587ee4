"""docker-compose.yml for real: brought up with the demo, asked, its Redis killed and started again.

Knows the services by their addresses only. The first start trains the demo, some minutes. `make test-deploy` runs it; without
Compose 2, an engine or the images of others it skips and says so. Prometheus and Grafana are left out: their profile is not
started, tests/service/test_dashboard.py and promtool look at their files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.engine import DOCKER, REDIS, ROOT, docker, need_image

pytestmark = pytest.mark.deploy

UP_SECONDS = 1800
RECOVERY_SECONDS = 60
KEY = "a key of the tests alone"
SERVICES = ("mufin", "pictures", "redis")


@dataclass(frozen=True)
class Stack:
    """A project that is up."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    url: str

    def compose(self, *arguments: str, timeout: float = 120) -> str:
        """Standard output of a Compose command."""
        done = subprocess.run(
            [*self.command, *arguments], cwd=ROOT, env=dict(self.environment), capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"compose {' '.join(arguments)}: {done.stderr[-4000:]}"
        return done.stdout.strip()

    def up(self) -> None:
        """As `make compose-up`, with images that are there."""
        self.compose("up", "--no-build", "--pull", "never", "--wait", "--detach", timeout=UP_SECONDS)

    def ask(self, path: str, product: dict[str, Any], key: str | None = KEY) -> tuple[int, Any]:
        """Status and body."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        body = json.dumps({"product": product, "k": 3}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def kept_in_redis(self) -> int:
        """Keys."""
        return int(self.compose("exec", "-T", "redis", "redis-cli", "dbsize"))

    def metric(self, line: str) -> float:
        """Value of one line of /metrics, which only the inside of the network sees."""
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/metrics').read().decode())"
        page = self.compose("exec", "-T", "mufin", "python", "-c", code)
        return float(next(own for own in page.splitlines() if own.startswith(line)).split()[-1])


def _compose() -> tuple[str, ...]:
    """Compose 2, as a plugin of the engine or on its own."""
    for command in ((DOCKER, "compose"), ("docker-compose",)):
        if shutil.which(command[0]) is not None:
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip().lstrip("v").partition(".")[0] not in ("", "1"):
                return command
    pytest.skip(f"Docker Compose 2 is not installed: neither {DOCKER} compose nor docker-compose")


@pytest.fixture(scope="module")
def stack(image: str, training_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole file but its profiles, up with what was built here."""
    command = _compose()
    need_image(REDIS)
    keys = tmp_path_factory.mktemp("secrets") / "api-keys"
    keys.write_text(f"test:{hashlib.sha256(KEY.encode()).hexdigest()}:recommend+bid-queries\n", encoding="utf-8")
    keys.chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {
        **os.environ, "MUFIN_IMAGE": image, "MUFIN_TRAINING_IMAGE": training_image, "REDIS_IMAGE": REDIS,
        "MUFIN_PORT": str(port), "MUFIN_API_KEYS": str(keys), "COMPOSE_PROJECT_NAME": f"mufin-test-{uuid.uuid4().hex[:8]}",
    }  # fmt: skip
    own = Stack(command, environment, f"http://127.0.0.1:{port}")
    try:
        own.up()
        yield own
    finally:
        own.compose("down", "--volumes", "--timeout", "20")


def test_both_endpoints_answer_the_demo(stack: Stack) -> None:
    """Title and a picture of the picture server, by its name inside: both modalities, nothing missing."""
    product = {"title": "blue steel lamp", "images": [_picture(stack)]}
    for path in ("/recommend", "/bid-queries"):
        status, answer = stack.ask(path, product)
        assert (status, answer["stage"], answer["warnings"], len(answer["results"])) == (200, "reranked", [], 3)


def test_without_a_key_nothing_is_answered(stack: Stack) -> None:
    """The file's secret reaches the service."""
    assert stack.ask("/recommend", {"title": "lamp"}, key=None)[0] == 401
    assert stack.ask("/recommend", {"title": "lamp"}, key="another")[0] == 401


def test_every_container_is_locked(stack: Stack) -> None:
    """Read-only, no capabilities, no new privileges, limits, not root; only the service has a port, on loopback."""
    for service in SERVICES:
        own = json.loads(docker("inspect", stack.compose("ps", "-q", service)))[0]
        host = own["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["Memory"] > 0 and host["PidsLimit"] > 0, service
        assert own["Config"]["User"].partition(":")[0] not in ("", "0", "root"), service
        addresses = [at["HostIp"] for places in host["PortBindings"].values() for at in places]
        assert addresses == (["127.0.0.1"] if service == "mufin" else [])


def test_survives_the_death_of_redis_and_uses_it_again(stack: Stack) -> None:
    """Killed: every request is answered. Started again: what is new is kept there once its breaker has closed."""
    stack.ask("/recommend", {"title": "lamp number zero"})
    assert stack.kept_in_redis() > 0
    stack.compose("kill", "redis")
    for number in range(20):
        assert stack.ask("/recommend", {"title": f"green lamp {number}"})[0] == 200
    assert stack.metric('mufin_breaker_open{name="redis"}') == 1
    stack.compose("start", "redis")
    end = time.monotonic() + RECOVERY_SECONDS
    number = 0
    while stack.metric('mufin_breaker_open{name="redis"}') or stack.kept_in_redis() == 0:
        assert time.monotonic() < end, f"Redis is not used {RECOVERY_SECONDS} s after its start"
        number += 1
        assert stack.ask("/recommend", {"title": f"red lamp {number}"})[0] == 200
        time.sleep(1)


def test_a_second_start_trains_nothing(stack: Stack) -> None:
    """The volume is kept, so that the one-shot job finds what it made: over what runs, and after an end."""
    assert stack.compose("logs", "--no-log-prefix", "bundles") != ""
    stack.up()
    stack.compose("down", "--timeout", "20")
    stack.up()
    assert stack.compose("logs", "--no-log-prefix", "bundles") == ""
    assert stack.ask("/recommend", {"title": "lamp"})[0] == 200


def _picture(stack: Stack) -> str:
    code = (
        "import json; line = open('/demo/catalogues/products/products.jsonl').readline(); "
        "print(json.loads(line)['images'][0])"
    )
    return "http://pictures:8081/" + stack.compose("exec", "-T", "pictures", "python", "-c", code)
