"""Tiny encoders with random weights, in the form that a pretrained one has."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from mufin.training.model import from_config
from mufin.training.tokenizer import train_wordpiece


def make_encoders(folder: Path) -> Path:
    """A folder with a text and an image encoder in the form that transformers saves; returns it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    titles = [f"{w} no {n}" for w in ("mug", "vase", "lamp", "bowl", "chair") for n in range(9)]
    (folder / "tokenizer.json").write_text(train_wordpiece(titles, 120))
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder / "text")
    text = AutoConfig.for_model("distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=16, vocab_size=120)
    from_config(text).save_pretrained(folder / "text")
    image = AutoConfig.for_model(
        "vit",
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    from_config(image).save_pretrained(folder / "image")
    return folder
