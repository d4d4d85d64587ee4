"""Tiny encoders with random weights: in the form that a pretrained one has, and over the tiny catalogue's products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from mufin.catalogue import read_catalogue
from mufin.inputs import InputSpec, TitleTokenizer
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.item_arrays import ItemArrays, prepare
from mufin.training.model import ItemEncoder, build_backbone, build_network, from_config
from mufin.training.tokenizer import train_wordpiece
from tests.catalogue_factory import make_tiny_catalogue


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


def random_item_encoder(
    folder: Path, text: Mapping[str, Any], network: NetworkConfig
) -> tuple[ItemArrays, ItemEncoder]:
    """Products of the tiny catalogue (some without images, some without title) and an encoder of 100 subwords for them.

    ``text``: config fields of the title encoder.
    """
    catalogue = read_catalogue(make_tiny_catalogue(folder / "catalogue"))
    tokenizer = TitleTokenizer(train_wordpiece([p.title for p in catalogue.products], 100), 8)
    spec = InputSpec(image_side_pixels=16, max_title_tokens=8, max_images=2)
    arrays, _ = prepare(catalogue, spec, tokenizer, folder / "cache", lambda *_: None)
    torch.manual_seed(0)
    image = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    model = build_network(
        build_backbone(EncoderConfig(options={**text, "vocab_size": 100})),
        build_backbone(EncoderConfig(options=image)), network, labels=3,
    )  # fmt: skip
    return arrays, model.encoder.eval()
