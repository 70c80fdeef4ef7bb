"""All that the callers and the device thread of a `Batcher` share, behind one lock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from mlkit.errors import QueueFullError
from mlkit.inference._requests import Gathering, Request, Waiting
from mlkit.inference._stats import BatcherStats

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from mlkit._clock import Clock
    from mlkit.inference._runner import Runner

__all__ = ["LONGEST_WAIT", "Queue"]

LONGEST_WAIT = 3600.0  # seconds; a lock's timeout has an upper limit, and each wait is in a loop


@final
class Queue:
    """The rows that wait, when to run them, and what became of the others.

    Thread-safe. Runs no user code and wakes no caller: what it hands out is for the batcher to deliver.

    Args:
        largest: The most rows in a batch.
        max_wait: The longest that a free device holds back a row, in seconds.
        max_queue: The most rows that may wait.
    """

    def __init__(self, largest: int, max_wait: float, max_queue: int) -> None:
        self._largest = largest
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting = Waiting()
        self._gathering = Gathering(largest, max_wait)
        self._free = False  # the device thread waits for rows
        self._running = 0
        self._accepted = self._done = self._failed = self._expired = 0
        self._cancelled = self._rejected = 0
        self._sizes: dict[int, int] = {}
        self.closing = False
        """Whether it takes no more rows; never False again."""

    # --- callers -------------------------------------------------------------------------------------------------

    def push(self, request: Request, clock: Clock) -> bool:
        """Let *request* wait; return False if the queue is closed.

        Raises:
            QueueFullError: If there is no room.
        """
        with self._lock:
            if self.closing:
                return False
            if self._waiting.n_rows >= self._max_queue:
                self._rejected += 1
                raise QueueFullError(self._max_queue)
            self._waiting.push(request)
            self._accepted += 1
            gathering, now = self._gathering, clock.monotonic()
            gathering.arrived(now)
            loop = request.loop
            if self._free and gathering.since is None:
                gathering.since = now
                self._wake.notify()  # max_wait counts from here, even if the loop does not turn for long
            if self._max_wait and loop is not None and self._waiting.n_rows < self._largest:
                # Also while the device is busy: it may become free in the middle of this loop's turn.
                if loop not in gathering.unsettled:
                    gathering.unsettled.add(loop)
                    loop.call_soon(self._turn, loop, 1)
            elif self._free:
                self._wake.notify()
        return True

    def withdraw(self, request: Request, *, expired: bool) -> None:
        """Take a row out, if it still waits, because its time is up or its caller gone."""
        with self._lock:
            if not self._waiting.remove(request):
                return
            if expired:
                self._expired += 1
            else:
                self._cancelled += 1
            if not self._waiting.n_rows:
                self._gathering.since = None
        request.row = None

    def answered(self, loop: AbstractEventLoop) -> None:
        """Let the callers of a batch, which have their answers now, come back. Runs in their loop."""
        if self._max_wait:
            loop.call_soon(self._turn, loop, 1)

    def forget(self, loop: AbstractEventLoop) -> None:
        """Expect nothing more from a loop that is closed."""
        with self._lock:
            self._gathering.unsettled.discard(loop)

    def close(self, *, drain: bool) -> list[Request]:
        """Take no more rows; unless *drain*, return those that wait, which will not run."""
        with self._lock:
            self.closing = True
            dropped = [] if drain else list(self._waiting.pop())
            self._cancelled += len(dropped)
            self._wake.notify()
        return dropped

    def stats(self, runner: Runner) -> BatcherStats:
        """Return what has been done so far, all figures of the same moment."""
        with self._lock:
            return self.snapshot(runner)

    def snapshot(self, runner: Runner) -> BatcherStats:
        """Return the same without the lock, which in a forked child may be held for ever."""
        sizes = dict(sorted(self._sizes.copy().items()))
        return BatcherStats(
            n_accepted=self._accepted,
            n_done=self._done,
            n_failed=self._failed,
            n_expired=self._expired,
            n_cancelled=self._cancelled,
            n_rejected=self._rejected,
            n_waiting=self._waiting.n_rows,
            n_running=self._running,
            n_batches=sum(sizes.values()),
            n_calls=runner.calls,
            batch_sizes=sizes,
        )

    def _turn(self, loop: AbstractEventLoop, left: int) -> None:
        """Let the loop turn *left* times more, then say that its callers have settled. Runs in the loop."""
        if left:
            loop.call_soon(self._turn, loop, left - 1)
            return
        with self._lock:
            self._gathering.unsettled.discard(loop)
            if self._free and self._waiting.n_rows:
                self._wake.notify()

    # --- the device thread -----------------------------------------------------------------------------------------

    def take(self, clock: Clock) -> tuple[list[Request], list[Request]]:
        """Wait until rows should run and take them out.

        Returns:
            The batch, and the rows before it whose time is up. Both are empty once closed and drained.
        """
        batch: list[Request] = []
        late: list[Request] = []
        with self._lock:
            if not self._gather(clock):
                return batch, late
            now = clock.monotonic()
            for request in self._waiting.pop():
                expired = request.expires is not None and now >= request.expires
                (late if expired else batch).append(request)
                if len(batch) == self._largest:
                    break
            self._expired += len(late)
            self._running = len(batch)
            self._gathering.sealed(len(batch), now)
        return batch, late

    def ran(self, batch: list[Request], n_failed: int) -> None:
        """Count a batch that is done, before its callers know."""
        n_rows = len(batch)
        with self._lock:
            self._failed += n_failed
            self._done += n_rows - n_failed
            self._running = 0
            self._sizes[n_rows] = self._sizes.get(n_rows, 0) + 1
            self._gathering.answered()
            if self._max_wait:
                self._gathering.unsettled.update(
                    request.loop for request in batch if request.loop is not None
                )

    def _gather(self, clock: Clock) -> bool:
        """Wait, holding the lock, until the rows in the queue should run; False if there will be none."""
        self._free = True
        try:
            while True:
                n_rows = self._waiting.n_rows
                if n_rows == 0:
                    self._gathering.since = None
                    if self.closing:
                        return False
                    clock.wait(self._wake, None)
                    continue
                if self.closing or self._gathering.complete(n_rows):
                    return True
                left = self._gathering.seconds_left(clock.monotonic())
                if left <= 0:
                    return True
                clock.wait(self._wake, min(left, LONGEST_WAIT))
        finally:
            self._free = False
