"""How many calls at once, and how many a second: counted per policy, rejected at once."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol, final

from mlkit._clock import current
from mlkit.errors import BulkheadFullError, RateLimitedError
from mlkit.resilience._locks import forget_when_forked, fork_safe_lock
from mlkit.resilience._ticks import Ticks
from mlkit.telemetry import Counter, Sample, register

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mlkit.resilience._timers import Clockwork

__all__ = ["Limits", "Permit"]


@final
class Limits:
    """What a policy counts. Thread-safe; the lock is never held while user code runs. A forked child has no calls in flight.

    Args:
        bulkhead: Calls in flight at most, or None.
        rate: Calls a second, or None.
    """

    def __init__(self, bulkhead: int | None, rate: float | None) -> None:
        self._bulkhead, self._rate = bulkhead, rate
        self._running, self._era = 0, 0
        self._burst = max(1.0, rate or 1.0)
        self._level, self._filled = self._burst, 0.0
        self._lock = fork_safe_lock()
        self._ticks: dict[tuple[str, str], Ticks] = {}
        self.abandoned = 0
        """Threads that were left behind and have not ended."""
        self._gauge: _Abandoned | None = None
        self.works: tuple[Clockwork, Clockwork] | None = None
        """The timers of its attempts and of its hedges, once something async is guarded."""
        forget_when_forked(self)

    def admitted(self, name: str) -> Permit:
        """Admit one call of *name*, to be used as a context manager around it.

        Raises:
            RateLimitedError: If the bucket is empty.
            BulkheadFullError: If too many calls are in flight.
        """
        now = current().monotonic()
        with self._lock:
            full = self._bulkhead is not None and self._running >= self._bulkhead
            wait = 0.0 if full else self._wait(now)
            if not full and not wait:
                self._running += 1
                return Permit(self, self._era)
        self.count("rejections", name)
        if full:
            raise BulkheadFullError(name, f"{self._bulkhead} calls are in flight")
        raise RateLimitedError(name, f"more than {self._rate:g} calls a second", retry_after=wait)

    def released(self, era: int) -> None:
        """Take one call out of those in flight, unless it began in the parent of this process."""
        with self._lock:
            if era == self._era:
                self._running -= 1

    def forget(self) -> None:
        """Count nothing of the parent's: neither the calls of its threads nor those that it left behind."""
        self._running, self.abandoned = 0, 0
        self._era += 1

    def abandon(self, name: str, job: _Left) -> None:
        """Count the thread of *job* among those left behind, until it ends."""

        def ended() -> None:
            with self._lock:
                self.abandoned -= 1

        with self._lock:
            self.abandoned += 1
            gauge = self._gauge = self._gauge or _Abandoned(self, name)
        register(gauge)
        if not job.leave(ended):
            ended()

    def count_of(self, what: str, name: str) -> Callable[[], int]:
        """Return what adds one to `resilience_<what>_total{policy=name}`."""
        ticks = self._ticks.get((what, name))
        if ticks is None:
            made = Ticks(Counter(f"resilience_{what}_total", policy=name))
            with self._lock:
                ticks = self._ticks.setdefault((what, name), made)
            if ticks is made:
                register(made.counter)
        return ticks.tick

    def count(self, what: str, name: str) -> None:
        """Add one to `resilience_<what>_total{policy=name}`."""
        self.count_of(what, name)()

    def _wait(self, now: float) -> float:
        """Take a token, or return the seconds until there is one."""
        if self._rate is None:
            return 0.0
        self._level = min(self._burst, self._level + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        if self._level >= 1.0 - 1e-9:  # ten times a tenth of a token is one
            self._level = max(0.0, self._level - 1.0)
            return 0.0
        return (1.0 - self._level) / self._rate


class _Left(Protocol):
    def leave(self, then: Callable[[], None]) -> bool: ...


@final
class _Abandoned:
    """`resilience_abandoned_threads` of one policy."""

    def __init__(self, limits: Limits, name: str) -> None:
        self._limits, self._labels = weakref.ref(limits), (("policy", name),)

    def samples(self) -> tuple[Sample, ...]:
        limits = self._limits()
        if limits is None:
            return ()
        return (Sample("resilience_abandoned_threads", self._labels, limits.abandoned),)


@final
class Permit:
    """The place of one call among those in flight. Given back once: at the end of a `with`, or by `release`."""

    __slots__ = ("_era", "_limits")

    def __init__(self, limits: Limits, era: int) -> None:
        self._limits: Limits | None = limits
        self._era = era

    def release(self) -> None:
        """Give the place back."""
        limits, self._limits = self._limits, None
        if limits is not None:
            limits.released(self._era)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()  # of a stream that was neither read to its end nor closed
