"""The exported graphs against the network they were traced from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from mufin.bundle import BAG_GRAPH_FILE, IMAGE_GRAPH_FILE, TEXT_GRAPH_FILE
from mufin.graphs import EncoderGraphs
from mufin.inputs import InputSpec, TokenBatch
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.model import Mufin, build_backbone, build_network

TEXT = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, "vocab_size": 60}
IMAGES = {
    "vit": {
        "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 32, "image_size": 32, "patch_size": 8,
    },
    "resnet": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
}  # fmt: skip
SIDE = 24
"""Unlike the ViT's own 32: positional embeddings are interpolated."""
DIMENSION = 12
GRAPHS = (TEXT_GRAPH_FILE, IMAGE_GRAPH_FILE, BAG_GRAPH_FILE)


def network(kind: str, *, self_attention: bool = True, heads: int = 1) -> Mufin:
    """Random weights whose spectral norms are far from 1, so that folding matters."""
    torch.manual_seed(3)
    config = NetworkConfig(dimension=DIMENSION, self_attention=self_attention, attention_heads=heads)
    text, image = (build_backbone(EncoderConfig(options=options)) for options in (TEXT, IMAGES[kind]))
    model = build_network(text, image, config, 5)
    for name, parameter in model.named_parameters():
        if "parametrizations" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module", params=["vit", "resnet"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Mufin, Path]:
    """The unfolded network and the folder of its graphs."""
    model, folder = network(request.param), tmp_path_factory.mktemp("graphs")
    export_graphs(fold_spectral_norm(model), InputSpec(image_side_pixels=SIDE), DIMENSION, folder)
    return model, folder


@torch.no_grad()
def test_graphs_equal_torch_at_any_batch_and_length(exported: tuple[Mufin, Path]) -> None:
    """Sizes other than the traced ones, padding, masked slots: within 1e-5 of the unfolded network."""
    model, folder = exported
    graphs, random = EncoderGraphs(folder, DIMENSION), torch.Generator().manual_seed(1)
    for batch, length in ((1, 1), (1, 3), (5, 17)):
        ids = torch.randint(0, 60, (batch, length), generator=random)
        mask = (torch.arange(length)[None] < torch.randint(1, length + 1, (batch, 1), generator=random)).long()
        expected = model.encoder.text(ids, mask).numpy()
        np.testing.assert_allclose(graphs.titles(TokenBatch(ids.numpy(), mask.numpy())), expected, atol=1e-5)
    for batch in (1, 6):
        pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
        np.testing.assert_allclose(graphs.images(pixels.numpy()), model.encoder.image(pixels).numpy(), atol=1e-5)
    for batch, slots in ((1, 1), (4, 6)):
        bag = torch.randn(batch, slots, DIMENSION, generator=random)
        filled = torch.rand(batch, slots, generator=random) > 0.4
        filled[:, -1] = True
        attended, embedding = graphs.bags(bag.numpy(), filled.numpy())
        wanted = model.encoder.attend(bag, filled)
        np.testing.assert_allclose(attended, wanted.numpy(), atol=1e-5)
        np.testing.assert_allclose(embedding, model.encoder.embed(wanted, filled).numpy(), atol=1e-5)


def test_pixels_enter_as_uint8_and_nothing_lies_outside(exported: tuple[Mufin, Path]) -> None:
    """Scaling is inside; weights are inside; the graph names no path of this machine."""
    _, folder = exported
    graph = onnx.load(folder / IMAGE_GRAPH_FILE)
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert sorted(p.name for p in folder.iterdir()) == sorted(GRAPHS)
    for name in GRAPHS:
        assert str(Path.cwd()).encode() not in (folder / name).read_bytes()


def test_two_exports_are_byte_equal(exported: tuple[Mufin, Path], tmp_path: Path) -> None:
    """Names and order of nodes do not depend on chance."""
    model, folder = exported
    export_graphs(fold_spectral_norm(model), InputSpec(image_side_pixels=SIDE), DIMENSION, tmp_path)
    for name in GRAPHS:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@torch.no_grad()
def test_folding_leaves_the_original_as_it_was() -> None:
    """The copy has plain weights W / sigma; the original keeps its parametrization and its output."""
    model = network("vit")
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.int64)
    before = model.encoder.text(ids, mask)
    names = set(model.state_dict())
    folded = fold_spectral_norm(model)
    torch.testing.assert_close(folded.encoder.text(ids, mask), before)
    assert set(model.state_dict()) == names
    assert not any("parametrizations" in name for name in folded.state_dict())
    torch.testing.assert_close(model.encoder.text(ids, mask), before)


@torch.no_grad()
def test_graphs_without_self_attention_average_the_bag(tmp_path: Path) -> None:
    """The ablation's slots are the bag itself."""
    model = network("resnet", self_attention=False)
    export_graphs(fold_spectral_norm(model), InputSpec(image_side_pixels=SIDE), DIMENSION, tmp_path)
    bag = np.random.default_rng(0).standard_normal((2, 3, DIMENSION)).astype(np.float32)
    mask = np.array([[True, False, True], [True, True, True]])
    slots, embedding = EncoderGraphs(tmp_path, DIMENSION).bags(bag, mask)
    np.testing.assert_array_equal(slots, bag)
    mean = bag[0, [0, 2]].mean(axis=0)
    np.testing.assert_allclose(embedding[0], mean / np.linalg.norm(mean), atol=1e-6)
