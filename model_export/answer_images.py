"""What an answer says of a label's images.

Knows no bundle and no network.
"""

from __future__ import annotations

from urllib.parse import quote

from mufin.catalogue import Item
from mufin.image_source import is_url, packed_image


def answer_images(item: Item, base_url: str | None) -> list[str]:
    """What an answer says of a label's images: URLs as they are, paths behind the base URL or not at all.

    A part of a packed file has no address of its own and is left out.
    """
    prefix = None if base_url is None else base_url.rstrip("/") + "/"
    served = [image for image in item.images if is_url(image) or (prefix is not None and packed_image(image) is None)]
    return [image if is_url(image) else f"{prefix}{quote(image)}" for image in served]
