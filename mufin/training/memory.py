"""Running out of memory, said in words.

Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mufin.errors import TrainingError

_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


@contextmanager
def out_of_memory_explained(what: str, remedy: str) -> Iterator[None]:
    """Turn the allocators' errors, a GPU's and the CPU's, into one TrainingError that names ``what`` and the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if known or any(text in str(error) for text in _CPU_ALLOCATOR):
            raise TrainingError(f"{what}: out of memory; the last checkpoint is intact. {remedy}") from error
        raise
