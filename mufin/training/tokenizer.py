"""The tokenizer of a run: the named encoder's own, or WordPiece built from the catalogue's titles.

Knows no network. Everything is passed on as the text of a tokenizer.json, which the bundle carries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mufin.errors import ConfigError
from mufin.inputs import normalise_title

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SHORTEST_PIECE = 2
_LEAST_WORD_COUNT = 2
_LEAST_WORDS_WITH_PIECE = 4


def train_wordpiece(titles: Iterable[str], vocabulary_size: int) -> str:
    """A lower-casing WordPiece tokenizer with BERT's frame, as the text of a tokenizer.json.

    The vocabulary is chosen here: the library's own trainer gives another one on every call with the same titles
    (huggingface/tokenizers#1794), and a run has to be repeatable.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for title in titles:
        text = normalizer.normalize_str(normalise_title(title))
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    vocabulary = choose_vocabulary(words, vocabulary_size)
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))  # nosec B106
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    sep, cls = ((token, vocabulary.index(token)) for token in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer.to_str()


def choose_vocabulary(words: Counter[str], size: int) -> list[str]:
    """Special tokens, every character, then words by count and pieces by the words they occur in; order is fixed.

    Words seen at least twice come first; beginnings and endings (``##...``) shared by several words fill the rest.
    """
    characters = Counter(
        character for word, count in words.items() for character in set(word) for _ in range(min(count, 9))
    )
    ordered = [c for c, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))]
    vocabulary = dict.fromkeys([*SPECIAL_TOKENS, *ordered, *("##" + c for c in ordered)])
    whole = [w for w, count in words.items() if count >= _LEAST_WORD_COUNT and len(w) > 1]
    pieces: Counter[str] = Counter()
    for word in words:
        pieces.update(word[:end] for end in range(_SHORTEST_PIECE, len(word)))
        pieces.update("##" + word[start:] for start in range(1, len(word) - _SHORTEST_PIECE + 1))
    shared = [p for p, count in pieces.items() if count >= _LEAST_WORDS_WITH_PIECE]
    whole.sort(key=lambda w: (-words[w], w))
    shared.sort(key=lambda p: (-pieces[p] * len(p), p))
    room = max(0, size - len(vocabulary))
    vocabulary |= dict.fromkeys(whole[: max(room * 3 // 4, room - len(shared))])
    for piece in [*shared, *whole]:
        if len(vocabulary) >= size:
            break
        vocabulary.setdefault(piece)
    return list(vocabulary)[: max(size, len(SPECIAL_TOKENS))]


def load_named_tokenizer(name: str) -> str:
    """The fast tokenizer of a hub name or local folder, as the text of a tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        # The operator's own choice, as the encoder's name is.
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)  # nosec B615
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the tokenizer of {name!r} cannot be loaded by name or from a folder: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"{name} has no fast tokenizer (tokenizer.json); name an encoder that has one")
    # Without any file of a vocabulary transformers makes one of its special tokens: every title would be unknown.
    if backend.get_vocab_size(with_added_tokens=True) <= len(tokenizer.all_special_ids):
        raise ConfigError(
            f"the tokenizer of {name!r} knows no word, only {len(tokenizer.all_special_ids)} special tokens: its folder needs a tokenizer.json "
            "or a vocab.txt"
        )
    return str(backend.to_str())
