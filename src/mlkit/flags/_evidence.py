"""Evidence against a candidate that may be looked at after every request: e-values.

A fixed-sample test that is looked at again and again raises a false alarm sooner or later. An e-process does not: it is a
non-negative process whose expected value is at most 1 at every stopping time if the candidate is healthy, so that by
Ville's inequality it ever reaches `1 / alpha` with probability at most `alpha`, however often one looks
(Ramdas, Grunwald, Vovk, Shafer: "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 2023).

A unit settles at most one bet of a metric in a window, because its side is drawn only once: that a unit comes back tells
nothing new about the candidate. So that a fault is found that comes when most units have settled theirs, or after a long
healthy time, there are two windows: one from the start on, and a recent one, which begins anew again and again. Each has a
part of the alpha (a union bound: the windows know different things, so their e-values must not be added up).
"""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.flags._question import Bet, Split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.flags._guard import Guard
    from mlkit.flags._question import Question, Trial

__all__ = ["Case", "together", "window_at"]

_WHOLE = 0.8  # of a metric's alpha; the recent windows share the rest
_FIRST = 1_000  # requests of the first recent window; each is longer by half
_GROWTH = 1.5
_LONGEST = 1_000_000
_MAX_BETS = 20_000  # a window and metric, so that memory has a bound
_MAX_GAINS = 64
_MOST = 2**53


def window_at(n_requests: int) -> tuple[int, int, int]:
    """Return the number of the recent window after so many requests, its length, and where it ends."""
    number, length, end = 0, _FIRST, _FIRST
    while n_requests >= end:
        if length >= _LONGEST:
            more = (n_requests - end) // _LONGEST + 1
            return number + more, _LONGEST, end + more * _LONGEST
        number += 1
        length = min(_LONGEST, round(_FIRST * _GROWTH**number))
        end += length
    return number, length, end


@final
class _Window:
    """The bets of one metric since some request."""

    __slots__ = ("_gains", "_keep", "logs", "loose", "mine", "others", "question", "settled")

    def __init__(self, question: Question, length: float) -> None:
        self.question = question
        self.logs = [0.0] * len(question.weights)
        self.settled: dict[int, Bet] = {}  # by unit, of all processes
        self.mine: dict[int, Bet] = {}
        self.loose: dict[Bet, int] = {}  # of requests without a unit
        self.others: dict[str, dict[Bet, int]] = {}
        self._gains: dict[Bet, tuple[float, ...]] = {}
        keep = min(1.0, _MAX_BETS / length) if question.thinned and math.isfinite(length) else 1.0
        self._keep = keep * 2.0**32

    def add(self, trial: Trial) -> bool:
        """Take in a request, and return whether the evidence changed."""
        bet = self.question.bet(trial)
        unit = trial.unit
        if bet is None:
            return False
        if unit is None:
            if bet not in self.loose and len(self.loose) >= _MAX_BETS:
                return False
            self.loose[bet] = self.loose.get(bet, 0) + 1
        elif not self._settle(unit, bet):
            return False
        else:
            self.mine[unit] = bet
            return True
        self._count(bet, 1)
        return True

    def merge(self, origin: str, told: _Bets) -> None:
        """Take in the bets of another process."""
        for unit, bet in told.units:
            self._settle(unit, bet)
        before = self.others.get(origin, {})
        for bet, n in told.loose.items():
            self._count(bet, n - before.get(bet, 0))
        self.others[origin] = told.loose

    def state(self) -> dict[str, Any]:
        """Return the bets of this process as JSON data."""
        return {
            "units": [[f"{unit:x}", *bet] for unit, bet in self.mine.items()],
            "loose": [[n, *bet] for bet, n in self.loose.items()],
        }

    def log_e(self) -> float:
        """Return the logarithm of the e-value."""
        top, exp = max(self.logs), math.exp
        worth = [exp(log - top) for log in self.logs]
        return top + math.log(sum(map(mul, self.question.weights, worth)))

    def _settle(self, unit: int, bet: Bet) -> bool:
        settled = self.settled
        if unit in settled or (unit & 0xFFFFFFFF) >= self._keep or len(settled) >= _MAX_BETS:
            return False
        settled[unit] = bet
        self._count(bet, 1)
        return True

    def _count(self, bet: Bet, n: int) -> None:
        if n:
            gains = self._gains.get(bet)
            if gains is None:
                gains = self.question.gains(bet)
                # Few bets come again and again, those on figures do not.
                if len(self._gains) < _MAX_GAINS:
                    self._gains[bet] = gains
            self.logs = [log + n * gain for log, gain in zip(self.logs, gains, strict=True)]


@final
class _Evidence:
    """What one metric has seen so far: over the whole time, and recently."""

    def __init__(self, question: Question) -> None:
        self.whole = _Window(question, math.inf)
        self.recent = _Window(question.again(), _FIRST)
        self.number = 0
        self.tally = [[0, 0.0], [0, 0.0]]  # of incumbent and candidate: requests, sum of values

    def renew(self, number: int, length: int) -> None:
        """Begin a recent window anew."""
        self.number = number
        self.recent = _Window(self.recent.question.again(), length)

    def add(self, trial: Trial) -> bool:
        value = self.whole.question.value(trial)
        if value is not None:
            side = self.tally[trial.candidate]
            side[0] += 1
            side[1] += value
        changed = self.whole.add(trial)
        return self.recent.add(trial) or changed

    def log_e(self) -> float:
        """Return the logarithm of the larger e-value, each less what its part of the alpha costs."""
        part = (1.0 - _WHOLE) / ((self.number + 1) * (self.number + 2))
        return max(math.log(_WHOLE) + self.whole.log_e(), math.log(part) + self.recent.log_e())


@final
class Case:
    """The evidence of every metric of a guard, against one candidate, and that of other processes.

    Not thread-safe; the rollout that owns it holds its lock.

    Args:
        guard: What to look for.
        origin: What names this process among those that share their evidence.
    """

    def __init__(self, guard: Guard, origin: str) -> None:
        self._guard, self._origin = guard, origin
        self._n = 0
        self._others: dict[str, tuple[int, dict[str, list[list[float]]]]] = {}
        self._end = _FIRST
        questions: list[tuple[str, float, Question]] = []
        for name, metric in guard.named():
            questions.append((name, guard.threshold, metric.question()))
        questions.append(("sample_ratio", guard.split_threshold, Split()))
        self._evidence = {name: _Evidence(question) for name, _, question in questions}
        self._thresholds = {name: threshold for name, threshold, _ in questions}

    def add(self, trial: Trial) -> str | None:
        """Take in one request, and return the name of a metric that has seen enough to roll back."""
        self._n += 1
        self._turn()
        found = None
        for name, evidence in self._evidence.items():
            if evidence.add(trial) and evidence.log_e() >= math.log(self._thresholds[name]):
                found = found or name
        return found

    def enough(self) -> str | None:
        """Return the name of a metric that has seen enough to roll back, with what others saw."""
        for name, evidence in self._evidence.items():
            if evidence.log_e() >= math.log(self._thresholds[name]):
                return name
        return None

    def state(self) -> dict[str, Any]:
        """Return what this process has seen, as JSON data."""
        return {
            "guard": repr(self._guard),
            "origin": self._origin,
            "n": self._n,
            "window": next(iter(self._evidence.values())).number,
            "metrics": {
                name: {
                    "whole": evidence.whole.state(),
                    "recent": evidence.recent.state(),
                    "tally": evidence.tally,
                }
                for name, evidence in self._evidence.items()
            },
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what another process has seen, in place of what it said before.

        Raises:
            ValueError: If it is of another guard, or not such a state; nothing of it counts then.
        """
        if state.get("guard") != repr(self._guard):
            raise ValueError(f"it is of {state.get('guard')}, not of {self._guard!r}")
        origin = str(state["origin"])
        if origin == self._origin:
            return
        # Read as a whole before any of it counts: what is damaged must not leave a half behind.
        n, metrics = _amount(state["n"]), {name: state["metrics"][name] for name in self._evidence}
        tallies = {name: _tally(made["tally"]) for name, made in metrics.items()}
        told = {name: (_bets(one["whole"]), _bets(one["recent"])) for name, one in metrics.items()}
        known = self._others.get(origin, (0, {}))[0]
        self._others[origin] = (max(n, known), tallies)
        self._turn()
        for name, evidence in self._evidence.items():
            whole, recent = told[name]
            evidence.whole.merge(origin, whole)
            if state["window"] == evidence.number:
                evidence.recent.merge(origin, recent)

    def figures(self) -> dict[str, float]:
        """Return the figures of each metric by its name; of metrics of one name the second is `name_2`."""
        made: dict[str, float] = {}
        for name, evidence in self._evidence.items():
            tally = [list(side) for side in evidence.tally]
            for _, tallies in self._others.values():
                for mine, theirs in zip(tally, tallies[name], strict=True):
                    mine[0] += theirs[0]
                    mine[1] += theirs[1]
            made[f"{name}.e_value"] = math.exp(min(evidence.log_e(), 700.0))
            made[f"{name}.threshold"] = self._thresholds[name]
            made[f"{name}.limit"] = evidence.whole.question.limit
            made[f"{name}.n_bets"] = len(evidence.whole.settled)
            made[f"{name}.candidate_n"] = tally[True][0]
            made[f"{name}.candidate_sum"] = tally[True][1]
            made[f"{name}.incumbent_n"] = tally[False][0]
            made[f"{name}.incumbent_sum"] = tally[False][1]
        return made

    def _turn(self) -> None:
        """Begin the next recent window where it is due; only the number of requests says when."""
        total = self._n + sum(n for n, _ in self._others.values())
        if total < self._end:
            return
        number, length, self._end = window_at(total)
        for evidence in self._evidence.values():
            evidence.renew(number, length)


def together(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the states of several processes without what is in them twice: all that `Case.merge` makes of them stays.

    A unit's bet is kept once, and recent bets only of the latest window, as no other can still be open.
    """
    latest = max((int(state["window"]) for state in states), default=0)
    settled: dict[tuple[str, str], set[str]] = {}
    made = []
    for state in states:
        metrics = {}
        for name, metric in state["metrics"].items():
            told = dict(metric)
            for window in ("whole", "recent"):
                known = settled.setdefault((name, window), set())
                if window == "recent" and state["window"] != latest:
                    told[window] = {"units": [], "loose": []}
                    continue
                units = [bet for bet in metric[window]["units"] if bet[0] not in known]
                known.update(bet[0] for bet in units)
                told[window] = {**metric[window], "units": units}
            metrics[name] = told
        made.append({**state, "metrics": metrics})
    return made


class _Bets(NamedTuple):
    """The bets of another process in one window: by unit, and how often each that has none."""

    units: list[tuple[int, Bet]]
    loose: dict[Bet, int]


def _bets(told: Mapping[str, Any]) -> _Bets:
    units = [(int(unit, 16), _bet(bet)) for unit, *bet in told["units"]]
    return _Bets(units, {_bet(bet): _amount(n) for n, *bet in told["loose"]})


def _bet(parts: list[Any]) -> Bet:
    candidate, value, share, centre = parts
    bet = Bet(bool(candidate), float(value), float(share), float(centre))
    if not (0.0 <= bet.value <= 1.0 and 0.0 <= bet.share < 1.0 and 0.0 <= bet.centre <= 1.0):
        raise ValueError(f"{parts} is no bet")  # NaN, say, after which nothing would be found
    return bet


def _tally(told: Any) -> list[list[float]]:
    made = [[_amount(n), float(total)] for n, total in told]
    if len(made) != 2 or not all(math.isfinite(total) for _, total in made):
        raise ValueError("that is no tally")
    return made


def _amount(told: Any) -> int:
    n = int(told)
    if not 0 <= n <= _MOST:
        raise ValueError("so many requests there cannot be")
    return n
