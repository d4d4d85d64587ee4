"""The release's network once more, as plain float64 numpy on its own key names.

Shares no code with mufin; slow loops over heads and slots on purpose. Source: docs/network.md.
"""

from __future__ import annotations

from itertools import pairwise
from math import erf, sqrt
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]

_ERF = np.vectorize(erf)


def random_weights(config: dict[str, int], seed: int, module4: bool) -> Weights:
    """A state dict of the release at the config's sizes; nothing is an identity."""
    hidden, dimension = config["hidden"], config["project_dim"]
    own = _Drawn(seed, "item_encoder.module.attn_encoder." if module4 else "item_encoder.")
    _text_weights(own, config)
    _image_weights(own, config)
    for encoder in ("txt_encoder", "img_encoder"):
        own.bottleneck(encoder, hidden, dimension)
    own.attention("merge_embds", dimension)
    if module4:
        own.prefix = "item_encoder.module."
        own.attention("cross_encoder", dimension)
        own.add("label_clf.features.weight", config["labels"] + 1, dimension, scale=1.0)
        own.add("label_clf.weights.weight", config["labels"] + 1, 2, scale=1.0)
    return own.weights


class _Drawn:
    """Weights by the release's names, drawn one after the other."""

    def __init__(self, seed: int, prefix: str) -> None:
        self.prefix = prefix
        self.weights: Weights = {}
        self._random = np.random.default_rng(seed)

    def add(self, name: str, *shape: int, scale: float = 0.2, around: float = 0.0) -> None:
        self.weights[self.prefix + name] = around + scale * self._random.normal(size=shape)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        self.add(f"{name}.bias", outputs)

    def norm(self, name: str, size: int) -> None:
        self.add(f"{name}.weight", size, around=1.0)
        self.add(f"{name}.bias", size)

    def spectral(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight_orig", outputs, inputs)
        self.add(f"{name}.bias", outputs)
        u, _, v = np.linalg.svd(self.weights[f"{self.prefix}{name}.weight_orig"])
        # Slightly off the true singular vectors, as a stored power iteration is.
        self.weights[f"{self.prefix}{name}.weight_u"] = u[:, 0] + 0.01
        self.weights[f"{self.prefix}{name}.weight_v"] = v[0] - 0.01

    def attention(self, name: str, dimension: int) -> None:
        for part in "qkvo":
            self.spectral(f"{name}.features.layers.0.attented.plin_{part}", dimension, dimension)
        self.norm(f"{name}.features.layers.0.attented.norm", dimension)

    def bottleneck(self, name: str, hidden: int, dimension: int) -> None:
        widths = [hidden]
        while widths[-1] // 2 > dimension:
            widths.append(widths[-1] // 2)
        widths.append(dimension)
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            self.spectral(f"{name}.bottle_neck.features.{index}", outputs, inputs)


def _text_weights(own: _Drawn, config: dict[str, int]) -> None:
    hidden, text = config["hidden"], "txt_encoder.features."
    own.add(f"{text}embeddings.word_embeddings.weight", config["vocab"], hidden)
    own.add(f"{text}embeddings.position_embeddings.weight", config["max_position_embeddings"], hidden)
    own.norm(f"{text}embeddings.LayerNorm", hidden)
    for layer in range(config["text_layers"]):
        here = f"{text}transformer.layer.{layer}."
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            own.linear(f"{here}attention.{part}", hidden, hidden)
        own.norm(f"{here}sa_layer_norm", hidden)
        own.linear(f"{here}ffn.lin1", config["text_ffn"], hidden)
        own.linear(f"{here}ffn.lin2", hidden, config["text_ffn"])
        own.norm(f"{here}output_layer_norm", hidden)


def _image_weights(own: _Drawn, config: dict[str, int]) -> None:
    hidden, image, patch = config["hidden"], "img_encoder.features.", config["patch_size"]
    own.add(f"{image}embeddings.cls_token", 1, 1, hidden)
    own.add(f"{image}embeddings.position_embeddings", 1, (config["image_size"] // patch) ** 2 + 1, hidden)
    own.add(f"{image}embeddings.patch_embeddings.projection.weight", hidden, 3, patch, patch)
    own.add(f"{image}embeddings.patch_embeddings.projection.bias", hidden)
    for layer in range(config["image_layers"]):
        here = f"{image}encoder.layer.{layer}."
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            own.linear(f"{here}attention.{part}", hidden, hidden)
        own.linear(f"{here}intermediate.dense", config["image_ffn"], hidden)
        own.linear(f"{here}output.dense", hidden, config["image_ffn"])
        own.norm(f"{here}layernorm_before", hidden)
        own.norm(f"{here}layernorm_after", hidden)
    own.norm(f"{image}layernorm", hidden)
    own.linear(f"{image}pooler.dense", hidden, hidden)


def random_inputs(config: dict[str, int], seed: int) -> dict[str, Any]:
    """Inputs laid out like shared/fixtures/official/inputs.npz: items with no, one and several images."""
    random = np.random.default_rng(seed)
    docs, labels, tokens, side = 5, config["labels"], 9, config["image_size"]
    result: dict[str, Any] = {}
    for name, count in (("doc", docs), ("label", labels)):
        lengths = random.integers(3, tokens + 1, count)
        mask = (np.arange(tokens)[None] < lengths[:, None]).astype(np.int64)
        images = random.integers(0, 4, count)
        result[f"{name}_input_ids"] = random.integers(1, config["vocab"], (count, tokens)) * mask
        result[f"{name}_attention_mask"] = mask
        result[f"{name}_image_counts"] = images
        result[f"{name}_images"] = random.random((images.sum(), 3, side, side)).astype(np.float32)
    result["relevance"] = (random.random((docs, labels)) < 0.25).astype(np.float32)
    result["relevance"][np.arange(docs), random.integers(0, labels, docs)] = 1
    result["shortlist"] = np.stack([random.permutation(labels)[:6] for _ in range(docs)])
    return result


def compute(config: dict[str, Any], inputs: dict[str, Any], module1: Weights, module4: Weights) -> dict[str, Array]:
    """Every array of expected.npz."""
    heads = int(config.get("mufin_attention_heads", 1))
    legacy = bool(config.get("legacy_heads", False))
    results: dict[str, Array] = {}
    bags: dict[tuple[int, str], list[tuple[Array, Array]]] = {}
    for number, weights, prefix in ((1, module1, "item_encoder."), (4, module4, "item_encoder.module.attn_encoder.")):
        for side in ("doc", "label"):
            raw = _raw_bags(config, weights, prefix, inputs, side)
            bags[number, side] = [
                (_attend(weights, prefix + "merge_embds.", bag, bag, mask, heads, legacy)[0], mask) for bag, mask in raw
            ]
    unit = {key: [_unit(bag[mask].mean(axis=0)) for bag, mask in value] for key, value in bags.items()}
    for side in ("doc", "label"):
        results[f"m1_{side}_embedding"] = np.stack(unit[1, side])
        results[f"m4_{side}_bag"] = np.stack([bag for bag, _ in bags[4, side]])
        results[f"m4_{side}_mask"] = np.stack([mask for _, mask in bags[4, side]]).astype(np.float64)
    similarity = results["m1_doc_embedding"] @ results["m1_label_embedding"].T
    results["m1_similarity"] = similarity
    results["m1_loss_hardest_positive"] = _margin_loss(similarity, inputs["relevance"] > 0, config)
    prefix = "item_encoder.module."
    classifiers = []
    for label, (bag, mask) in enumerate(bags[4, "label"]):
        gate = np.exp(module4[prefix + "label_clf.weights.weight"][label])
        gate = gate / gate.sum()
        own = gate[0] * _unit(module4[prefix + "label_clf.features.weight"][label])
        classifiers.append(_unit(own + gate[1] * _unit(bag[mask].mean(axis=0))))
    shortlist = inputs["shortlist"]
    vectors, weights_, scores = [], [], []
    for doc, (bag, mask) in enumerate(bags[4, "doc"]):
        rows = [
            _attend(
                module4,
                prefix + "cross_encoder.",
                bag,
                bags[4, "label"][label][0],
                bags[4, "label"][label][1],
                heads,
                legacy,
            )
            for label in shortlist[doc]
        ]
        adapted = [attended[mask].mean(axis=0) for attended, _ in rows]
        vectors.append(adapted)
        weights_.append([weight for _, weight in rows])
        scores.append([float(_unit(v) @ classifiers[label]) for v, label in zip(adapted, shortlist[doc], strict=True)])
    results["m4_classifier"] = np.stack(classifiers)
    results["m4_cross_vector"], results["m4_cross_attention"] = np.array(vectors), np.array(weights_)
    results["m4_score"] = np.array(scores)
    results["m2_score"] = np.take_along_axis(similarity, shortlist, 1)
    for alpha in (0.1, 0.5, 0.9):
        results[f"fused_{alpha}"] = alpha * results["m4_score"] + (1 - alpha) * results["m2_score"]
    relevant = np.take_along_axis(inputs["relevance"], shortlist, 1) > 0
    wrong = np.maximum(results["m4_score"] - config["cosine_margin"], 0)
    results["m4_loss"] = np.array([np.where(relevant, 1 - results["m4_score"], wrong).mean()])
    return results


def _raw_bags(
    config: dict[str, Any], weights: Weights, prefix: str, inputs: dict[str, Any], side: str
) -> list[tuple[Array, Array]]:
    counts = inputs[f"{side}_image_counts"]
    most, start, result = int(counts.max()), 0, []
    for item, count in enumerate(counts):
        title = _title(
            config, weights, prefix, inputs[f"{side}_input_ids"][item], inputs[f"{side}_attention_mask"][item]
        )
        bag = np.zeros((most + 1, len(title)))
        mask = np.zeros(most + 1, dtype=bool)
        for slot in range(count):
            bag[slot] = _picture(config, weights, prefix, inputs[f"{side}_images"][start + slot].astype(np.float64))
        bag[most], mask[most], mask[:count] = title, True, True
        start += count
        result.append((bag, mask))
    return result


def _title(config: dict[str, Any], w: Weights, prefix: str, ids: Any, mask: Any) -> Array:
    p = prefix + "txt_encoder.features."
    hidden = (
        w[p + "embeddings.word_embeddings.weight"][ids] + w[p + "embeddings.position_embeddings.weight"][: len(ids)]
    )
    hidden = _norm(w, p + "embeddings.LayerNorm", hidden, config["text_layer_norm_eps"])
    for layer in range(config["text_layers"]):
        here = f"{p}transformer.layer.{layer}."
        q, k, v = (_linear(w, f"{here}attention.{name}_lin", hidden) for name in "qkv")
        attended = _heads(q, k, v, mask > 0, config["attention_heads"])[0]
        attended = _linear(w, here + "attention.out_lin", attended)
        hidden = _norm(w, here + "sa_layer_norm", attended + hidden, config["text_layer_norm_eps"])
        inner = _linear(w, here + "ffn.lin2", _gelu(_linear(w, here + "ffn.lin1", hidden)))
        hidden = _norm(w, here + "output_layer_norm", inner + hidden, config["text_layer_norm_eps"])
    return _bottleneck(w, prefix + "txt_encoder.", hidden[mask > 0].mean(axis=0))


def _picture(config: dict[str, Any], w: Weights, prefix: str, pixels: Array) -> Array:
    p, patch = prefix + "img_encoder.features.", config["patch_size"]
    pixels = (pixels - config["image_mean"]) / config["image_std"]
    kernel = w[p + "embeddings.patch_embeddings.projection.weight"].reshape(config["hidden"], -1)
    grid = config["image_size"] // patch
    tokens = [w[p + "embeddings.cls_token"][0, 0]]
    for row in range(grid):
        for column in range(grid):
            piece = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(kernel @ piece.reshape(-1) + w[p + "embeddings.patch_embeddings.projection.bias"])
    hidden = np.stack(tokens) + w[p + "embeddings.position_embeddings"][0]
    everything = np.ones(len(hidden), dtype=bool)
    for layer in range(config["image_layers"]):
        here = f"{p}encoder.layer.{layer}."
        normed = _norm(w, here + "layernorm_before", hidden, config["image_layer_norm_eps"])
        q, k, v = (_linear(w, f"{here}attention.attention.{name}", normed) for name in ("query", "key", "value"))
        attended = _heads(q, k, v, everything, config["attention_heads"])[0]
        hidden = hidden + _linear(w, here + "attention.output.dense", attended)
        normed = _norm(w, here + "layernorm_after", hidden, config["image_layer_norm_eps"])
        inner = _gelu(_linear(w, here + "intermediate.dense", normed))
        hidden = hidden + _linear(w, here + "output.dense", inner)
    hidden = _norm(w, p + "layernorm", hidden, config["image_layer_norm_eps"])
    return _bottleneck(w, prefix + "img_encoder.", hidden[0])


def _bottleneck(w: Weights, prefix: str, vector: Array) -> Array:
    index = 0
    while f"{prefix}bottle_neck.features.{index}.bias" in w:
        vector = _spectral(w, f"{prefix}bottle_neck.features.{index}", vector)
        index += 1
    return vector


def _attend(
    w: Weights, prefix: str, queries: Array, bag: Array, mask: Array, heads: int, legacy: bool
) -> tuple[Array, Array]:
    here = prefix + "features.layers.0.attented."
    q, k, v = (_spectral(w, f"{here}plin_{name}", x) for name, x in (("q", queries), ("k", bag), ("v", bag)))
    merged, weights, separate = _heads_with_parts(q, k, v, mask, heads)
    if legacy:
        merged = np.stack(separate).reshape(q.shape)  # HEAD's [H, T, e] straight to [T, D]
    return _norm(w, here + "norm", _spectral(w, here + "plin_o", merged) + queries, 1e-5), weights


def _heads(q: Array, k: Array, v: Array, mask: Array, heads: int) -> tuple[Array, Array]:
    merged, weights, _ = _heads_with_parts(q, k, v, mask, heads)
    return merged, weights


def _heads_with_parts(q: Array, k: Array, v: Array, mask: Array, heads: int) -> tuple[Array, Array, list[Array]]:
    width = q.shape[1] // heads
    outputs, weights = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = np.where(mask[None, :], q[:, part] @ k[:, part].T / sqrt(width), -np.inf)
        weight = np.exp(logits - logits.max(axis=1, keepdims=True))
        weight = weight / weight.sum(axis=1, keepdims=True)
        outputs.append(weight @ v[:, part])
        weights.append(weight)
    return np.concatenate(outputs, axis=1), np.stack(weights), outputs


def _margin_loss(scores: Array, relevant: Any, config: dict[str, Any]) -> Array:
    count, total = int(config["negatives"]), 0.0
    for row, positives in zip(scores, relevant, strict=True):
        hardest = np.sort(row[~positives])[::-1][:count]
        weight = np.exp(hardest / config["tau"])
        violation = np.maximum(hardest - row[positives].min() + config["margin"], 0)
        total += float((violation * weight / weight.sum()).sum())
    return np.array(total / (len(scores) * count))


def _linear(w: Weights, name: str, x: Array) -> Array:
    return np.asarray(x @ w[name + ".weight"].T + w[name + ".bias"])


def _spectral(w: Weights, name: str, x: Array) -> Array:
    weight = w[name + ".weight_orig"]
    sigma = float(w[name + ".weight_u"] @ weight @ w[name + ".weight_v"])
    return np.asarray(x @ (weight / sigma).T + w[name + ".bias"])


def _norm(w: Weights, name: str, x: Array, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return np.asarray(scaled * w[name + ".weight"] + w[name + ".bias"])


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + _ERF(x / sqrt(2))))


def _unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x))
