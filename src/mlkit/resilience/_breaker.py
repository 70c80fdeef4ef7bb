"""The circuit breaker: the state machine with a lock, a clock, a name and a voice."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._arguments import fraction, seconds, whole
from mlkit._clock import current
from mlkit.errors import ConfigurationError, RejectedError
from mlkit.resilience._machine import BAD, OK, SLOW, Machine, Probe, Rules
from mlkit.telemetry import Sample, emit, register

if TYPE_CHECKING:
    from mlkit._clock import Clock

__all__ = ["Breaker", "BreakerStats"]

_CODES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


class BreakerStats(NamedTuple):
    """What a breaker has seen, see `Breaker.stats`.

    Attributes:
        state: `"closed"`, `"open"` or `"half_open"`.
        era: How many times the state has changed.
        calls: Verdicts in the window; of the probes while half-open.
        failures: How many of them failed.
        slow: How many of them succeeded but were slow.
        retry_after: Seconds until a call may be admitted, None if one may be now.
    """

    state: str
    era: int
    calls: int
    failures: int
    slow: int
    retry_after: float | None


@final
class Breaker:
    """A circuit breaker: after too many failures it refuses calls for a while, then lets a few probes decide.

    Closed, it keeps the last *window* verdicts. A failure that brings their failure rate to *failure_rate*, with at least
    *min_calls* of them there, opens it. Open, it refuses every call for *cooldown* seconds. The next call after that is
    the first of *probes* trial calls: it closes or opens again as soon as the remaining probes cannot change which side
    of *failure_rate* they end on. A cancelled call, or one that ends in another `BaseException`, is no verdict and gives
    its permit back, unless the time that a policy gave it was over: then it failed; a probe that hangs loses its permit when its lease ends; verdicts of an earlier state are ignored.

    Pass one breaker to several policies to share it. It emits `resilience.breaker.opened`, `.half_open` and `.closed`,
    and is a telemetry source of `resilience_breaker_state` (0 closed, 1 half-open, 2 open).

    Thread-safe; no lock is held while user code or a listener runs. State is per process: a forked child goes on with
    a copy, a pickled breaker is a fresh one with the same settings.

    Args:
        failure_rate: The share of failed calls that opens it, in (0, 1].
        min_calls: Verdicts needed before the rate counts, from 1 to *window*.
        window: How many of the last verdicts are kept.
        cooldown: Seconds it stays open.
        probes: Trial calls admitted while half-open, settled and running together.
        probe_lease: Seconds after which a probe without a verdict no longer holds its permit; default *cooldown*. Its
            verdict still counts if no other call asked meanwhile.
        slow: Seconds from which a successful call counts as a failure, or None. Costs two readings of the clock a call.
        ignore: Exception types that are no verdict, e.g. a `ValueError` that is the caller's fault.
        name: Name in events and errors; default the name of the first function it guards.
        clock: Source of time; default the current one.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> breaker = Breaker(min_calls=2, window=2, name="ranker")
        >>> for ok in (True, False):
        ...     breaker.settle(breaker.acquire(), ok)
        >>> breaker.state, breaker.acquire()
        ('open', None)

    Note:
        A success never opens a breaker: the rate is looked at when a failure comes in. O(1) for a success, O(window)
        for a failure.
    """

    __slots__ = ("__weakref__", "_clock", "_lock", "_machine", "_name", "_settings")

    def __init__(
        self,
        *,
        failure_rate: float = 0.5,
        min_calls: int = 20,
        window: int = 100,
        cooldown: float = 30.0,
        probes: int = 1,
        probe_lease: float | None = None,
        slow: float | None = None,
        ignore: type[Exception] | tuple[type[Exception], ...] = (),
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "failure_rate": fraction("Breaker(failure_rate=...)", failure_rate),
            "min_calls": whole("Breaker(min_calls=...)", min_calls, low=1),
            "window": whole("Breaker(window=...)", window, low=1),
            "cooldown": seconds("Breaker(cooldown=...)", cooldown),
            "probes": whole("Breaker(probes=...)", probes, low=1),
            "probe_lease": None
            if probe_lease is None
            else seconds("Breaker(probe_lease=...)", probe_lease),
            "slow": None if slow is None else seconds("Breaker(slow=...)", slow),
            "ignore": exception_types("Breaker(ignore=...)", ignore),
            "name": checked_name("Breaker(name=...)", name),
        }
        if min_calls > window:
            raise ConfigurationError(
                "Breaker(min_calls=...)",
                min_calls,
                f"at most the window of {window}",
                hint="it could never open",
            )
        rules = {field: self._settings[field] for field in Rules._fields}
        rules["probe_lease"] = rules["probe_lease"] or self._settings["cooldown"]
        self._machine = Machine(Rules(**rules))
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        register(self)

    @property
    def name(self) -> str:
        """Its name in events and errors."""
        return self._name or "breaker"

    @property
    def state(self) -> str:
        """`"closed"`, `"open"` or `"half_open"`; an open one becomes half-open with the first call after its cooldown."""
        return self._machine.state

    @property
    def slow(self) -> float | None:
        """Seconds from which a successful call counts as a failure, or None."""
        slow: float | None = self._settings["slow"]
        return slow

    def stats(self) -> BreakerStats:
        """Return what it has seen in its present state."""
        now = current(self._clock).monotonic()
        with self._lock:
            machine = self._machine
            return BreakerStats(machine.state, machine.era, *machine.counts(), machine.blocked(now))

    def acquire(self) -> object | None:
        """Ask to make a call.

        Returns:
            A ticket, to be given to `settle` exactly once on every way out, or None if the call must not be made.
        """
        machine = self._machine
        if (ring := machine.ring) is not None:
            return ring
        now = current(self._clock).monotonic()
        with self._lock:
            era = machine.era
            ticket = machine.acquire(now)
            changed = machine.era != era
        if changed:
            emit("resilience.breaker.half_open", self.name, era=era + 1)
        return ticket

    def settle(self, ticket: object, ok: bool | None, *, duration: float = 0.0) -> None:  # noqa: FBT001 - the verdict itself
        """Say how the call of a ticket ended. Tickets of an earlier state, and probes that lapsed, are ignored.

        Args:
            ticket: What `acquire` returned.
            ok: Whether it succeeded; None if that is unknown, as after a cancellation.
            duration: Seconds it took; only looked at if the breaker has a `slow`.

        Raises:
            ConfigurationError: If *ticket* is not a ticket, or *ok* neither a bool nor None.
        """
        if not isinstance(ticket, (deque, Probe)):
            raise ConfigurationError("Breaker.settle(ticket)", ticket, "what acquire() returned")
        if ok is not None and not isinstance(ok, bool):
            raise ConfigurationError("Breaker.settle(ok)", ok, "True, False or None")
        outcome = BAD
        if ok:
            slow = self._settings["slow"]
            outcome = OK if slow is None or duration < slow else SLOW
        self._transition(ticket, None if ok is None else outcome)

    def failed(self, ticket: object, error: Exception) -> None:
        """Settle a ticket whose call raised: a failure, or no verdict for what it ignores and for local rejections.

        Args:
            ticket: What `acquire` returned.
            error: What the call raised.
        """
        ignored = isinstance(error, (RejectedError, *self._settings["ignore"]))
        self.settle(ticket, None if ignored else False)

    def trip(self) -> None:
        """Open it now, whatever it has seen, for one cooldown."""
        now = current(self._clock).monotonic()
        with self._lock:
            self._machine.open(now)
            era = self._machine.era
        emit("resilience.breaker.opened", self.name, era=era, reason="trip")

    def reset(self) -> None:
        """Close it now and forget what it has seen."""
        with self._lock:
            self._machine.close()
            era = self._machine.era
        emit("resilience.breaker.closed", self.name, era=era, reason="reset")

    def blocked(self) -> float | None:
        """Return the seconds until a call may be admitted, or None if one may be now; changes nothing."""
        machine = self._machine
        if machine.ring is not None:
            return None
        now = current(self._clock).monotonic()
        if machine.state == "open":  # reads only
            return machine.blocked(now)
        with self._lock:
            return machine.blocked(now)

    def samples(self) -> tuple[Sample]:
        """Return its state as one telemetry sample."""
        labels = (("breaker", self.name),)
        return (Sample("resilience_breaker_state", labels, _CODES[self._machine.state]),)

    def _transition(self, ticket: deque[int] | Probe, outcome: int | None) -> None:
        machine = self._machine
        if outcome == OK and machine.ring is ticket:
            ticket.append(OK)
            return
        now = current(self._clock).monotonic()
        with self._lock:
            era = machine.era
            machine.settle(ticket, outcome, now)
            if machine.era == era:
                return
            era, state = machine.era, machine.state
            calls, failures, slow = machine.cause
        if state == "open":
            emit(
                "resilience.breaker.opened",
                self.name,
                era=era,
                reason="failure_rate",
                calls=calls,
                failures=failures,
                slow=slow,
            )
        else:
            emit("resilience.breaker.closed", self.name, era=era, reason="probes")

    def _adopt(self, name: str) -> None:
        """Take the name of the first function it guards, unless it has one."""
        if self._name is None:
            self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._settings,)

    def __repr__(self) -> str:
        return f"<Breaker {self.name}: {self.state}>"


def exception_types(
    where: str, value: object, *, base: type[BaseException] = Exception
) -> tuple[type[Any], ...]:
    """Return *value*, an exception type or a tuple of them, as a tuple."""
    kinds = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ConfigurationError(where, kind, f"subclasses of {base.__name__}")
    return kinds


def checked_name(where: str, value: object) -> str | None:
    """Return *value* if it is a name or None."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(where, value, "a name, or None")


def _rebuild(settings: dict[str, Any]) -> Breaker:
    return Breaker(**settings)
