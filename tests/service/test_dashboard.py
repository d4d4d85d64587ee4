"""Rules and dashboard ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Gauge

from service.tallies import Counter, Histogram
from service.telemetry import Metrics

DOCKER = Path(__file__).resolve().parents[2] / "docker"
NAME = re.compile(r"\bmufin_[a-z_]+\b")
SELECTED = re.compile(r"\b(mufin_[a-z_]+)\{([^}]*)\}")
SCRAPED = {"instance", "job", "le"}
"""Labels that Prometheus and histograms add."""


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and the PromQL."""
    rules = yaml.safe_load((DOCKER / "prometheus" / "rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], str(rule["expr"])
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "mufin.json").read_text())
    yield from ((panel["title"], target["expr"]) for panel in _panels(dashboard) for target in panel.get("targets", []))


def _panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def series() -> dict[str, set[str]]:
    """Every series the service can show -> its labels."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for own in vars(metrics).values():
        if isinstance(own, (Counter, Histogram)):
            endings = ("_total",) if isinstance(own, Counter) else ("_bucket", "_count", "_sum")
            found |= {f"{own.name}{ending}": set(own.label_names) for ending in endings}
        elif isinstance(own, Gauge):
            found[own._name] = set(own._labelnames)
    return found


@pytest.mark.parametrize(("place", "expression"), list(expressions()), ids=lambda value: str(value)[:40])
def test_every_metric_asked_for_is_there(place: str, expression: str) -> None:
    """A metric that was renamed leaves a panel empty and an alert silent; here it fails."""
    known = series()
    names = set(NAME.findall(SELECTED.sub(r"\1", expression)))
    recorded = {rule for rule, _ in expressions() if ":" in rule}
    assert names - known.keys() - {name for name in names if any(name in rule for rule in recorded)} == set(), place
    for name, selector in SELECTED.findall(expression):
        labels = {part.split("=")[0].rstrip("!~").strip() for part in selector.split(",") if "=" in part}
        assert labels - known[name] - SCRAPED == set(), place


def test_there_are_as_many_expressions_as_one_thinks() -> None:
    """A file that was read wrongly would test nothing."""
    assert len(list(expressions())) > 20
    assert len(series()) > 30
