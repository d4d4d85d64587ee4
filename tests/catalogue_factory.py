"""A tiny catalogue for tests: coloured squares, and labels that go with a colour and a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
WORDS = ("mug", "vase", "lamp", "bowl", "chair")


def make_tiny_catalogue(folder: Path, products: int = 60, *, with_labels: bool = True, seed: int = 0) -> Path:
    """Write a catalogue of ``products`` products; every 7th has no image, every 11th no title.

    With labels: one bid query a (colour, word); otherwise products are the labels of one another.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    items: list[dict[str, object]] = []
    kinds: list[tuple[str, str]] = []
    for number in range(products):
        colour, word = list(COLOURS)[number % 4], WORDS[(number // 4) % 5]
        kinds.append((colour, word))
        images = []
        if number % 7 != 3:
            for view in range(1 + number % 2):
                name = f"images/{number}-{view}.png"
                noise = random.integers(-20, 20, (24, 24, 3))
                pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name)
                images.append(name)
        title = "" if number % 11 == 5 and images else f"{word} no {number % 9}"
        items.append({"id": f"p{number}", "title": title, "images": images, "kind": word})
    _write_items(folder / "products.jsonl", items)
    pairs = []
    if with_labels:
        names = [(c, w) for c in COLOURS for w in WORDS]
        _write_items(folder / "labels.jsonl", [{"id": f"q{i}", "title": f"{c} {w}"} for i, (c, w) in enumerate(names)])
        for number, (colour, word) in enumerate(kinds):
            pairs += [
                (f"p{number}", f"q{i}") for i, (c, w) in enumerate(names) if w == word or (c == colour and i % 3 == 0)
            ]
    else:
        for number, kind in enumerate(kinds):
            pairs += [
                (f"p{number}", f"p{other}") for other, k in enumerate(kinds) if k[1] == kind[1] and other != number
            ][:6]
        rows = "".join(f"p{n},p{n}\n" for n in range(products))
        (folder / "exclude.csv").write_text("product_id,label_id\n" + rows)
    cut = products * 4 // 5
    for name, low, high in (("train", 0, cut), ("valid", cut, products)):
        own = [f"{p},{q}\n" for p, q in pairs if low <= int(p[1:]) < high]
        (folder / f"{name}.csv").write_text("product_id,label_id\n" + "".join(own))
    return folder


def _write_items(path: Path, items: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
