"""Evidence against a candidate that may be looked at after every request: e-values.

A fixed-sample test that is looked at again and again raises a false alarm sooner or later. An e-process does not: it is a
non-negative process whose expected value is at most 1 at every stopping time if the candidate is healthy, so that by
Ville's inequality it ever reaches `1 / alpha` with probability at most `alpha`, however often one looks
(Ramdas, Grunwald, Vovk, Shafer: "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ErrorRate", "Evidence", "Guard", "Latency", "Trial"]

# The bets are spread over how many times worse (in odds) the candidate may be than allowed.
_FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0)


class Trial(NamedTuple):
    """One observed request.

    Attributes:
        candidate: Whether the candidate served it, or else the incumbent.
        ok: Whether it went well.
        latency: Seconds it took, None if not measured.
        share: The candidate's share of the units at that time.
    """

    candidate: bool
    ok: bool
    latency: float | None
    share: float


class Evidence(Protocol):
    """What one metric has seen so far."""

    def add(self, trial: Trial) -> None:
        """Take in one request."""
        ...

    def log_e(self) -> float:
        """Return the logarithm of the e-value."""
        ...

    def numbers(self) -> dict[str, float]:
        """Return the figures behind it."""
        ...


@final
class ErrorRate:
    """A bound on the candidate's error rate: absolute, or relative to the incumbent's.

    With *max_rate* the null hypothesis is "the candidate's error rate is at most `max_rate`", whatever the incumbent does.
    The evidence is the likelihood ratio of a worse rate, averaged over several worse rates and over when the candidate
    became worse: a non-negative supermartingale under the null.

    With *max_ratio* it is "the candidate's error rate is at most `max_ratio` times the incumbent's", whatever that is. Of
    the requests that fail, a share of `w r / (w r + 1 - w)` is then the candidate's at most, `w` being its share of the
    requests and `r` the ratio; the evidence bets against that. It needs both sides, so that it gathers nothing while the
    share is 1, and it takes units to be assigned by the ramp alone and to fail independently: do not observe units that
    another rule sends to the candidate. The idea is that of Lindon and Malek, "Anytime-Valid Inference for Multinomial
    Count Data" (NeurIPS 2022).

    Immutable and picklable.

    Args:
        max_rate: Greatest acceptable error rate, within (0, 1).
        max_ratio: Greatest acceptable ratio of error rates, at least 1. Give exactly one of the two.
    """

    __slots__ = ("max_rate", "max_ratio")

    def __init__(self, *, max_rate: float | None = None, max_ratio: float | None = None) -> None:
        if (max_rate is None) is (max_ratio is None):
            raise ConfigurationError(
                "ErrorRate(...)", (max_rate, max_ratio), "exactly one of max_rate and max_ratio"
            )
        if max_rate is not None:
            _between("ErrorRate(max_rate=...)", max_rate, 0.0, 1.0)
        if max_ratio is not None and not (_is_number(max_ratio) and 1.0 <= max_ratio < math.inf):
            raise ConfigurationError("ErrorRate(max_ratio=...)", max_ratio, "a number >= 1")
        self.max_rate, self.max_ratio = max_rate, max_ratio

    @property
    def name(self) -> str:
        """`"error_rate"` or `"error_ratio"`: the prefix of its figures."""
        return "error_ratio" if self.max_rate is None else "error_rate"

    def start(self) -> Evidence:
        """Return evidence of nothing yet."""
        if self.max_rate is not None:
            return _Above(self.max_rate, lambda trial: not trial.ok)
        assert self.max_ratio is not None  # noqa: S101 - the constructor saw to it
        return _Ratio(self.max_ratio)

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

    name = "latency"

    def __init__(self, *, max_seconds: float, q: float = 0.95) -> None:
        if not (_is_number(max_seconds) and 0 < max_seconds < math.inf):
            raise ConfigurationError(
                "Latency(max_seconds=...)", max_seconds, "a number of seconds > 0"
            )
        _between("Latency(q=...)", q, 0.0, 1.0)
        self.max_seconds, self.q = max_seconds, q

    def start(self) -> Evidence:
        """Return evidence of nothing yet."""
        limit = self.max_seconds
        return _Above(
            1.0 - self.q, lambda trial: None if trial.latency is None else trial.latency > limit
        )

    def __repr__(self) -> str:
        return f"Latency(max_seconds={self.max_seconds!r}, q={self.q!r})"


@final
class Guard:
    """What a rollout must not do, and how sure one must be to roll it back.

    A healthy candidate is ever rolled back with probability at most *alpha*, over all metrics together (each gets an
    equal part) and however long and often one looks. One guard may serve several rollouts; each has its own evidence.

    Immutable and picklable.

    Args:
        *metrics: `ErrorRate` and `Latency`, at least one.
        alpha: Probability of a false alarm that is acceptable, within (0, 1).

    Examples:
        >>> Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2), alpha=0.01)
        Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2, q=0.95), alpha=0.01)
    """

    __slots__ = ("alpha", "metrics")

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


@final
class _Bets:
    """Bets against the null, spread over how much worse the candidate is and since when.

    Part of the stake is put in at the start and part after each error, `1 / ((k + 1) (k + 2))` after the `k`-th: the parts
    add up to 1, and each grows as a non-negative supermartingale under the null, so their sum is an e-process. Without
    the later parts a long healthy time would have to be undone before a fault that comes late is seen.
    """

    def __init__(self) -> None:
        self._logs = [math.log(0.5)] * len(_FACTORS)
        self._errors = 0

    def win(self, gains: Sequence[float]) -> None:
        """Take in one trial: the log likelihood ratio of each bet."""
        self._logs = [log + gain for log, gain in zip(self._logs, gains, strict=True)]

    def raise_stake(self) -> None:
        """Put in the next part, after an error."""
        self._errors += 1
        part = -math.log((self._errors + 1) * (self._errors + 2))
        self._logs = [_log_add(log, part) for log in self._logs]

    def log_e(self) -> float:
        """Return the logarithm of the e-value: what the bets are worth, and what was not put in yet."""
        top = max(self._logs)
        worth = top + math.log(sum(math.exp(log - top) for log in self._logs) / len(self._logs))
        return _log_add(worth, -math.log(self._errors + 2))


@final
class _Above:
    """Evidence that events of the candidate are more frequent than a limit."""

    def __init__(self, limit: float, event: Callable[[Trial], bool | None]) -> None:
        self._limit, self._event = limit, event
        self._n = self._k = 0
        self._bets = _Bets()
        odds = limit / (1.0 - limit)
        worse = [factor * odds / (1.0 + factor * odds) for factor in _FACTORS]
        self._gains = [math.log(rate / limit) for rate in worse]
        self._losses = [math.log1p(-rate) - math.log1p(-limit) for rate in worse]

    def add(self, trial: Trial) -> None:
        happened = self._event(trial) if trial.candidate else None
        if happened is None:
            return
        self._n += 1
        self._bets.win(self._gains if happened else self._losses)
        if happened:
            self._k += 1
            self._bets.raise_stake()

    def log_e(self) -> float:
        return self._bets.log_e()

    def numbers(self) -> dict[str, float]:
        return {"candidate_n": self._n, "candidate_events": self._k, "limit": self._limit}


@final
class _Ratio:
    """Evidence that the candidate fails more often, relative to the incumbent, than a limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._bets = _Bets()
        self._seen = [0, 0]
        self._failed = [0, 0]

    def add(self, trial: Trial) -> None:
        self._seen[trial.candidate] += 1
        if trial.ok:
            return
        self._failed[trial.candidate] += 1
        if not 0.0 < trial.share < 1.0:
            return
        odds = self._limit * trial.share / (1.0 - trial.share)
        null = odds / (1.0 + odds)
        gains = []
        for factor in _FACTORS:
            worse = factor * odds / (1.0 + factor * odds)
            gains.append(
                math.log(worse / null)
                if trial.candidate
                else math.log1p(-worse) - math.log1p(-null)
            )
        self._bets.win(gains)
        self._bets.raise_stake()

    def log_e(self) -> float:
        return self._bets.log_e()

    def numbers(self) -> dict[str, float]:
        return {
            "candidate_n": self._seen[True],
            "candidate_events": self._failed[True],
            "incumbent_n": self._seen[False],
            "incumbent_events": self._failed[False],
            "limit": self._limit,
        }


def _log_add(one: float, two: float) -> float:
    high, low = (one, two) if one >= two else (two, one)
    return high + math.log1p(math.exp(low - high))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _between(argument: str, value: object, low: float, high: float) -> None:
    if not (_is_number(value) and low < value < high):  # type: ignore[operator]
        raise ConfigurationError(argument, value, f"a number within ({low:g}, {high:g})")
