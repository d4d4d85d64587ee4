"""The bill of materials: valid by the standard's own schema, whole, and the same every time."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs

from tools.sbom import installed, normalised

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements" / "serve.txt"


def _made(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "tools/sbom.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _schema(name: str) -> Any:
    return json.loads(files("cyclonedx.schema").joinpath("_res", name).read_text(encoding="utf-8"))


def test_the_bill_keeps_the_standard_s_schema() -> None:
    """CycloneDX 1.6, whatever is installed here."""

    def retrieve(address: str) -> Any:
        return _schema(address.rpartition("/")[2])

    validator = jsonschema_rs.validator_for(_schema("bom-1.6.SNAPSHOT.schema.json"), retriever=retrieve)
    document = _made()
    assert [error.message for error in validator.iter_errors(document)] == []
    assert {own["name"] for own in document["components"]} == set(installed()) - {"mufin"}


def test_the_bill_of_serving_names_what_serving_installs() -> None:
    """Each with its version, its licence and what it needs; nothing of training; twice the same bytes."""
    document = _made("--only", str(REQUIREMENTS))
    found = {own["name"]: own for own in document["components"]}
    assert {"fastapi", "onnxruntime", "pillow", "faiss-cpu", "redis"} <= set(found)
    assert {"torch", "transformers", "pytest"}.isdisjoint(found)
    assert found["pillow"]["version"] == version("pillow")
    assert found["pillow"]["purl"] == f"pkg:pypi/pillow@{version('pillow')}"
    assert [name for name, own in found.items() if not own.get("licenses")] == []
    needs = {own["ref"]: own["dependsOn"] for own in document["dependencies"]}
    assert found["starlette"]["bom-ref"] in needs[found["fastapi"]["bom-ref"]]
    assert _made("--only", str(REQUIREMENTS)) == document


def test_names_are_compared_as_indexes_write_them() -> None:
    """PEP 503."""
    assert normalised("Typing_Extensions") == normalised("typing.extensions") == "typing-extensions"
