"""Our network equals the authors' one, and reads its checkpoints in every form they come in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mufin.errors import CheckpointError
from mufin.training.official import build_official_network, check, load_official, main, read_official
from tests.training import reference_network

FIXTURE = Path(__file__).parent.parent / "fixtures" / "official"

OTHER_SIZES: dict[str, Any] = {
    "hidden": 64, "project_dim": 12, "attention_heads": 8, "text_layers": 3, "image_layers": 1, "labels": 11,
    "vocab": 50, "max_position_embeddings": 16, "text_ffn": 40, "image_ffn": 72, "image_size": 24, "patch_size": 6,
    "margin": 0.2, "tau": 0.05, "negatives": 4, "cosine_margin": 0.3, "image_mean": 0.4, "image_std": 0.6,
    "text_layer_norm_eps": 1e-12, "image_layer_norm_eps": 1e-6,
}  # fmt: skip


def write_folder(folder: Path, config: dict[str, Any], seed: int = 3) -> Path:
    """A folder laid out like the fixture, its expectations from the plain numpy network."""
    folder.mkdir()
    module1 = reference_network.random_weights(config, seed, module4=False)
    module4 = reference_network.random_weights(config, seed + 1, module4=True)
    inputs = reference_network.random_inputs(config, seed + 2)
    expected = reference_network.compute(config, inputs, module1, module4)
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "inputs.npz", **inputs)
    arrays: dict[str, Any] = {k: v.astype(np.float32) for k, v in expected.items()}
    np.savez(folder / "expected.npz", **arrays)
    for name, weights in (("module1", module1), ("module4", module4)):
        save_file({k: torch.tensor(v, dtype=torch.float32) for k, v in weights.items()}, folder / f"{name}.safetensors")
    return folder


def test_every_golden_array_of_the_authors_network_is_reproduced() -> None:
    """All arrays of the fixture, losses included, within 1e-4."""
    results = check(FIXTURE)
    assert {r.name for r in results} == set(np.load(FIXTURE / "expected.npz").files)
    assert {r.name: r.difference for r in results if not r.passed} == {}


@pytest.mark.parametrize(
    "changes",
    [{}, {"mufin_attention_heads": 3}, {"mufin_attention_heads": 3, "legacy_heads": True}, {"project_dim": 64}],
    ids=["other-sizes", "three-heads", "three-heads-legacy", "square-bottleneck"],
)
def test_other_sizes_agree_with_a_plain_numpy_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Sizes, heads, epsilons and normalisation come from config.json, not from the fixture's habits."""
    config = {**OTHER_SIZES, **changes}
    config["mufin_attention_heads"] = min(config.get("mufin_attention_heads", 1), config["project_dim"])
    results = check(write_folder(tmp_path / "other", config))
    assert len(results) == 17
    assert {r.name: r.difference for r in results if not r.passed} == {}


def test_legacy_heads_and_merged_heads_differ(tmp_path: Path) -> None:
    """With several heads the flag matters: the check of one against the other fails."""
    folder = write_folder(tmp_path / "other", {**OTHER_SIZES, "mufin_attention_heads": 3, "legacy_heads": True})
    config = {**OTHER_SIZES, "mufin_attention_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    assert not all(r.passed for r in check(folder))


def test_an_altered_weight_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check can fail, and then exits 1 and names the arrays."""
    folder = write_folder(tmp_path / "other", OTHER_SIZES)
    weights = load_file(folder / "module4.safetensors")
    weights["item_encoder.module.label_clf.features.weight"][0, 0] += 1.0
    save_file(weights, folder / "module4.safetensors")
    assert main(["--check", str(folder)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert any(line.startswith("m4_classifier") for line in lines)


def test_prefixes_pickles_and_new_layer_names_read_the_same(tmp_path: Path) -> None:
    """With and without ``module.``, safetensors or torch pickle, transformers 4 or 5 names."""
    plain = read_official(FIXTURE / "module1.safetensors").weights
    raw = load_file(FIXTURE / "module1.safetensors")
    prefixed = {k.replace("item_encoder.", "item_encoder.module."): v for k, v in raw.items()}
    torch.save(prefixed, tmp_path / "module1.pt")
    renamed = {_new_name(k): v for k, v in raw.items()}
    torch.save({"state_dict": renamed}, tmp_path / "module1.pkl")
    for path in (tmp_path / "module1.pt", tmp_path / "module1.pkl"):
        other = read_official(path).weights
        assert other.keys() == plain.keys()
        assert all(torch.allclose(other[k], plain[k], rtol=0, atol=1e-6) for k in plain)


def _new_name(key: str) -> str:
    for old, new in (
        ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
    ):  # fmt: skip
        if "img_encoder" in key:
            key = key.replace(old, new)
    return key.replace(".output.dense", ".mlp.fc2") if "img_encoder" in key else key


def test_encoder_pkl_leaves_self_attention_at_its_start(tmp_path: Path) -> None:
    """Module 3's encoder.pkl has the two encoders only and no prefix."""
    config = json.loads((FIXTURE / "config.json").read_text())
    raw = load_file(FIXTURE / "module1.safetensors")
    names = {k.removeprefix("item_encoder."): v for k, v in raw.items() if "merge_embds" not in k}
    torch.save(names, tmp_path / "encoder.pkl")
    checkpoint = read_official(tmp_path / "encoder.pkl")
    model = build_official_network(config, labels=3)
    assert model.encoder.self_attention is not None
    before = model.encoder.self_attention.query.weight.clone()
    load_official(model, checkpoint)
    assert checkpoint.kind == "encoder"
    assert torch.equal(model.encoder.self_attention.query.weight, before)
    assert torch.equal(
        model.state_dict()["encoder.text.backbone.embeddings.word_embeddings.weight"],
        names["txt_encoder.features.embeddings.word_embeddings.weight"],
    )


def test_missing_and_surplus_keys_are_listed(tmp_path: Path) -> None:
    """Nothing is loaded loosely: each key without a place is named."""
    config = json.loads((FIXTURE / "config.json").read_text())
    raw = load_file(FIXTURE / "module1.safetensors")
    gone = "item_encoder.txt_encoder.features.embeddings.LayerNorm.bias"
    save_file({k: v for k, v in raw.items() if k != gone}, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"missing keys: encoder\.text\.backbone\.embeddings\.LayerNorm\.bias"):
        load_official(build_official_network(config, 3), read_official(tmp_path / "short.safetensors"))
    save_file({**raw, "item_encoder.surprise.weight": torch.ones(2)}, tmp_path / "long.safetensors")
    with pytest.raises(CheckpointError, match=r"surplus keys: surprise\.weight"):
        read_official(tmp_path / "long.safetensors")


def test_another_size_names_both_shapes() -> None:
    """A checkpoint of another D is refused with both shapes."""
    config = {**json.loads((FIXTURE / "config.json").read_text()), "project_dim": 20}
    with pytest.raises(CheckpointError, match=r"classifiers\.free\.weight is \(20, 24\), the network has \(20, 20\)"):
        load_official(build_official_network(config, 20), read_official(FIXTURE / "module4.safetensors"))


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    """Opening a checkpoint never runs code from it."""
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"a": _Trap()}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_official(tmp_path / "evil.pkl")
