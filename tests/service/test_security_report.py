"""docs/security.md says what the tests try."""

from __future__ import annotations

import typing

from service.errors import PictureCode
from tests.service.hostile_cases import FETCHES
from tests.service.hostile_pictures import PICTURES
from tests.service.hostile_requests import REQUESTS
from tests.service.security_report import DOCUMENT, written


def test_the_document_holds_the_tables_of_cases() -> None:
    """If this fails: python -m tests.service.security_report."""
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document) == document


def test_every_code_of_a_picture_has_a_case() -> None:
    """No code is there that nothing leads to; image_url_refused is what the table of URLs is about."""
    outcomes = {case.outcome for group in FETCHES.values() for case in group}
    outcomes |= {case.outcome for group in PICTURES.values() for case in group}
    assert outcomes == {*typing.get_args(PictureCode), "ok"} - {"image_url_refused"}


def test_no_case_stands_twice() -> None:
    """A name tells one case from all others of its group."""
    groups = [[case.name for case in cases] for cases in FETCHES.values()]
    groups += [[case.name for case in cases] for cases in PICTURES.values()]
    groups += [[case.name for case in cases] for cases in REQUESTS.values()]
    assert [names for names in groups if len(names) != len(set(names))] == []
