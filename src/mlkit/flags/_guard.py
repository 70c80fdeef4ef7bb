"""What a rollout must not do: bounds on the candidate's errors, latency and figures, and how sure one must be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, final

from mlkit._arguments import number, seconds
from mlkit.errors import ConfigurationError
from mlkit.flags._question import Above, Ratio, Rise, Slower

if TYPE_CHECKING:
    from mlkit.flags._question import Question, Trial

__all__ = ["ErrorRate", "Guard", "Latency", "Mean"]

_SPLIT = 0.05  # of alpha, for the sample ratio


@final
class ErrorRate:
    """A bound on the candidate's error rate: absolute, or relative to the incumbent's.

    With *max_rate* the null hypothesis is "a unit's first request to the candidate fails with a probability of at most
    `max_rate`, whatever happened to other units before"; what a unit does later says something about that unit.

    With *max_ratio* it is "of no unit is the candidate's rate of errors ever more than `max_ratio` times the incumbent's".
    A unit counts with its first error: the side of a unit is drawn independently of when it would fail, so that a few units
    which make or fail most requests, which come back, or which all fail in one outage, raise no false alarm. It needs
    both sides, and gathers nothing while the share is 1.

    Immutable and picklable.

    Args:
        max_rate: Greatest acceptable error rate, within (0, 1).
        max_ratio: Greatest acceptable ratio of error rates, at least 1. Give exactly one of the two.

    Note:
        Units are told apart by the `unit` of `Rollout.observe` and `Rollout.serve`. Without it each request counts as a unit
        of its own; then the bound on false alarms holds only for units that do not come back.
    """

    __slots__ = ("max_rate", "max_ratio")
    max_rate: float | None
    max_ratio: float | None

    def __init__(self, *, max_rate: float | None = None, max_ratio: float | None = None) -> None:
        _one("ErrorRate(...)", max_rate=max_rate, max_ratio=max_ratio)
        if max_rate is not None:
            max_rate = _between("ErrorRate(max_rate=...)", max_rate, 0.0, 1.0)
        if max_ratio is not None:
            max_ratio = _ratio("ErrorRate(max_ratio=...)", max_ratio)
        self.max_rate, self.max_ratio = max_rate, max_ratio

    @property
    def name(self) -> str:
        """`"error_rate"` or `"error_ratio"`: the prefix of its figures."""
        return "error_ratio" if self.max_rate is None else "error_rate"

    def question(self) -> Question:
        """Return what it asks, with nothing seen yet; for `mlkit.flags` itself."""
        if self.max_rate is not None:
            return Above(self.max_rate, _failed)
        assert self.max_ratio is not None  # noqa: S101 - the constructor saw to it
        return Ratio(self.max_ratio, _failed)

    def __repr__(self) -> str:
        return f"ErrorRate({_given(max_rate=self.max_rate, max_ratio=self.max_ratio)})"


@final
class Latency:
    """A bound on a quantile of the candidate's latency: absolute, or relative to the incumbent's.

    With *max_seconds*, at most `1 - q` of its units may wait longer at their first request. With *max_ratio*, its requests
    may take longer than `max_ratio` times the incumbent's *q* quantile no more often than the incumbent's take longer than
    the quantile itself; judged as `ErrorRate(max_ratio=1)` judges errors, once the quantile of `max(50, 5 / (1 - q))`
    incumbent requests is known. Requests observed without a latency do not count.

    Immutable and picklable.

    Args:
        max_seconds: The limit, above 0.
        max_ratio: Greatest acceptable ratio of the quantiles, at least 1. Give exactly one of the two.
        q: The quantile that must keep it, within (0, 1); at most 0.9999 with *max_ratio*.
    """

    __slots__ = ("max_ratio", "max_seconds", "q")
    max_seconds: float | None
    max_ratio: float | None
    q: float

    def __init__(
        self,
        *,
        max_seconds: float | None = None,
        max_ratio: float | None = None,
        q: float = 0.95,
    ) -> None:
        _one("Latency(...)", max_seconds=max_seconds, max_ratio=max_ratio)
        self.q = _between("Latency(q=...)", q, 0.0, 1.0)
        if max_seconds is not None:
            max_seconds = seconds("Latency(max_seconds=...)", max_seconds)
        if max_ratio is not None:
            max_ratio = _ratio("Latency(max_ratio=...)", max_ratio)
            number("Latency(q=...)", q, "at most 0.9999 with max_ratio", high=0.9999)
        self.max_seconds, self.max_ratio = max_seconds, max_ratio

    @property
    def name(self) -> str:
        """`"latency"` or `"latency_ratio"`: the prefix of its figures."""
        return "latency_ratio" if self.max_seconds is None else "latency"

    def question(self) -> Question:
        """Return what it asks, with nothing seen yet; for `mlkit.flags` itself."""
        limit = self.max_seconds
        if limit is None:
            assert self.max_ratio is not None  # noqa: S101 - the constructor saw to it
            return Slower(self.q, self.max_ratio)
        return Above(
            1.0 - self.q,
            lambda trial: None if trial.latency is None else float(trial.latency > limit),
        )

    def __repr__(self) -> str:
        given = _given(max_seconds=self.max_seconds, max_ratio=self.max_ratio)
        return f"Latency({given}, q={self.q!r})"


@final
class Mean:
    """A bound on the mean of any figure with known bounds: a click rate, a score, a share of empty answers.

    A unit counts with its first value. The absolute limits ask about the candidate alone; *max_rise* and *max_drop* about
    the difference of the two sides, with units assigned by the ramp alone, and gather nothing while the share is 1.

    Immutable and picklable.

    Args:
        metric: Its name in `observe(metrics={...})`, and the prefix of its figures.
        low: Its least possible value.
        high: Its greatest possible value.
        at_most: Greatest acceptable mean, within (low, high).
        at_least: Least acceptable mean, within (low, high).
        max_rise: How much higher than the incumbent's the mean may be, within [0, high - low).
        max_drop: How much lower it may be, within [0, high - low). Give exactly one of the four.
    """

    __slots__ = ("at_least", "at_most", "high", "low", "max_drop", "max_rise", "name")
    name: str
    low: float
    high: float
    at_most: float | None
    at_least: float | None
    max_rise: float | None
    max_drop: float | None

    def __init__(
        self,
        metric: str,
        *,
        low: float = 0.0,
        high: float = 1.0,
        at_most: float | None = None,
        at_least: float | None = None,
        max_rise: float | None = None,
        max_drop: float | None = None,
    ) -> None:
        if not isinstance(metric, str) or not metric.isidentifier():
            raise ConfigurationError("Mean(metric)", metric, "a name like 'click_rate'")
        most = sys.float_info.max / 4
        self.name = metric
        self.low = number("Mean(low=...)", low, "a finite number", low=-most, high=most)
        self.high = number("Mean(high=...)", high, "a finite number", low=-most, high=most)
        if self.low >= self.high:
            raise ConfigurationError("Mean(low=..., high=...)", (low, high), "low < high")
        limits = {
            "at_most": at_most,
            "at_least": at_least,
            "max_rise": max_rise,
            "max_drop": max_drop,
        }
        _one("Mean(...)", **limits)
        for name, limit in limits.items():
            if limit is None:
                continue
            where = f"Mean({name}=...)"
            if name in {"at_most", "at_least"}:
                _between(where, limit, self.low, self.high)
            elif limit != 0:
                _between(where, limit, 0.0, self.high - self.low)
        self.at_most, self.at_least = at_most, at_least
        self.max_rise, self.max_drop = max_rise, max_drop

    def question(self) -> Question:
        """Return what it asks, with nothing seen yet; for `mlkit.flags` itself."""
        name, low, span = self.name, self.low, self.high - self.low

        def up(trial: Trial) -> float | None:
            value = trial.metrics.get(name)
            return None if value is None else (value - low) / span

        def down(trial: Trial) -> float | None:
            value = up(trial)
            return None if value is None else 1.0 - value

        if self.at_most is not None:
            return Above((self.at_most - low) / span, up)
        if self.at_least is not None:
            return Above((self.high - self.at_least) / span, down)
        if self.max_rise is not None:
            return Rise(self.max_rise / span, up)
        assert self.max_drop is not None  # noqa: S101 - the constructor saw to it
        return Rise(self.max_drop / span, down)

    def __repr__(self) -> str:
        limits = _given(
            at_most=self.at_most,
            at_least=self.at_least,
            max_rise=self.max_rise,
            max_drop=self.max_drop,
        )
        return f"Mean({self.name!r}, low={self.low!r}, high={self.high!r}, {limits})"


@final
class Guard:
    """What a rollout must not do, and how sure one must be to roll it back.

    A healthy candidate is ever rolled back with probability at most *alpha*, over all metrics together and however long and
    often one looks, if the metrics' conditions hold. A twentieth of *alpha* is for the sample ratio, which is always
    watched: a split of the observed units other than the intended one means that the comparison cannot be trusted (answers
    of one side get lost, a cache, a wrong unit). The metrics have equal parts of the rest.

    One guard may serve several rollouts; each has its own evidence and *alpha*. Processes that share a folder (see
    `ModelFlag.rollout`) share the evidence, over restarts too.

    Immutable and picklable.

    Args:
        *metrics: `ErrorRate`, `Latency` and `Mean`, at least one.
        alpha: Probability of a false alarm that is acceptable, within (0, 1).

    Examples:
        >>> Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2), alpha=0.01)
        Guard(ErrorRate(max_rate=0.05), Latency(max_seconds=0.2, q=0.95), alpha=0.01)
    """

    __slots__ = ("alpha", "metrics")
    alpha: float
    metrics: tuple[ErrorRate | Latency | Mean, ...]

    def __init__(self, *metrics: ErrorRate | Latency | Mean, alpha: float = 0.05) -> None:
        known = (ErrorRate, Latency, Mean)
        if not metrics or not all(isinstance(metric, known) for metric in metrics):
            raise ConfigurationError(
                "Guard(*metrics)", metrics, "at least one ErrorRate, Latency or Mean"
            )
        _between("Guard(alpha=...)", alpha, 0.0, 1.0)
        self.metrics, self.alpha = metrics, alpha

    @property
    def threshold(self) -> float:
        """The e-value at which a metric rolls back."""
        return len(self.metrics) / ((1.0 - _SPLIT) * self.alpha)

    @property
    def split_threshold(self) -> float:
        """The e-value at which the sample ratio rolls back."""
        return 1.0 / (_SPLIT * self.alpha)

    def named(self) -> list[tuple[str, ErrorRate | Latency | Mean]]:
        """Return the metrics by name; of metrics of one name the second is `name_2`."""
        made: list[tuple[str, ErrorRate | Latency | Mean]] = []
        for index, metric in enumerate(self.metrics):
            count = sum(other.name == metric.name for other in self.metrics[: index + 1])
            made.append((metric.name if count == 1 else f"{metric.name}_{count}", metric))
        return made

    def __repr__(self) -> str:
        return f"Guard({', '.join(map(repr, self.metrics))}, alpha={self.alpha!r})"


def _failed(trial: Trial) -> float:
    return float(not trial.ok)


def _one(call: str, **limits: float | None) -> None:
    if sum(limit is not None for limit in limits.values()) != 1:
        given = tuple(limits.values())
        raise ConfigurationError(call, given, f"exactly one of {', '.join(limits)}")


def _ratio(argument: str, value: object) -> float:
    return number(argument, value, "a number >= 1", low=1.0, high=sys.float_info.max)


def _given(**limits: float | None) -> str:
    return ", ".join(f"{name}={limit!r}" for name, limit in limits.items() if limit is not None)


def _between(argument: str, value: object, low: float, high: float) -> float:
    expected = f"a number within ({low:g}, {high:g})"
    result = number(argument, value, expected, low=low, high=high)
    if result in (low, high):
        raise ConfigurationError(argument, value, expected)
    return result
