"""The circuit breaker's state machine: no clock, no lock, no telemetry. It is told the time and answers."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, final

__all__ = ["BAD", "OK", "SLOW", "Machine", "Probe", "Rules"]

OK, BAD, SLOW = 0, 1, 2


class Rules(NamedTuple):
    """When the machine opens and how it closes again; see `Breaker`."""

    failure_rate: float
    min_calls: int
    window: int
    cooldown: float
    probes: int
    probe_lease: float


@final
class Probe:
    """The right to make one trial call, until it lapses."""

    __slots__ = ("expires",)

    def __init__(self, expires: float) -> None:
        self.expires = expires


@final
class Machine:
    """Closed, open, half-open; every change of state begins a new era, and verdicts of earlier eras are ignored.

    A ticket is the window of the closed era (so that a success is recorded by one atomic append, and a late one lands in
    a window that nobody reads any more) or a `Probe` of the half-open era.

    Not thread-safe, except for `ring`, which is read, and a success appended to it, without a lock, and for `blocked`
    while open.
    """

    __slots__ = ("_bad", "_leases", "_ok", "cause", "era", "ring", "rules", "state", "until")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.era = 0
        self.state = "closed"
        self.ring: deque[int] | None = deque(maxlen=rules.window)
        self.until = 0.0  # when the open state ends
        self.cause = (0, 0, 0)  # the counts that last opened it
        self._leases: list[Probe] = []
        self._ok = self._bad = 0

    def blocked(self, now: float) -> float | None:
        """Return the seconds until a call may be admitted, or None if one may be now; changes nothing."""
        if self.state == "open":
            wait = self.until - now
            return wait if wait > 0 else None
        if self.state == "half_open":
            ends = [probe.expires for probe in self._leases if probe.expires > now]
            if self._ok + self._bad + len(ends) >= self.rules.probes:
                return min(ends, default=now) - now
        return None

    def acquire(self, now: float) -> deque[int] | Probe | None:
        """Return a ticket, or None if the call is refused."""
        if self.ring is not None:
            return self.ring
        if self.blocked(now) is not None:
            return None
        if self.state == "open":  # the change of state and its first permit are one step
            self._enter("half_open")
        # A probe that comes back after its lease still counts, unless its permit was given away meanwhile.
        self._leases = [probe for probe in self._leases if probe.expires > now]
        probe = Probe(now + self.rules.probe_lease)
        self._leases.append(probe)
        return probe

    def settle(self, ticket: deque[int] | Probe, outcome: int | None, now: float) -> None:
        """Take the verdict on a ticket; None is no verdict, and gives a probe's permit back."""
        if isinstance(ticket, Probe):
            if ticket in self._leases:
                self._leases.remove(ticket)
                self._judge_probe(outcome, now)
        elif ticket is self.ring and outcome is not None:
            ticket.append(outcome)
            if outcome != OK:
                self._judge_window(ticket, now)

    def open(self, now: float) -> None:
        """Refuse calls from *now* until the cooldown has passed."""
        self.until = now + self.rules.cooldown
        self._enter("open")

    def close(self) -> None:
        """Admit every call, with an empty window."""
        self._enter("closed")

    def counts(self) -> tuple[int, int, int]:
        """Return calls, failures and slow calls in the window, or among the probes."""
        if self.ring is None:
            return self._ok + self._bad, self._bad, 0
        return _count(self.ring)

    def _judge_window(self, ring: deque[int], now: float) -> None:
        calls, failures, slow = _count(ring)
        if calls >= self.rules.min_calls and (failures + slow) / calls >= self.rules.failure_rate:
            self.cause = calls, failures, slow
            self.open(now)

    def _judge_probe(self, outcome: int | None, now: float) -> None:
        if outcome is None:
            return
        if outcome == OK:
            self._ok += 1
        else:
            self._bad += 1
        probes, limit = self.rules.probes, self.rules.failure_rate
        if self._bad / probes >= limit:
            self.cause = self.counts()
            self.open(now)
        elif (probes - self._ok) / probes < limit:  # whatever the others say, the rate stays below
            self.close()

    def _enter(self, state: str) -> None:
        self.era += 1
        self.ring = deque(maxlen=self.rules.window) if state == "closed" else None
        self._leases = []
        self._ok = self._bad = 0
        self.state = state


def _count(ring: deque[int]) -> tuple[int, int, int]:
    seen = ring.copy()  # one C call: others append meanwhile
    return len(seen), seen.count(BAD), seen.count(SLOW)
