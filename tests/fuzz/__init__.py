"""Fuzz targets: functions that try N seeded mutants and raise at the first that breaks a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fuzz.images import fuzz_images
from tests.fuzz.requests import fuzz_requests
from tests.fuzz.urls import fuzz_urls

TARGETS: Mapping[str, Callable[[int, int], int]] = {
    "urls": fuzz_urls,
    "images": fuzz_images,
    "requests": fuzz_requests,
}
"""Name -> (cases, seed) -> how many passed as good."""
