"""The retry budget: a token bucket that keeps retries a small share of the calls that work."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import fraction, whole
from mlkit.errors import ConfigurationError
from mlkit.resilience._locks import fork_safe_lock
from mlkit.telemetry import Sample, register

if TYPE_CHECKING:
    import threading

__all__ = ["Budget"]

_TOKEN = 1_000_000  # whole numbers: ten tenths are one token


@final
class Budget:
    """How many retries a policy may make: a share of its successes, and a burst.

    Every call that succeeds puts *ratio* of a token in, every retry and every hedge takes one out, and no more than
    *burst* are kept. So attempts <= (1 + ratio) x calls + burst, and a failing service is not buried under retries.

    Pass one budget to several `Retry` to share it, or give it a name: in a process, all budgets of one name are the same
    object, as long as anybody holds it. Thread-safe. A pickled budget is a fresh, full one, or the one of its name.
    A telemetry source of `resilience_budget_tokens{budget}`, by its name, or that of the first function it is used for.

    Args:
        ratio: Tokens earned by a success, in [0, 1].
        burst: Tokens kept at most, and at the start; at least 0.
        name: What it is shared by, or None.

    Attributes:
        ratio: As given.
        burst: As given.
        name: As given.
        full: Millionths of a token from which a success adds none.
        level: Millionths of a token in it now.

    Raises:
        ConfigurationError: If an argument is out of its range, or the budget of that name has other settings.

    Examples:
        >>> Budget(name="database") is Budget(name="database")
        True
        >>> budget = Budget(ratio=0.5, burst=1)
        >>> budget.spend(), budget.spend()
        (True, False)
        >>> budget.earn(); budget.earn()
        >>> budget.spend()
        True

    Note:
        Brooker, "Fixing retries with token buckets and circuit breakers" (2022); gRPC's retryThrottling (A6).
    """

    __slots__ = (
        "__weakref__",
        "_label",
        "_lock",
        "_share",
        "burst",
        "full",
        "level",
        "name",
        "ratio",
    )

    ratio: float
    burst: int
    name: str | None
    full: int
    level: int
    _label: str | None
    _lock: threading.Lock
    _share: int

    def __new__(cls, ratio: float = 0.1, burst: int = 10, *, name: str | None = None) -> Budget:
        """Make a budget, or return the one of that name."""
        self = super().__new__(cls)
        self.ratio = fraction("Budget(ratio=...)", ratio, zero=True)
        self.burst = whole("Budget(burst=...)", burst, low=0)
        if name is not None and not (isinstance(name, str) and name):
            raise ConfigurationError("Budget(name=...)", name, "a name, or None")
        self.name, self._label = name, None
        self._share = round(self.ratio * _TOKEN)
        self.level = self.burst * _TOKEN
        # What earns nothing is never short of anything.
        self.full = self.level if self._share else 0
        self._lock = fork_safe_lock()
        if name is None:
            return self
        with _naming:
            known = _named.setdefault(name, self)
        if (known.ratio, known.burst) != (self.ratio, self.burst):
            raise ConfigurationError(
                f"Budget(name={name!r})", self, f"the settings that it has already: {known!r}"
            )
        known._adopt(name)  # noqa: SLF001 - its own kind
        return known

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

    def samples(self) -> tuple[Sample]:
        """Return the tokens in it as one telemetry sample."""
        labels = (("budget", self._label or "budget"),)
        return (Sample("resilience_budget_tokens", labels, self.tokens),)

    def _adopt(self, name: str) -> None:
        """Report under the name of the first function it is used for, unless it has one."""
        if self._label is None:
            self._label = name
            register(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.ratio, self.burst, self.name)

    def __repr__(self) -> str:
        name = "" if self.name is None else f", name={self.name!r}"
        return f"Budget(ratio={self.ratio!r}, burst={self.burst!r}{name})"


_named: weakref.WeakValueDictionary[str, Budget] = weakref.WeakValueDictionary()
_naming = fork_safe_lock()


def _rebuild(ratio: float, burst: int, name: str | None) -> Budget:
    return Budget(ratio, burst, name=name)
