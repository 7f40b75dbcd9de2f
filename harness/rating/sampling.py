"""Which items are rated, in which order, and on which side each answer is shown.

Everything is a function of the seed, the item and the rater, so a page that is loaded again shows the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from harness.rating.rated_answers import RatedItem

REPEAT_SHARE = 0.05
"""Share of the items that a rater sees twice, for the agreement with oneself."""
MIN_ITEMS_FOR_REPEATS = 10


@dataclass(frozen=True)
class Showing:
    """One item as a rater sees it.

    Attributes:
        item: The item.
        repeat: Whether the rater has seen it before.
        left: Index of the model whose answer is on the left; 0 if there is one model.
    """

    item: RatedItem
    repeat: bool
    left: int


def sample_items(items: Sequence[RatedItem], count: int, seed: int) -> tuple[RatedItem, ...]:
    """Draw items from each stratum in proportion to its size, at least one where `count` allows it.

    The draw does not depend on the order of the items.

    Args:
        items: All items.
        count: How many to draw; all of them if there are fewer.
        seed: The seed.
    """
    strata: dict[tuple[str, ...], list[RatedItem]] = {}
    for item in sorted(items, key=lambda item: _keyed_digest(seed, "sample", item.key)):
        strata.setdefault(item.stratum, []).append(item)
    count = min(count, len(items))
    names = sorted(strata, key=lambda name: (-len(strata[name]), name))
    quotas = {name: min(1, max(0, count - index)) for index, name in enumerate(names)}
    while sum(quotas.values()) < count:  # to the stratum that is furthest below its share
        open_strata = [name for name in names if quotas[name] < len(strata[name])]
        name = max(open_strata, key=lambda name: len(strata[name]) * count / len(items) - quotas[name])
        quotas[name] += 1
    return tuple(item for name in sorted(strata) for item in strata[name][: quotas[name]])


def showings_of_rater(items: Sequence[RatedItem], models: int, seed: int, rater: str) -> tuple[Showing, ...]:
    """Return what a rater sees, in order: every item, and about 5 % of them a second time.

    A repeat comes at least half of the items after the first time. From 10 items on there is at least one.

    Args:
        items: The sampled items.
        models: Number of models, 1 or 2.
        seed: The seed.
        rater: Name of the rater.
    """
    order = sorted(items, key=lambda item: _keyed_digest(seed, "order", rater, item.key))
    repeats = max(1, round(REPEAT_SHARE * len(items))) if len(items) >= MIN_ITEMS_FOR_REPEATS else 0
    first_half = range(len(order) // 2)
    repeated = sorted(first_half, key=lambda index: _keyed_digest(seed, "repeat", rater, order[index].key))[:repeats]
    showings: list[Showing] = []
    for index, item in enumerate(order):
        showings.append(_showing(item, models, seed, rater, repeat=False))
        earlier = index - len(order) // 2
        if earlier in repeated:
            showings.append(_showing(order[earlier], models, seed, rater, repeat=True))
    return tuple(showings)


def left_model(item_key: str, models: int, seed: int, rater: str, *, repeat: bool = False) -> int:
    """Return the index of the model whose answer is on the left."""
    if models == 1:
        return 0
    return _keyed_digest(seed, "side", rater, item_key, "again" if repeat else "")[0] & 1


def _showing(item: RatedItem, models: int, seed: int, rater: str, *, repeat: bool) -> Showing:
    return Showing(item, repeat, left_model(item.key, models, seed, rater, repeat=repeat))


def _keyed_digest(seed: int, *parts: str) -> bytes:
    return hmac.new(str(seed).encode(), "\0".join(parts).encode(errors="surrogatepass"), hashlib.sha256).digest()
