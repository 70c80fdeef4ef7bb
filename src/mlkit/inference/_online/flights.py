"""Requests of equal keys that share one run. No thread, no clock, no event loop: pure state."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mlkit.inference._online.requests import Request, Waiting

__all__ = ["Flights"]


@final
class Flights:
    """Which row waits or runs for each key: its *leader*, with the requests that came later as its *others*."""

    __slots__ = ("_leaders",)

    def __init__(self) -> None:
        self._leaders: dict[Hashable, Request] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def leader(self, request: Request) -> Request | None:
        """Return the request whose run *request* can share."""
        return self._leaders.get(request.key)

    def lead(self, request: Request) -> None:
        """Let others share the run of *request*."""
        self._leaders[request.key] = request

    def join(self, request: Request, leader: Request, waiting: Waiting) -> None:
        """Let *request* share the run of *leader*, which runs as early as the more urgent of the two."""
        request.row, request.leader = None, leader
        if leader.others is None:
            leader.others = [request]
        else:
            leader.others.append(request)
        if leader.waits and request.priority > leader.priority:
            waiting.promote(leader, request.priority)

    def leave(self, request: Request) -> Request | None:
        """Take a caller away; return the row that nobody waits for any more, if it has not begun.

        *request* waits, or shares a run.
        """
        leader = request.leader or request
        if leader is request:
            request.gone = True
        else:
            request.waits = False
            (leader.others or []).remove(request)
        if leader.others or not leader.gone or not leader.waits:
            return None
        self._leaders.pop(leader.key, None)
        return leader

    def land(self, batch: list[Request]) -> list[tuple[int, Request]]:
        """End the flights of *batch*; return who shares a run, with the place of its leader in the batch."""
        shared: list[tuple[int, Request]] = []
        for place, request in enumerate(batch):
            if request.key is None:
                continue
            self._leaders.pop(request.key, None)
            for other in request.others or ():
                other.waits, other.leader = False, None
                shared.append((place, other))
            request.others = None
        return shared
