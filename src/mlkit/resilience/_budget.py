"""The retry budget: a token bucket that keeps retries a small share of the calls that work."""

from __future__ import annotations

import threading
from typing import Any, final

from mlkit._arguments import fraction, whole

__all__ = ["Budget"]

_TOKEN = 1_000_000  # whole numbers: ten tenths are one token


@final
class Budget:
    """How many retries a policy may make: a share of its successes, and a burst.

    Every call that succeeds puts *ratio* of a token in, every retry and every hedge takes one out, and no more than
    *burst* are kept. So attempts <= (1 + ratio) x calls + burst, and a failing service is not buried under retries.

    Pass one budget to several `Retry` to share it. Thread-safe. A pickled budget is a fresh, full one.

    Args:
        ratio: Tokens earned by a success, in [0, 1].
        burst: Tokens kept at most, and at the start; at least 0.

    Attributes:
        ratio: As given.
        burst: As given.
        full: Millionths of a token that it holds at most.
        level: Millionths of a token in it now.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> budget = Budget(ratio=0.5, burst=1)
        >>> budget.spend(), budget.spend()
        (True, False)
        >>> budget.earn(); budget.earn()
        >>> budget.spend()
        True

    Note:
        Brooker, "Fixing retries with token buckets and circuit breakers" (2022); gRPC's retryThrottling (A6).
    """

    __slots__ = ("_lock", "_share", "burst", "full", "level", "ratio")

    ratio: float
    burst: int
    full: int
    level: int

    def __init__(self, ratio: float = 0.1, burst: int = 10) -> None:
        self.ratio = fraction("Budget(ratio=...)", ratio, zero=True)
        self.burst = whole("Budget(burst=...)", burst, low=0)
        self._share = round(self.ratio * _TOKEN)
        self.full = self.level = self.burst * _TOKEN
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """Tokens in it now: retries it would still allow."""
        return self.level / _TOKEN

    def spend(self) -> bool:
        """Take one token out; return False if there is none."""
        with self._lock:
            if self.level < _TOKEN:
                return False
            self.level -= _TOKEN
            return True

    def earn(self) -> None:
        """Put in what one success earns."""
        if self.level >= self.full:  # nearly always: no lock
            return
        with self._lock:
            self.level = min(self.full, self.level + self._share)

    def __reduce__(self) -> tuple[Any, ...]:
        return Budget, (self.ratio, self.burst)

    def __repr__(self) -> str:
        return f"Budget(ratio={self.ratio!r}, burst={self.burst!r})"
