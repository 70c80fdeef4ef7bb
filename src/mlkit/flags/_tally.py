"""How often a flag was asked, counted at the lowest price there is."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, final

from mlkit import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Tally"]


@final
class Tally:
    """A counter that is nearly always counted up by one.

    `one` is a method of C, and one step of the interpreter under its lock, so that threads lose nothing; it takes a third of
    the time of `telemetry.Counter.add`, which would be a sixth of an answer that takes 0.4 us. After a fork the child goes
    on from the parent's count.

    Args:
        name: The metric.
        **labels: What tells it from others of the same name.

    Attributes:
        one: Call it to count one more.
    """

    __slots__ = ("_more", "_ones", "one")
    one: Callable[[], int]

    def __init__(self, name: str, /, **labels: str) -> None:
        self._ones = count()
        self.one = self._ones.__next__
        self._more = telemetry.Counter(name, **labels)

    def add(self, n: int) -> None:
        """Add *n* to the count."""
        self._more.add(n)

    @property
    def value(self) -> int:
        """The count."""
        # Only its `repr`, such as `count(7)`, tells where it is without moving it.
        return int(repr(self._ones)[len("count(") : -1]) + self._more.value

    def samples(self) -> tuple[telemetry.Sample]:
        """Return the count as one sample."""
        return (telemetry.Sample(self._more.name, self._more.labels, self.value),)
