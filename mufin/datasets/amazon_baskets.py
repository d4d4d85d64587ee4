"""Products that the same people reviewed, from the review files of Amazon Reviews 2023.

Knows no titles. People are known by a hash; nothing of them is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np

from mufin.datasets.catalogue_folder import Account
from mufin.datasets.pair_spool import PairSpool
from mufin.datasets.source_files import SourceFile
from mufin.progress import ProgressBar

_USER_BUCKET_SHIFT = 55  # 63 bits of hash: 256 buckets


def add_co_reviewed(
    reviews: Iterable[Path], rows: Mapping[str, int], largest_basket: int, pairs: PairSpool, scratch: Path,
    account: Account, progress: ProgressBar,
) -> None:  # fmt: skip
    """Adds each ordered pair of products that one person reviewed, once a person, to ``pairs``.

    ``rows``: product id -> number. Memory: 1/256 of the people's reviewed products. Two people whose 63-bit hashes
    agree would count as one. Raises CatalogueError with file and line.
    """
    users = PairSpool(scratch / "users", _USER_BUCKET_SHIFT)
    for path in reviews:
        file = SourceFile(path, progress)
        for line, record in file.records():
            user, item = record.get("user_id"), record.get("parent_asin")
            if not isinstance(user, str) or not isinstance(item, str):
                raise file.fault(line, f'"user_id" {user!r}, "parent_asin" {item!r}: expected two strings')
            row = rows.get(item)
            if row is None:
                account.leave_out("reviews of a product without metadata", path, line)
            else:
                users.add(_hash(user), row)
    for merged in users.merged():
        account.leave_out("further reviews of a product by one person", count=int((merged.counts - 1).sum()))
        starts = np.flatnonzero(np.diff(merged.products, prepend=-1))
        for basket in np.split(merged.labels, starts[1:]):
            if len(basket) > largest_basket:
                account.leave_out(f"people who reviewed more than {largest_basket} products")
            else:
                for product, label in permutations(basket.tolist(), 2):
                    pairs.add(product, label)


def _hash(user: str) -> int:
    return int.from_bytes(hashlib.blake2b(user.encode("utf-8", "replace"), digest_size=8).digest()) >> 1
