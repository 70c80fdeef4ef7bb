"""How to cut rows of several lengths into batches."""

from __future__ import annotations

from bisect import bisect_right
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.inference._offline.cost import Cost

__all__ = ["cut", "spread"]


def cut(
    lengths: Sequence[int],
    cost: Cost,
    *,
    max_rows: int,
    cap: int,
    buckets: Sequence[int] = (),
) -> list[int]:
    """Return how many rows each batch has, so that all batches together cost least.

    Args:
        lengths: Of the rows, sorted upwards.
        cost: What a batch costs.
        max_rows: The most rows in a batch.
        cap: The most entries in a batch, filling included; one row alone may have more.
        buckets: The numbers of rows to keep to, sorted upwards; a batch is filled up to the next one. Empty for any.

    Note:
        The best partition of sorted rows is one into neighbours. The cost of a batch that ends at row `i` and begins after
        row `j` is a line in `j` evaluated at the price of a row as long as row `i`; the price never falls, so that the
        lower envelope of the lines is walked once: linear in the number of distinct lengths. Limits are applied
        afterwards, by cutting a batch that exceeds them, the longest rows first.
    """
    sizes: list[int] = []
    start = 0
    for end in _cheapest(lengths, cost):
        pieces: list[int] = []
        stop = end
        while stop > start:
            most = max(1, min(max_rows, cap // max(lengths[stop - 1], 1)))
            pieces.append(_piece(stop - start, most, buckets))
            stop -= pieces[-1]
        sizes.extend(reversed(pieces))
        start = end
    return sizes


def _cheapest(lengths: Sequence[int], cost: Cost) -> list[int]:
    """Return where the batches of the cheapest partition end."""
    before = [0]  # rows up to each distinct length; rows of one length are never parted
    prices: list[float] = []
    for length, some in groupby(lengths):
        before.append(before[-1] + sum(1 for _ in some))
        prices.append(cost.per_row(length))
    total = [0.0]  # the least cost of the rows up to there
    origin = [0]  # where the last batch of it begins
    hull: list[
        int
    ] = []  # which beginnings are worth it for some price, the later ones for higher prices
    first = 0
    for place, price in enumerate(prices):
        while len(hull) - first >= 2 and _beaten(hull[-2], hull[-1], place, before, total):
            hull.pop()
        hull.append(place)
        while first + 1 < len(hull) and (
            total[hull[first + 1]] - before[hull[first + 1]] * price
            <= total[hull[first]] - before[hull[first]] * price
        ):
            first += 1
        begin = hull[first]
        total.append(total[begin] + cost.start + (before[place + 1] - before[begin]) * price)
        origin.append(begin)
    ends: list[int] = []
    place = len(prices)
    while place:
        ends.append(before[place])
        place = origin[place]
    return ends[::-1]


def _beaten(a: int, b: int, c: int, before: list[int], total: list[float]) -> bool:
    """Return whether beginning at *b* is never best beside *a* and *c*, `a < b < c`."""
    left = (total[b] - total[a]) * (before[c] - before[b])
    right = (total[c] - total[b]) * (before[b] - before[a])
    return left >= right


def _piece(n: int, most: int, buckets: Sequence[int]) -> int:
    """Return how many of *n* rows to take for a batch of at most *most*, which fills a bucket if it can."""
    if not buckets:
        return min(n, most)
    place = max(bisect_right(buckets, most) - 1, 0)
    return min(n, buckets[place])


def spread(n: int) -> list[int]:
    """Return 0 to *n* - 1 in an order whose beginnings lie all over the range: the middle, the quarters, the eighths."""
    order: list[int] = []
    seen: set[int] = set()
    step = n
    while len(order) < n:
        for place in range(step // 2, n, max(step, 1)):
            if place not in seen:
                seen.add(place)
                order.append(place)
        step //= 2
        if not step:
            order.extend(place for place in range(n) if place not in seen)
    return order
