"""What an answer says of a label's images.

Knows no bundle and no network.
"""

from __future__ import annotations

from urllib.parse import quote

from mufin.catalogue import Item
from mufin.image_source import is_url


def answer_images(item: Item, base_url: str | None) -> list[str]:
    """What an answer says of a label's images: URLs as they are, paths behind the base URL or not at all."""
    prefix = None if base_url is None else base_url.rstrip("/") + "/"
    urls = (i if is_url(i) else None if prefix is None else prefix + quote(i) for i in item.images)
    return [url for url in urls if url is not None]
