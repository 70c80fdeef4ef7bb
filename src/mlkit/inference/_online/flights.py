"""Rows of equal keys that share one run. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mlkit.inference._online.groups import Group, Waiting

__all__ = ["Flights"]


@final
class Flights:
    """Which row waits or runs for each key: its *leader*, with those that came later as its *others*.

    A row with a key has a group of its own.
    """

    __slots__ = ("_leaders",)

    def __init__(self) -> None:
        self._leaders: dict[Hashable, Group] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def leader(self, group: Group) -> Group | None:
        """Return the one whose run *group* can share."""
        return self._leaders.get(group.key)

    def lead(self, group: Group) -> None:
        """Let others share the run of *group*."""
        self._leaders[group.key] = group

    def join(self, group: Group, leader: Group, waiting: Waiting) -> None:
        """Let *group* share the run of *leader*, which runs as early as the more urgent of the two."""
        group.rows, group.leader = [], leader
        if leader.others is None:
            leader.others = [group]
        else:
            leader.others.append(group)
        if leader.waits and group.priority > leader.priority:
            waiting.promote(leader, group.priority)

    def leave(self, group: Group) -> Group | None:
        """Take a caller away; return the row that nobody waits for any more, if it has not begun.

        *group* waits, or shares a run.
        """
        leader = group.leader or group
        if leader is group:
            group.gone = True
        else:
            group.waits = False
            (leader.others or []).remove(group)
        if leader.others or not leader.gone or not leader.waits:
            return None
        self._leaders.pop(leader.key, None)
        return leader

    def land(self, batch: list[Group]) -> list[tuple[int, Group]]:
        """End the flights of *batch*; return who shares a run, with the place of its leader's row in the batch."""
        shared: list[tuple[int, Group]] = []
        place = 0
        for group in batch:
            if group.key is not None:
                self._leaders.pop(group.key, None)
                for other in group.others or ():
                    other.waits, other.leader = False, None
                    shared.append((place, other))
                group.others = None
            place += len(group.signals)
        return shared
