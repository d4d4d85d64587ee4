"""The tokenizer made from a catalogue's titles: repeatable, complete, within its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

from tokenizers import Tokenizer

from mufin.inputs import TitleTokenizer
from mufin.training.tokenizer import SPECIAL_TOKENS, choose_vocabulary, train_wordpiece

TITLES = [f"{a} {b} {c}" for a in ("red", "blue") for b in ("mug", "mugs", "vase") for c in ("20 cm", "large", "läder")]


def test_the_same_titles_give_the_same_tokenizer_in_every_process() -> None:
    """Hash seeds of the interpreter must not matter: a resumed run has to find its own vocabulary."""
    script = f"from mufin.training.tokenizer import train_wordpiece; print(train_wordpiece({TITLES!r}, 200))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert done.stdout.strip() == train_wordpiece(TITLES, 200)


def test_every_character_seen_has_a_token_and_unseen_words_fall_into_pieces() -> None:
    """A new word of known characters is never unknown."""
    tokenizer = Tokenizer.from_str(train_wordpiece(TITLES, 500))
    tokens = tokenizer.encode("bludge").tokens
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]"
    assert "[UNK]" not in tokens
    assert tokenizer.encode("中").tokens[1] == "[UNK]"


def test_frequent_words_are_whole_and_the_size_is_kept() -> None:
    """Words seen twice are single tokens while there is room; a small size cuts the list, never the special tokens."""
    words = Counter({"mug": 5, "mugs": 3, "vase": 2, "once": 1})
    vocabulary = choose_vocabulary(words, 100)
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert {"mug", "mugs", "vase"} <= set(vocabulary) and "once" not in vocabulary
    assert len(choose_vocabulary(words, 12)) == 12
    assert len(vocabulary) == len(set(vocabulary))


def test_the_token_limit_includes_the_frame() -> None:
    """A long title is cut to the limit, [SEP] kept."""
    definition = train_wordpiece(TITLES, 200)
    batch = TitleTokenizer(definition, 5).encode(["red mug large 20 cm blue vase", ""])
    vocabulary = json.loads(definition)["model"]["vocab"]
    assert batch.ids.shape == (2, 5)
    assert batch.ids[0, 0] == vocabulary["[CLS]"] and batch.ids[0, 4] == vocabulary["[SEP]"]
    assert batch.mask.sum(axis=1).tolist() == [5, 2]
