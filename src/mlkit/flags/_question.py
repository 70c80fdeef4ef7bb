"""What a metric asks of the observed requests, and what a bet on each answer wins or loses.

Every bet is made on one unit, and so that its expected factor is at most 1 if the candidate is healthy, whatever came before.
Each question spreads its stake over a fixed mixture of such bets. A factor then depends on the unit alone and not on the
order of the units, so that processes which saw different units can put their bets together.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Above", "Bet", "Question", "Ratio", "Rise", "Slower", "Split", "Trial"]

# How many times worse, in odds, the candidate may be than allowed, and how much of the stake is on that. Most lies where
# evidence is scarce: a fault that multiplies the rate by ten shows at once, whatever is staked on it.
_FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0)
_WEIGHTS = (0.05, 0.40, 0.25, 0.12, 0.08, 0.05, 0.03, 0.02)
_TILTS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
_PARTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class Trial(NamedTuple):
    """One observed request.

    Attributes:
        candidate: Whether the candidate served it, or else the incumbent.
        ok: Whether it went well.
        latency: Seconds it took, None if not measured.
        share: The candidate's share of the units at that time.
        unit: What stands for the unit; None if the request counts as a unit of its own.
        metrics: Further figures of the request by name.
        ramp: Whether the ramp assigned the unit, and no other rule of the flag.
    """

    candidate: bool
    ok: bool
    latency: float | None
    share: float
    unit: int | None
    metrics: Mapping[str, float]
    ramp: bool


class Bet(NamedTuple):
    """One settled bet.

    Attributes:
        candidate: Whose unit it was.
        value: What was seen, within [0, 1]; for an event 1.
        share: The candidate's share then, 0 where it does not matter.
        centre: What was expected of the value before.
    """

    candidate: bool
    value: float
    share: float
    centre: float


class Question(Protocol):
    """What one metric asks, over one window of time.

    Attributes:
        weights: How the stake is spread.
        thinned: Whether every unit leaves a bet, so that long windows take a sample of them.
        limit: What is allowed, for the record.
    """

    weights: tuple[float, ...]
    thinned: bool
    limit: float

    def value(self, trial: Trial) -> float | None:
        """Return what the metric sees of a request, None for nothing."""
        ...

    def bet(self, trial: Trial) -> Bet | None:
        """Return the bet that a request settles, if its unit has settled none."""
        ...

    def gains(self, bet: Bet) -> tuple[float, ...]:
        """Return the logarithms of a bet's factors."""
        ...

    def again(self) -> Question:
        """Return the question for the next window."""
        ...


@final
class Above:
    """Whether the mean of a figure within [0, 1] is above a limit. A unit counts with its first request.

    The factor `1 + l (x - limit)` has an expectation of at most 1 for a mean of at most the limit (Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 2024); for events it is the likelihood ratio.
    """

    weights: tuple[float, ...] = _WEIGHTS
    thinned = True

    def __init__(self, limit: float, value: Callable[[Trial], float | None]) -> None:
        self.limit, self.value = limit, value

    def bet(self, trial: Trial) -> Bet | None:
        value = self.value(trial) if trial.candidate else None
        return None if value is None else Bet(candidate=True, value=value, share=0.0, centre=0.0)

    def gains(self, bet: Bet) -> tuple[float, ...]:
        return tuple(_log_factor(factor, self.limit, bet.value) for factor in _FACTORS)

    def again(self) -> Above:
        return self


@final
class Ratio:
    """Whether units have a certain event earlier with the candidate than a ratio of rates allows.

    A unit counts with its first event. Given that, and the events of all units before, it is the candidate's with a
    probability of at most `w r / (w r + 1 - w)`, because its side was drawn with probability *w* and drawn independently
    of when it would have the event. Which unit makes how many requests, or fails how often, plays no part. The bets never
    change with time: then a candidate that postpones events is worth no more than one that does not (the product over its
    units only loses factors above 1).
    """

    weights: tuple[float, ...] = _WEIGHTS
    thinned = False

    def __init__(self, limit: float, value: Callable[[Trial], float | None]) -> None:
        self.limit, self.value = limit, value

    def bet(self, trial: Trial) -> Bet | None:
        if not self.value(trial) or not 0.0 < trial.share < 1.0:
            return None
        return Bet(trial.candidate, 1.0, trial.share, 0.0)

    def gains(self, bet: Bet) -> tuple[float, ...]:
        odds = self.limit * bet.share
        null = odds / (odds + 1.0 - bet.share)
        return tuple(_log_factor(factor, null, float(bet.candidate)) for factor in _FACTORS)

    def again(self) -> Ratio:
        return self


@final
class Slower:
    """Whether a quantile of the candidate's latency is above a multiple of the incumbent's.

    "Slow" is what takes longer than the quantile of incumbent requests that were seen before, the candidate's limit being
    that times the allowed multiple; the event "slow" is then judged as by `Ratio`, with both sides in the same hours.
    """

    weights: tuple[float, ...] = _WEIGHTS
    thinned = False

    def __init__(self, q: float, limit: float, known: deque[float] | None = None) -> None:
        self.q, self.limit = q, limit
        self.needed = max(50, math.ceil(5.0 / (1.0 - q)))
        self._known: deque[float] = deque(maxlen=self.needed) if known is None else known
        self._ratio = Ratio(1.0, self.value)
        self._slow: float | None = None
        if len(self._known) == self.needed:
            self._settle()

    def value(self, trial: Trial) -> float | None:
        if trial.latency is None or self._slow is None:
            return None
        return float(trial.latency > self._slow * (self.limit if trial.candidate else 1.0))

    def bet(self, trial: Trial) -> Bet | None:
        made = self._ratio.bet(trial)
        if trial.latency is not None and not trial.candidate:
            self._known.append(trial.latency)
            if self._slow is None and len(self._known) == self.needed:
                self._settle()
        return made

    def gains(self, bet: Bet) -> tuple[float, ...]:
        return self._ratio.gains(bet)

    def again(self) -> Slower:
        return Slower(self.q, self.limit, self._known.copy())

    def _settle(self) -> None:
        ordered = sorted(self._known)
        self._slow = ordered[min(self.needed - 1, math.floor(self.q * self.needed))]


@final
class Rise:
    """Whether the mean of a figure within [0, 1] is higher with the candidate by more than is allowed.

    A unit counts with its first value. Weighted by one over the probability of its side, the value less what was expected
    of it estimates the difference of the sides without bias, whatever the units are like; the bet is on that.
    """

    weights: tuple[float, ...] = (1 / len(_PARTS),) * len(_PARTS)
    thinned = True

    def __init__(
        self,
        limit: float,
        value: Callable[[Trial], float | None],
        mean: tuple[float, int] = (0.5, 1),
    ) -> None:
        self.limit, self.value, self._mean = limit, value, mean

    def bet(self, trial: Trial) -> Bet | None:
        value = self.value(trial)
        if value is None or not 0.0 < trial.share < 1.0:
            return None
        mean, n = self._mean
        self._mean = (mean + (value - mean) / (n + 1), n + 1)
        return Bet(trial.candidate, value, trial.share, round(mean, 2))

    def gains(self, bet: Bet) -> tuple[float, ...]:
        side = 1.0 / bet.share if bet.candidate else -1.0 / (1.0 - bet.share)
        effect = (bet.value - bet.centre) * side - self.limit
        most = max(bet.centre / bet.share, (1.0 - bet.centre) / (1.0 - bet.share)) + self.limit
        return tuple(math.log1p(part / most * effect) for part in _PARTS)

    def again(self) -> Rise:
        return Rise(self.limit, self.value, (self._mean[0], min(self._mean[1], 1000)))


@final
class Split:
    """Whether the units that are observed are split as was intended, in either direction.

    The likelihood ratio of a tilted split, over a mixture of tilts (Lindon and Malek, "Anytime-Valid Inference for
    Multinomial Count Data", NeurIPS 2022). A unit counts with its first request.
    """

    weights: tuple[float, ...] = (1 / len(_TILTS),) * len(_TILTS)
    thinned = True
    limit: float = 0.0

    def value(self, trial: Trial) -> float | None:
        known = trial.unit is not None and trial.ramp and 0.0 < trial.share < 1.0
        return trial.share if known else None

    def bet(self, trial: Trial) -> Bet | None:
        return None if self.value(trial) is None else Bet(trial.candidate, 1.0, trial.share, 0.0)

    def gains(self, bet: Bet) -> tuple[float, ...]:
        return tuple(_log_factor(tilt, bet.share, float(bet.candidate)) for tilt in _TILTS)

    def again(self) -> Split:
        return self


def _log_factor(factor: float, null: float, value: float) -> float:
    """Return the log of what a bet on odds `factor` times those of *null* makes of *value*, linear in it."""
    # 1 + l (x - null) with l = (f - 1) / (1 + (f - 1) null); written so, nothing is rounded to zero at the ends.
    return math.log1p((factor - 1.0) * value) - math.log1p((factor - 1.0) * null)
