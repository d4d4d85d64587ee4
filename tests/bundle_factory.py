"""A tiny bundle whose graphs are written by hand: milliseconds to make, no torch, real files.

Knows no catalogue and no training. Its encoders mean nothing, but titles with common words and pictures of
like colour are near each other, so that shortlists differ from product to product.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from model_export.label_index import IndexSettings, build_index, write_index
from mufin.bundle import (
    BAG_GRAPH_FILE,
    IMAGE_GRAPH_FILE,
    TEXT_GRAPH_FILE,
    TOKENIZER_FILE,
    BundleWriter,
    write_removed,
)
from mufin.cross_attention_file import CROSS_FILE, write_cross_attention
from mufin.golden import Golden, write_golden
from mufin.inputs import FloatArray, InputSpec, Int64Array, TitleTokenizer, Uint8Array
from mufin.label_files import write_labels
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, write_excluded, write_filters
from mufin.label_records_file import RecordBlock, RecordWriter
from mufin.manifest import INT8_FILES, BundleSizes, Encoders, Tolerances
from mufin.scoring import (
    Calibration,
    CrossAttention,
    LabelFold,
    LabelRecords,
    ScoreSpec,
    classifier_scores,
    fuse,
    l2_normalise,
)

SIDE = 8
DIMENSION = 16
LABEL_SLOTS = 3
COLOURS = ("red", "blue", "green", "black", "white")
KINDS = ("shirt", "shoe", "bag", "hat")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *KINDS, "men", "women", "cotton")
RGB = {
    "red": (220, 20, 20),
    "blue": (20, 20, 220),
    "green": (20, 180, 20),
    "black": (5, 5, 5),
    "white": (250, 250, 250),
}
IMAGE_BASE_URL = "https://shop.example/pictures/"


@dataclass(frozen=True)
class TinyLabel:
    """One label of the tiny bundle: every third has no image, every seventh no title."""

    id: str
    title: str
    colour: str
    images: tuple[str, ...]
    metadata: dict[str, Any]


def tiny_labels(count: int) -> list[TinyLabel]:
    """The labels that ``make_tiny_bundle`` puts into a bundle, in order."""
    labels = []
    for index in range(count):
        colour, kind = COLOURS[index % len(COLOURS)], KINDS[(index // 5) % len(KINDS)]
        images = () if index % 3 == 0 and index % 7 else (f"{IMAGE_BASE_URL}{index}.png",)
        title = "" if index % 7 == 0 else f"{colour} {kind} {'men' if index % 2 else 'women'}"
        metadata = {"category": kind, "price": 5.0 * index, "colours": [colour, "any"], "stock": index % 2 == 0}
        labels.append(TinyLabel(f"L{index}", title, colour, images, metadata))
    return labels


def picture(colour: str, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """The bytes of a one-coloured picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, RGB[colour]).save(buffer, kind)
    return buffer.getvalue()


def pixels(colour: str) -> Uint8Array:
    """(SIDE, SIDE, 3) uint8 of one colour."""
    return np.full((SIDE, SIDE, 3), RGB[colour], dtype=np.uint8)


class TinyEncoder:
    """The graphs' arithmetic in numpy, for labels and golden values, and the graphs themselves."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.words = random.standard_normal((len(WORDS), DIMENSION)).astype(np.float32)
        self.colours = (random.standard_normal((SIDE * SIDE * 3, DIMENSION)) / SIDE).astype(np.float32)
        self.mix = (np.eye(DIMENSION) + 0.2 * random.standard_normal((DIMENSION, DIMENSION))).astype(np.float32)
        self.attention = CrossAttention(
            query_matrix=(random.standard_normal((DIMENSION, DIMENSION)) / 4).astype(np.float32),
            query_bias=random.standard_normal(DIMENSION).astype(np.float32),
            norm_weight=(1 + 0.1 * random.standard_normal(DIMENSION)).astype(np.float32),
            norm_bias=(0.1 * random.standard_normal(DIMENSION)).astype(np.float32),
        )
        self.value = (random.standard_normal((DIMENSION, DIMENSION)) / 4).astype(np.float32)
        self.fold = LabelFold(self.value, np.zeros(DIMENSION, dtype=np.float32))

    def title(self, ids: Int64Array, mask: Int64Array) -> FloatArray:
        """(B, T) -> (B, D): mean of word vectors."""
        weights = mask.astype(np.float32)[..., None]
        return np.asarray((self.words[ids] * weights).sum(1) / weights.sum(1), dtype=np.float32)

    def image(self, images: Uint8Array) -> FloatArray:
        """(N, side, side, 3) -> (N, D)"""
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.asarray((flat / 255 - 0.5) / 0.5 @ self.colours, dtype=np.float32)

    def bag(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(S, D) real slots -> slots, embedding"""
        slots = vectors @ self.mix
        return slots, l2_normalise(slots.mean(axis=0))

    def write_graphs(self, folder: Path) -> None:
        """The three graphs, by hand."""
        _save(folder / TEXT_GRAPH_FILE, *self._text_nodes())
        _save(folder / IMAGE_GRAPH_FILE, *self._image_nodes())
        _save(folder / BAG_GRAPH_FILE, *self._bag_nodes())

    def _text_nodes(self) -> Any:
        nodes = [
            helper.make_node("Gather", ["words", "input_ids"], ["vectors"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
            helper.make_node("Mul", ["vectors", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "first"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["weights", "first"], ["count"], keepdims=0),
            helper.make_node("Div", ["total", "count"], ["title_vector"]),
        ]
        inputs = [_value("input_ids", TensorProto.INT64, "BT"), _value("attention_mask", TensorProto.INT64, "BT")]
        constants = {"words": self.words, "last": np.array([2]), "first": np.array([1])}
        return nodes, inputs, [_value("title_vector", TensorProto.FLOAT, ["B", DIMENSION])], constants

    def _image_nodes(self) -> Any:
        nodes = [
            helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["levels", "top"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "half"], ["centred"]),
            helper.make_node("Div", ["centred", "half"], ["normalised"]),
            helper.make_node("Reshape", ["normalised", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "colours"], ["image_vector"]),
        ]
        constants = {
            "top": np.float32(255), "half": np.float32(0.5), "colours": self.colours,
            "shape": np.array([-1, SIDE * SIDE * 3]),
        }  # fmt: skip
        inputs = [_value("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])]
        return nodes, inputs, [_value("image_vector", TensorProto.FLOAT, ["N", DIMENSION])], constants

    def _bag_nodes(self) -> Any:
        nodes = [
            helper.make_node("MatMul", ["bag", "mix"], ["slots"]),
            helper.make_node("Cast", ["mask"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "last"], ["weights"]),
            helper.make_node("Mul", ["slots", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "first"], ["total"], keepdims=0),
            helper.make_node("LpNormalization", ["total"], ["embedding"], axis=-1, p=2),
        ]
        inputs = [
            _value("bag", TensorProto.FLOAT, ["B", "S", DIMENSION]),
            _value("mask", TensorProto.BOOL, "BS"),
        ]
        outputs = [
            _value("slots", TensorProto.FLOAT, ["B", "S", DIMENSION]),
            _value("embedding", TensorProto.FLOAT, ["B", DIMENSION]),
        ]
        return nodes, inputs, outputs, {"mix": self.mix, "last": np.array([2]), "first": np.array([1])}


def _value(name: str, kind: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _save(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: dict[str, Any]) -> None:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def tiny_tokenizer() -> str:
    """Whole words, lower-cased, with [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


def make_tiny_bundle(
    folder: Path, *, labels: int = 40, name: str = "products", seed: int = 0, shortlist_size: int = 20,
    excluded: dict[str, Int64Array] | None = None, cross_attention: bool = True,
    record_type: Any = "float32", index: IndexSettings | None = None, score_spec: ScoreSpec | None = None,
    encoders: Encoders | None = None, label_slots: int = LABEL_SLOTS,
) -> Path:  # fmt: skip
    """Write a bundle of ``tiny_labels(labels)`` to ``folder`` and return it. Product ids equal to label ids are theirs."""
    encoder = TinyEncoder(seed)
    spec = InputSpec(image_side_pixels=SIDE, max_title_tokens=12, max_images=2)
    scores = score_spec or ScoreSpec(
        shortlist_size, 0.5, Calibration(4.0, -1.0), Calibration(3.0, -0.5), Calibration(2.0, -1.5)
    )
    tokenizer = TitleTokenizer(tiny_tokenizer(), spec.max_title_tokens)
    with BundleWriter(folder) as writer:
        (writer.folder / TOKENIZER_FILE).write_text(tokenizer.definition, encoding="utf-8")
        encoder.write_graphs(writer.folder)
        own_encoders = encoders or Encoders()
        for source, target in INT8_FILES.items():
            if target in own_encoders.int8_files:
                _write_int8(writer.folder / source, writer.folder / target)
        if cross_attention:
            write_cross_attention(writer.folder / CROSS_FILE, encoder.attention, encoder.fold)
        own = tiny_labels(labels)
        write_labels(writer.folder, ((o.id, o.title, o.images, o.metadata) for o in own))
        write_filters(writer.folder / FILTERS_FILE, (o.metadata for o in own))
        write_excluded(writer.folder / EXCLUDED_FILE, excluded or {})
        write_removed(writer.folder, np.zeros(0, dtype=np.int64))
        embeddings = _write_records(writer.folder, own, encoder, tokenizer, record_type, label_slots)
        found = build_index(
            embeddings, np.zeros(labels, np.int64), min(scores.shortlist_size, labels), index or IndexSettings()
        )
        write_index(writer.folder, found)
        sizes = BundleSizes(
            labels, DIMENSION, label_slots, record_type, cross_attention, found.kind, encoders=own_encoders,
            index_candidates=found.candidates,
        )  # fmt: skip
        write_golden(writer.folder, _golden(encoder, tokenizer, embeddings, own, scores, cross_attention))
        tolerances = Tolerances(classifier_difference=1e-4 if record_type == "float32" else 1e-2)
        writer.seal(name, spec, scores, sizes, tolerances, {"made_by": "tests/bundle_factory.py"})
        writer.finish()
    return folder


def _write_int8(source: Path, target: Path) -> None:
    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)


def label_bag(label: TinyLabel, encoder: TinyEncoder, tokenizer: TitleTokenizer) -> tuple[FloatArray, FloatArray]:
    """Slots (m, D) and embedding (D,) of a label."""
    vectors = [encoder.image(pixels(label.colour)[None])[0] for _ in label.images]
    if label.title:
        tokens = tokenizer.encode([label.title])
        vectors.append(encoder.title(tokens.ids, tokens.mask)[0])
    return encoder.bag(np.stack(vectors))


def _write_records(
    folder: Path,
    labels: list[TinyLabel],
    encoder: TinyEncoder,
    tokenizer: TitleTokenizer,
    number: Any,
    label_slots: int,
) -> FloatArray:
    bags = [label_bag(label, encoder, tokenizer) for label in labels]
    embeddings = np.stack([embedding for _, embedding in bags])
    block = RecordBlock(
        keys=[slots for slots, _ in bags],
        values=[np.asarray(slots @ encoder.value, dtype=np.float32) for slots, _ in bags],
        classifiers=_classifiers(embeddings),
        has_title=np.array([bool(label.title) for label in labels]),
        source="trained",
    )
    with RecordWriter(folder, DIMENSION, label_slots, number) as records:
        records.append(block)
    return embeddings


def _classifiers(embeddings: FloatArray) -> FloatArray:
    noise = np.random.default_rng(5).standard_normal(embeddings.shape).astype(np.float32)
    return l2_normalise(embeddings + 0.2 * noise)


def _golden(
    encoder: TinyEncoder, tokenizer: TitleTokenizer, embeddings: FloatArray, labels: list[TinyLabel], spec: ScoreSpec,
    cross_attention: bool,
) -> Golden:  # fmt: skip
    """Three products: title and two images, title only, image only; in numpy, label by label."""
    titles, colours = ["Red shirt men", "blue hat", ""], [("red", "white"), (), ("green",)]
    tokens = tokenizer.encode(titles)
    images = np.stack([pixels(colour) for own in colours for colour in own])
    title_vectors, image_vectors = encoder.title(tokens.ids, tokens.mask), encoder.image(images)
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in colours])]).astype(np.int64)
    slots, mask = np.zeros((3, 3, DIMENSION), np.float32), np.zeros((3, 3), np.bool_)
    size = min(spec.shortlist_size, len(labels))
    found = np.zeros((3, size), np.int64)
    cosines, classifier, fused = (np.zeros((3, size), np.float32) for _ in range(3))
    own_embeddings = np.zeros((3, DIMENSION), np.float32)
    bags = [label_bag(label, encoder, tokenizer)[0] for label in labels]
    classifiers = _classifiers(embeddings)
    for row, title in enumerate(titles):
        vectors = [*image_vectors[offsets[row] : offsets[row + 1]], *([title_vectors[row]] if title else [])]
        own, own_embeddings[row] = encoder.bag(np.stack(vectors))
        slots[row, : len(own)], mask[row, : len(own)] = own, True
        scores = embeddings @ own_embeddings[row]
        found[row] = np.argsort(-scores, kind="stable")[:size]
        cosines[row] = scores[found[row]]
        for place, label in enumerate(found[row]):
            bag = bags[label][None]
            one = LabelRecords(bag, bag @ encoder.value, np.ones(bag.shape[:2], np.bool_), classifiers[label][None])
            classifier[row, place] = (
                classifier_scores(encoder.attention, own, one)[0]
                if cross_attention
                else classifiers[label] @ own_embeddings[row]
            )
        fused[row] = fuse(spec, classifier[row], cosines[row])
    return Golden(
        titles, np.array([True, True, False]), tokens.ids, offsets, images, title_vectors, image_vectors, slots, mask,
        own_embeddings, (found, cosines), classifier, fused,
    )  # fmt: skip
