"""The tables of docs/security.md, made from the tables of cases; run as a program it writes them into the document.

Knows no service: test_security_report.py holds the document to these tables, the other tests hold the service to them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.service.hostile_cases import FETCHES, REDIRECTS, URLS
from tests.service.hostile_pictures import PICTURES
from tests.service.hostile_requests import REQUESTS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
_LONGEST_EXAMPLE = 44


def tables() -> dict[str, str]:
    """Name of a mark in the document -> what stands behind it."""
    return {"urls": _urls(), "servers": _servers(), "pictures": _pictures(), "requests": _requests()}


def written(document: str) -> str:
    """The document with today's tables."""
    for name, table in tables().items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        found = pattern.search(document)
        assert found is not None, f"the document needs a mark for {name}"
        document = f"{document[: found.start()]}{found[1]}\n{table}\n\n{found[2]}{document[found.end() :]}"
    return document


def _urls() -> str:
    groups = {**URLS, "where a redirect must not lead": REDIRECTS}
    rows = [(name, str(len(urls)), _examples(urls)) for name, urls in groups.items()]
    total = sum(len(urls) for urls in groups.values())
    return _table(("what", "tried", "for example"), [*rows, ("all", str(total), "")])


def _examples(urls: Sequence[str]) -> str:
    shown = [own for own in map(_printable, urls) if 0 < len(own) <= _LONGEST_EXAMPLE]
    return ", ".join(f"`{own}`" for own in shown[:2]) or "2,048 characters and more"


def _printable(text: str) -> str:
    return (
        "".join(own if " " < own <= "~" else f"\\u{ord(own):04x}" for own in text).replace("|", "\\|").replace("`", "'")
    )


def _servers() -> str:
    rows = [(group, case.name, _code(case.outcome), case.soon) for group in FETCHES for case in FETCHES[group]]
    return _table(("", "what the server does", "outcome", "ends"), _grouped(rows))


def _pictures() -> str:
    rows = [(group, case.name, _code(case.outcome)) for group in PICTURES for case in PICTURES[group]]
    return _table(("", "picture", "outcome"), _grouped(rows))


def _requests() -> str:
    rows = [(group, case.name, _answer(case.outcome)) for group in REQUESTS for case in REQUESTS[group]]
    return _table(("", "what the client sends", "answer"), _grouped(rows))


def _answer(outcome: str) -> str:
    status, _, code = outcome.partition(" ")
    return f"{status} `{code}`" if "_" in code else outcome


def _code(outcome: str) -> str:
    return "used" if outcome == "ok" else f"`{outcome}`"


def _grouped(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The group's name on its first row only."""
    return [(row[0] if at == 0 or rows[at - 1][0] != row[0] else "", *row[1:]) for at, row in enumerate(rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write the tables into the document."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
