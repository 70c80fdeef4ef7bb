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
from mlkit.inference._online.groups import Group, Waiting, n_rows_of
from mlkit.inference._online.pace import Pace
from mlkit.inference._online.stats import BatcherStats, Tally, with_quantiles

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Collection, Sequence

    from mlkit._clock import Clock
    from mlkit.inference._batch.runner import Runner
    from mlkit.inference._online.warm_up import WarmUp

__all__ = ["LONGEST_WAIT", "Queue", "Taken"]

_CLOSED: Any = Group([], None, [])  # in place of an open group; its loop is nobody's
_CLOSED.loop = False  # None would be that of a blocking caller
LONGEST_WAIT = 3600.0  # seconds; a lock's timeout has an upper limit, and each wait is in a loop


class Taken(NamedTuple):
    """What the device thread has to do next; nothing at all once the queue is closed and drained.

    Attributes:
        batch: The rows to run.
        late: Rows whose time is up, and who shares their runs: they are to be told.
        warm_up: A warm-up to run.
    """

    batch: list[Group]
    late: list[Group]
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
        self._running: list[Group] = []
        self._n_running = 0
        self._sealed_at = 0.0
        self._timed = False  # some rows have had deadlines
        self._over = False  # the device thread has ended
        self._open: Group = _CLOSED  # the group that rows of its loop may join
        self._look_at = 0  # the number of rows that closes it
        self.device = 0
        """The identifier of the device thread."""
        self.go_by(SYSTEM)
        self.closing = False
        """Whether it takes no more rows; never False again."""

    def go_by(self, clock: Clock) -> None:
        """Take the time, by which rows wait and expire, from *clock*. Before the device thread starts."""
        self.clock = clock
        # Perhaps once for each row: past the clock's own method, which only passes the question on.
        self._now = time.monotonic if clock is SYSTEM else clock.monotonic  # noqa: TID251

    # --- callers -------------------------------------------------------------------------------------------------

    def submit(self, loop: AbstractEventLoop, row: Any, signal: Any) -> Group | None:
        """Let *row* wait, from a caller in *loop* that asks for nothing else; return its group, or None as `push` does.

        Raises:
            OverloadedError: As `push`.
        """
        # Without `with`, which costs as much again as the lock itself.
        self._lock.acquire()
        try:
            group, waiting = self._open, self._waiting
            if group.loop is loop:
                # As nearly always: what else there is to do was done for a row before it. So no call of a method.
                group.rows.append(row)
                group.signals.append(signal)
                waiting.n_rows += 1
                if waiting.n_rows >= self._look_at:
                    self._look()
                return group
            group = Group([row], loop, [signal])
            return group if self._take_in(group) else None
        finally:
            self._lock.release()

    def push(self, group: Group) -> bool:
        """Let *group*, of a single row, wait or share the run of an equal one.

        Returns:
            False if no row is taken, or none from this thread.

        Raises:
            OverloadedError: If there is no room, or no time.
        """
        with self._lock:
            return self._take_in(group)

    def withdraw(self, group: Group, signal: Any, *, expired: bool) -> None:
        """Take out the row of *signal*, if it still waits, because its time is up or its caller gone."""
        with self._lock:
            if not group.waits:
                return
            if group.key is not None:
                unwanted = self._flights.leave(group)
                if unwanted is None:
                    return
                group, (signal,) = unwanted, unwanted.signals
            if self._waiting.remove(group, signal):
                self._tally.left(expired=expired)
                if not self._waiting.n_rows:
                    self._gathering.since = None
                if not group.waits:
                    self._open = _CLOSED

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

    def close(self, *, drain: bool) -> tuple[list[Group], list[WarmUp]]:
        """Take no more rows; unless *drain*, return what waits, which will not run."""
        with self._lock:
            self.closing, self._open = True, _CLOSED
            dropped: list[Group] = []
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

    def running(self) -> list[Group]:
        """Return the callers of the batch that runs, those included that share its runs."""
        with self._lock:
            return [caller for group in self._running for caller in (group, *(group.others or ()))]

    def stats(self, runner: Runner, *, locked: bool = True) -> BatcherStats:
        """Return what has been done so far, all figures of the same moment if *locked*.

        Without the lock in a forked child, where it may be held for ever, and for who must not block.
        """
        with self._lock if locked else nullcontext():
            counts, recent = self._tally.stats(
                n_waiting=self._waiting.n_rows,
                n_running=self._n_running,
                n_calls=runner.calls,
                limit=min(self._gathering.full, runner.limit),
                max_wait=self._gathering.max_wait,
            )
        return with_quantiles(counts, recent)

    def _join(self, group: Group) -> bool:
        """Let *group* share the run of a row of the same key, if there is one."""
        leader = self._flights.leader(group)
        if leader is None:
            return False
        self._flights.join(group, leader, self._waiting)
        self._tally.joined += 1
        return True

    def _take_in(self, group: Group) -> bool:
        """Take *group*, of a single row, into the queue or into the run of an equal one; False if no row is taken."""
        if self.closing or get_ident() == self.device:
            return False
        now = group.since = self._now()
        if group.key is not None and self._join(group):
            return True
        if group.expires is not None or self._waiting.n_rows >= self._max_queue:
            self._admit(group, now)
        if group.key is not None:
            self._flights.lead(group)
        self._open = _CLOSED  # what comes from now on comes after this one
        self._waiting.push(group)
        self._came(group, now)
        return True

    def _came(self, group: Group, now: float) -> None:
        """See what *group*, which waits now, means for the device, for its loop and for the next rows."""
        gathering = self._gathering
        gathering.arrived(now)
        if gathering.since is None and self._free:
            gathering.since = now
            if self._asleep:
                # max_wait counts from here, even if the loop does not turn for long. A thread that was woken
                # looks again by itself before max_wait is over.
                self._asleep = False
                self._wake.notify()
        n_rows, loop = self._waiting.n_rows, group.loop
        leaves = self._free and gathering.complete(n_rows)
        if leaves:
            self._wake.notify()
        if loop is None:
            return
        # A turn to wait for would hold back what leaves now, but for a full batch.
        if loop not in gathering.unsettled and (not leaves or n_rows >= gathering.full):
            # Also while the device is busy: it may become free in the middle of this loop's turn.
            gathering.unsettled.add(loop)
            loop.call_soon(self._turn, loop, 1)
        if not group.alone and now > gathering.misses_until and n_rows < self._max_queue:
            self._open = group  # until the next turn or batch
            self._look_at = gathering.next_sign(n_rows, self._max_queue)

    def _look(self) -> None:
        """Close the open group, and run what waits if a free device shall wait for no more."""
        self._open = _CLOSED
        if self._free and self._gathering.complete(self._waiting.n_rows):
            self._wake.notify()

    def _admit(self, group: Group, now: float) -> None:
        """Raise if there is no room for *group*, or its time would be up before its result."""
        full = self._gathering.full
        if self._waiting.n_rows >= self._max_queue:
            self._tally.reject("queue full")
            after = self._pace.until_done(self._waiting.n_rows, full)
            raise QueueFullError(
                self._max_queue,
                name=self._name,
                retry_after=None if after is None else after + self._rest(now),
            )
        if group.expires is None:
            return
        self._timed = True
        ahead = self._waiting.ahead(group.priority)
        # An idle device takes every row: its figures may be out of date, and only a run can tell.
        if not (self._n_running or ahead >= full):
            return
        done = self._pace.until_done(ahead, full)
        if done is not None and now + self._rest(now) + done > group.expires:
            self._tally.reject("deadline")
            raise OverloadedError(
                self._name,
                f"a result is expected in {done + self._rest(now):.3g} s, and the caller waits {group.allowed:.3g} s",
                retry_after=self._rest(now) + done,
            )

    def _rest(self, now: float) -> float:
        """Return how much longer the batch that runs will take."""
        if not self._n_running:
            return 0.0
        return max(self._sealed_at + (self._pace.seconds(self._n_running) or 0.0) - now, 0.0)

    def _turn(self, loop: AbstractEventLoop, left: int) -> None:
        """Let the loop turn *left* times more, then say that its callers have settled. Runs in the loop."""
        with self._lock:
            gathering, n_rows = self._gathering, self._waiting.n_rows
            self._open = _CLOSED  # those of one turn count as having come together
            # Nothing is waited for, and the next row may have its turns again.
            if n_rows >= gathering.full:
                left = 0
            if not left:
                gathering.settled(loop)
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
            n_waiting = waiting.n_rows
            batch = waiting.take(n_rows)
            n_taken = n_waiting - waiting.n_rows
            late: list[Group] = []
            if self._timed and any(group.expires is not None for group in batch):
                batch, late = self._on_time(batch, n_rows, now)
                n_taken = n_rows_of(batch)
            self._running, self._sealed_at = batch, now
            self._n_running = n_taken
            self._open = _CLOSED
            gathering.sealed(n_taken, now)
        return Taken(batch, late)

    def ran(
        self, batch: list[Group], n_failed: int, loops: Collection[AbstractEventLoop | None]
    ) -> list[tuple[int, Group]]:
        """Count a batch that is done, before its callers know; return who else shares its runs, with their leaders' places."""
        pace, gathering = self._pace, self._gathering
        with self._lock:
            now, n_rows = self._now(), self._n_running
            self._running, self._n_running = [], 0
            self._tally.ran(batch, n_rows, n_failed, self._sealed_at, now)
            pace.observe(n_rows, now - self._sealed_at)
            if pace.target is not None:
                gathering.full = pace.most_rows()
                gathering.max_wait = pace.longest_wait(gathering.full, self._max_wait)
            gathering.answered(self._waiting.n_rows, n_rows, loops)
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
        self, batch: list[Group], n_rows: int, now: float
    ) -> tuple[list[Group], list[Group]]:
        """Put aside the rows whose time is up, and fill up with the next ones."""
        good: list[Group] = []
        late: list[Group] = []
        while batch:
            for group in batch:
                (late if group.expired(now) else good).append(group)
            batch = self._waiting.take(n_rows - n_rows_of(good))
        self._tally.expired += n_rows_of(late)
        return good, [*late, *[other for _, other in self._flights.land(late)]]

    def _drop(self) -> list[Group]:
        groups = self._waiting.take(self._waiting.n_rows)
        self._tally.cancelled += n_rows_of(groups)
        return [*groups, *[other for _, other in self._flights.land(groups)]]

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
