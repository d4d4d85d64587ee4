"""The same answer as one would write it on an afternoon: torch, FAISS and FastAPI, one request at a time.

    python -m bench.serving_reference LABELS PORT [--smoke]

Eager fp32 encoders, a flat index, cross attention with its projections at every request, pictures fetched one after the
other and encoded together; no batching, no cache, no limits. Same weights, labels and sizes as bench/serving_bundle.py.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import io
import sys
import threading
from typing import Any

import faiss as _faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from bench.int8 import DIMENSION, PAPER, SMOKE
from bench.label_index import clustered
from bench.reranking import SLOTS
from bench.serving_bundle import SHORTLIST, TITLE_TOKENS, network, serving_tokenizer
from mufin.inputs import TitleTokenizer

faiss: Any = _faiss


def reference(labels: int, smoke: bool) -> FastAPI:
    """The app; POST /recommend as the service's, /readyz once it is up."""
    import httpx

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    size = SMOKE if smoke else PAPER
    model, tokenizer = network(size), TitleTokenizer(serving_tokenizer(), TITLE_TOKENS)
    attention = model.cross_attention
    assert attention is not None
    embeddings = clustered(labels)[0]
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(embeddings)
    bags = torch.randn((labels, SLOTS, DIMENSION), generator=torch.Generator().manual_seed(0))
    classifiers = torch.nn.functional.normalize(torch.from_numpy(embeddings) + 0.1, dim=-1)
    client, lock = httpx.Client(), threading.Lock()
    app = FastAPI()

    def pixels(url: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        image = Image.open(io.BytesIO(client.get(url).content)).convert("RGB")
        return np.asarray(image.resize((size.side_pixels, size.side_pixels)))

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/recommend")
    def recommend(request: dict[str, Any]) -> dict[str, Any]:
        product = request["product"]
        with lock, torch.no_grad():
            tokens = tokenizer.encode([product["title"]])
            vectors = [model.encoder.text(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))]
            if product["images"]:
                loaded = np.stack([pixels(url) for url in product["images"]])
                vectors.insert(0, model.encoder.image(torch.from_numpy(loaded)))
            bag = torch.cat(vectors)[None]
            mask = torch.ones(bag.shape[:2], dtype=torch.bool)
            attended = model.encoder.attend(bag, mask)
            embedding = model.encoder.embed(attended, mask)
            scores, found = index.search(embedding.numpy(), SHORTLIST)
            own = torch.from_numpy(found[0])
            label_mask = torch.ones((len(own), SLOTS), dtype=torch.bool)
            adapted, _ = model.adapt(attended, mask, bags[own][None], label_mask[None])
            classifier = (torch.nn.functional.normalize(adapted[0], dim=-1) * classifiers[own]).sum(dim=-1)
            fused = 0.5 * classifier + 0.5 * torch.from_numpy(scores[0])
            best = fused.topk(request["k"])
        return {"results": [{"id": f"L{own[i]}", "score": float(fused[i])} for i in best.indices.tolist()],
                "warnings": [], "stage": "reranked"}  # fmt: skip

    return app


if __name__ == "__main__":
    uvicorn.run(reference(int(sys.argv[1]), "--smoke" in sys.argv), port=int(sys.argv[2]), log_level="warning")
