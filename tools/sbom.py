"""The bill of materials of what serving installs, as CycloneDX 1.6 JSON on standard output. Standard library only.

    python tools/sbom.py                                     # of everything this interpreter has installed (the image)
    python tools/sbom.py --only requirements/serve.txt       # of these, as far as they are installed (make sbom)

Two runs over the same packages write the same bytes. A package of the list that is not installed is named on standard
error: markers leave some out on every platform.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

_OWN = "mufin"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
# SPDX ids of the licences that packages name in other words, in their trove classifiers.
_CLASSIFIERS = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def normalised(name: str) -> str:
    """A package's name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, Distribution]:
    """Normalised name -> distribution, of this interpreter."""
    return {normalised(own.metadata["Name"]): own for own in distributions() if own.metadata["Name"]}


def bill(packages: Mapping[str, Distribution]) -> dict[str, Any]:
    """The document; ``packages`` may hold mufin itself, which becomes what the bill is of."""
    own = packages.get(_OWN)
    others = {name: package for name, package in sorted(packages.items()) if name != _OWN}
    root = {"type": "application", "name": _OWN, "bom-ref": _OWN, **({"version": own.version} if own else {})}
    components = [_component(name, package) for name, package in others.items()]
    depends = [{"ref": _OWN, "dependsOn": _needs(own, others) if own else sorted(map(_reference, others.values()))}]
    depends += [{"ref": _reference(package), "dependsOn": _needs(package, others)} for package in others.values()]
    content = json.dumps([root, components, depends], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": depends,
    }


def _reference(package: Distribution) -> str:
    return f"pkg:pypi/{normalised(package.metadata['Name'])}@{package.version}"


def _component(name: str, package: Distribution) -> dict[str, Any]:
    purl = _reference(package)
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": package.version, "purl": purl}
    licences = _licences(package)
    return {**found, "licenses": licences} if licences else found


def _licences(package: Distribution) -> list[dict[str, Any]]:
    """An SPDX expression where the package has one, else what its classifiers say, else its own words."""
    fields = package.metadata
    expression, words = ((fields.get_all(name) or [""])[0].strip() for name in ("License-Expression", "License"))
    if expression:
        return [{"expression": expression}]
    named = [own.rpartition(" :: ")[2] for own in fields.get_all("Classifier") or () if own.startswith("License")]
    if not named and words:
        named = [words.splitlines()[0][:100]]
    return [{"license": {"id": _CLASSIFIERS[own]} if own in _CLASSIFIERS else {"name": own}} for own in named if own]


def _needs(package: Distribution, among: Mapping[str, Distribution]) -> list[str]:
    """What of the others it asks for; extras are asked for by nobody here."""
    named = (
        match.group()
        for own in package.requires or ()
        if "extra ==" not in own and (match := _NAME.match(own)) is not None
    )
    return sorted({_reference(among[normalised(name)]) for name in named if normalised(name) in among})


def chosen(packages: Mapping[str, Distribution], wanted: Iterable[str]) -> tuple[dict[str, Distribution], list[str]]:
    """Those of the list that are installed, mufin with them; and the names of those that are not."""
    names = {normalised(name) for name in wanted}
    kept = {name: package for name, package in packages.items() if name in names or name == _OWN}
    return kept, sorted(names - set(kept))


def main() -> int:
    """Write the bill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=Path, help="a requirements file: nothing but what it pins")
    options = parser.parse_args()
    packages = installed()
    if options.only is not None:
        packages, missing = chosen(packages, _REQUIREMENT.findall(options.only.read_text(encoding="utf-8")))
        if missing:
            print(f"not installed here: {', '.join(missing)}", file=sys.stderr)
    print(json.dumps(bill(packages), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
