"""Tables and numbers as the pages of a bundle show them. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first cell of a row is its heading; cells are escaped here."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def plain_text(value: Any) -> str:
    """Plain values as a person reads them."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain_text(own)}" for key, own in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_text(own) for own in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def share(value: float | None) -> str:
    """Four digits behind the point; nothing for None."""
    return "" if value is None else f"{value:.4f}"
