"""A count for paths on which a counter would be a good part of the price."""

from __future__ import annotations

import sys
from itertools import count
from typing import TYPE_CHECKING, final

from mlkit.resilience._locks import fork_safe_lock
from mlkit.telemetry import register

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.telemetry import Counter, Sample

__all__ = ["Ticks"]


@final
class Ticks:
    """How often something happened, counted by one call of C, which is atomic and a third of the price of `Counter.add`.

    Put into the counter when somebody reads: so the counter, which must be registered after this, is the one series.
    """

    __slots__ = ("__weakref__", "_count", "_lock", "_noted", "counter", "tick")

    counter: Counter
    """Where they are put."""

    def __init__(self, counter: Counter) -> None:
        self._count, self.counter, self._noted = count(), counter, 0
        self._lock = fork_safe_lock()
        self.tick = self._count.__next__
        register(self)

    def samples(self) -> tuple[Sample, ...]:
        """Put what has come since the last time into the counter; a source that has nothing of its own to say."""
        with self._lock:
            new = int(repr(self._count)[6:-1]) - self._noted  # "count(3)": there is no other way
            self._noted += new
            self.counter.add(new)
        return ()

    def __del__(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        # The totals of a `Counter` outlive it; when the interpreter ends, modules are taken apart, and nobody reads them.
        if not _exiting():
            self.samples()
