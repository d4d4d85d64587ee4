"""Every alert has its section in the runbook, and every section its alert."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_every_alert_has_a_section() -> None:
    """The link in an alert leads to a heading that is there; a section without an alert is one that was forgotten."""
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())
    alerts = {
        rule["alert"]: rule["annotations"]["runbook"]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    headings = set(re.findall(r"^## (\S+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE))
    assert len(alerts) >= 8
    assert set(alerts) == headings
    assert alerts == {name: f"docs/runbook.md#{name.lower()}" for name in alerts}
