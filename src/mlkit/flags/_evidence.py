"""Evidence against a candidate that may be looked at after every request: e-values.

A fixed-sample test that is looked at again and again raises a false alarm sooner or later. An e-process does not: it is a
non-negative process whose expected value is at most 1 at every stopping time if the candidate is healthy, so that by
Ville's inequality it ever reaches `1 / alpha` with probability at most `alpha`, however often one looks
(Ramdas, Grunwald, Vovk, Shafer: "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.flags._guard import Guard

__all__ = ["Above", "Case", "Evidence", "Ratio", "Trial"]

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
class _Bets:
    """Bets against the null, spread over how much worse the candidate is and since when.

    Part of the stake is put in at the start and part after each error, `1 / ((k + 1) (k + 2))` after the `k`-th: the parts
    add up to 1, and each grows as a non-negative supermartingale under the null, so their sum is an e-process. Without
    the later parts a long healthy time would have to be undone before a fault that comes late is seen.
    """

    def __init__(self) -> None:
        self._logs = [math.log(0.5)] * len(_FACTORS)
        self._errors = 0

    def settle(self, gains: Sequence[float]) -> None:
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
class Above:
    """Evidence that events of the candidate are more frequent than a limit."""

    def __init__(self, limit: float, event: Callable[[Trial], bool | None]) -> None:
        self._limit, self._event = limit, event
        self._n = self._k = 0
        self._bets = _Bets()
        self._gains = {
            happened: _log_ratios(limit, happened=happened) for happened in (False, True)
        }

    def add(self, trial: Trial) -> None:
        happened = self._event(trial) if trial.candidate else None
        if happened is None:
            return
        self._n += 1
        self._bets.settle(self._gains[happened])
        if happened:
            self._k += 1
            self._bets.raise_stake()

    def log_e(self) -> float:
        return self._bets.log_e()

    def numbers(self) -> dict[str, float]:
        return {"candidate_n": self._n, "candidate_events": self._k, "limit": self._limit}


@final
class Ratio:
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
        odds = self._limit * trial.share
        null = odds / (odds + 1.0 - trial.share)
        self._bets.settle(_log_ratios(null, happened=trial.candidate))
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


@final
class Case:
    """The evidence of every metric of a guard, against one candidate.

    Not thread-safe; the rollout that owns it holds its lock.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._enough = math.log(guard.threshold)
        self._evidence = [metric.start() for metric in guard.metrics]

    def add(self, trial: Trial) -> bool:
        """Take in one request, and return whether one of the metrics has seen enough to roll back."""
        for evidence in self._evidence:
            evidence.add(trial)
        return any(evidence.log_e() >= self._enough for evidence in self._evidence)

    def figures(self) -> dict[str, float]:
        """Return the figures of each metric by its name; of metrics of one name the second is `name_2`."""
        made: dict[str, float] = {}
        names: list[str] = []
        for metric, evidence in zip(self._guard.metrics, self._evidence, strict=True):
            names.append(metric.name)
            count = names.count(metric.name)
            name = metric.name if count == 1 else f"{metric.name}_{count}"
            made[f"{name}.e_value"] = math.exp(min(evidence.log_e(), 700.0))
            made[f"{name}.threshold"] = self._guard.threshold
            made |= {f"{name}.{key}": value for key, value in evidence.numbers().items()}
        return made


def _log_ratios(limit: float, *, happened: bool) -> list[float]:
    """Return for each bet the log likelihood ratio of one trial to an event of probability *limit*.

    Odds that are `f` times the limit's make the rate `f limit / (1 + (f - 1) limit)`; written so, no rate is rounded to 1.
    """
    return [
        (math.log(factor) if happened else 0.0) - math.log1p((factor - 1.0) * limit)
        for factor in _FACTORS
    ]


def _log_add(one: float, two: float) -> float:
    high, low = (one, two) if one >= two else (two, one)
    return high + math.log1p(math.exp(low - high))
