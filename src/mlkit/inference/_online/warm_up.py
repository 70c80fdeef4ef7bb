"""Running the model before its callers come, on batches of each size that they will make."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, final

from mlkit.inference._batch.runner import Failure
from mlkit.inference._online.reasons import error_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit._clock import Clock
    from mlkit.inference._batch.runner import Runner

__all__ = ["WarmUp"]

_RUNS = 2  # of each size: the first one compiles and allocates, the second one is timed


@final
class WarmUp:
    """One row, to be run at several sizes in the device thread, and somebody who waits for that.

    Args:
        row: The row that fills the batches.
        sizes: Rows per batch, ascending.
    """

    def __init__(self, row: Any, sizes: Sequence[int]) -> None:
        self._row = row
        self._sizes = sizes
        self._over = threading.Condition(threading.Lock())
        self._seconds: dict[int, float] | None = None
        self._error: BaseException | None = None

    def run(
        self,
        enter: Callable[[], None],
        runner: Runner,
        clock: Clock,
        observe: Callable[[int, float], None],
    ) -> None:
        """Prepare the thread by *enter*, run the batches, and wake who waits. In the device thread; raises nothing."""
        seconds: dict[int, float] = {}
        size = 1
        try:
            enter()
            for size in self._sizes:
                for _ in range(_RUNS):
                    start = clock.monotonic()
                    outcome = runner.attempt([self._row] * size)
                    if isinstance(outcome, Failure):
                        self.fail(error_for(runner.name, outcome, set()))
                        return
                    del outcome
                    seconds[size] = clock.monotonic() - start
                observe(size, seconds[size])
        except BaseException as error:  # noqa: BLE001 - as for a batch: the thread must live on
            self.fail(error_for(runner.name, Failure(error, size), set()))
            return
        with self._over:
            self._row, self._seconds = None, seconds
            self._over.notify()

    def fail(self, error: BaseException) -> None:
        """Give who waits an error."""
        with self._over:
            self._row, self._error = None, error
            self._over.notify()

    def wait(self, clock: Clock) -> dict[int, float]:
        """Block until it has run; return the seconds that a batch of each size took, or raise its error."""
        with self._over:
            while self._seconds is None and self._error is None:
                clock.wait(self._over, None)
        if self._error is not None:
            raise self._error
        return self._seconds or {}
