"""How long batches take, learned from those that ran: what a deadline, a rejection and a latency objective go by."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Pace"]

_RECENT = 7  # times kept of each size; their median forgets a single slow batch


@final
class Pace:
    """The seconds that a batch of so many rows takes.

    Sizes are taken together in steps of an eighth to a quarter, or by buckets where there are any. A size that was not
    seen is interpolated; beyond the largest one seen, the line through the smallest and the largest goes on.

    Args:
        largest: The most rows in a batch.
        buckets: The batch sizes that are kept to, ascending, or none.
        target: The latency objective in seconds, or None.
    """

    def __init__(self, largest: int, buckets: Sequence[int], target: float | None) -> None:
        self._largest = largest
        self._buckets = buckets
        self.target = target
        """The latency objective in seconds, or None."""
        self._recent: dict[int, deque[float]] = {}
        self._sizes: list[int] = []  # ascending
        self._seconds: list[float] = []  # of each size, never falling
        self._fresh = True

    def observe(self, n_rows: int, seconds: float) -> None:
        """Take in how long a batch took."""
        size = self._size(n_rows)
        recent = self._recent.get(size)
        if recent is None:
            recent = self._recent[size] = deque(maxlen=_RECENT)
            insort(self._sizes, size)
        recent.append(seconds)
        self._fresh = False

    def seconds(self, n_rows: int) -> float | None:
        """Return how long a batch of *n_rows* will take; None before the first one."""
        if not self._sizes:
            return None
        if not self._fresh:
            self._learn()
        sizes, seconds = self._sizes, self._seconds
        place = bisect_left(sizes, n_rows if not self._buckets else self._size(n_rows))
        if place < len(sizes):
            if place == 0 or sizes[place] == n_rows:
                return seconds[place]
            left = place - 1
        elif len(sizes) == 1:
            return seconds[0]
        else:
            left, place = 0, len(sizes) - 1
        slope = (seconds[place] - seconds[left]) / (sizes[place] - sizes[left])
        return seconds[left] + slope * (n_rows - sizes[left])

    def until_done(self, n_ahead: int, full: int) -> float | None:
        """Return after how many seconds a free device would have run *n_ahead* rows and one more; None if unknown."""
        n_full, rest = divmod(n_ahead, full)
        last, each = self.seconds(rest + 1), self.seconds(full)
        return None if last is None or each is None else n_full * each + last

    def most_rows(self) -> int:
        """Return how many rows may run at once under the objective: those that take half of it.

        A row that comes while a batch runs waits for its end and then for its own, so that both halves make the whole.
        At most twice as many as have been seen, so that a size nobody has measured is not jumped to; at least 1.
        """
        if self.target is None or not self._sizes:
            return self._largest
        allowed = self.target / 2
        low, high = 1, min(self._largest, 2 * self._sizes[-1])
        while low < high:  # the largest that is quick enough
            middle = (low + high + 1) // 2
            if (self.seconds(middle) or 0.0) <= allowed:
                low = middle
            else:
                high = middle - 1
        if self._buckets and low < self._largest:
            fitting = [size for size in self._buckets if size <= low]
            low = fitting[-1] if fitting else min(self._buckets[0], self._largest)
        return low

    def longest_wait(self, n_rows: int, max_wait: float) -> float:
        """Return how long a free device may hold back a row under the objective, at most *max_wait* seconds."""
        if self.target is None:
            return max_wait
        return min(max_wait, max(self.target - (self.seconds(n_rows) or 0.0), 0.0))

    def _size(self, n_rows: int) -> int:
        if self._buckets:
            return self._buckets[min(bisect_left(self._buckets, n_rows), len(self._buckets) - 1)]
        step = max(n_rows.bit_length() - 3, 0)
        return min(-(-n_rows >> step) << step, self._largest)

    def _learn(self) -> None:
        medians = [sorted(recent)[len(recent) // 2] for _, recent in sorted(self._recent.items())]
        # More rows never take less time: a size that was slow once must not outlast a larger one that is quick now.
        for place in range(len(medians) - 2, -1, -1):
            medians[place] = min(medians[place], medians[place + 1])
        self._seconds = medians
        self._fresh = True
