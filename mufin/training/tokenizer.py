"""The tokenizer of a run: the named encoder's own, or WordPiece trained on the catalogue's titles.

Knows no network. Everything is passed on as the text of a tokenizer.json, which the bundle carries.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mufin.errors import ConfigError
from mufin.inputs import normalise_title

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(titles: Iterable[str], vocabulary_size: int) -> str:
    """A lower-casing WordPiece tokenizer with BERT's frame, as the text of a tokenizer.json.

    Deterministic for the same titles in the same order. Tokens seen once only are split into pieces.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator((normalise_title(t) for t in titles), trainer)
    tokenizer.post_processor = processors.BertProcessing(
        sep=("[SEP]", tokenizer.token_to_id("[SEP]")), cls=("[CLS]", tokenizer.token_to_id("[CLS]"))
    )
    return tokenizer.to_str()


def load_named_tokenizer(name: str) -> str:
    """The fast tokenizer of a hub name or local folder, as the text of a tokenizer.json."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"{name} has no fast tokenizer (tokenizer.json); name an encoder that has one")
    return str(backend.to_str())
