"""A bundle of the paper's size with random weights, made without training: what the serving bench serves.

DistilBERT and ViT-B/16 at 128 px in int8, D = 192; clustered labels (bench/label_index.py) with six slots each, their
index tuned to a recall of .95. Seeded; the bundle opens, verifies and replays golden items as an exported one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bench.int8 import DIMENSION, PAPER, Size
from bench.label_index import clustered
from bench.reranking import SLOTS, make_block
from model_export.label_index import IndexSettings, build_index, write_index
from model_export.label_records import fold_attention
from model_export.onnx_graphs import export_graphs, fold_spectral_norm
from model_export.quantise import quantise_graph
from mufin.bundle import TOKENIZER_FILE, BundleWriter, write_removed
from mufin.cross_attention_file import CROSS_FILE, write_cross_attention
from mufin.golden import Golden, write_golden
from mufin.inputs import FloatArray, InputSpec, TitleTokenizer
from mufin.label_files import write_labels
from mufin.label_filters import EXCLUDED_FILE, FILTERS_FILE, write_excluded, write_filters
from mufin.label_records_file import RecordBlock, RecordNumber, RecordWriter
from mufin.manifest import INT8_FILES, BundleSizes, EncoderPrecision, Encoders, Tolerances
from mufin.predictor import open_predictor
from mufin.scoring import Calibration, ScoreSpec, fuse
from mufin.training.config import EncoderConfig, NetworkConfig
from mufin.training.model import Mufin, build_backbone, build_network

SHORTLIST = 300
TITLE_TOKENS = 16
MAX_IMAGES = 5
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORDS = 50
_DISTINCT_RECORDS = 5_000
_SEED = 0


def network(size: Size = PAPER) -> Mufin:
    """The network with random weights, spectral norms folded; the same for one seed."""
    torch.manual_seed(_SEED)
    text, image = (build_backbone(EncoderConfig(options=own)) for own in (size.text(), size.image()))
    return fold_spectral_norm(build_network(text, image, NetworkConfig(dimension=DIMENSION), 5).eval())


def title(number: int) -> str:
    """A title of 16 tokens, [CLS] and [SEP] among them; no two numbers below 50 to the sixth are alike."""
    digits = [number // _WORDS**place % _WORDS for place in range(6)]
    rest = np.random.default_rng(number).integers(0, _WORDS, TITLE_TOKENS - 2 - len(digits))
    return " ".join(f"w{word}" for word in [*digits, *rest.tolist()])


def make_serving_bundle(
    folder: Path, labels: int, size: Size = PAPER, number: RecordNumber = "float16", kinds: tuple[str, ...] = ("ivf-sq8",)
) -> Path:  # fmt: skip
    """Write it to ``folder`` and return that."""
    model = network(size)
    assert model.cross_attention is not None
    spec = InputSpec(size.side_pixels, max_title_tokens=TITLE_TOKENS, max_images=MAX_IMAGES)
    int8 = Encoders(EncoderPrecision("int8"), EncoderPrecision("int8"))
    scores = ScoreSpec(min(SHORTLIST, labels), 0.5, *[Calibration(4.0, -1.0)] * 3)
    tokenizer = TitleTokenizer(serving_tokenizer(), TITLE_TOKENS)
    embeddings = clustered(labels, seed=_SEED)[0]
    with BundleWriter(folder) as writer:
        own = writer.folder
        (own / TOKENIZER_FILE).write_text(tokenizer.definition, encoding="utf-8")
        export_graphs(model, spec, DIMENSION, own)
        for graph, target in INT8_FILES.items():
            quantise_graph(own / graph, own / target)
        fold = fold_attention(model.cross_attention)
        write_cross_attention(own / CROSS_FILE, fold.product, fold.label)
        write_labels(
            own, ((f"L{i}", f"{title(i)}", (f"https://shop.example/{i}.jpg",), {"price": i}) for i in range(labels))
        )
        write_filters(own / FILTERS_FILE, ({"price": i % 100} for i in range(labels)))
        write_excluded(own / EXCLUDED_FILE, {})
        write_removed(own, np.zeros(0, dtype=np.int64))
        with RecordWriter(own, DIMENSION, SLOTS, number) as records:
            for block in _blocks(model, labels):
                records.append(block)
        exact = 0 if labels >= SHORTLIST * 10 else labels
        found = build_index(
            embeddings, np.zeros(labels, np.int64), scores.shortlist_size, IndexSettings(exact_labels=exact, kinds=kinds)
        )  # fmt: skip
        write_index(own, found)
        sizes = BundleSizes(
            labels, DIMENSION, SLOTS, number, True, found.kind, encoders=int8, index_candidates=found.candidates
        )
        tolerances = Tolerances(classifier_difference=1e-2)
        write_golden(own, _nothing_golden(size.side_pixels))
        made_by = {"made_by": "bench/serving_bundle.py"}
        writer.seal("bench", spec, scores, sizes, tolerances, made_by)
        write_golden(own, _golden(own, [title(1), title(2)]))
        writer.seal("bench", spec, scores, sizes, tolerances, made_by)
        writer.finish()
    return folder


def serving_tokenizer() -> str:
    """Definition of a WordPiece tokenizer that knows the titles' words."""
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *(f"w{i}" for i in range(_WORDS))))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return str(tokenizer.to_str())


def _blocks(model: Mufin, labels: int) -> Iterator[RecordBlock]:
    """Few labels repeated: times do not depend on what stands in a record."""
    assert model.cross_attention is not None
    block = make_block(model.cross_attention, min(_DISTINCT_RECORDS, labels), np.random.default_rng(_SEED))
    for start in range(0, labels, len(block.keys)):
        count = min(len(block.keys), labels - start)
        yield RecordBlock(
            block.keys[:count], block.values[:count], block.classifiers[:count], block.has_title[:count], block.source
        )


def _nothing_golden(side: int) -> Golden:
    """Of no product: for the first opening."""
    vectors, scores = np.zeros((0, DIMENSION), dtype=np.float32), np.zeros((0, 1), dtype=np.float32)
    return Golden(
        titles=[], has_title=np.zeros(0, np.bool_), token_ids=np.zeros((0, 2), np.int64),
        image_offsets=np.zeros(1, np.int64), pixels=np.zeros((0, side, side, 3), np.uint8), title_vectors=vectors,
        image_vectors=vectors, slots=np.zeros((0, 1, DIMENSION), np.float32), slot_mask=np.zeros((0, 1), np.bool_),
        embeddings=vectors, shortlist=(np.zeros((0, 1), np.int64), scores), classifier=scores,
        fused=scores,
    )  # fmt: skip


def _golden(folder: Path, titles: list[str]) -> Golden:
    """What this bundle itself says: there is no other network to compare it with."""
    predictor = open_predictor(folder, "structure")
    tokens = predictor.tokenizer.encode(titles)
    vectors = predictor.encode_tokens(tokens)
    nothing: FloatArray = np.zeros((0, DIMENSION), dtype=np.float32)
    bags = predictor.bag([nothing] * len(titles), list(vectors), titles)
    shortlists = predictor.shortlist(np.stack([bag.embedding for bag in bags]))
    classifier = np.stack(predictor.rerank(bags, shortlists))
    cosines = np.stack([own.scores for own in shortlists])
    side = predictor.input_spec.image_side_pixels
    return Golden(
        titles, np.ones(len(titles), np.bool_), tokens.ids, np.zeros(len(titles) + 1, np.int64),
        np.zeros((0, side, side, 3), np.uint8), vectors, nothing, np.stack([bag.slots for bag in bags]),
        np.ones((len(titles), 1), np.bool_), np.stack([bag.embedding for bag in bags]),
        (np.stack([own.labels for own in shortlists]), cosines), classifier,
        fuse(predictor.score_spec, classifier, cosines),
    )  # fmt: skip
