"""Checkpoints of the authors' release, read into our network; and the proof that both compute the same.

Knows the release's key names (its modules' state dicts) and nothing of catalogues.

    python -m mufin.training.official --check FOLDER

computes every array of FOLDER/expected.npz with our network and exits 1 if one differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig

from mufin.errors import CheckpointError
from mufin.inputs import FloatArray, layout_bags
from mufin.training.config import NetworkConfig
from mufin.training.losses import cosine_embedding_loss, hardest_positive_margin_loss
from mufin.training.model import ItemEncoder, Mufin, build_network, from_config

TOLERANCE = 1e-4
Kind = Literal["module1", "module4", "encoder"]

_TEXT = {
    r"embeddings\.(.+)": r"embeddings.\1",
    r"transformer\.layer\.(\d+)\.(.+)": r"transformer.layer.\1.\2",
}
# transformers 4 on the left, transformers 5 on the right; a key in the new form stays as it is.
_IMAGE = {
    r"embeddings\.(.+)": r"embeddings.\1",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.(.+)": r"layers.\1.attention.\2_proj.\3",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)": r"layers.\1.attention.o_proj.\2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.(.+)": r"layers.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.output\.dense\.(.+)": r"layers.\1.mlp.fc2.\2",
    r"encoder\.layer\.(\d+)\.(layernorm_before|layernorm_after)\.(.+)": r"layers.\1.\2.\3",
    r"(?:encoder\.)?layers\.(\d+)\.(.+)": r"layers.\1.\2",
    r"layernorm\.(.+)": r"layernorm.\1",
}
_PROJECTIONS = {"plin_q": "query", "plin_k": "key", "plin_v": "value", "plin_o": "output"}
_IGNORED = (r"img_encoder\.features\.pooler\.", r"\.position_ids$")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A checkpoint of the release in our names, spectral norm folded into plain weights."""

    kind: Kind
    weights: dict[str, Tensor]
    """Keys of ``Mufin.state_dict()`` without spectral norm; classifiers without the padding row"""

    @property
    def label_count(self) -> int | None:
        """Labels of the classifiers; None without."""
        free = self.weights.get("classifiers.free.weight")
        return None if free is None else len(free)


def read_official(path: Path) -> OfficialCheckpoint:
    """Read module 1, module 4 or ``encoder.pkl``: safetensors, or a torch pickle opened with weights_only.

    Raises CheckpointError that lists every key it does not know.
    """
    try:
        raw = load_file(str(path)) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a broken or unsafe pickle
        raise CheckpointError(f"{path}: cannot be read as safetensors or a weights-only torch file: {error}") from error
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping):
        raw = raw["state_dict"]
    if not isinstance(raw, Mapping) or not all(isinstance(v, Tensor) for v in raw.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    return convert(raw, str(path))


def convert(raw: Mapping[str, Tensor], source: str = "checkpoint") -> OfficialCheckpoint:
    """Translate a state dict of the release."""
    stripped = {re.sub(r"^item_encoder\.(module\.)?", "", key): value for key, value in raw.items()}
    kind: Kind = "module1"
    if any(key.startswith("attn_encoder.") for key in stripped):
        kind = "module4"
    elif not any(key.startswith("merge_embds.") for key in stripped):
        kind = "encoder"
    folded = _fold({key.removeprefix("attn_encoder."): value for key, value in stripped.items()}, source)
    weights, unknown = {}, []
    for key, value in folded.items():
        if any(re.search(pattern, key) for pattern in _IGNORED):
            continue
        name = _translate(key)
        if name is None or name in weights:
            unknown.append(key)
        else:
            weights[name] = value[:-1] if name.startswith("classifiers.") else value
    if unknown:
        raise CheckpointError(f"{source}: surplus keys: {', '.join(sorted(unknown))}")
    return OfficialCheckpoint(kind, weights)


def _fold(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """W = weight_orig / (u . (weight_orig v)): what the release computes in eval mode."""
    result = {}
    for key, value in weights.items():
        if key.endswith((".weight_u", ".weight_v")):
            if key[:-2] + "_orig" not in weights:
                raise CheckpointError(f"{source}: {key} has no {key[:-2]}_orig beside it")
        elif key.endswith(".weight_orig"):
            stem = key.removesuffix("_orig")
            parts = [weights.get(stem + "_u"), weights.get(stem + "_v")]
            if parts[0] is None or parts[1] is None:
                raise CheckpointError(f"{source}: missing keys: {stem}_u, {stem}_v beside {key}")
            # In float64: sigma may be a small difference of large terms.
            wide = value.double()
            result[stem] = (wide / torch.dot(parts[0].double(), wide @ parts[1].double())).to(value.dtype)
        else:
            result[key] = value
    return result


def _translate(key: str) -> str | None:
    """Our name of a folded key, or None."""
    for prefix, own, table in (("txt_encoder", "text", _TEXT), ("img_encoder", "image", _IMAGE)):
        if match := re.fullmatch(rf"{prefix}\.bottle_neck\.features\.(\d+)\.(weight|bias)", key):
            return f"encoder.{own}.bottleneck.{match[1]}.{match[2]}"
        if match := re.fullmatch(rf"{prefix}\.features\.(.+)", key):
            for pattern, replacement in table.items():
                if re.fullmatch(pattern, match[1]):
                    return f"encoder.{own}.backbone." + re.sub(f"^{pattern}$", replacement, match[1])
            return None
    for prefix, own in (("merge_embds", "encoder.self_attention"), ("cross_encoder", "cross_attention")):
        if match := re.fullmatch(rf"{prefix}\.features\.layers\.0\.attented\.(plin_[qkvo])\.(weight|bias)", key):
            return f"{own}.{_PROJECTIONS[match[1]]}.{match[2]}"
        if match := re.fullmatch(rf"{prefix}\.features\.layers\.0\.attented\.norm\.(weight|bias)", key):
            return f"{own}.norm.{match[1]}"
    return {
        "label_clf.features.weight": "classifiers.free.weight",
        "label_clf.weights.weight": "classifiers.gate.weight",
    }.get(key)


def load_official(model: Mufin, checkpoint: OfficialCheckpoint, source: str = "checkpoint") -> None:
    """Put a checkpoint into a network built without spectral norm; every key must find its place.

    Module 1 leaves cross-attention and classifiers as they are, ``encoder.pkl`` self-attention, too.
    Raises CheckpointError that lists missing and surplus keys and differing shapes.
    """
    own = model.state_dict()
    optional = {"module4": (), "module1": ("cross_attention.", "classifiers.")}.get(
        checkpoint.kind, ("cross_attention.", "classifiers.", "encoder.self_attention.")
    )
    missing = sorted(k for k in own if k not in checkpoint.weights and not k.startswith(optional or ("\0",)))
    surplus = sorted(k for k in checkpoint.weights if k not in own)
    shapes = sorted(
        f"{k} is {tuple(v.shape)}, the network has {tuple(own[k].shape)}"
        for k, v in checkpoint.weights.items()
        if k in own and v.shape != own[k].shape
    )
    faults = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (("missing keys", missing), ("surplus keys", surplus), ("shapes", shapes))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{source}: does not fit the network; " + "; ".join(faults))
    model.load_state_dict({**own, **checkpoint.weights}, strict=True)


def build_official_network(config: Mapping[str, Any], labels: int, legacy_heads: bool = False) -> Mufin:
    """The network of a ``config.json`` laid out like shared/fixtures/official (sizes, activations, epsilons).

    Without ``text_layers`` etc. the release's own sizes apply. MUFIN's attention has ``mufin_attention_heads`` (1).
    """
    hidden = int(config.get("hidden", 768))
    heads = int(config.get("attention_heads", 12))
    text = AutoConfig.for_model(
        "distilbert", vocab_size=config.get("vocab", 30522), dim=hidden, n_heads=heads,
        n_layers=config.get("text_layers", 6), hidden_dim=config.get("text_ffn", 4 * hidden),
        max_position_embeddings=config.get("max_position_embeddings", 512),
        activation=config.get("text_activation", "gelu"),
    )  # fmt: skip
    image = AutoConfig.for_model(
        "vit", hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=config.get("image_layers", 12),
        intermediate_size=config.get("image_ffn", 4 * hidden), image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16), hidden_act=config.get("image_activation", "gelu"),
        layer_norm_eps=config.get("image_layer_norm_eps", 1e-12),
    )  # fmt: skip
    network = NetworkConfig(
        dimension=int(config.get("project_dim", 192)), attention_heads=int(config.get("mufin_attention_heads", 1)),
        spectral_norm=False, legacy_heads=legacy_heads,
    )  # fmt: skip
    text_backbone, image_backbone = from_config(text), from_config(image)
    epsilon = float(config.get("text_layer_norm_eps", 1e-12))
    for module in text_backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = epsilon  # DistilBERT's config has no field for it
    return build_network(
        text_backbone, image_backbone, network, labels,
        image_mean=float(config.get("image_mean", 0.5)), image_std=float(config.get("image_std", 0.5)),
    ).eval()  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One array of expected.npz beside ours."""

    name: str
    difference: float
    """Largest absolute difference; infinite when shapes differ or a value is not finite"""

    @property
    def passed(self) -> bool:
        """Within TOLERANCE."""
        return self.difference <= TOLERANCE


@torch.no_grad()
def check(folder: Path) -> list[Comparison]:
    """Compute every array of ``folder``/expected.npz with our network. Padded bag slots are not compared."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inputs = dict(np.load(folder / "inputs.npz", allow_pickle=False))
    expected = dict(np.load(folder / "expected.npz", allow_pickle=False))
    ours = compute(config, inputs, read_network(folder, "module1", config), read_network(folder, "module4", config))
    unknown = sorted(set(expected) - set(ours))
    if unknown:
        raise CheckpointError(f"{folder}/expected.npz: arrays not known: {', '.join(unknown)}")
    if not expected:
        raise CheckpointError(f"{folder}/expected.npz holds no array: nothing would be checked")
    return [Comparison(name, _difference(name, ours, expected)) for name in expected]


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where ``folder`` has a checkpoint of that name. Raises CheckpointError when it has none."""
    paths = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".pt", ".pth", ".pkl", ".bin")]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: has no {name}.safetensors (nor .pt, .pth, .pkl, .bin)")
    return path


def read_network(folder: Path, name: str, config: Mapping[str, Any]) -> Mufin:
    """The network of a folder's checkpoint (module1, module4), in eval mode; ``config`` is its config.json."""
    path = checkpoint_path(folder, name)
    checkpoint = read_official(path)
    legacy_heads = bool(config.get("legacy_heads", False))
    model = build_official_network(config, checkpoint.label_count or int(config.get("labels", 1)), legacy_heads)
    load_official(model, checkpoint, str(path))
    return model


@torch.no_grad()
def compute(
    config: Mapping[str, Any], inputs: Mapping[str, Any], module1: Mufin, module4: Mufin
) -> dict[str, FloatArray]:
    """All arrays of the fixture by name, from its inputs and the two networks."""
    relevance = torch.from_numpy(inputs["relevance"]) > 0
    shortlist = torch.from_numpy(inputs["shortlist"])
    bags1 = {side: _bags(module1.encoder, inputs, side) for side in ("doc", "label")}
    bags4 = {side: _bags(module4.encoder, inputs, side) for side in ("doc", "label")}
    doc1, label1 = (module1.encoder.embed(*bags1[side]) for side in ("doc", "label"))
    similarity = doc1 @ label1.T
    (doc, doc_mask), (label, label_mask) = bags4["doc"], bags4["label"]
    adapted, attention = module4.adapt(doc, doc_mask, label[shortlist], label_mask[shortlist])
    every = torch.arange(len(label))
    classifier = module4.classifiers(every, module4.encoder.embed(label, label_mask))
    score = (F.normalize(adapted, dim=-1) * classifier[shortlist]).sum(dim=-1)
    shortlist_score = similarity.gather(1, shortlist)
    loss1 = hardest_positive_margin_loss(
        similarity, relevance, margin=float(config["margin"]), negatives=int(config["negatives"]),
        temperature=float(config["tau"]),
    )  # fmt: skip
    loss4 = cosine_embedding_loss(score, relevance.gather(1, shortlist), margin=float(config["cosine_margin"]))
    results = {
        "m1_doc_embedding": doc1, "m1_label_embedding": label1, "m1_similarity": similarity,
        "m1_loss_hardest_positive": loss1, "m4_doc_bag": doc, "m4_doc_mask": doc_mask.float(), "m4_label_bag": label,
        "m4_label_mask": label_mask.float(), "m4_cross_vector": adapted, "m4_classifier": classifier, "m4_score": score,
        "m2_score": shortlist_score, "m4_loss": loss4[None],
        **{f"fused_{alpha}": alpha * score + (1 - alpha) * shortlist_score for alpha in (0.1, 0.5, 0.9)},
    }  # fmt: skip
    if attention is not None:
        results["m4_cross_attention"] = attention
    return {name: value.numpy() for name, value in results.items()}


def _bags(encoder: ItemEncoder, inputs: Mapping[str, Any], side: str) -> tuple[Tensor, Tensor]:
    counts = inputs[f"{side}_image_counts"]
    ids, tokens = (torch.from_numpy(inputs[f"{side}_{name}"]) for name in ("input_ids", "attention_mask"))
    slots, mask = layout_bags([int(c) for c in counts], [True] * len(counts))
    titles = encoder.text(ids, tokens)
    bag = torch.zeros(len(counts), slots, titles.shape[1])
    bag[:, -1] = titles
    pixels = torch.from_numpy(inputs[f"{side}_images"])
    if len(pixels):
        normalised = (pixels - encoder.image.mean) / encoder.image.std
        image_mask = torch.from_numpy(mask).clone()
        image_mask[:, -1] = False
        bag[image_mask] = encoder.image.encode_features(encoder.image.features(normalised))
    held = torch.from_numpy(mask)
    return encoder.attend(bag, held), held


def _difference(name: str, ours: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> float:
    mine, theirs = np.asarray(ours[name], np.float64), np.asarray(expected[name], np.float64)
    if mine.shape != theirs.shape or not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
        return float("inf")
    difference = np.abs(mine - theirs)
    masks = {side: ours[f"m4_{side}_mask"] > 0 for side in ("doc", "label")}
    if name in ("m4_doc_bag", "m4_label_bag"):
        difference = difference[masks["doc" if "doc" in name else "label"]]
    elif name == "m4_cross_attention":
        # (docs, K, H, S, M): rows of padded product slots are not compared
        difference = difference.transpose(0, 3, 1, 2, 4)[masks["doc"]]
    return float(difference.max(initial=0.0))


def main(arguments: list[str] | None = None) -> int:
    """Print name, largest difference, pass or fail of every array; 1 if any fails."""
    parser = argparse.ArgumentParser(prog="python -m mufin.training.official", description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=Path, required=True, metavar="FOLDER")
    try:
        results = check(parser.parse_args(arguments).check)
    except (CheckpointError, OSError, KeyError, ValueError) as error:
        print(f"official: {error}", file=sys.stderr)
        return 1
    for result in results:
        print(f"{result.name:<28}{result.difference:12.3e}  {'pass' if result.passed else 'FAIL'}")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
