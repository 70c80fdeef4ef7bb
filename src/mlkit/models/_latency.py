"""Whether a version is fast enough, from measured latencies of any distribution."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError
from mlkit.models._checks import Evidence
from mlkit.models._gate_arguments import (
    at_level,
    function,
    gate_name,
    incumbent,
    level,
    number,
    sample,
)
from mlkit.models._intervals import quantile_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.models._version import ModelVersion

__all__ = ["LatencyGate"]


@final
class LatencyGate:
    """Lets a version pass if a quantile of its latency is below a limit, whatever the distribution.

    The quantile is bounded by order statistics of the measurements, so no shape is assumed and a few very slow calls,
    even infinite ones (calls that timed out), do not spoil it. A version whose true quantile is above the limit passes
    with probability at most *alpha*. With `max_ratio` the limit is that multiple of the incumbent's quantile, and the
    level is shared by the two bounds.

    The measurements must be independent draws of the calls that will be served: warm the version up first, and do not
    count the calls of one stall, a queue or a garbage collection, as many. Too few measurements for a bound (299 for
    0.99 at alpha 0.05) never pass.

    Thread-safe and, if *seconds* is, picklable. A gate is a `Check`.

    Args:
        name: What it is called in the history.
        seconds: Called with a version; returns measured latencies in seconds, `(n,)`.
        limit: The largest quantile to accept, in seconds.
        quantile: Which, in (0, 1).
        alpha: The largest probability to let a version pass that should not, in (0, 0.5).
        against: The incumbent, with *max_ratio*.
        max_ratio: In place of *limit*: how many times the incumbent's quantile is accepted.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from mlkit.models import ModelStore
        >>> version = ModelStore(tempfile.mkdtemp()).save("churn", {"bias": np.zeros(1)})
        >>> measured = np.random.default_rng(0).lognormal(-5, 0.3, 2000)
        >>> gate = LatencyGate("p99", lambda version: measured, limit=0.02)
        >>> print(gate(version).why)
        p99 0.0133 s, at most 0.0138 s (0.95 confidence, 2000 calls); must be at most 0.02 s

    Note:
        David and Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """

    name: str
    against: ModelVersion | None
    alpha: float

    def __init__(
        self,
        name: str,
        seconds: Callable[[ModelVersion], Any],
        *,
        limit: float | None = None,
        quantile: float = 0.99,
        alpha: float = 0.05,
        against: ModelVersion | None = None,
        max_ratio: float | None = None,
    ) -> None:
        self.name, self.alpha = gate_name("LatencyGate(name)", name), level("LatencyGate", alpha)
        self._seconds = function("LatencyGate(seconds)", seconds)
        if (limit is None) == (max_ratio is None):
            raise ConfigurationError(
                "LatencyGate(limit=..., max_ratio=...)", (limit, max_ratio), "one of the two"
            )
        if (max_ratio is None) != (against is None):
            raise ConfigurationError(
                "LatencyGate(against=...)", against, "the incumbent with max_ratio, else nothing"
            )
        self.against = None if against is None else incumbent("LatencyGate(against=...)", against)
        self._limit = None if limit is None else number("LatencyGate(limit=...)", limit, low=0.0)
        self._max_ratio = (
            None if max_ratio is None else number("LatencyGate(max_ratio=...)", max_ratio, low=0.0)
        )
        self._quantile = number("LatencyGate(quantile=...)", quantile, low=0.0)
        if not 0.0 < self._quantile < 1.0:
            raise ConfigurationError("LatencyGate(quantile=...)", quantile, "a number in (0, 1)")

    @property
    def __name__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<LatencyGate {self.name}, quantile {self._quantile:g}, alpha {self.alpha:g}>"

    def __call__(self, version: ModelVersion, /) -> Evidence:
        """Return whether *version* passes, with the estimate, its bounds, and how they were found.

        Args:
            version: The candidate.
        """
        alpha = self.alpha if self.against is None else self.alpha / 2
        facts: dict[str, Any] = {"quantile": self._quantile, "alpha": self.alpha}
        estimate, low, high, n = self._bounds(version, alpha)
        facts |= {"n": n, "estimate": estimate, "low": low, "high": high}
        limit = self._limit
        if self.against is not None and self._max_ratio is not None:
            theirs, at_least, _, their_n = self._bounds(self.against, alpha)
            limit = self._max_ratio * at_least
            facts |= {
                "against": self.against.ref,
                "incumbent": theirs,
                "incumbent_low": at_least,
                "incumbent_n": their_n,
                "max_ratio": self._max_ratio,
            }
        facts["limit"] = limit
        why = (
            f"{self.name} {estimate:.3g} s, at most {high:.3g} s ({1 - self.alpha:g} confidence, {n} calls); "
            f"must be at most {limit:.3g} s"
        )
        return Evidence(
            passed=limit is not None and high <= limit and high < inf, why=why, facts=facts
        )

    def at(self, alpha: float) -> LatencyGate:
        """Return the same gate at another level.

        Args:
            alpha: In (0, 0.5).

        Raises:
            ConfigurationError: If it is not.
        """
        return at_level(self, alpha)

    def _bounds(self, version: ModelVersion, alpha: float) -> tuple[float, float, float, int]:
        """Return the quantile of a version's latencies, its bounds, and how many there are."""
        import numpy as np

        values = np.sort(sample(self._seconds(version)))
        n = len(values)
        if np.isnan(values).any() or (n and values[0] < 0):
            raise ConfigurationError(
                f"{self.name}: seconds({version.ref})", "NaN or less than 0", "latencies in seconds"
            )
        if not n:
            return inf, 0.0, inf, 0
        low, high = quantile_ranks(n, self._quantile, alpha)
        estimate = float(values[min(n - 1, int(self._quantile * n))])
        return (
            estimate,
            0.0 if low is None else float(values[low - 1]),
            inf if high is None else float(values[high - 1]),
            n,
        )
