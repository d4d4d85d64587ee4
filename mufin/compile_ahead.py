"""Compiles all that is compiled, for every CPU level, before anybody asks for it.

    python -m mufin.compile_ahead FOLDER

It is found there by NUMBA_CACHE_DIR=FOLDER; the folder may then be read-only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mufin import candidate_arithmetic, label_vectors, reranking, resizing, vector_rows
from mufin.compilation import CPU_LEVELS, LEVEL_FEATURES, cpu_level


def compile_here() -> None:
    """For the CPU that numba is set to."""
    reranking.compile_here()
    resizing.compile_here()
    vector_rows.compile_here()
    label_vectors.compile_here()
    candidate_arithmetic.compile_here()


def main(arguments: Sequence[str] | None = None) -> int:
    """One process a level: a process compiles for one CPU."""
    parser = argparse.ArgumentParser(prog="python -m mufin.compile_ahead", description="Compile for every CPU level.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="later NUMBA_CACHE_DIR")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for level in [None] if cpu_level() is None else list(CPU_LEVELS):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder.resolve())}
        if level is not None:
            environment |= {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": LEVEL_FEATURES.get(level, "")}
        call = "from mufin import compile_ahead; compile_ahead.compile_here()"
        subprocess.run([sys.executable, "-c", call], env=environment, check=True)  # noqa: S603  # ourselves
        sys.stdout.write(f"compiled for {level or 'this CPU'} in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
