"""Rows that wait for the device, and the rule for when to run them. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from threading import Condition

__all__ = ["Gathering", "Request", "Waiting"]


@final
class Request:
    """One caller's row.

    Attributes:
        row: The row; dropped when it no longer waits.
        priority: Larger runs first.
        expires: When its caller loses interest, on the batcher's clock, or None.
        allowed: The seconds its caller gave it.
        waits: Whether it is in the queue.
        loop: The caller's event loop, or None for a blocking caller.
        signal: What the caller waits on: a future of that loop, or a condition.
        outcome: `(result, None)` or `(None, error)` once known.
    """

    __slots__ = ("allowed", "expires", "loop", "outcome", "priority", "row", "signal", "waits")

    def __init__(self, row: Any, priority: int, expires: float | None, allowed: float) -> None:
        self.row = row
        self.priority = priority
        self.expires = expires
        self.allowed = allowed
        self.waits = False
        self.loop: Any = None
        self.signal: Any = None
        self.outcome: tuple[Any, BaseException | None] | None = None

    def answer_thread(self) -> None:
        """Wake the blocking caller, whose outcome is known."""
        signal: Condition = self.signal
        with signal:
            signal.notify()


@final
class Waiting:
    """Rows in the order they will run: by priority, then first come, first served."""

    __slots__ = ("_levels", "_single", "n_rows")

    def __init__(self) -> None:
        self._single: deque[Request] = deque()  # priority 0, which is all there is for most users
        self._levels: dict[int, deque[Request]] = {0: self._single}
        self.n_rows = 0

    def push(self, request: Request) -> None:
        """Let *request* wait."""
        if request.priority == 0:
            self._single.append(request)
        else:
            self._levels.setdefault(request.priority, deque()).append(request)
        request.waits = True
        self.n_rows += 1

    def remove(self, request: Request) -> bool:
        """Take *request* out; return False if it no longer waits."""
        if not request.waits:
            return False
        self._levels[request.priority].remove(request)
        request.waits = False
        self.n_rows -= 1
        return True

    def pop(self) -> Iterator[Request]:
        """Take requests out, the next one first, for as long as the caller goes on."""
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            while level:
                request = level.popleft()
                request.waits = False
                self.n_rows -= 1
                yield request
            if priority:
                del self._levels[priority]


@final
class Gathering:
    """Says whether a free device should run what waits, or whether company is about to come.

    Three signs, none of which needs configuration:

    - A full batch has nothing to wait for.
    - An event loop whose callers were just answered, or have begun to submit, is given two turns: the tasks that it
      woke come back with their next row in the meantime. Without this, a closed loop of callers runs in two halves.
    - A batch that was cut off too early shows: rows arrive while it runs, shortly after it left. So the next one waits
      until there are as many as that one had plus those it missed.

    None of them holds a row for longer than `max_wait` on a free device.

    Args:
        largest: The most rows in a batch.
        max_wait: Seconds.
    """

    __slots__ = ("_expected", "_largest", "_max_wait", "_misses_until", "since", "unsettled")

    def __init__(self, largest: int, max_wait: float) -> None:
        self._largest = largest
        self._max_wait = max_wait
        self._expected = 0
        self._misses_until = float("-inf")
        self.unsettled: set[Hashable] = set()
        self.since: float | None = None
        """Since when the device has been free while rows waited."""

    def arrived(self, now: float) -> None:
        """Note that a row came."""
        if now <= self._misses_until:
            self._expected += 1

    def complete(self, n_rows: int) -> bool:
        """Return whether no more rows are expected."""
        return n_rows >= self._largest or (not self.unsettled and n_rows >= self._expected)

    def seconds_left(self, now: float) -> float:
        """Return for how much longer to wait for company, negative if not at all."""
        if self.since is None:
            self.since = now
        return self.since + self._max_wait - now

    def sealed(self, n_rows: int, now: float) -> None:
        """Note that a batch left. A loop that has not settled by now may be gone: it is forgotten."""
        if n_rows < self._largest:  # a full one says nothing about how many there are
            self._expected = n_rows
            self._misses_until = now + self._max_wait
        self.since = None
        self.unsettled.clear()

    def answered(self) -> None:
        """Note that the batch is done: rows that come from now on may be its own callers' next ones."""
        self._misses_until = float("-inf")
