"""When a free device runs what waits, and when company is about to come. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

__all__ = ["Gathering"]


_IN_SIGHT = 256  # rows; one that leaves is looked for among so many


@final
class Gathering:
    """Says whether a free device should run what waits, or whether company is about to come.

    Three signs, none of which needs configuration:

    - A full batch has nothing to wait for.
    - An event loop whose callers were just answered, or have begun to submit, is given two turns: the tasks that it
      woke come back with their next row in the meantime. Without this, a closed loop of callers runs in two halves.
      It need not turn once as many rows have come as callers were answered.
    - A batch that was cut off too early shows: the rows that arrive while it runs come mostly shortly after it left. So
      the next one waits until there are as many as that one had plus those it missed. Rows that come evenly over the
      time of a batch are no such sign, and nothing is gained by waiting for more of them.

    None of them holds a row for longer than `max_wait` on a free device.

    Attributes:
        full: The rows at which a batch waits for no more.
        max_wait: Seconds.
        unsettled: The event loops that have not had their turns.
        due: How many rows wait when all callers that were just answered are back, or 0.
        since: Since when the device has been free while rows waited, or None.
        misses_until: Until when a row that comes would have belonged to the batch that left last.
    """

    __slots__ = (
        "_expected",
        "_missed",
        "due",
        "full",
        "max_wait",
        "misses_until",
        "since",
        "unsettled",
    )

    def __init__(self, full: int, max_wait: float) -> None:
        self.full = full
        self.max_wait = max_wait
        self._expected = self._missed = 0
        self.misses_until = float("-inf")
        self.unsettled: set[Hashable] = set()
        self.due = 0
        self.since: float | None = None

    def arrived(self, now: float) -> None:
        """Note that a row came."""
        if now <= self.misses_until:
            self._missed += 1

    def next_sign(self, n_rows: int, most: int) -> int:
        """Return at how many rows, more than *n_rows* and at most *most*, to look again whether a batch is complete."""
        sign = self.due if n_rows < self.due < self.full else self.full
        return min(sign if n_rows < sign else most, n_rows + _IN_SIGHT, most)

    def complete(self, n_rows: int) -> bool:
        """Return whether no more rows are expected."""
        if n_rows >= self.full:
            return True
        return n_rows >= self._expected and (not self.unsettled or 0 < self.due <= n_rows)

    def seconds_left(self, now: float) -> float:
        """Return for how much longer to wait for company, negative if not at all."""
        if self.since is None:
            self.since = now
        return self.since + self.max_wait - now

    def sealed(self, n_rows: int, now: float) -> None:
        """Note that a batch left. A loop that has not settled by now may be gone: it is forgotten."""
        if n_rows < self.full:  # a full one says nothing about how many there are
            self._expected = n_rows
            self.misses_until = now + self.max_wait
        self.since = None
        self.due = 0
        self.unsettled.clear()

    def answered(self, n_waiting: int, n_answered: int, loops: Collection[Hashable]) -> None:
        """Note that a batch is done: rows that come from now on may be its own callers' next ones.

        Args:
            n_waiting: The rows that came meanwhile.
            n_answered: The rows of the batch.
            loops: The loops of its callers, with None for those without.
        """
        self.misses_until = float("-inf")
        if 2 * self._missed < n_waiting:
            self._expected = 0
        else:
            self._expected += self._missed
        self._missed = 0
        if self.max_wait:
            self.unsettled.update(loops)
            self.unsettled.discard(None)
            self.due = 0 if None in loops else n_waiting + n_answered

    def settled(self, loop: Hashable) -> None:
        """Note that *loop* has had its turns, or is no more."""
        self.unsettled.discard(loop)
        if not self.unsettled:
            self.due = 0
