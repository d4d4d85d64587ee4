"""The whole network: encoders, bag self-attention, cross-attention, label classifiers.

Knows no files, no catalogue and no optimiser; blocks receive built parts or numbers.
Source: the authors' release, as docs/network.md describes it and differs from it.
"""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mufin.errors import ConfigError
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.descriptor import register_descriptor
from mufin.training.word_vectors import WordVectors

register_descriptor()


def projection(inputs: int, outputs: int, spectral_norm: bool) -> nn.Linear:
    """A linear map as MUFIN adds it: bias 0, identity when square, else kaiming; spectral norm on request."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    if inputs == outputs:
        nn.init.eye_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, a=0.0)
    return cast(nn.Linear, add_spectral_norm(layer)) if spectral_norm else layer


def bottleneck(inputs: int, outputs: int, spectral_norm: bool) -> nn.Sequential:
    """Affine maps from the encoder's width to D, halving while twice D fits, no non-linearity between."""
    layers, width = [], inputs
    while width // 2 > outputs:
        layers.append(projection(width, width // 2, spectral_norm))
        width //= 2
    layers.append(projection(width, outputs, spectral_norm))
    return nn.Sequential(*layers)


def masked_mean(bag: Tensor, mask: Tensor) -> Tensor:
    """Mean over the slots that hold something: (..., S, D), (..., S) bool -> (..., D)."""
    weights = mask.to(bag.dtype)
    total = (bag * weights.unsqueeze(-1)).sum(dim=-2)
    return total / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9)


class ResidualAdapter(nn.Module):
    """R(v) = v + ReLU(Dropout(W v + b)), W starting from identity: adapts frozen features."""

    def __init__(self, dimension: int, dropout: float, spectral_norm: bool) -> None:
        super().__init__()
        self.transform = projection(dimension, dimension, spectral_norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return vectors + torch.relu(self.dropout(self.transform(vectors)))


def build_backbone(config: EncoderConfig, backbone_config: dict[str, Any] | None = None) -> PreTrainedModel:
    """The transformer behind an encoder.

    ``backbone_config`` (a saved ``transformers`` config) wins: weights then come from a checkpoint, not the hub.
    """
    if backbone_config is not None:
        options = {k: v for k, v in backbone_config.items() if k != "model_type"}
        return from_config(AutoConfig.for_model(backbone_config["model_type"], **options))
    if config.name is not None:
        return _pretrained(config.name)
    options = {k: v for k, v in config.options.items() if k != "model_type"}
    try:
        return from_config(AutoConfig.for_model(config.options["model_type"], **options))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"encoder options {dict(config.options)} make no encoder: {error}") from error


def _pretrained(name: str) -> PreTrainedModel:
    """A transformer with its weights; ConfigError where it cannot be loaded, or some of its weights are not there.

    transformers would draw those at random, with a warning on a page of harmless ones.
    """
    talkative, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # The name, a local folder or a model of the hub, is the operator's own choice.
        extra = _without_pooler(AutoConfig.from_pretrained(name).model_type)  # nosec B615
        model, found = AutoModel.from_pretrained(  # nosec B615
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **extra
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"encoder {name!r} cannot be loaded by name or from a folder: {error}") from error
    finally:
        transformers_logging.set_verbosity(talkative)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))  # of which nothing is used
    wrong = [f"{key} has {tuple(has)} where {tuple(wants)} is wanted" for key, has, wants in found["mismatched_keys"]]
    if missing or wrong:
        example = sorted(wrong)[0] if wrong else f"{missing[0]} is not there"
        raise ConfigError(
            f"encoder {name!r} lacks {len(missing) + len(wrong)} of the weights that its config.json asks for ({example}): "
            "name a complete model, or describe a new one by options"
        )
    return cast(PreTrainedModel, model)


def from_config(config: Any) -> PreTrainedModel:
    """A transformer with random weights from its ``transformers`` config, without a pooling layer."""
    extra = _without_pooler(config.model_type)
    return cast(PreTrainedModel, AutoModel.from_config(config, **extra))  # type: ignore[no-untyped-call]


def _without_pooler(model_type: str) -> dict[str, bool]:
    """The pooling layer of these models is no part of MUFIN (docs/network.md)."""
    return {"add_pooling_layer": False} if model_type in ("vit", "bert", "deit", "roberta") else {}


def backbone_width(backbone: PreTrainedModel) -> int:
    """Size of the features a backbone hands out."""
    config = backbone.config
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


class TextEncoder(nn.Module):
    """Title -> one vector: transformer, masked mean over tokens, words where asked for, bottleneck, adapter."""

    def __init__(self, backbone: PreTrainedModel, network: NetworkConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.words = WordVectors(network.word_vectors) if network.word_vectors else None
        self.width = backbone_width(backbone) + network.word_vectors
        self.bottleneck = bottleneck(self.width, network.dimension, network.spectral_norm)
        self.feature_dropout = nn.Dropout(network.feature_dropout)
        self.adapter: nn.Module = nn.Identity()
        self.fusion: nn.Linear | None = None
        """An item's mean image vector (D) as a token of the backbone, where images are fused early"""
        if network.early_fusion:
            self.fusion = projection(network.dimension, backbone_width(backbone), spectral_norm=False)

    def sentence(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, backbone's width): the mean over tokens, unit length beside word vectors."""
        return self._mean({"input_ids": input_ids}, attention_mask)

    def _mean(self, inputs: dict[str, Tensor], attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(**inputs, attention_mask=attention_mask).last_hidden_state
        mean = masked_mean(hidden, attention_mask.bool())
        return mean if self.words is None else F.normalize(mean, dim=-1)

    def fused(self, input_ids: Tensor, attention_mask: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """(B, T), (B, T), mean image vectors (B, D), (B,) bool -> (B, D) with the images as the title's first token.

        The token is masked where an item has no image, so that a title's own tokens always have the same positions.
        """
        assert self.fusion is not None
        embedded = self.backbone.get_input_embeddings()(input_ids)
        joined = torch.cat([self.fusion(image)[:, None].to(embedded.dtype), embedded], dim=1)
        mask = torch.cat([has_image[:, None].to(attention_mask.dtype), attention_mask], dim=1)
        features = self._mean({"inputs_embeds": joined}, mask)
        if self.words is not None:
            features = torch.cat([features, self.words(input_ids, attention_mask)], dim=-1)
        return self.encode_features(features)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, width): what a frozen encoder may keep on disk."""
        sentence = self.sentence(input_ids, attention_mask)
        if self.words is None:
            return sentence
        return torch.cat([sentence, self.words(input_ids, attention_mask)], dim=-1)

    def encode_features(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, D)"""
        return cast(Tensor, self.adapter(self.bottleneck(self.feature_dropout(features))))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T), (B, T) -> (B, D)"""
        return self.encode_features(self.features(input_ids, attention_mask))


class ImageEncoder(nn.Module):
    """Image -> one vector: scaling, transformer (CLS) or convolutions (mean), bottleneck, adapter."""

    def __init__(self, backbone: PreTrainedModel, network: NetworkConfig, mean: float, std: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = mean, std
        self.bottleneck = bottleneck(backbone_width(backbone), network.dimension, network.spectral_norm)
        self.adapter: nn.Module = nn.Identity()
        # ViT keeps its positional grid and interpolates it to the image (docs/network.md, Inputs).
        self.interpolates = hasattr(backbone.config, "patch_size") and backbone.config.model_type in ("vit", "deit")

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, side, side, 3) uint8 -> (N, 3, side, side) float, scaled to 0..1, mean and std applied."""
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return (scaled - self.mean) / self.std

    def features(self, normalised: Tensor) -> Tensor:
        """(N, 3, side, side) float -> (N, width): what a frozen encoder may keep on disk."""
        if self.interpolates:
            hidden = self.backbone(pixel_values=normalised, interpolate_pos_encoding=True).last_hidden_state
        else:
            hidden = self.backbone(pixel_values=normalised).last_hidden_state
        return cast(Tensor, hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden[:, 0])

    def encode_features(self, features: Tensor) -> Tensor:
        """(N, width) -> (N, D)"""
        return cast(Tensor, self.adapter(self.bottleneck(features)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, side, side, 3) uint8 -> (N, D)"""
        return self.encode_features(self.features(self.normalise(pixels)))


class BagAttention(nn.Module):
    """One attention layer over bags: LayerNorm(W_o softmax(q k) v + b_o + queries), no feed-forward."""

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__()
        dimension = network.dimension
        self.heads, self.legacy_heads = network.attention_heads, network.legacy_heads
        self.query = projection(dimension, dimension, network.spectral_norm)
        self.key = projection(dimension, dimension, network.spectral_norm)
        self.value = projection(dimension, dimension, network.spectral_norm)
        self.output = projection(dimension, dimension, network.spectral_norm)
        self.norm = nn.LayerNorm(dimension, eps=1e-5)
        self.dropout = nn.Dropout(network.dropout)

    def project(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., M, D) of a bag, which do not depend on who asks.

        With one head the values are through W_o already: the weights sum values, so W_o of the sum is the sum of W_o, and
        a label's few slots cost less than every product's every slot. The only slot of a bag has nothing to be compared
        with: its key is not projected.
        """
        values = self.value(bag)
        if self.heads == 1:
            values = F.linear(values, self.output.weight)
        return bag if bag.shape[-2] == 1 else self.key(bag), values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(..., S, D) against projected (..., M, D) and mask (..., M) bool; leading sizes broadcast.

        Returns the attended bag (..., S, D) and the weights (..., H, S, M). A row with no key gives NaN.
        """
        v = self._split(values)
        if values.shape[-2] == 1:  # the softmax over one key is 1, whatever is asked; items of a title alone are such
            lead = torch.broadcast_shapes(queries.shape[:-2], values.shape[:-2])  # type: ignore[no-untyped-call]
            weights = values.new_ones((*lead, self.heads, queries.shape[-2], 1))
            weights = weights.masked_fill(~mask[..., None, None, :], torch.nan)
            merged = self._merge(self.dropout(weights) * v)
        else:
            q, k = self._split(self.query(queries)), self._split(keys)
            logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
            weights = logits.masked_fill(~mask[..., None, None, :], -torch.inf).softmax(dim=-1)
            merged = self._merge(self.dropout(weights) @ v)
        attended = merged + self.output.bias if self.heads == 1 else self.output(merged)
        return self.norm(attended + queries), weights

    def forward(self, queries: Tensor, bag: Tensor, mask: Tensor) -> Tensor:
        """(..., S, D) asks (..., M, D) with mask (..., M) bool -> (..., S, D)"""
        return self.attend(queries, *self.project(bag), mask)[0]

    def _split(self, vectors: Tensor) -> Tensor:
        *lead, slots, dimension = vectors.shape
        return vectors.reshape(*lead, slots, self.heads, dimension // self.heads).transpose(-2, -3)

    def _merge(self, heads: Tensor) -> Tensor:
        """(..., H, S, e) -> (..., S, D); ``legacy_heads`` leaves the permute out, as the release does."""
        *lead, count, slots, width = heads.shape
        merged = heads if self.legacy_heads else heads.transpose(-2, -3)
        return merged.reshape(*lead, slots, count * width)


class ItemEncoder(nn.Module):
    """Item -> bag after self-attention -> embedding. Products and labels share it."""

    def __init__(self, text: TextEncoder, image: ImageEncoder, self_attention: BagAttention | None) -> None:
        super().__init__()
        self.text, self.image, self.self_attention = text, image, self_attention

    def train(self, mode: bool = True) -> ItemEncoder:
        """Training mode for what is trained: frozen blocks keep their statistics and drop nothing."""
        super().train(mode)
        for module in self.modules() if mode else ():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                module.eval()
        return self

    def attend(self, bag: Tensor, mask: Tensor) -> Tensor:
        """Raw bag (B, S, D), mask (B, S) bool -> bag after self-attention (B, S, D)."""
        return bag if self.self_attention is None else cast(Tensor, self.self_attention(bag, bag, mask))

    def embed(self, attended: Tensor, mask: Tensor) -> Tensor:
        """Bag after self-attention -> embedding (B, D), unit length."""
        return F.normalize(masked_mean(attended, mask), dim=-1)


class LabelClassifiers(nn.Module):
    """w_l = norm(a_l norm(v_l) + b_l norm(z_l)), (a_l, b_l) = softmax(g_l); z_l is the label's embedding."""

    def __init__(self, labels: int, dimension: int, sparse: bool) -> None:
        super().__init__()
        self.free = nn.Embedding(labels, dimension, sparse=sparse)
        nn.init.kaiming_uniform_(self.free.weight, a=0.0)
        self.gate = nn.Embedding(labels, 2, sparse=sparse)
        nn.init.zeros_(self.gate.weight)

    def forward(self, labels: Tensor, label_embeddings: Tensor) -> Tensor:
        """Label indices (N,), their embeddings (N, D) -> classifier vectors (N, D), unit length."""
        gate = self.gate(labels).softmax(dim=-1)
        free = F.normalize(self.free(labels), dim=-1)
        return F.normalize(gate[:, :1] * free + gate[:, 1:] * F.normalize(label_embeddings, dim=-1), dim=-1)


class Mufin(nn.Module):
    """Item encoder, cross-attention and label classifiers."""

    def __init__(
        self, encoder: ItemEncoder, cross_attention: BagAttention | None, classifiers: LabelClassifiers
    ) -> None:
        super().__init__()
        self.encoder, self.cross_attention, self.classifiers = encoder, cross_attention, classifiers

    def adapt(
        self, product_bag: Tensor, product_mask: Tensor, label_bag: Tensor, label_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Label-adapted product vectors.

        product_bag (B, S, D), label_bag (B, K, M, D), masks (B, S) and (B, K, M), all after self-attention.
        Returns (B, K, D), not normalised, and the attention weights (B, K, H, S, M); without cross-attention
        the pooled product for every label, and None.
        """
        if self.cross_attention is None:
            pooled = masked_mean(product_bag, product_mask).unsqueeze(1)
            return pooled.expand(-1, label_bag.shape[1], -1), None
        keys, values = self.cross_attention.project(label_bag)
        return self.adapt_projected(product_bag, product_mask, keys, values, label_mask)

    def adapt_projected(
        self, product_bag: Tensor, product_mask: Tensor, keys: Tensor, values: Tensor, label_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``adapt`` with the labels' keys and values (B, K, M, D) projected before they were gathered."""
        assert self.cross_attention is not None
        # (B, 1, S, D): a product's queries are projected once, not once a label.
        attended, weights = self.cross_attention.attend(product_bag.unsqueeze(1), keys, values, label_mask)
        return masked_mean(attended, product_mask.unsqueeze(1)), weights


def build_network(
    text: PreTrainedModel, image: PreTrainedModel, network: NetworkConfig, labels: int, *,
    image_mean: float = 0.5, image_std: float = 0.5, sparse_classifiers: bool = False,
) -> Mufin:  # fmt: skip
    """Join two backbones and MUFIN's own blocks into a network for ``labels`` labels."""
    encoder = ItemEncoder(
        TextEncoder(text, network),
        ImageEncoder(image, network, image_mean, image_std),
        BagAttention(network) if network.self_attention else None,
    )
    cross = BagAttention(network) if network.cross_attention else None
    return Mufin(encoder, cross, LabelClassifiers(labels, network.dimension, sparse_classifiers))
