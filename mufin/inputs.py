"""Titles and image bytes to arrays, the one way for training and serving alike.

Knows no catalogue, no model and no network; whoever has a string or bytes gets arrays.
Source of the preprocessing: the authors' release (docs/network.md, Inputs).
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tokenizers import Tokenizer

from mufin.errors import ConfigError, ImageError

FloatArray = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Uint8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Resize = Callable[[Image.Image, int, int], Uint8Array]
"""(RGB image, width, height) -> (height, width, 3) by Lanczos: Pillow's own, or ``mufin.resizing``'s, which are equal."""

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an item becomes arrays. Travels checkpoint -> manifest; the service has no such setting."""

    image_side_pixels: int = 128
    """Images are fitted into a square of this side, white around."""
    image_mean: float = 0.5
    """Subtracted from pixels in 0..1, inside the graph."""
    image_std: float = 0.5
    """Divides pixels after the mean, inside the graph."""
    max_title_tokens: int = 32
    """Longest title, [CLS] and [SEP] included; longer ones are cut."""
    max_images: int = 5
    """Images used of one item, the first ones; rules training and serving alike."""

    def __post_init__(self) -> None:
        if self.image_side_pixels < 8:
            raise ConfigError(f"image_side_pixels is {self.image_side_pixels}, needs at least 8")
        if self.max_title_tokens < 3:
            raise ConfigError(f"max_title_tokens is {self.max_title_tokens}, needs at least 3")
        if not 0 <= self.max_images <= 64:
            raise ConfigError(f"max_images is {self.max_images}, must lie in 0..64")
        if self.image_std <= 0:
            raise ConfigError(f"image_std is {self.image_std}, must be positive")

    def to_json(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> InputSpec:
        """The inverse of ``to_json``; an unknown or missing field is an error."""
        known = set(cls.__dataclass_fields__)
        if set(values) != known:
            raise ConfigError(f"InputSpec has fields {sorted(known)}, got {sorted(values)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an encoded picture may be before it is decoded (docs/security.md)."""

    max_pixels: int = 25_000_000
    min_side_pixels: int = 3
    max_side_pixels: int = 10_000


DEFAULT_IMAGE_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Titles as token ids, padded to the longest of the batch."""

    ids: Int64Array
    """(B, T) int64"""
    mask: Int64Array
    """(B, T) int64, 1 where a token is"""


def normalise_title(title: str) -> str:
    """NFKC, control and format characters out, white space collapsed; what is hashed and tokenised."""
    if title.isascii() and title.isprintable():  # nothing to take out, and the most frequent case
        return " ".join(title.split())
    text = unicodedata.normalize("NFKC", title)
    kept = (" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join("".join(kept).split())


# Several titles at once go to threads of the library's own, whose way there and back costs a few of them more than it saves.
_TITLES_ONE_BY_ONE = 64


class TitleTokenizer:
    """A ``tokenizers`` tokenizer with the token limit of an InputSpec.

    Thread-safe: truncation is set once, padding is done here and never on the shared object.
    """

    def __init__(self, definition: str, max_title_tokens: int) -> None:
        """``definition``: the text of a tokenizer.json."""
        self.definition = definition
        self._tokenizer = Tokenizer.from_str(definition)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_title_tokens)
        self.unknown_id: int | None = self._tokenizer.token_to_id("[UNK]")
        self._counted_id = -1 if self.unknown_id is None else self.unknown_id
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(False)

    @property
    def vocabulary_size(self) -> int:
        """Rows that a word embedding needs."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, titles: Sequence[str]) -> TokenBatch:
        """Titles to (B, T) ids and mask, T being the longest of this batch."""
        return self.encode_counted(titles)[0]

    def encode_counted(self, titles: Sequence[str]) -> tuple[TokenBatch, list[tuple[int, int]]]:
        """``encode``, and of each title how many tokens the vocabulary has, and how many it has not.

        [CLS] and [SEP] count as neither.
        """
        texts, encode = [normalise_title(own) for own in titles], self._tokenizer.encode_batch_fast  # without offsets
        encodings = [encode([own])[0] for own in texts] if len(texts) <= _TITLES_ONE_BY_ONE else encode(texts)
        found = [encoding.ids for encoding in encodings]  # a new list at every look
        length = max(map(len, found), default=0)
        ids = np.zeros((len(found), length), dtype=np.int64)
        mask = np.zeros((len(found), length), dtype=np.int64)
        for row, own in enumerate(found):
            ids[row, : len(own)] = own
            mask[row, : len(own)] = 1
        unknown = [own.count(self._counted_id) for own in found]
        lengths = [len(own) - self._special_tokens for own in found]
        known = [length - lacking for length, lacking in zip(lengths, unknown, strict=True)]
        return TokenBatch(ids, mask), list(zip(known, unknown, strict=True))


def pillow_resize(image: Image.Image, width: int, height: int) -> Uint8Array:
    """Pillow's Lanczos."""
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), dtype=np.uint8)


def decode_image(
    content: bytes, side_pixels: int, limits: ImageLimits = DEFAULT_IMAGE_LIMITS, resize: Resize = pillow_resize
) -> Uint8Array:
    """JPEG, PNG or WebP bytes to (side, side, 3) uint8: first frame, upright, on white, fitted and centred.

    Raises ImageError. Size is read before decoding; JPEG is decoded at a reduced scale where that suffices.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                _check_size(image.size, limits)
                if image.format in ("JPEG", "MPO"):  # a JPEG with further pictures behind it
                    image.draft(None, (side_pixels * 2, side_pixels * 2))
                return _fit(_to_rgb(_upright(image)), side_pixels, resize)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", f"the image is larger than {limits.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", "the content is no JPEG, PNG or WebP image") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, MemoryError) as error:
        # Pillow's decoders report broken streams with all of these.
        raise ImageError("image_truncated", "the image is broken or cut short") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; EXIF that cannot be read says nothing."""
    image.load()  # of a PNG the reader below would do it, and a cut picture must not pass for one without EXIF
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's reader raises whatever it trips over
        return image
    # What is upright it copies, which mends palettes and costs the usual picture time.
    return image if image.mode == "RGB" and orientation in (None, 1) else ImageOps.exif_transpose(image)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if min(size) < limits.min_side_pixels:
        raise ImageError("image_too_small", f"the image is {width}x{height}, needs {limits.min_side_pixels} a side")
    if max(size) > limits.max_side_pixels or width * height > limits.max_pixels:
        raise ImageError(
            "image_too_large",
            f"the image is {width}x{height}; allowed are {limits.max_side_pixels} a side "
            f"and {limits.max_pixels} pixels",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB on white, whatever the mode: 16-bit greys are scaled, alpha is laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        top = 65535.0 if levels.max(initial=0.0) > 255.0 else 255.0
        return Image.fromarray(np.clip(levels * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _fit(image: Image.Image, side_pixels: int, resize: Resize) -> Uint8Array:
    """Largest size that fits the square (Lanczos), centred, white around; small images are enlarged."""
    scale = side_pixels / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    left, top = (side_pixels - width) // 2, (side_pixels - height) // 2
    canvas = np.full((side_pixels, side_pixels, 3), 255, dtype=np.uint8)
    canvas[top : top + height, left : left + width] = resize(image, width, height)
    return canvas


def layout_bags(image_counts: Sequence[int], has_title: Sequence[bool]) -> tuple[int, BoolArray]:
    """Bag layout of a batch: images first (padded to the batch's most), the title last.

    Returns the slots S and the mask (B, S) bool. Source: docs/network.md.
    """
    if len(image_counts) != len(has_title):
        raise ValueError(f"{len(image_counts)} image counts, {len(has_title)} titles")
    most = max(image_counts, default=0)
    mask = np.zeros((len(image_counts), most + 1), dtype=np.bool_)
    for row, count in enumerate(image_counts):
        mask[row, :count] = True
        mask[row, most] = has_title[row]
    return most + 1, mask
