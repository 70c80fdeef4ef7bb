"""What a rollout must not do: bounds on the candidate's errors and latency, and how sure one must be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, final

from mlkit._arguments import number, seconds
from mlkit.errors import ConfigurationError
from mlkit.flags._evidence import Above, Ratio

if TYPE_CHECKING:
    from mlkit.flags._evidence import Evidence

__all__ = ["ErrorRate", "Guard", "Latency"]


@final
class ErrorRate:
    """A bound on the candidate's error rate: absolute, or relative to the incumbent's.

    With *max_rate* the null hypothesis is "each of the candidate's requests fails with a probability of at most
    `max_rate`, whatever came before". The evidence is the likelihood ratio of a worse rate, averaged over several worse
    rates and over when the candidate became worse: a non-negative supermartingale under the null.

    With *max_ratio* it is "the candidate's error rate is at most `max_ratio` times the incumbent's", whatever that is. Of
    the requests that fail, a share of `w r / (w r + 1 - w)` is then the candidate's at most, `w` being its share of the
    requests and `r` the ratio; the evidence bets against that. It needs both sides, so that it gathers nothing while the
    share is 1, and it takes `w` to hold for each failing request, whatever came before: observe every request, no units
    that another rule sends to the candidate, and units that come back seldom. Where a few units make most requests, the
    candidate's part of the requests stays where their hashes put it, not at `w`; in the long run that is taken for a
    fault (or hides one), with a probability above `alpha`. The idea is that of Lindon and
    Malek, "Anytime-Valid Inference for Multinomial Count Data" (NeurIPS 2022).

    Immutable and picklable.

    Args:
        max_rate: Greatest acceptable error rate, within (0, 1).
        max_ratio: Greatest acceptable ratio of error rates, at least 1. Give exactly one of the two.
    """

    __slots__ = ("max_rate", "max_ratio")
    max_rate: float | None
    max_ratio: float | None

    def __init__(self, *, max_rate: float | None = None, max_ratio: float | None = None) -> None:
        if (max_rate is None) is (max_ratio is None):
            raise ConfigurationError(
                "ErrorRate(...)", (max_rate, max_ratio), "exactly one of max_rate and max_ratio"
            )
        if max_rate is not None:
            max_rate = _between("ErrorRate(max_rate=...)", max_rate, 0.0, 1.0)
        if max_ratio is not None:
            most = sys.float_info.max
            max_ratio = number(
                "ErrorRate(max_ratio=...)", max_ratio, "a number >= 1", low=1.0, high=most
            )
        self.max_rate, self.max_ratio = max_rate, max_ratio

    @property
    def name(self) -> str:
        """`"error_rate"` or `"error_ratio"`: the prefix of its figures."""
        return "error_ratio" if self.max_rate is None else "error_rate"

    def start(self) -> Evidence:
        """Return evidence of nothing yet."""
        if self.max_rate is not None:
            return Above(self.max_rate, lambda trial: not trial.ok)
        assert self.max_ratio is not None  # noqa: S101 - the constructor saw to it
        return Ratio(self.max_ratio)

    def __repr__(self) -> str:
        bound = (
            f"max_ratio={self.max_ratio!r}"
            if self.max_rate is None
            else f"max_rate={self.max_rate!r}"
        )
        return f"ErrorRate({bound})"


@final
class Latency:
    """A bound on a quantile of the candidate's latency: at most `1 - q` of its requests may take longer.

    The evidence is that of `ErrorRate(max_rate=1 - q)` with "slower than `max_seconds`" for an error. Requests observed
    without a latency do not count.

    Immutable and picklable.

    Args:
        max_seconds: The limit, above 0.
        q: The quantile that must keep it, within (0, 1).
    """

    __slots__ = ("max_seconds", "q")
    max_seconds: float
    q: float

    name = "latency"

    def __init__(self, *, max_seconds: float, q: float = 0.95) -> None:
        self.max_seconds = seconds("Latency(max_seconds=...)", max_seconds)
        self.q = _between("Latency(q=...)", q, 0.0, 1.0)

    def start(self) -> Evidence:
        """Return evidence of nothing yet."""
        limit = self.max_seconds
        return Above(
            1.0 - self.q, lambda trial: None if trial.latency is None else trial.latency > limit
        )

    def __repr__(self) -> str:
        return f"Latency(max_seconds={self.max_seconds!r}, q={self.q!r})"


@final
class Guard:
    """What a rollout must not do, and how sure one must be to roll it back.

    A healthy candidate is ever rolled back with probability at most *alpha*, over all metrics together (each gets an
    equal part) and however long and often one looks, if the metrics' conditions hold. One guard may serve several rollouts;
    each has its own evidence and *alpha*, in each process, and begins anew where a saved rollout goes on.

    Immutable and picklable.

    Args:
        *metrics: `ErrorRate` and `Latency`, at least one.
        alpha: Probability of a false alarm that is acceptable, within (0, 1).

    Examples:
        >>> Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2), alpha=0.01)
        Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2, q=0.95), alpha=0.01)
    """

    __slots__ = ("alpha", "metrics")
    alpha: float
    metrics: tuple[ErrorRate | Latency, ...]

    def __init__(self, *metrics: ErrorRate | Latency, alpha: float = 0.05) -> None:
        if not metrics or not all(isinstance(metric, (ErrorRate, Latency)) for metric in metrics):
            raise ConfigurationError(
                "Guard(*metrics)", metrics, "at least one ErrorRate or Latency"
            )
        _between("Guard(alpha=...)", alpha, 0.0, 1.0)
        self.metrics, self.alpha = metrics, alpha

    @property
    def threshold(self) -> float:
        """The e-value at which a metric rolls back."""
        return len(self.metrics) / self.alpha

    def __repr__(self) -> str:
        return f"Guard({', '.join(map(repr, self.metrics))}, alpha={self.alpha!r})"


def _between(argument: str, value: object, low: float, high: float) -> float:
    expected = f"a number within ({low:g}, {high:g})"
    result = number(argument, value, expected, low=low, high=high)
    if result in (low, high):
        raise ConfigurationError(argument, value, expected)
    return result
