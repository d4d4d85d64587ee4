"""Gradient checkpointing of encoders: the same gradients by less memory, said without a warning; refused where there is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from mufin.catalogue import read_catalogue
from mufin.errors import ConfigError
from mufin.inputs import TitleTokenizer
from mufin.training.model import Mufin
from mufin.training.preparation import new_network, tokenizer_json_of
from tests.catalogue_factory import make_tiny_catalogue
from tests.training.tiny_config import tiny_config

CHECKPOINTED = ("text.gradient_checkpointing=true", "image.gradient_checkpointing=true")


def network(folder: Path, *changes: str) -> Mufin:
    """With weights of one seed."""
    catalogue, config = read_catalogue(folder), tiny_config(*changes)
    torch.manual_seed(0)
    return new_network(config, TitleTokenizer(tokenizer_json_of(catalogue, config), 16), 5).train()


def gradients(model: Mufin) -> dict[str, torch.Tensor]:
    """Of the sum of two titles' vectors and a picture's."""
    torch.manual_seed(1)
    ids = torch.tensor([[2, 7, 9, 3], [2, 5, 3, 0]])
    titles, images = model.encoder.text(ids, (ids > 0).long()), model.encoder.image(torch.zeros(1, 16, 16, 3).byte())
    (titles.sum() + images.sum()).backward()
    return {name: own.grad for name, own in model.encoder.named_parameters() if own.grad is not None}


def test_gradients_are_those_without(tmp_path: Path) -> None:
    """Of both encoders' every weight, dropout as drawn; transformers does not warn of what is called."""
    make_tiny_catalogue(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network(tmp_path, *CHECKPOINTED)
    backbones = model.encoder.text.backbone, model.encoder.image.backbone
    for backbone in backbones:
        assert any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules())
    found, expected = gradients(model), gradients(network(tmp_path))
    assert set(found) == set(expected) and any(name.startswith("image.backbone") for name in found)
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, msg=name)


def test_an_encoder_that_cannot_is_refused(tmp_path: Path) -> None:
    """With its class and the remedy."""
    make_tiny_catalogue(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot do gradient_checkpointing: set it to false"):
        network(tmp_path, 'image.options={"model_type": "mobilenet_v2"}', CHECKPOINTED[1])
