"""How many rows a batch has: as many as were asked for, or as many as turn out to be worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LADDER", "Sizes"]

LADDER = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What `batch_size="auto"` tries. Below 8, one bad row could pass for the majority of the first batch."""

_RUNS = 2  # of each size; the faster one counts, so that a first, cold run does not
_ENOUGH = 1.05  # a size this close to the best time per row is as good
_STALE = 2  # larger sizes without a gain before it stops

# Per function and device. An entry goes with its function.
_known: WeakKeyDictionary[Any, dict[tuple[str, str], int]] = WeakKeyDictionary()


@final
class Sizes:
    """The size of the next batch.

    The probe runs on the rows of the job, each once, in batches of growing sizes, and times them.

    Args:
        ladder: The sizes to try, growing; with a single one, it is the size.
        owner: What the outcome is remembered for.
        key: More of the same.
    """

    def __init__(
        self, ladder: Sequence[int], owner: object = None, key: tuple[str, str] = ("", "")
    ) -> None:
        self._ladder = tuple(ladder)
        self._owner, self._key = owner, key
        self._step = 0
        self._times: list[float] = []  # of this step, in seconds per row
        self._best: list[float] = []  # of the steps before it
        self.size = self._ladder[0]
        self.settled = len(self._ladder) == 1
        if not self.settled and (known := self._remembered()) in self._ladder:
            self.settle(known)

    def settle(self, size: int) -> None:
        """Stop probing."""
        self.size, self.settled = size, True

    def observe(self, n_rows: int, seconds: float, *, plain: bool, limit: int) -> None:
        """Take in how long a batch took.

        Args:
            n_rows: Its rows.
            seconds: How long it took.
            plain: Whether it was one call of the function.
            limit: The largest batch that memory allows.
        """
        if self.settled:
            return
        if limit < self.size:  # memory ran out
            fitting = [size for size in self._ladder if size <= limit]
            self._conclude(len(fitting))
        elif plain and n_rows == self.size:
            self._times.append(seconds / n_rows)
            if len(self._times) >= _RUNS:
                self._climb()

    def _climb(self) -> None:
        self._best.append(min(self._times))
        self._times.clear()
        step = len(self._best)
        earlier, recent = self._best[:-_STALE], self._best[-_STALE:]
        if step == len(self._ladder) or (earlier and min(recent) * _ENOUGH >= min(earlier)):
            self._conclude(step)
        else:
            self._step = step
            self.size = self._ladder[step]

    def _conclude(self, n_fitting: int) -> None:
        times = self._best[: max(n_fitting, 1)]
        place = 0
        if times:
            good = min(times) * _ENOUGH
            place = next(place for place, time in enumerate(times) if time <= good)
        self.settle(self._ladder[place])
        try:
            _known.setdefault(self._owner, {})[self._key] = self.size
        except TypeError:  # a function that cannot be referred to weakly is asked again each time
            return

    def _remembered(self) -> int | None:
        try:
            return _known.get(self._owner, {}).get(self._key)
        except TypeError:
            return None
