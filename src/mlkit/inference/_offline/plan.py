"""How to cut rows of several lengths into batches."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from operator import mul
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
    counts = Counter(lengths)  # in the order of the lengths; rows of one length are never parted
    before = [0, *accumulate(counts.values())]  # rows up to each distinct length
    prices = [*map(cost.per_row, counts)]
    if not prices:
        return []
    least_work = sum(map(mul, counts.values(), prices))
    if before[-1] * prices[-1] - least_work <= cost.start:
        return [before[-1]]  # a second batch would cost more than all the filling it saves
    total = [0.0]  # the least cost of the rows up to there
    origin = [0]  # where the last batch of it begins
    # Which beginnings are worth it for some price, the later ones for higher prices.
    hull: list[int] = []
    first = 0
    for place, price in enumerate(prices):
        rows, least = before[place], total[place]
        while len(hull) - first >= 2:
            a, b = hull[-2:]
            left = (total[b] - total[a]) * (rows - before[b])
            if left < (least - total[b]) * (before[b] - before[a]):
                break
            hull.pop()  # between a and the new one it is never best
        hull.append(place)
        begin = hull[first]
        while first + 1 < len(hull):
            later = hull[first + 1]
            if total[later] - before[later] * price > total[begin] - before[begin] * price:
                break
            begin, first = later, first + 1
        total.append(total[begin] + cost.start + (before[place + 1] - before[begin]) * price)
        origin.append(begin)
    ends: list[int] = []
    place = len(counts)
    while place:
        ends.append(before[place])
        place = origin[place]
    return ends[::-1]


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
