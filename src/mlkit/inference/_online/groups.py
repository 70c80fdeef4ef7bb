"""Rows that wait for the device, and their order. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Hashable, Iterable, Sequence

__all__ = ["PENDING", "Failed", "Group", "Waiting", "n_rows_of", "take_rows"]

PENDING: Any = object()
"""The outcome of a row that has none yet."""


class Failed(NamedTuple):
    """The outcome of a row that gets an error."""

    error: BaseException


@final
class Group:
    """Rows that came together and are told apart by nothing but their order.

    Those that callers of one event loop submit in one turn of it share a group, so that what is kept of a row is its
    place in two lists. A row with a wish (a deadline, a key, a priority) or of a blocking caller has a group of its own.

    Most groups use few of the attributes, so the defaults are the class's.

    Attributes:
        rows: The rows; none any more when they do not wait.
        loop: The callers' event loop, or None for a blocking caller.
        signals: What the callers wait on, in the order of *rows*: futures of that loop, or a blocking caller's condition.
        since: When the first one came, on the batcher's clock.
        priority: Larger runs first.
        expires: When the caller loses interest, on the batcher's clock, or None.
        allowed: The seconds the caller gave it.
        key: What equal rows have in common, or None.
        leader: The group whose run this one shares, or None.
        others: The groups that share the run of this one, or None.
        alone: Whether no other row may join it.
        gone: Whether its own caller has left, and it waits on behalf of *others*.
        waits: Whether it is in the queue, or shares a run that has not ended; a new one is as good as in the queue.
        outcome: The result, or `Failed`, of a blocking caller's row.
    """

    since: float = 0.0
    priority: int = 0
    expires: float | None = None
    allowed: float = 0.0
    key: Hashable = None
    leader: Group | None = None
    others: list[Group] | None = None
    alone: bool = False
    gone: bool = False
    waits: bool = True
    outcome: Any = PENDING

    def __init__(self, rows: list[Any], loop: AbstractEventLoop | None, signals: list[Any]) -> None:
        self.rows = rows
        self.loop = loop
        self.signals = signals

    def expired(self, now: float) -> bool:
        """Return whether nobody who waits for this row has time left."""
        if self.others is None:
            return self.expires is not None and now >= self.expires
        callers = self.others if self.gone else [self, *self.others]
        return all(each.expires is not None and now >= each.expires for each in callers)

    def cut(self, n_rows: int) -> Group:
        """Take the first *n_rows*, which are fewer than all, into a group of their own."""
        front = Group(self.rows[:n_rows], self.loop, self.signals[:n_rows])
        front.since = self.since
        del self.rows[:n_rows], self.signals[:n_rows]
        return front

    def answer_thread(self, outcome: Any) -> None:
        """Give the blocking caller its outcome."""
        (signal,) = self.signals
        with signal:
            self.outcome = outcome
            signal.notify()


def n_rows_of(groups: Iterable[Group]) -> int:
    """Return how many rows *groups* have."""
    return sum([len(group.signals) for group in groups])


def take_rows(groups: Sequence[Group]) -> list[Any]:
    """Take the rows out of *groups*, whose callers may keep them for longer than their company's rows shall stay."""
    rows, groups[0].rows = groups[0].rows, []
    for group in groups[1:]:
        rows += group.rows
        group.rows = []
    return rows


@final
class Waiting:
    """Groups in the order their rows will run: by priority, then first come, first served.

    A row that leaves is looked for in its group; all other operations but `ahead` take constant time. A group without
    rows stays in its place as a mark until the marks outnumber the rows.
    """

    __slots__ = ("_levels", "_marks", "n_rows")

    def __init__(self) -> None:
        self._levels: dict[int, deque[Group]] = {0: deque()}
        self._marks = 0
        self.n_rows = 0
        """How many rows wait."""

    def push(self, group: Group) -> None:
        """Let *group* wait."""
        level = self._levels.get(group.priority)
        if level is None:
            level = self._levels[group.priority] = deque()
        level.append(group)
        self.n_rows += len(group.signals)

    def remove(self, group: Group, signal: Any) -> bool:
        """Take the row of *signal* out of *group*, which waits; return False if it was cut off to run."""
        try:
            place = group.signals.index(signal)
        except ValueError:
            return False
        del group.rows[place], group.signals[place]
        self.n_rows -= 1
        if not group.signals:
            group.waits = False
            self._marks += 1
            if self._marks > 16 + self.n_rows:
                self._sweep()
        return True

    def promote(self, group: Group, priority: int) -> None:
        """Let *group*, which waits, wait at the end of a higher priority instead."""
        level = self._levels[group.priority]
        level.remove(group)
        if not level and group.priority:
            del self._levels[group.priority]
        self.n_rows -= len(group.signals)
        group.priority = priority
        self.push(group)

    def ahead(self, priority: int) -> int:
        """Return how many rows would run before a new one of *priority*."""
        if len(self._levels) == 1:
            return self.n_rows if priority <= 0 else 0
        return sum(n_rows_of(groups) for level, groups in self._levels.items() if level >= priority)

    def take(self, n_rows: int) -> list[Group]:
        """Take out groups of the next *n_rows* together, or all if there are fewer."""
        taken: list[Group] = []
        levels = self._levels
        for priority in sorted(levels, reverse=True) if len(levels) > 1 else (0,):
            level = levels[priority]
            while level and n_rows:
                group = level[0]
                if not group.waits:
                    self._marks -= 1
                    level.popleft()
                    continue
                n_of_it = len(group.signals)
                if n_of_it > n_rows:
                    group, n_of_it = group.cut(n_rows), n_rows
                else:
                    level.popleft()
                group.waits = False
                n_rows -= n_of_it
                self.n_rows -= n_of_it
                taken.append(group)
            if priority and not level:
                del levels[priority]
        return taken

    def _sweep(self) -> None:
        for priority, level in list(self._levels.items()):
            kept = [group for group in level if group.waits]
            level.clear()
            level.extend(kept)
            if priority and not kept:
                del self._levels[priority]
        self._marks = 0
