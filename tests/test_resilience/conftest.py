"""What several tests of the block measure."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(autouse=True)
def _nobody_holds_a_lock_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine whoever has the lock of a storage may not come to let go of it within a quarter of a second."""
    monkeypatch.setattr("mlkit.resilience._storage._PATIENCE", 60.0)


@pytest.fixture(scope="module")
def _older_than_the_module() -> Iterator[None]:
    """Keep the collector from looking through what was there before, which is most of what there is."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def only_what_is_new(_older_than_the_module: None) -> None:
    """Let a collection see what the test makes, and not what others have loaded: a hundred times fewer objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def cycles_left_by(only_what_is_new: None) -> Callable[[Callable[[], object]], int]:
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
            try:
                use()
                counts.append(gc.collect())
            finally:
                gc.enable()
        return min(counts)

    return count
