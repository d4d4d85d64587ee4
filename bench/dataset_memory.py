"""Peak memory of each converter of a data set on synthetic sources of n and of 4 n lines.

    python -m bench.dataset_memory [--lines 200000] [--out bench/results/NAME.json]

Lines are long (1,500 characters of text beside the title), so that whoever keeps them is found out. Where the ids
stay the same (click_log, esci), the growth is what a line costs; elsewhere it is what an id costs. Every point runs in a fresh process.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LONG_TEXT = "lorem ipsum dolor sit amet " * 55
FIXED_PRODUCTS = 20_000
FIXED_QUERIES = 5_000
PARQUET_ROWS = 20_000
"""Rows of a row group: one is in memory at a time"""


def write_extreme_classification(folder: Path, lines: int) -> list[str]:
    """trn.json.gz of n points, a tenth as many test points and labels."""
    random = np.random.default_rng(0)
    labels = max(10, lines // 10)
    for name, count in (("trn", lines), ("tst", lines // 10), ("lbl", labels)):
        with gzip.open(folder / f"{name}.json.gz", "wt", compresslevel=1) as file:
            for number, own in enumerate(random.integers(0, labels, (count, 5)).tolist()):
                targets = {} if name == "lbl" else {"target_ind": own, "target_rel": [1.0] * 5}
                record = {"uid": f"{name}{number:09}", "title": f"title {number}", "content": LONG_TEXT, **targets}
                file.write(json.dumps(record) + "\n")
    return ["extreme_classification", str(folder)]


def write_amazon_reviews(folder: Path, lines: int) -> list[str]:
    """One metadata file; each product was bought with three others."""
    random = np.random.default_rng(0)
    with (folder / "meta.jsonl").open("w") as file:
        for number, own in enumerate(random.integers(0, lines, (lines, 3)).tolist()):
            together = [f"B{other:09}" for other in own if other != number]
            record = {"parent_asin": f"B{number:09}", "title": f"title {number}", "bought_together": together}
            file.write(json.dumps({**record, "description": [LONG_TEXT], "images": []}) + "\n")
    return ["amazon_reviews", str(folder / "meta.jsonl")]


def write_polyvore(folder: Path, lines: int) -> list[str]:
    """n items in outfits of four, no images."""
    (folder / "disjoint").mkdir()
    places = [{"item_id": str(n), "index": 1 + n % 4} for n in range(lines)]
    outfits = [{"set_id": str(n), "items": places[n : n + 4]} for n in range(0, lines, 4)]
    for split, own in (("train", outfits[20:]), ("valid", outfits[:10]), ("test", outfits[10:20])):
        (folder / f"disjoint/{split}.json").write_text(json.dumps(own))
    with (folder / "polyvore_item_metadata.json").open("w") as file:
        for n in range(lines):
            record = {"title": f"title {n}", "related": [LONG_TEXT], "semantic_category": "tops"}
            file.write(("{" if n == 0 else ", ") + f'"{n}": {json.dumps(record)}')
        file.write("}")
    return ["polyvore", str(folder), "--no-images"]


def write_esci(folder: Path, lines: int) -> list[str]:
    """n judgements of the same products and queries."""
    random = np.random.default_rng(0)
    pairs = random.integers(0, [FIXED_PRODUCTS, FIXED_QUERIES], (lines, 2)).tolist()
    examples = (
        {"query": f"query {q}", "query_id": q, "product_id": f"B{p}", "product_locale": "us", "esci_label": "E",
         "small_version": 1, "large_version": 1, "split": "test" if q % 5 == 0 else "train"}
        for p, q in pairs
    )  # fmt: skip
    products = (
        {"product_id": f"B{p}", "product_title": f"title {p}", "product_locale": "us", "product_description": LONG_TEXT}
        for p in range(FIXED_PRODUCTS)
    )
    _write_parquet(folder / "shopping_queries_dataset_examples.parquet", examples)
    _write_parquet(folder / "shopping_queries_dataset_products.parquet", products)
    return ["esci", str(folder)]


def _write_parquet(path: Path, records: Any) -> None:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    writer, waiting = None, []
    for record in records:
        waiting.append(record)
        if len(waiting) == PARQUET_ROWS:
            table = arrow.Table.from_pylist(waiting)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            waiting = []
    if waiting:
        table = arrow.Table.from_pylist(waiting)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def write_click_log(folder: Path, lines: int) -> list[str]:
    """n clicks on the same products with the same queries."""
    random = np.random.default_rng(0)
    with (folder / "log.csv").open("w") as file:
        file.write("product_id,query,session\n")
        for product, query in random.integers(0, [FIXED_PRODUCTS, FIXED_QUERIES], (lines, 2)).tolist():
            file.write(f"P{product},query {query},{LONG_TEXT}\n")
    with (folder / "shop.csv").open("w") as file:
        file.write("id,title\n" + "".join(f"P{product},title {product}\n" for product in range(FIXED_PRODUCTS)))
    return ["click_log", str(folder / "log.csv"), "--products", str(folder / "shop.csv")]


WRITERS: dict[str, Callable[[Path, int], list[str]]] = {
    "extreme_classification": write_extreme_classification,
    "amazon_reviews": write_amazon_reviews,
    "polyvore": write_polyvore,
    "esci": write_esci,
    "click_log": write_click_log,
}


def convert(command: list[str]) -> dict[str, float]:
    """One conversion in this process: its peak, what was there before it, seconds."""
    module = importlib.import_module(f"mufin.datasets.{command[0]}")
    if command[0] == "esci":
        importlib.import_module("pyarrow.parquet")
    before, began = _peak_mib(), time.monotonic()
    if module.main([*command[1:], "--quiet"]) != 0:
        raise SystemExit(1)
    return {"before_mib": before, "peak_mib": _peak_mib(), "seconds": round(time.monotonic() - began, 1)}


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measure(name: str, lines: int) -> dict[str, Any]:
    """Writes a source and converts it, each in its own process: a child begins with the peak of whoever starts it."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        command = json.loads(_run("--write", name, str(lines), str(source)))
        command.insert(2, str(Path(scratch) / "catalogue"))
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        converted = json.loads(_run("--convert", json.dumps(command)))
        return {"name": name, "lines": lines, "source_mib": round(size / 2**20, 1), **converted}


def _run(*arguments: str) -> str:
    """The last line that this module prints, run anew."""
    command = [sys.executable, "-m", "bench.dataset_memory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def main() -> int:
    """Run all points, print the growth, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=200_000, help="lines of the larger source (%(default)s)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="4,000 lines: whether it runs")
    parser.add_argument("--convert", help="convert in this process, print JSON")
    parser.add_argument(
        "--write", nargs=3, metavar=("NAME", "LINES", "FOLDER"), help="write one source, print its command"
    )
    options = parser.parse_args()
    if options.write:
        name, lines, folder = options.write
        print(json.dumps(WRITERS[name](Path(folder), int(lines))))
        return 0
    if options.convert:
        print(json.dumps(convert(json.loads(options.convert))))
        return 0
    lines = 4000 if options.smoke else options.lines
    points, summary = [], {}
    for name in WRITERS:
        small, large = measure(name, lines // 4), measure(name, lines)
        points += [small, large]
        growth = large["peak_mib"] - small["peak_mib"]
        summary[name] = {
            "growth_mib": round(growth, 1),
            "source_growth_mib": round(large["source_mib"] - small["source_mib"], 1),
            "bytes_a_line": round(growth * 2**20 / (large["lines"] - small["lines"])),
        }
        print(name, small, large, summary[name], sep="\n  ", flush=True)
    if options.out:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        options.out.write_text(json.dumps({"points": points, "summary": summary, **machine}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
