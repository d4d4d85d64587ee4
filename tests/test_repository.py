"""What must hold of the files themselves: no machine's paths, no index addresses, whole links, true lock files.

Knows no behaviour of the code.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 5 << 20
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm|root|home|Users)/[A-Za-z0-9._]", re.MULTILINE)
# In two halves, so that this file does not hold what it looks for.
INDEX_HOSTS = tuple("".join(halves) for halves in (
    ("py", "pi.org"), ("python", "hosted.org"), ("registry.npm", "js.org"), ("deb.deb", "ian.org"),
    ("download.py", "torch.org"), ("conda.ana", "conda.org"),
))  # fmt: skip
MARKDOWN_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
LOCKS = ("serve.txt", "train.txt", "dev.txt", "build.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is, or would be, committed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git work tree: {error}")
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


@cache
def texts() -> dict[str, str]:
    """Relative name -> content of every text file."""
    found = {}
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found[str(path.relative_to(ROOT))] = content.decode("utf-8", errors="replace")
    return found


def test_no_file_names_a_path_of_one_machine() -> None:
    """A clone works wherever it lies."""
    assert [name for name, text in texts().items() if MACHINE_PATH.search(text)] == []


def test_no_file_names_a_package_index() -> None:
    """Whoever installs uses the index that their own pip is set up with."""
    named = [(name, host) for name, text in texts().items() for host in INDEX_HOSTS if host in text]
    assert named == []


def test_no_file_is_large() -> None:
    """Data, bundles and wheels do not belong here."""
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}


def test_every_relative_link_leads_somewhere() -> None:
    """Links between documents, and into the code, name files and headings that are there."""
    broken = []
    for name, text in texts().items():
        if not name.endswith(".md"):
            continue
        for target in MARKDOWN_LINK.findall(FENCE.sub("", text)):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            place, _, heading = unquote(target).partition("#")
            path = (ROOT / name).parent / place if place else ROOT / name
            if not path.exists() or (heading and path.suffix == ".md" and heading not in _anchors(path)):
                broken.append(f"{name}: {target}")
    assert broken == []


def _anchors(document: Path) -> set[str]:
    """Heading anchors as the usual renderers make them."""
    headings = re.findall(r"^#+\s+(.*)$", FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_reachable_from_the_index() -> None:
    """docs/README.md names each document; decisions are named in their own index."""
    documents = {name for name in texts() if name.startswith("docs/") and name.endswith(".md")}
    linked = set()
    for index in ("docs/README.md", "docs/decisions/README.md"):
        folder = (ROOT / index).parent
        targets = MARKDOWN_LINK.findall(texts()[index])
        linked |= {os.path.relpath((folder / target.partition("#")[0]).resolve(), ROOT) for target in targets}
    assert documents - linked - {"docs/README.md"} == set()


def test_documents_that_the_code_names_are_here() -> None:
    """A source that a docstring gives can be read: by its path from the root, or in docs/. Capitals are others' files."""
    missing = [
        f"{name}: {document}"
        for name, text in texts().items()
        if name.startswith(("mufin/", "service/", "model_export/", "bench/", "tools/")) and name.endswith(".py")
        for document in set(re.findall(r"(?<![\w/])[a-z][\w/.-]*\.md\b", text))
        if not (ROOT / document).exists() and not (ROOT / "docs" / document).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", sorted(PROJECT["project"]["scripts"]))
def test_console_script_can_be_called(name: str) -> None:
    """What pyproject promises is there: a module and a function in it."""
    module, _, function = PROJECT["project"]["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_is_hashed_throughout(name: str) -> None:
    """Every requirement carries its hashes, and no line sets an option."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    blocks = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ").splitlines()
    assert blocks
    assert [block for block in blocks if not (REQUIREMENT.match(block) and "--hash=sha256:" in block)] == []


def test_lock_files_agree() -> None:
    """One environment can hold all of them: no package is pinned differently in two files."""
    pins: dict[str, set[frozenset[str]]] = {}
    for name in LOCKS:
        own: dict[str, set[str]] = {}
        for package, version in REQUIREMENT.findall((ROOT / "requirements" / name).read_text(encoding="utf-8")):
            own.setdefault(package, set()).add(version)
        for package, versions in own.items():
            pins.setdefault(package, set()).add(frozenset(versions))
    assert {package: versions for package, versions in pins.items() if len(versions) > 1} == {}


def test_torch_stands_alone() -> None:
    """torch by version in its own file, equal to pyproject's; in no hashed file, nor what only its CUDA builds need."""
    wanted = next(entry for entry in PROJECT["project"]["optional-dependencies"]["train"] if entry.startswith("torch"))
    lines = (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [wanted]
    for name in LOCKS:
        packages = {package for package, _ in REQUIREMENT.findall((ROOT / "requirements" / name).read_text())}
        assert [package for package in packages if re.match(r"torch$|triton$|nvidia-|cuda-", package)] == []


def test_serving_requirements_hold_nothing_of_training() -> None:
    """Base dependencies are what serving needs."""
    packages = {name for name, _ in REQUIREMENT.findall((ROOT / "requirements" / "serve.txt").read_text())}
    assert packages.isdisjoint({"torch", "transformers", "onnx", "pyarrow", "scipy", "matplotlib", "accelerate"})
    assert {"onnxruntime", "faiss-cpu", "fastapi"} <= packages


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md names each direct dependency."""
    project = PROJECT["project"]
    entries = [*project["dependencies"], *(e for extra in project["optional-dependencies"].values() for e in extra)]
    names = {re.match(r"[A-Za-z0-9._-]+", entry).group() for entry in entries}  # type: ignore[union-attr]
    document = texts()["docs/dependencies.md"]
    assert [name for name in sorted(names) if f"`{name}`" not in document] == []


def test_changelog_names_the_version() -> None:
    """Somebody who upgrades finds what changed."""
    assert f"[{PROJECT['project']['version']}]" in texts()["CHANGELOG.md"]


def test_hooks_download_nothing() -> None:
    """pre-commit runs this repository's own tools, no remote ones."""
    assert set(re.findall(r"- repo: *(\S+)", texts()[".pre-commit-config.yaml"])) == {"local"}


def test_importing_mufin_turns_the_runtime_s_reports_off(tmp_path: Path) -> None:
    """onnxruntime sends usage reports unless told not to before it is loaded; nothing is left in the home folder either."""
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment = {**kept, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "import mufin.predictor, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr, list(tmp_path.iterdir())) == ("1", "", [])
