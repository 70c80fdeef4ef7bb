"""What several tests of the block measure."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest


@pytest.fixture
def cycles_left_by() -> Callable[[Callable[[], object]], int]:
    """Return a function that counts the objects in cycles that a call leaves behind, every time it is made.

    The collector sees the whole process, and threads of other tests may leave garbage of their own while it looks. What
    the call itself leaves is there each time, so the least of a few counts is the call's.
    """

    def count(use: Callable[[], object]) -> int:
        use()  # what a first call sets up is no garbage
        counts = []
        for _ in range(4):
            gc.collect()
            gc.disable()
            gc.freeze()  # what was there before need not be looked through again
            try:
                use()
                counts.append(gc.collect())
            finally:
                gc.unfreeze()
                gc.enable()
        return min(counts)

    return count
