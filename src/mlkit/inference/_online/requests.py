"""Rows that wait for the device, and their order. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Hashable, Iterator
    from threading import Condition

__all__ = ["PENDING", "Failed", "Request", "Waiting"]

PENDING: Any = object()
"""The outcome of a request that has none yet."""


class Failed(NamedTuple):
    """The outcome of a request that gets an error."""

    error: BaseException


@final
class Request:
    """One caller's row.

    Most requests use few of the attributes, so the defaults are the class's: making one costs half as much.

    Attributes:
        row: The row; dropped when it no longer waits.
        loop: The caller's event loop, or None for a blocking caller.
        signal: What the caller waits on: a future of that loop, or a condition.
        since: When it came, on the batcher's clock.
        priority: Larger runs first.
        expires: When its caller loses interest, on the batcher's clock, or None.
        allowed: The seconds its caller gave it.
        key: What equal rows have in common, or None.
        leader: The request whose run this one shares, or None.
        others: The requests that share the run of this one, or None.
        plain: Whether it has neither a deadline nor a key nor a priority.
        gone: Whether its own caller has left, and it waits on behalf of *others*.
        waits: Whether it is in the queue, or shares a run that has not ended; a new one is as good as in the queue.
        outcome: The result, or `Failed`, of a blocking caller's row.
    """

    since: float = 0.0
    priority: int = 0
    expires: float | None = None
    allowed: float = 0.0
    key: Hashable = None
    leader: Request | None = None
    others: list[Request] | None = None
    plain: bool = True
    gone: bool = False
    waits: bool = True
    outcome: Any = PENDING

    def __init__(self, row: Any, loop: AbstractEventLoop | None, signal: Any) -> None:
        self.row = row
        self.loop = loop
        self.signal = signal

    def expired(self, now: float) -> bool:
        """Return whether nobody who waits for this row has time left."""
        if self.others is None:
            return self.expires is not None and now >= self.expires
        callers = self.others if self.gone else [self, *self.others]
        return all(each.expires is not None and now >= each.expires for each in callers)

    def answer_thread(self, outcome: Any) -> None:
        """Give the blocking caller its outcome."""
        signal: Condition = self.signal
        with signal:
            self.outcome = outcome
            signal.notify()


@final
class Waiting:
    """Rows in the order they will run: by priority, then first come, first served.

    All operations but `ahead` take constant time: a row that is taken out stays in its place as a mark until the
    marks outnumber the rows.
    """

    __slots__ = ("_levels", "_marks", "n_rows", "usual")

    def __init__(self) -> None:
        self.usual: deque[Request] = deque()
        """Those of priority 0, which are all there are for most users."""
        self._levels: dict[int, deque[Request]] = {0: self.usual}
        self._marks = 0
        self.n_rows = 0
        """How many rows wait."""

    def push(self, request: Request) -> None:
        """Let *request* wait."""
        if request.priority == 0:
            self.usual.append(request)
        else:
            self._levels.setdefault(request.priority, deque()).append(request)
        self.n_rows += 1

    def remove(self, request: Request) -> None:
        """Take out *request*, which waits."""
        request.waits = False
        self.n_rows -= 1
        self._marks += 1
        if self._marks > 16 + self.n_rows:
            self._sweep()

    def promote(self, request: Request, priority: int) -> None:
        """Let *request*, which waits, wait at the end of a higher priority instead."""
        level = self._levels[request.priority]
        level.remove(request)
        if not level and request.priority:
            del self._levels[request.priority]
        self.n_rows -= 1
        request.priority = priority
        self.push(request)

    def ahead(self, priority: int) -> int:
        """Return how many rows would run before a new one of *priority*."""
        if len(self._levels) == 1:
            return self.n_rows if priority <= 0 else 0
        return sum(
            request.waits
            for level, requests in self._levels.items()
            if level >= priority
            for request in requests
        )

    def pop(self) -> Iterator[Request]:
        """Take requests out, the next one first, for as long as the caller goes on."""
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            while level:
                request = level.popleft()
                if not request.waits:
                    self._marks -= 1
                    continue
                request.waits = False
                self.n_rows -= 1
                yield request
            if priority:
                del self._levels[priority]

    def pop_many(self, n_rows: int) -> list[Request]:
        """Take out the next *n_rows*, or all if there are fewer."""
        if self._marks or len(self._levels) > 1:
            return [request for _, request in zip(range(n_rows), self.pop(), strict=False)]
        take = self.usual.popleft
        batch = [take() for _ in range(min(n_rows, self.n_rows))]
        self.n_rows -= len(batch)
        for request in batch:
            request.waits = False
        return batch

    def _sweep(self) -> None:
        for priority, level in list(self._levels.items()):
            kept = [request for request in level if request.waits]
            level.clear()
            level.extend(kept)
            if priority and not kept:
                del self._levels[priority]
        self._marks = 0
