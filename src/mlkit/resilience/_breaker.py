"""The circuit breaker: the state machine with a lock, a clock, a name and a voice."""

from __future__ import annotations

import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._arguments import fraction, whole
from mlkit._arguments import seconds as a_duration
from mlkit._clock import current, replacement
from mlkit.errors import ConfigurationError, RejectedError
from mlkit.resilience._locks import fork_safe_lock
from mlkit.resilience._machine import (
    BAD,
    OK,
    SLOW,
    BreakerRecord,
    Machine,
    Probe,
    Rules,
    TimeWindow,
    admitted,
    blocked,
    corrected,
    entered,
    judged,
)
from mlkit.resilience._settings import Frozen, checked_name, exception_types
from mlkit.telemetry import Sample, emit, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit._clock import Clock
    from mlkit.resilience._storage import BreakerStorage

__all__ = ["Breaker", "BreakerStats", "seconds"]

_CODES = {"closed": 0.0, "half_open": 1.0, "open": 2.0, "isolated": 3.0, "disabled": 4.0}
_ALONE = 1.0  # seconds after which a storage that failed is asked again


class BreakerStats(NamedTuple):
    """What a breaker has seen, see `Breaker.stats`.

    Attributes:
        state: `"closed"`, `"open"`, `"half_open"`, `"isolated"` or `"disabled"`.
        era: How many times the state has changed.
        calls: Verdicts in the window; of the probes while half-open.
        failures: How many of them failed.
        slow: How many of them were slow, whether they succeeded or failed.
        retry_after: Seconds until a call may be admitted, None if one may be now, infinity if only `reset` lets one.
    """

    state: str
    era: int
    calls: int
    failures: int
    slow: int
    retry_after: float | None


@final
class seconds(Frozen):  # noqa: N801 - reads as the quantity it is: `window=seconds(30)`
    """So many seconds, as the length of a breaker's window. Frozen.

    Args:
        length: Seconds, greater than 0.

    Raises:
        ConfigurationError: If *length* is no such number.

    Examples:
        >>> Breaker(window=seconds(30), name="ranker")
        <Breaker ranker: closed>
    """

    __slots__ = ("length",)

    length: float

    def __init__(self, length: float) -> None:
        self._set(length=a_duration("seconds(length)", length))

    def __repr__(self) -> str:
        return f"seconds({self.length:g})"


@final
class Breaker:
    """A circuit breaker: after too many failures it refuses calls for a while, then lets a few probes decide.

    Closed, it keeps the verdicts of its *window*. A bad one that brings the share of failures to *failure_rate*, or of slow
    calls to *slow_rate*, with at least *min_calls* verdicts there, opens it. Open, it refuses every call for *cooldown*
    seconds. The next call after that is the first of *probes* trial calls: it closes or opens again as soon as the
    remaining probes cannot change which side of the rates they end on. A cancelled call, or one that ends in another
    `BaseException`, is no verdict and gives its permit back, unless the time that a policy gave it was over: then it
    failed; a probe that hangs loses its permit when its lease ends; verdicts of an earlier state are ignored.

    Pass one breaker to several policies to share it. It emits `resilience.breaker.opened`, `.half_open`, `.closed`,
    `.isolated`, `.disabled` and `.storage_failed`, and is a telemetry source of `resilience_breaker_state` (0 closed,
    1 half-open, 2 open, 3 isolated, 4 disabled).

    Thread-safe; no lock is held while user code, a storage or a listener runs. Without a *storage*, state is per process: a
    forked child goes on with a copy, a pickled breaker is a fresh one with the same settings.

    Args:
        failure_rate: The share of failed calls that opens it, in (0, 1].
        min_calls: Verdicts needed before a rate counts, at least 1; if the window is a number of calls, at most that.
        window: How many of the last verdicts are kept, or `seconds(n)` for those of the last *n* seconds.
        cooldown: Seconds it stays open.
        probes: Trial calls admitted while half-open, settled and running together.
        probe_lease: Seconds after which a probe without a verdict no longer holds its permit; default *cooldown*. Its
            verdict still counts if no other call asked meanwhile.
        slow: Seconds from which a call counts as slow, whether it succeeds or fails, or None. Costs two readings of the
            clock a call.
        slow_rate: The share of slow calls that opens it, in (0, 1]; of no effect without *slow*.
        ignore: Exception types that are no verdict, e.g. a `ValueError` that is the caller's fault.
        name: Name in events and errors; default the name of the first function it guards. Needed with a *storage*.
        clock: Source of time; default the current one.
        storage: Where its state is shared with other breakers of the same name and settings, or None. Calls that are
            admitted read the clock, and look there if `storage.refresh` seconds have passed.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> breaker = Breaker(min_calls=2, window=2, name="ranker")
        >>> for ok in (True, False):
        ...     breaker.settle(breaker.acquire(), ok)
        >>> breaker.state, breaker.acquire()
        ('open', None)

    Note:
        A success never opens a breaker: the rates are looked at when a failure or slow call comes in. O(1) for a success,
        O(window) for a failure; a window in seconds is counted in twentieths of it, so that a verdict counts for 95 to
        100 % of its length.
    """

    __slots__ = (
        "__weakref__",
        "_alone_until",
        "_clock",
        "_lock",
        "_machine",
        "_name",
        "_seen",
        "_settings",
        "_storage",
    )

    def __init__(
        self,
        *,
        failure_rate: float = 0.5,
        min_calls: int = 20,
        window: int | seconds = 100,
        cooldown: float = 30.0,
        probes: int = 1,
        probe_lease: float | None = None,
        slow: float | None = None,
        slow_rate: float = 0.5,
        ignore: type[Exception] | tuple[type[Exception], ...] = (),
        name: str | None = None,
        clock: Clock | None = None,
        storage: BreakerStorage | None = None,
    ) -> None:
        timed = isinstance(window, seconds)
        self._settings: dict[str, Any] = {
            "failure_rate": fraction("Breaker(failure_rate=...)", failure_rate),
            "min_calls": whole("Breaker(min_calls=...)", min_calls, low=1),
            "window": window
            if timed
            else whole("Breaker(window=...)", window, low=1, also="seconds(n), or "),
            "cooldown": a_duration("Breaker(cooldown=...)", cooldown),
            "probes": whole("Breaker(probes=...)", probes, low=1),
            "probe_lease": None
            if probe_lease is None
            else a_duration("Breaker(probe_lease=...)", probe_lease),
            "slow": None if slow is None else a_duration("Breaker(slow=...)", slow),
            "slow_rate": fraction("Breaker(slow_rate=...)", slow_rate),
            "ignore": exception_types("Breaker(ignore=...)", ignore),
            "name": checked_name("Breaker(name=...)", name),
            "storage": checked_storage(storage, name),
        }
        if not isinstance(window, seconds) and min_calls > window:
            raise ConfigurationError(
                "Breaker(min_calls=...)",
                min_calls,
                f"at most the window of {window}",
                hint="it could never open",
            )
        rules = Rules(
            failure_rate=failure_rate,
            slow_rate=inf if slow is None else slow_rate,
            min_calls=min_calls,
            window=1 if isinstance(window, seconds) else window,
            span=window.length if isinstance(window, seconds) else 0.0,
            cooldown=self._settings["cooldown"],
            probes=probes,
            probe_lease=self._settings["probe_lease"] or self._settings["cooldown"],
        )
        self._clock = clock
        # A method would hold it in a cycle.
        self._machine = Machine(rules, lambda: current(clock).monotonic())
        self._name = name
        self._lock = fork_safe_lock()
        self._storage = storage
        self._seen = self._alone_until = -inf
        register(self)

    @property
    def name(self) -> str:
        """Its name in events and errors."""
        return self._name or "breaker"

    @property
    def state(self) -> str:
        """`"closed"`, `"open"`, `"half_open"`, `"isolated"` or `"disabled"`.

        An open one becomes half-open with the first call after its cooldown. With a storage, what it last read there.
        """
        return self._machine.record.state

    @property
    def slow(self) -> float | None:
        """Seconds from which a call counts as slow, or None."""
        slow: float | None = self._settings["slow"]
        return slow

    @property
    def shared(self) -> bool:
        """Whether its state is in a storage."""
        return self._storage is not None

    def stats(self) -> BreakerStats:
        """Return what it has seen in its present state."""
        now = self._now()
        self._look(now)
        with self._lock:
            machine, record = self._machine, self._machine.record
            wait = blocked(record, machine.rules, now)
            return BreakerStats(record.state, record.era, *machine.counts(), wait)

    def acquire(self) -> object | None:
        """Ask to make a call.

        Returns:
            A ticket, to be given to `settle` exactly once on every way out, or None if the call must not be made.
        """
        machine = self._machine
        if self._storage is None:
            if (ring := machine.ring) is not None:
                return ring
            now = self._now()
        else:
            now = self._now()
            self._look(now)
            if (ring := machine.ring) is not None:
                return ring
        record = machine.record
        if record.state == "isolated" or (record.state == "open" and record.until > now):
            return None
        before, after = self._change(lambda record: admitted(record, machine.rules, now))
        if after is before:
            return machine.ring  # refused, or closed meanwhile
        if after.era != before.era:
            emit("resilience.breaker.half_open", self.name, era=after.era)
        return Probe(after.era, after.serial)

    def settle(self, ticket: object, ok: bool | None, *, duration: float = 0.0) -> None:  # noqa: FBT001 - the verdict itself
        """Say how the call of a ticket ended. Tickets of an earlier state, and probes that lapsed, are ignored.

        Args:
            ticket: What `acquire` returned.
            ok: Whether it succeeded; None if that is unknown, as after a cancellation.
            duration: Seconds it took; only looked at if the breaker has a `slow`.

        Raises:
            ConfigurationError: If *ticket* is not a ticket, or *ok* neither a bool nor None.
        """
        if ok is not None and not isinstance(ok, bool):
            raise ConfigurationError("Breaker.settle(ok)", ok, "True, False or None")
        outcome = None if ok is None else OK if ok else BAD
        slow = self._settings["slow"]
        if outcome is not None and slow is not None and duration >= slow:
            outcome |= SLOW
        if isinstance(ticket, (deque, TimeWindow)):
            self._settle_window(ticket, outcome)
        elif isinstance(ticket, Probe):
            self._settle_probe(ticket, outcome)
        else:
            raise ConfigurationError("Breaker.settle(ticket)", ticket, "what acquire() returned")

    def failed(self, ticket: object, error: Exception, *, duration: float = 0.0) -> None:
        """Settle a ticket whose call raised: a failure, or no verdict for what it ignores and for local rejections.

        Args:
            ticket: What `acquire` returned.
            error: What the call raised.
            duration: Seconds it took; only looked at if the breaker has a `slow`.
        """
        ignored = isinstance(error, (RejectedError, *self._settings["ignore"]))
        self.settle(ticket, None if ignored else False, duration=duration)

    def trip(self) -> None:
        """Open it now, whatever it has seen, for one cooldown."""
        until = self._now() + self._machine.rules.cooldown
        self._force("open", "opened", until=until, reason="trip")

    def isolate(self) -> None:
        """Refuse every call from now on, until `reset`: for maintenance, or as a kill switch."""
        self._force("isolated", "isolated")

    def disable(self) -> None:
        """Admit every call from now on and count none, until `reset`."""
        self._force("disabled", "disabled")

    def reset(self) -> None:
        """Close it now and forget what it has seen."""
        self._force("closed", "closed", reason="reset")

    def blocked(self) -> float | None:
        """Return the seconds until a call may be admitted, or None if one may be now; changes nothing.

        Infinity if only `reset` can change it.
        """
        machine = self._machine
        if self._storage is None:
            if machine.ring is not None:
                return None
            # As `_now`, without its two calls: a tier that is skipped costs little more than this.
            clock = self._clock or replacement()
            now = time.monotonic() if clock is None else clock.monotonic()  # noqa: TID251 - as above
        else:
            now = self._now()
            self._look(now)
        record = machine.record
        if record.state == "open":
            wait = record.until - now
            return wait if wait > 0.0 else None
        return blocked(record, machine.rules, now)

    def samples(self) -> tuple[Sample]:
        """Return its state as one telemetry sample."""
        labels = (("breaker", self.name),)
        return (Sample("resilience_breaker_state", labels, _CODES[self.state]),)

    def _now(self) -> float:
        return current(self._clock).monotonic()

    def _settle_window(self, window: deque[int] | TimeWindow, outcome: int | None) -> None:
        machine = self._machine
        if outcome is None or machine.ring is not window:
            return
        window.append(outcome)
        if outcome == OK:
            return
        with self._lock:
            if machine.ring is not window or (reason := machine.verdict()) is None:
                return
            era, (calls, failures, slow) = machine.record.era, machine.counts()
        until = self._now() + machine.rules.cooldown
        before, after = self._change(
            lambda record: entered(record, "open", until=until) if record.era == era else record
        )
        if after is not before:
            emit(
                "resilience.breaker.opened",
                self.name,
                era=after.era,
                reason=reason,
                calls=calls,
                failures=failures,
                slow=slow,
            )

    def _settle_probe(self, probe: Probe, outcome: int | None) -> None:
        now, rules = self._now(), self._machine.rules
        before, after = self._change(lambda record: judged(record, rules, probe, outcome, now))
        if after.era == before.era:
            return
        if after.state == "closed":
            emit("resilience.breaker.closed", self.name, era=after.era, reason="probes")
            return
        bad, slow = (
            before.bad + bool((outcome or 0) & BAD),
            before.slow + bool((outcome or 0) & SLOW),
        )
        emit(
            "resilience.breaker.opened",
            self.name,
            era=after.era,
            reason="failure_rate" if bad / rules.probes >= rules.failure_rate else "slow_rate",
            calls=before.settled + 1,
            failures=bad,
            slow=slow,
        )

    def _force(self, state: str, word: str, *, until: float = 0.0, **fields: str) -> None:
        _, after = self._change(lambda record: entered(record, state, until=until))
        emit(f"resilience.breaker.{word}", self.name, era=after.era, **fields)

    def _change(
        self, step: Callable[[BreakerRecord], BreakerRecord]
    ) -> tuple[BreakerRecord, BreakerRecord]:
        """Apply *step*, which is ours and pure, as one atomic change; return the record before and after."""
        if self._storage is not None and self._now() >= self._alone_until:
            try:
                return self._change_stored(self._storage, step)
            except Exception as error:  # noqa: BLE001 - a storage that is down is not the call's error
                self._go_alone(error)
        with self._lock:
            before = self._machine.record
            after = step(before)
            if after is not before:
                after = after._replace(version=before.version + 1)
                self._machine.adopt(after)
        return before, after

    def _change_stored(
        self, storage: BreakerStorage, step: Callable[[BreakerRecord], BreakerRecord]
    ) -> tuple[BreakerRecord, BreakerRecord]:
        while True:
            known = self._machine.record
            stored = storage.read(self.name)
            # Where nothing is stored any more, what we know goes on.
            before = corrected(stored or known, self._machine.rules, self._now())
            after = step(before)
            if after is not before:
                after = after._replace(version=before.version + 1)
                if not storage.swap(self.name, stored, after):
                    continue  # somebody else was first
            self._learn(after, known)
            return before, after

    def _look(self, now: float) -> None:
        """Take over what others have stored, if it is time to look."""
        storage = self._storage
        if storage is None or now < self._alone_until or now - self._seen < storage.refresh:
            return
        try:
            known = self._machine.record
            stored = storage.read(self.name)
            record = corrected(stored or known, self._machine.rules, now)
            if stored is not None and record is not stored:  # or it would be corrected for ever
                record = record._replace(version=stored.version + 1)
                if not storage.swap(self.name, stored, record):
                    return  # somebody else was first: the next call looks again
        except Exception as error:  # noqa: BLE001 - a storage that is down is not the call's error
            self._go_alone(error)
            return
        self._learn(record, known)

    def _learn(self, record: BreakerRecord, known: BreakerRecord) -> None:
        """Go on from *record*, which was read after *known* was what we knew."""
        with self._lock:
            self._seen = self._now()
            mine = self._machine.record
            # What another thread has learned meanwhile may be newer. If none has, an older version is that of a storage
            # which was emptied and begun anew; and after a time alone, the versions say nothing.
            if mine is known or record.version > mine.version or self._alone_until != -inf:
                self._machine.adopt(record)
            self._alone_until = -inf

    def _go_alone(self, error: Exception) -> None:
        first, self._alone_until = self._alone_until == -inf, self._now() + _ALONE
        if first:
            emit("resilience.breaker.storage_failed", self.name, error=type(error).__name__)

    def _adopt(self, name: str) -> None:
        """Take the name of the first function it guards, unless it has one."""
        if self._name is None:
            self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._settings,)

    def __repr__(self) -> str:
        return f"<Breaker {self.name}: {self.state}>"


def checked_storage(value: object, name: str | None) -> BreakerStorage | None:
    """Return *value* if it is a storage for a breaker of that name, or None."""
    if value is None:
        return None
    from mlkit.resilience._storage import BreakerStorage

    if not isinstance(value, BreakerStorage):
        raise ConfigurationError("Breaker(storage=...)", value, "a BreakerStorage, or None")
    if name is None:
        raise ConfigurationError(
            "Breaker(name=...)", name, "a name, by which breakers of one storage are the same"
        )
    return value


def _rebuild(settings: dict[str, Any]) -> Breaker:
    return Breaker(**settings)
