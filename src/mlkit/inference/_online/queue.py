"""All that the callers and the device thread of a `Batcher` share, behind one lock."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._clock import SYSTEM
from mlkit.errors import OverloadedError, QueueFullError
from mlkit.inference._online.bell import Bell
from mlkit.inference._online.flights import Flights
from mlkit.inference._online.gathering import Gathering
from mlkit.inference._online.pace import Pace
from mlkit.inference._online.requests import Request, Waiting
from mlkit.inference._online.stats import BatcherStats, Tally, with_quantiles

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Collection, Sequence

    from mlkit._clock import Clock
    from mlkit.inference._batch.runner import Runner
    from mlkit.inference._online.warm_up import WarmUp

__all__ = ["LONGEST_WAIT", "Queue", "Taken"]

LONGEST_WAIT = 3600.0  # seconds; a lock's timeout has an upper limit, and each wait is in a loop


class Taken(NamedTuple):
    """What the device thread has to do next; nothing at all once the queue is closed and drained.

    Attributes:
        batch: The rows to run.
        late: Rows whose time is up, and who shares their runs: they are to be told.
        warm_up: A warm-up to run.
    """

    batch: list[Request]
    late: list[Request]
    warm_up: WarmUp | None = None


@final
class Queue:
    """The rows that wait, when to run them, and what became of the others.

    Thread-safe. Runs no user code and wakes no caller: what it hands out is for the batcher to deliver.

    Args:
        name: The batcher's name, for errors.
        largest: The most rows in a batch.
        max_wait: The longest that a free device holds back a row, in seconds.
        max_queue: The most rows that may wait.
        buckets: The batch sizes that are kept to.
        target: The latency objective in seconds, or None.
    """

    def __init__(
        self,
        name: str,
        *,
        largest: int,
        max_wait: float,
        max_queue: int,
        buckets: Sequence[int],
        target: float | None,
    ) -> None:
        self._name = name
        self._largest = largest
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._wake: Any = Bell(self._lock)  # as a condition: only the device thread waits on it
        self._ended = threading.Condition(self._lock)
        self._waiting = Waiting()
        self._flights = Flights()
        self._gathering = Gathering(largest, max_wait)
        self._pace = Pace(largest, buckets, target)
        self._tally = Tally()
        self._warm_ups: deque[WarmUp] = deque()
        self._free = False  # the device thread waits for rows
        self._asleep = False  # and it does so until somebody wakes it
        self._running: list[Request] = []
        self._sealed_at = 0.0
        self._timed = False  # some rows have had deadlines
        self._over = False  # the device thread has ended
        self._turning: object = (
            False  # a loop that is given its turns now; None would be that of a thread
        )
        self._look_at = 0  # the number of rows at which the next one of that loop may matter
        self.device = 0
        """The identifier of the device thread."""
        self.go_by(SYSTEM)
        self.closing = False
        """Whether it takes no more rows; never False again."""

    def go_by(self, clock: Clock) -> None:
        """Take the time, by which rows wait and expire, from *clock*. Before the device thread starts."""
        self.clock = clock
        # Once for each row: past the clock's own method, which only passes the question on.
        self._now = time.monotonic if clock is SYSTEM else clock.monotonic  # noqa: TID251

    # --- callers -------------------------------------------------------------------------------------------------

    def push(self, request: Request) -> bool:
        """Let *request* wait, or share the run of an equal one; return False if no row is taken, or none from this thread.

        Raises:
            OverloadedError: If there is no room, or no time.
        """
        # Without `with`, which costs as much again as the lock itself.
        self._lock.acquire()
        try:
            waiting = self._waiting
            if request.loop is self._turning and request.plain and waiting.n_rows < self._look_at:
                # As nearly always: what else there is to do was done for a row before it.
                request.since = self._now()
                waiting.usual.append(request)  # a call of `push` would cost a tenth of all this
                waiting.n_rows += 1
                return True
            return self._take_in(request)
        finally:
            self._lock.release()

    def withdraw(self, request: Request, *, expired: bool) -> None:
        """Take a caller's row out, if it still waits, because its time is up or its caller gone."""
        with self._lock:
            if not request.waits:
                return
            unwanted: Request | None = request
            if request.key is not None:
                unwanted = self._flights.leave(request)
            if unwanted is not None:
                self._waiting.remove(unwanted)
                self._tally.left(expired=expired)
                if not self._waiting.n_rows:
                    self._gathering.since, self._turning = None, False
                unwanted.row = None

    def settle(self, loop: AbstractEventLoop) -> None:
        """Let the callers of a batch, which have their answers now, come back. Runs in their loop."""
        if self._gathering.max_wait:
            loop.call_soon(self._turn, loop, 1)

    def forget(self, loop: AbstractEventLoop) -> None:
        """Expect nothing more from a loop that is closed."""
        with self._lock:
            self._gathering.settled(loop)

    def warm_up(self, warm_up: WarmUp) -> bool:
        """Let the device thread run *warm_up* before its next batch; return False if the queue is closed."""
        with self._lock:
            if self.closing:
                return False
            self._warm_ups.append(warm_up)
            self._wake.notify()
        return True

    def close(self, *, drain: bool) -> tuple[list[Request], list[WarmUp]]:
        """Take no more rows; unless *drain*, return what waits, which will not run."""
        with self._lock:
            self.closing, self._turning = True, False
            dropped: list[Request] = []
            warm_ups: list[WarmUp] = []
            if not drain:
                dropped, warm_ups = self._drop(), list(self._warm_ups)
                self._warm_ups.clear()
            self._wake.notify()
        return dropped, warm_ups

    def wait_until_over(self, timeout: float | None) -> bool:
        """Block until the device thread has ended; return False if *timeout* seconds are over first."""
        with self._lock:
            end = None if timeout is None else self.clock.monotonic() + timeout
            while not self._over:
                left = None
                if end is not None:
                    left = min(end - self.clock.monotonic(), LONGEST_WAIT)
                    if left <= 0:
                        return False
                self.clock.wait(self._ended, left)
        return True

    def running(self) -> list[Request]:
        """Return the callers of the batch that runs, those included that share its runs."""
        with self._lock:
            return [
                caller for request in self._running for caller in (request, *(request.others or ()))
            ]

    def stats(self, runner: Runner, *, locked: bool = True) -> BatcherStats:
        """Return what has been done so far, all figures of the same moment if *locked*.

        Without the lock in a forked child, where it may be held for ever, and for who must not block.
        """
        with self._lock if locked else nullcontext():
            counts, recent = self._tally.stats(
                n_waiting=self._waiting.n_rows,
                n_running=len(self._running),
                n_calls=runner.calls,
                limit=min(self._gathering.full, runner.limit),
                max_wait=self._gathering.max_wait,
            )
        return with_quantiles(counts, recent)

    def _join(self, request: Request) -> bool:
        """Let *request* share the run of a row of the same key, if there is one."""
        if request.key is None:
            return False
        leader = self._flights.leader(request)
        if leader is None:
            return False
        self._flights.join(request, leader, self._waiting)
        self._tally.joined += 1
        return True

    def _take_in(self, request: Request) -> bool:
        """Do all that may have to be done for a row that has come."""
        if self.closing or get_ident() == self.device:
            return False
        now = request.since = self._now()
        waiting, gathering = self._waiting, self._gathering
        if not request.plain or waiting.n_rows >= self._max_queue:
            if self._join(request):
                return True
            self._admit(request, now)
            if request.key is not None:
                self._flights.lead(request)
        waiting.push(request)
        gathering.arrived(now)
        if gathering.since is None and self._free:
            gathering.since = now
            if self._asleep:
                # max_wait counts from here, even if the loop does not turn for long. A thread that was woken
                # looks again by itself before max_wait is over.
                self._asleep = False
                self._wake.notify()
        n_rows, loop = waiting.n_rows, request.loop
        if self._free and gathering.complete(n_rows):
            self._wake.notify()
        elif gathering.max_wait and loop is not None and n_rows < gathering.full:
            # Also while the device is busy: it may become free in the middle of this loop's turn.
            if loop not in gathering.unsettled:
                gathering.unsettled.add(loop)
                loop.call_soon(self._turn, loop, 1)
            if now > gathering.misses_until:
                # Until there are so many that something may be done, its rows need no look.
                self._turning = loop
                self._look_at = gathering.rows_until(n_rows, self._max_queue)
        return True

    def _admit(self, request: Request, now: float) -> None:
        """Raise if there is no room for *request*, or its time would be up before its result."""
        full = self._gathering.full
        if self._waiting.n_rows >= self._max_queue:
            self._tally.reject("queue full")
            after = self._pace.until_done(self._waiting.n_rows, full)
            raise QueueFullError(
                self._max_queue,
                name=self._name,
                retry_after=None if after is None else after + self._rest(now),
            )
        if request.expires is None:
            return
        self._timed = True
        ahead = self._waiting.ahead(request.priority)
        # An idle device takes every row: its figures may be out of date, and only a run can tell.
        if not (self._running or ahead >= full):
            return
        done = self._pace.until_done(ahead, full)
        if done is not None and now + self._rest(now) + done > request.expires:
            self._tally.reject("deadline")
            raise OverloadedError(
                self._name,
                f"a result is expected in {done + self._rest(now):.3g} s, and the caller waits {request.allowed:.3g} s",
                retry_after=self._rest(now) + done,
            )

    def _rest(self, now: float) -> float:
        """Return how much longer the batch that runs will take."""
        if not self._running:
            return 0.0
        return max(self._sealed_at + (self._pace.seconds(len(self._running)) or 0.0) - now, 0.0)

    def _turn(self, loop: AbstractEventLoop, left: int) -> None:
        """Let the loop turn *left* times more, then say that its callers have settled. Runs in the loop."""
        with self._lock:
            gathering, n_rows = self._gathering, self._waiting.n_rows
            if not left:
                gathering.settled(loop)
                self._turning = False
            leaves = self._free and n_rows > 0 and gathering.complete(n_rows)
            if leaves:
                self._wake.notify()
        if left and not leaves:
            loop.call_soon(self._turn, loop, left - 1)

    # --- the device thread -----------------------------------------------------------------------------------------

    def take(self) -> Taken:
        """Wait until there is something to do and take it out."""
        waiting, gathering = self._waiting, self._gathering
        with self._lock:
            if not self._gather():
                return Taken([], [])
            if self._warm_ups:
                return Taken([], [], self._warm_ups.popleft())
            now, n_rows = self._now(), gathering.full
            if waiting.n_rows >= 2 * n_rows and n_rows < self._largest:
                # An objective holds batches small. A backlog of more than two says that the load needs larger ones.
                n_rows = min(waiting.n_rows // 2, self._largest)
            batch = waiting.pop_many(n_rows)
            late: list[Request] = []
            if self._timed and any(request.expires is not None for request in batch):
                batch, late = self._on_time(batch, n_rows, now)
            self._running, self._sealed_at, self._turning = batch, now, False
            gathering.sealed(len(batch), now)
        return Taken(batch, late)

    def ran(
        self, batch: list[Request], n_failed: int, loops: Collection[AbstractEventLoop | None]
    ) -> list[tuple[int, Request]]:
        """Count a batch that is done, before its callers know; return who else shares its runs, with their leaders' places."""
        pace, gathering = self._pace, self._gathering
        with self._lock:
            now = self._now()
            self._running = []
            self._tally.ran(batch, n_failed, self._sealed_at, now)
            pace.observe(len(batch), now - self._sealed_at)
            if pace.target is not None:
                gathering.full = pace.most_rows()
                gathering.max_wait = pace.longest_wait(gathering.full, self._max_wait)
            gathering.answered(self._waiting.n_rows, len(batch), loops)
            return self._flights.land(batch) if self._flights else []

    def observe(self, n_rows: int, seconds: float) -> None:
        """Take in how long a batch of a warm-up took."""
        with self._lock:
            self._pace.observe(n_rows, seconds)

    def over(self) -> None:
        """Say that the device thread has ended."""
        with self._lock:
            self._over = True
            self._ended.notify_all()

    def _on_time(
        self, batch: list[Request], n_rows: int, now: float
    ) -> tuple[list[Request], list[Request]]:
        """Put aside the rows whose time is up, and fill up with the next ones."""
        good: list[Request] = []
        late: list[Request] = []
        while batch:
            for request in batch:
                (late if request.expired(now) else good).append(request)
            batch = self._waiting.pop_many(n_rows - len(good))
        self._tally.expired += len(late)
        return good, [*late, *[other for _, other in self._flights.land(late)]]

    def _drop(self) -> list[Request]:
        rows = list(self._waiting.pop())
        self._tally.cancelled += len(rows)
        return [*rows, *[other for _, other in self._flights.land(rows)]]

    def _gather(self) -> bool:
        """Wait, holding the lock, until there is something to do; False if there will be nothing."""
        gathering, waiting, clock = self._gathering, self._waiting, self.clock
        if waiting.n_rows >= gathering.full and not self._warm_ups:  # as nearly always under load
            return True
        self._free = True
        try:
            while not self._warm_ups:
                n_rows = waiting.n_rows
                if n_rows == 0:
                    gathering.since = None
                    if self.closing:
                        return False
                    self._asleep = True
                    clock.wait(self._wake, None)
                    self._asleep = False
                    continue
                if self.closing or gathering.complete(n_rows):
                    return True
                left = gathering.seconds_left(clock.monotonic())
                if left <= 0:
                    return True
                clock.wait(self._wake, min(left, LONGEST_WAIT))
            return True
        finally:
            self._free = self._asleep = False
