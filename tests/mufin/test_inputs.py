"""Titles and pictures that nobody meant to send: whatever comes in, arrays or a stated error come out."""

from __future__ import annotations

import io
import unicodedata

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mufin.errors import ImageError
from mufin.inputs import ImageLimits, TitleTokenizer, decode_image, normalise_title

MOST_TOKENS = 8
# Lone surrogates and unassigned characters included: JSON and Python can carry both.
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)


def _tokenizer() -> TitleTokenizer:
    definition = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "shoes": 2}, unk_token="[UNK]"))
    definition.pre_tokenizer = pre_tokenizers.Whitespace()
    return TitleTokenizer(definition.to_str(), MOST_TOKENS)


TOKENIZER = _tokenizer()


@given(ANYTHING)
@example("\u202ered\u200b\0 shoes\ud800")
@example("\ufdfa" * 60)
def test_a_normalised_title_holds_only_what_can_be_seen(title: str) -> None:
    """No control, format or surrogate characters, single blanks, none at the ends; no more than NFKC makes of it."""
    text = normalise_title(title)
    assert [own for own in text if unicodedata.category(own)[0] == "C"] == []
    assert text == " ".join(text.split())
    assert len(text) <= 18 * len(title)
    text.encode()


def test_known_and_unknown_tokens_are_counted_without_padding() -> None:
    """Padding has the id of unknown words here."""
    _, counts = TOKENIZER.encode_counted(["red shoes", "red hat", "blue", "red " * 20])
    assert counts == [(2, 0), (1, 1), (0, 1), (MOST_TOKENS, 0)]


def test_many_titles_are_tokenised_as_each_alone() -> None:
    """However they are handed to the library."""
    titles = [("red " * (n % 5) + "shoes " * (n % 3)).strip() or "hat" for n in range(100)]
    together = TOKENIZER.encode(titles)
    for row, title in enumerate(titles):
        alone = TOKENIZER.encode([title])
        assert together.ids[row, : alone.ids.shape[1]].tolist() == alone.ids[0].tolist()
        assert together.mask[row].sum() == alone.mask[0].sum()


@given(st.lists(ANYTHING, max_size=5))
def test_any_titles_become_a_batch_of_tokens(titles: list[str]) -> None:
    """One row each, no longer than the limit, tokens first and padding behind."""
    batch = TOKENIZER.encode(titles)
    assert batch.ids.shape == batch.mask.shape
    assert batch.ids.shape[0] == len(titles)
    assert batch.ids.shape[1] <= MOST_TOKENS
    assert bool(np.all(np.diff(batch.mask, axis=1) <= 0))
    assert bool(np.all(batch.ids[batch.mask == 0] == 0))
    assert batch.ids.max(initial=0) < TOKENIZER.vocabulary_size


def test_a_title_of_100_kb_costs_no_more_tokens_than_another() -> None:
    """It is cut at the limit."""
    assert TOKENIZER.encode(["red shoes " * 10_000]).ids.tolist() == [[1, 2] * (MOST_TOKENS // 2)]


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, kind)
    return buffer.getvalue()


PICTURES = [_encoded(kind) for kind in ("PNG", "JPEG", "WEBP")]


@given(st.sampled_from(PICTURES), st.integers(0, 2000), st.binary(max_size=8), st.integers(1, 64))
def test_any_bytes_become_pixels_or_a_stated_error(picture: bytes, at: int, patch: bytes, side: int) -> None:
    """Pictures with some of their bytes replaced."""
    content = picture[:at] + patch + picture[at + len(patch) :]
    try:
        pixels = decode_image(content, side, ImageLimits(max_pixels=100_000))
    except ImageError as error:
        assert error.code in ("not_an_image", "image_truncated", "image_too_large", "image_too_small")  # noqa: PT017
    else:
        assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.dtype(np.uint8))
