"""Images that several files of these tests run."""

from __future__ import annotations

import pytest

from tests.deploy.engine import build


@pytest.fixture(scope="session")
def image() -> str:
    """The serving image's id, built once."""
    return build("Dockerfile")


@pytest.fixture(scope="session")
def training_image() -> str:
    """The training image's id, built once: torch is a large download."""
    return build("Dockerfile.train", timeout=2400)
