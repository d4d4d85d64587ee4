"""MUFIN, multi-modal extreme classification: what is computed.

Knows nothing of HTTP, queues or caches; those live in ``service``.
"""

import os

# onnxruntime's official builds report sessions to their maker unless this is set before they are loaded (their
# Privacy.md, "Disabling Telemetry"). Nobody who runs this asked for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
