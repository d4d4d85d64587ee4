"""mufin-recommend: a file of products in, a file of answers out, with the service's predictor and answer shape.

Knows no HTTP server. Streams, so that memory does not grow with the file; a killed run goes on behind the last
whole line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mufin.catalogue import ImageReader
from mufin.errors import CatalogueError, ConfigError, ImageError, MufinError
from mufin.inputs import Uint8Array, decode_image, normalise_title
from mufin.manifest import canonical_json, hash_file
from mufin.predictor import Predictor, Ranking, open_predictor

_READERS = 8
_SCORE_DIGITS = 6


class Reader(Protocol):
    """Where a product's images come from."""

    def read(self, image: str) -> bytes:
        """Bytes of a path or URL. Raises MufinError when it cannot be had."""


@dataclass(frozen=True, slots=True)
class Product:
    """One line of the input."""

    id: str
    title: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pictures:
    """What became of a product's images."""

    pixels: Uint8Array
    """(I, side, side, 3), those that could be used"""
    warnings: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Job:
    """What an output file belongs to; stored beside it, so that another run cannot continue it."""

    bundle_id: str
    k: int
    input_sha256: str


def recommend_file(
    predictor: Predictor, products: Path, output: Path, *, k: int = 10, batch_size: int = 32,
    reader: Reader | None = None, progress: Callable[[int], None] = lambda done: None,
) -> int:  # fmt: skip
    """Answer every line of ``products`` in order into ``output``; returns how many were answered by this call.

    Continues what a killed run left. Raises CatalogueError for a faulty line, ConfigError for a foreign output.
    """
    done = _resume(output, products, Job(predictor.bundle_id, k, hash_file(products)))
    lines = islice(_read_products(products), done, None)
    reader = reader or ImageReader(products.parent)
    answered = 0
    with output.open("ab") as handle, ThreadPoolExecutor(_READERS) as pool:
        while batch := list(islice(lines, batch_size)):
            answers = _answer(predictor, batch, k, reader, pool)
            # One write a batch: a kill tears at most one line, which the next run cuts off.
            handle.write(b"".join(_line(answer) for answer in answers))
            handle.flush()
            answered += len(batch)
            progress(done + answered)
        os.fsync(handle.fileno())
    return answered


def _answer(
    predictor: Predictor, batch: Sequence[Product], k: int, reader: Reader, pool: ThreadPoolExecutor
) -> list[dict[str, Any]]:
    side, most = predictor.input_spec.image_side_pixels, predictor.input_spec.max_images
    pictures = list(pool.map(lambda product: _pictures(product, reader, side, most), batch))
    usable = [i for i, (p, own) in enumerate(zip(batch, pictures, strict=True)) if _has_title(p) or len(own.pixels)]
    bags = predictor.embed([batch[i].title for i in usable], [pictures[i].pixels for i in usable])
    excluded = [predictor.labels.excluded(batch[i].id) for i in usable]
    rankings = dict(zip(usable, predictor.rank(bags, k, excluded=excluded), strict=True))
    return [_describe(predictor, batch[i], pictures[i], rankings.get(i)) for i in range(len(batch))]


def _has_title(product: Product) -> bool:
    return bool(normalise_title(product.title))


def _pictures(product: Product, reader: Reader, side_pixels: int, most: int) -> Pictures:
    decoded, warnings = [], []
    for position, image in enumerate(product.images):
        if position >= most:
            detail = f"this bundle uses {most} images a product; the rest is left out"
            warnings.append({"code": "too_many_images", "image": position, "detail": detail})
            break
        try:
            decoded.append(decode_image(reader.read(image), side_pixels))
        except ImageError as error:
            warnings.append({"code": error.code, "image": position, "detail": str(error)})
        except (MufinError, OSError) as error:
            warnings.append({"code": "image_unreachable", "image": position, "detail": str(error)})
    empty = np.zeros((0, side_pixels, side_pixels, 3), dtype=np.uint8)
    return Pictures(np.stack(decoded) if decoded else empty, warnings)


def _describe(predictor: Predictor, product: Product, pictures: Pictures, ranking: Ranking | None) -> dict[str, Any]:
    """One answer. A product of which nothing can be used has no results, no stage and a warning that says so."""
    warnings = pictures.warnings
    if ranking is None:
        detail = "neither a title nor an image that can be used"
        warnings = [*warnings, {"code": "nothing_to_encode", "image": None, "detail": detail}]
    used = [name for name, there in (("title", _has_title(product)), ("image", len(pictures.pixels) > 0)) if there]
    return {
        "product_id": product.id,
        "results": [] if ranking is None else _results(predictor, ranking),
        "stage": None if ranking is None else "reranked",
        "modalities_used": used,
        "warnings": warnings,
    }


def _results(predictor: Predictor, ranking: Ranking) -> list[dict[str, Any]]:
    results = []
    for place, label in enumerate(predictor.labels.describe(ranking.labels)):
        results.append(
            {
                "id": label.id,
                "title": label.title,
                "images": list(label.images),
                "score": round(float(ranking.scores[place]), _SCORE_DIGITS),
                "probability": round(float(ranking.probabilities[place]), _SCORE_DIGITS),
                "shortlist_score": round(float(ranking.shortlist_scores[place]), _SCORE_DIGITS),
                "classifier_score": round(float(ranking.classifier_scores[place]), _SCORE_DIGITS),
                "label_source": label.source,
                "metadata": dict(label.metadata),
            }
        )
    return results


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"


def _read_products(path: Path) -> Iterator[Product]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            yield _parse(path, number, line)


def _parse(path: Path, number: int, line: bytes) -> Product:
    try:
        values = json.loads(line.decode("utf-8-sig"))
        # An escape can smuggle in half a surrogate pair, which no answer could be written with.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        reason = "an escape \\ud800..\\udfff stands alone and is no character; correct the text"
        raise CatalogueError(path, number, reason) from error
    except (ValueError, RecursionError) as error:
        raise CatalogueError(path, number, f"is no JSON ({error}); every line holds one product") from error
    if not isinstance(values, dict):
        raise CatalogueError(path, number, f"holds {type(values).__name__}, needs an object with id, title, images")
    identifier, title, images = values.get("id"), values.get("title"), values.get("images")
    if not isinstance(identifier, str) or not identifier:
        raise CatalogueError(path, number, f"id is {identifier!r}, needs a string that is not empty")
    if not isinstance(title, str | None):
        raise CatalogueError(path, number, f"title is {title!r}, needs a string")
    if not isinstance(images, list | None) or not all(isinstance(image, str) for image in images or ()):
        raise CatalogueError(path, number, f"images is {images!r}, needs a list of paths or URLs")
    return Product(identifier, title or "", tuple(images or ()))


def _resume(output: Path, products: Path, job: Job) -> int:
    """Answers that ``output`` already holds; begins it when there is none, cuts off a torn last line."""
    record = output.with_name(output.name + ".job")
    if not output.exists():
        record.write_bytes(canonical_json(asdict(job)))
        output.touch()
        return 0
    _check_job(output, record, job)
    with output.open("r+b") as handle:
        done, whole = 0, 0
        for line, product in zip(handle, _ids(products), strict=False):
            if not line.endswith(b"\n"):
                break
            _check_line(output, done + 1, line, product)
            done, whole = done + 1, whole + len(line)
        rest = output.stat().st_size - whole
        handle.seek(whole)
        if handle.read(rest).count(b"\n"):
            raise ConfigError(f"{output}: has more answers than {products} has products ({done}): name another output")
        handle.truncate(whole)
    return done


def _check_job(output: Path, record: Path, job: Job) -> None:
    try:
        found = Job(**json.loads(record.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{output} exists, and {record} does not say what of: name another output, or remove it"
        ) from error
    for name, own in asdict(found).items():
        wanted = getattr(job, name)
        if own != wanted:
            raise ConfigError(
                f"{output} was begun with {name} {own}, this run has {wanted}: name another output, or remove "
                f"{output.name} and {record.name}"
            )


def _check_line(output: Path, number: int, line: bytes, product_id: str) -> None:
    try:
        found = json.loads(line)["product_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{output}:{number}: is no answer ({error}): name another output, or remove it") from error
    if found != product_id:
        raise ConfigError(
            f"{output}:{number}: answers product {found!r}, the input's line {number} is {product_id!r}: "
            "name another output, or remove it"
        )


def _ids(products: Path) -> Iterator[str]:
    return (product.id for product in _read_products(products))


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="mufin-recommend", description="Recommend labels for a file of products.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder that mufin-export wrote")
    parser.add_argument("products", type=Path, metavar="products.jsonl", help="id, title, images a line")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="one answer a line; continued when it was begun")
    parser.add_argument("--k", type=int, default=10, help="labels a product (default 10)")
    parser.add_argument("--batch-size", type=int, default=32, help="products encoded together (default 32)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of one graph call")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args(arguments)
    if min(options.k, options.batch_size, options.threads) < 1:
        parser.error("--k, --batch-size and --threads need at least 1")
    try:
        return _run(options)
    except (MufinError, OSError) as error:
        print(f"mufin-recommend: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nmufin-recommend: interrupted; the same command goes on with {options.output}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    def progress(done: int) -> None:
        if not options.quiet:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{done} products answered", file=sys.stderr, end=end, flush=True)

    predictor = open_predictor(options.bundle, intra_op_threads=options.threads)
    answered = recommend_file(
        predictor, options.products, options.output, k=options.k, batch_size=options.batch_size, progress=progress
    )
    if not options.quiet:
        print(f"{options.output}: {answered} answers written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
