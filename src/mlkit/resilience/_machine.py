"""The circuit breaker's state machine: no clock, no lock, no telemetry. It is told the time and answers."""

from __future__ import annotations

from collections import deque
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BAD",
    "OK",
    "SLOW",
    "STATES",
    "BreakerRecord",
    "Machine",
    "Probe",
    "Rules",
    "TimeWindow",
    "Window",
    "admitted",
    "blocked",
    "corrected",
    "entered",
    "judged",
]

OK, BAD, SLOW = 0, 1, 2  # bits: a failure can be slow as well
STATES = ("closed", "open", "half_open", "isolated", "disabled")
_SLOTS = 20


class Rules(NamedTuple):
    """When the machine opens and how it closes again; see `Breaker`. *span* is the window's length in seconds, or 0."""

    failure_rate: float
    slow_rate: float
    min_calls: int
    window: int
    span: float
    cooldown: float
    probes: int
    probe_lease: float


class BreakerRecord(NamedTuple):
    """The state of a breaker without its window: what processes share, see `BreakerStorage`. Plain numbers and text.

    Attributes:
        version: Grows with every change.
        era: Grows with every change of state.
        state: `"closed"`, `"open"`, `"half_open"`, `"isolated"` or `"disabled"`.
        until: When the open state ends, on the monotonic clock.
        serial: How many probes were ever admitted.
        leases: Number and end of the lease of each probe that is running.
        ok: Probes of this era that were quick and succeeded.
        bad: Probes of this era that failed.
        slow: Probes of this era that were slow.
        settled: Probes of this era that have a verdict.
    """

    version: int = 0
    era: int = 0
    state: str = "closed"
    until: float = 0.0
    serial: int = 0
    leases: tuple[tuple[int, float], ...] = ()
    ok: int = 0
    bad: int = 0
    slow: int = 0
    settled: int = 0


class Window(Protocol):
    """The verdicts of the closed state; `append` is atomic, and never waits."""

    def append(self, outcome: int, /) -> None: ...


@final
class TimeWindow:
    """Verdicts of the last so many seconds, counted in twentieths of them: one counts for 95 to 100 % of that time.

    Each thread has counters of its own, for `+=` on a shared one would lose updates.
    """

    __slots__ = ("_cells", "_now", "_width")

    def __init__(self, span: float, now: Callable[[], float]) -> None:
        self._width, self._now = span / _SLOTS, now
        self._cells: dict[tuple[int, int, int], int] = {}

    def append(self, outcome: int, /) -> None:
        """Count one verdict now."""
        slot = int(self._now() / self._width)
        key = slot, outcome, get_ident()
        cells = self._cells
        n = cells.get(key)
        if n is None:  # once a slot
            for old in list(cells):
                if old[0] <= slot - _SLOTS:
                    cells.pop(old, None)
            n = 0
        cells[key] = n + 1

    def counts(self) -> tuple[int, int, int]:
        """Return calls, failures and slow calls."""
        oldest = int(self._now() / self._width) - _SLOTS
        calls = failures = slow = 0
        for (slot, outcome, _), n in self._cells.copy().items():
            if slot > oldest:
                calls += n
                failures += n if outcome & BAD else 0
                slow += n if outcome & SLOW else 0
        return calls, failures, slow


@final
class Probe:
    """The right to make one trial call, until it lapses."""

    __slots__ = ("era", "number")

    def __init__(self, era: int, number: int) -> None:
        self.era, self.number = era, number


@final
class Machine:
    """What one process knows of a breaker: the record, and the window of the closed state.

    A ticket is that window (so that a success is recorded by one atomic append, and a late one lands in a window that
    nobody reads any more) or a `Probe` of the half-open state.

    Not thread-safe, except for `ring`, which is read, and appended to, without a lock, and for reading `record`.
    """

    __slots__ = ("_now", "record", "ring", "rules")

    def __init__(self, rules: Rules, now: Callable[[], float] | None = None) -> None:
        self.rules, self._now = rules, now
        self.record = BreakerRecord()
        self.ring: Window | None = None
        self.adopt(self.record)

    def adopt(self, record: BreakerRecord) -> None:
        """Go on from *record*, with an empty window if the state has changed."""
        if record.era != self.record.era or record.state != self.record.state or self.ring is None:
            self.ring = self._window(record.state)
        self.record = record

    def _window(self, state: str) -> Window | None:
        if state == "disabled":
            return deque[int](maxlen=0)  # takes all and keeps none
        if state != "closed":
            return None
        if self.rules.span and self._now is not None:
            return TimeWindow(self.rules.span, self._now)
        return deque[int](maxlen=self.rules.window)

    def counts(self) -> tuple[int, int, int]:
        """Return calls, failures and slow calls in the window, or among the probes."""
        if self.ring is None:
            record = self.record
            return record.settled, record.bad, record.slow
        if isinstance(self.ring, TimeWindow):
            return self.ring.counts()
        seen = self.ring.copy()  # type: ignore[attr-defined]  # a deque; one C call: others append meanwhile
        both = seen.count(BAD | SLOW)
        return len(seen), seen.count(BAD) + both, seen.count(SLOW) + both

    def verdict(self) -> str | None:
        """Return which rate of the window is too high, or None."""
        calls, failures, slow = self.counts()
        if calls < self.rules.min_calls:
            return None
        if failures / calls >= self.rules.failure_rate:
            return "failure_rate"
        return "slow_rate" if slow / calls >= self.rules.slow_rate else None


def entered(record: BreakerRecord, state: str, *, until: float = 0.0) -> BreakerRecord:
    """Return the record of a new era in *state*."""
    return BreakerRecord(record.version, record.era + 1, state, until, record.serial)


def blocked(record: BreakerRecord, rules: Rules, now: float) -> float | None:
    """Return the seconds until a call may be admitted, or None if one may be now."""
    if record.state == "open":
        wait = record.until - now
        return wait if wait > 0 else None
    if record.state == "half_open":
        ends = [end for _, end in record.leases if end > now]
        if record.settled + len(ends) >= rules.probes:
            return min(ends, default=now) - now
    return inf if record.state == "isolated" else None


def admitted(record: BreakerRecord, rules: Rules, now: float) -> BreakerRecord:
    """Return the record with one more probe, whose number is its `serial`; the same record if there may be none."""
    if record.state not in {"open", "half_open"} or blocked(record, rules, now) is not None:
        return record
    if record.state == "open":  # the change of state and its first permit are one step
        record = entered(record, "half_open")
    # A probe that comes back after its lease still counts, unless its permit was given away meanwhile.
    living = tuple(lease for lease in record.leases if lease[1] > now)
    number = record.serial + 1
    return record._replace(serial=number, leases=(*living, (number, now + rules.probe_lease)))


def judged(
    record: BreakerRecord, rules: Rules, probe: Probe, outcome: int | None, now: float
) -> BreakerRecord:
    """Return the record after the verdict on a probe; None is no verdict, and gives its permit back."""
    others = tuple(lease for lease in record.leases if lease[0] != probe.number)
    if probe.era != record.era or len(others) == len(record.leases):
        return record  # of an earlier state, or its permit has lapsed
    record = record._replace(leases=others)
    if outcome is None:
        return record
    record = record._replace(
        settled=record.settled + 1,
        ok=record.ok + (outcome == OK),
        bad=record.bad + bool(outcome & BAD),
        slow=record.slow + bool(outcome & SLOW),
    )
    bad, slow, left = record.bad, record.slow, rules.probes - record.settled
    if bad / rules.probes >= rules.failure_rate or slow / rules.probes >= rules.slow_rate:
        return entered(record, "open", until=now + rules.cooldown)
    # Whatever the others say, both rates stay below.
    if (bad + left) / rules.probes < rules.failure_rate and (
        rules.slow_rate == inf or (slow + left) / rules.probes < rules.slow_rate
    ):
        return entered(record, "closed")
    return record


def corrected(record: BreakerRecord, rules: Rules, now: float) -> BreakerRecord:
    """Return *record* without times that no clock like ours can have written: those of before a restart of the host.

    Nor is it left to who is gone: probes that were enough for rules like ours, and not for theirs, are made anew.
    """
    latest = now + rules.probe_lease
    waiting = any(end > now for _, end in record.leases)
    if record.state == "half_open" and record.settled >= rules.probes and not waiting:
        return entered(record, "open", until=now)
    if record.state == "open" and record.until > now + rules.cooldown:
        return record._replace(until=now + rules.cooldown)
    if any(end > latest for _, end in record.leases):
        return record._replace(leases=tuple((n, min(end, latest)) for n, end in record.leases))
    return record
