"""The OpenAPI document and the service agree: schemathesis with all its checks, and ours, against a real process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.service.test_process import ROOT, served

EXAMPLES = os.environ.get("MUFIN_CONTRACT_EXAMPLES", "15")
KEY = "contract"


def test_the_service_keeps_its_document(tmp_path: Path) -> None:
    """Generated requests, good and bad, with and without the key; MUFIN_CONTRACT_EXAMPLES sets how many an operation."""
    keys = f"test:{hashlib.sha256(KEY.encode()).hexdigest()}:recommend+bid-queries+admin"
    # No name is looked up: pictures are not what this is about.
    environment = {"MUFIN_API_KEYS": keys, "MUFIN_FETCH_ALLOWED_HOSTS": "pictures.invalid"}
    with served("--bid-queries-bundle", "memory", "--drain-seconds", "0", **environment) as own:
        url = own.until_ready()
        command = [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).parent / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--checks", "all", "--max-examples", EXAMPLES, "--seed", "1"),
            *("-H", f"Authorization: Bearer {KEY}", "--no-color", "--suppress-health-check", "all"),
        ]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.service.contract_checks"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "9 selected / 9 total" in done.stdout
        assert [line for line in own.lines if line["event"] == "defect"] == []
