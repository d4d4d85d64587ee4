"""What the service must never load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_service_loads_neither_torch_nor_training() -> None:
    """A fresh interpreter imports the whole service; what training needs stays out."""
    code = (
        "import sys, service.app, service.__main__\n"
        "bad = {'torch', 'transformers', 'onnx', 'scipy', 'pyarrow', 'mufin.training', 'mufin.catalogue', 'model_export'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
