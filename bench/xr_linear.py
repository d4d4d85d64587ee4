"""PECOS XR-Linear (Yu et al. 2022) on TF-IDF titles, as a baseline.

libpecos 1.2.8 needs numpy below 2, so it lives in an environment of its own (``make pecos``) and is run as a program.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import load_npz, save_npz

from mufin.inputs import FloatArray

if TYPE_CHECKING:
    from bench.plain_baselines import Titles

_WORKER = Path(__file__).with_name("xr_linear_worker.py")
_DEPTH = 100


@dataclass(frozen=True)
class XRLinear:
    """Hierarchical one-versus-rest linear classifiers over label clusters made from their products' titles."""

    python: Path
    """An interpreter that has libpecos"""
    cost: float
    """Of the squared hinge loss against the L2 penalty"""

    def describe(self) -> str:
        """With its settings."""
        return f"PECOS XR-Linear (C {self.cost:g})"

    def scores(self, titles: Titles) -> FloatArray:
        """The best 100 labels of every query; 0 for the others. Raises RuntimeError with what the program said."""
        with tempfile.TemporaryDirectory() as folder:
            parts = {"training": titles.training, "relevance": titles.relevance, "queries": titles.queries}
            for name, matrix in parts.items():
                save_npz(Path(folder) / f"{name}.npz", matrix)
            command = [str(self.python), "-P", str(_WORKER), folder, str(self.cost), str(_DEPTH)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-2000:]}")
            found = load_npz(Path(folder) / "scores.npz")
        return np.asarray(found.todense(), dtype=np.float32)
