"""Gates whose error rate is known: a version passes on an interval, not on one noisy number."""

from __future__ import annotations

from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, final

from mlkit.errors import ConfigurationError
from mlkit.models._checks import Evidence
from mlkit.models._intervals import quantile_ranks, share_bounds, student_quantile
from mlkit.models._version import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["LatencyGate", "PairedGate", "share_alpha"]

_G = TypeVar("_G", "PairedGate", "LatencyGate")
Method: TypeAlias = Literal["t", "bootstrap", "exact"]
_METHODS = ("t", "bootstrap", "exact")
_MAX_CELLS = 1 << 22  # of a block of resamples, so that a large sample needs no large memory


@final
class PairedGate:
    """Lets a version pass if it is better than the incumbent on the same examples, or worse by less than a margin.

    Both versions are scored on the same examples, and the mean of the differences is bounded from below; the version
    passes if the bound is above `-margin`. So a version that truly is worse by *margin* or more passes with probability
    at most *alpha* (a one-sided non-inferiority test; of superiority if the margin is 0). The differences hold what
    examples have in common, so that this needs far fewer of them than comparing two means.

    The examples must be independent draws of what the version will meet, and not those it was chosen on. Each further
    attempt on the same examples is another chance to pass by luck.

    Thread-safe and, if *score* is, picklable. A gate is a `Check`.

    Args:
        name: What it is called in the history.
        score: Called with a version; returns its score of each example, `(n,)`, in the same order for every version.
        against: The incumbent.
        margin: How much worse a version may be, in the unit of the score; 0 asks for better.
        alpha: The largest probability to let a version pass that should not, in (0, 0.5).
        higher_is_better: False for losses.
        min_examples: With fewer nothing passes.
        method: `"t"`: Student's interval for the mean difference, good for hundreds of examples and moderate tails.
            `"bootstrap"`: the studentised bootstrap, for skewed differences. `"exact"`: for scores of 0 and 1, holds
            for every sample size; with margin 0 it is McNemar's exact test. By default `"exact"` if all scores are
            0 or 1, else `"t"`.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap; the same seed and scores give the same answer.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from mlkit.models import ModelStore
        >>> store = ModelStore(tempfile.mkdtemp())
        >>> old, new = (store.save("churn", {"bias": np.array(bias)}) for bias in (0.0, 0.1))
        >>> rng = np.random.default_rng(0)
        >>> hits = {1: rng.random(1000) < 0.8, 2: rng.random(1000) < 0.9}
        >>> gate = PairedGate("accuracy", lambda version: hits[version.number], against=old)
        >>> print(gate(new).why)
        accuracy +0.109, at least +0.0818 (0.95 confidence, 1000 examples); must be above 0
        >>> store.promote("churn", new, to="champion", checks=[gate]).evidence["accuracy"]["passed"]
        True

    Note:
        Student 1908; Efron and Tibshirani 1993, chapter 12 (bootstrap-t); McNemar 1947 and Clopper and Pearson 1934.
        `tests/test_models/test_gates.py` measures how often each method passes what it should not.
    """

    name: str
    against: ModelVersion
    alpha: float

    def __init__(
        self,
        name: str,
        score: Callable[[ModelVersion], Any],
        *,
        against: ModelVersion,
        margin: float = 0.0,
        alpha: float = 0.05,
        higher_is_better: bool = True,
        min_examples: int = 100,
        method: Method | None = None,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        self.name, self.alpha = _name("PairedGate(name)", name), _alpha("PairedGate", alpha)
        self.against = _version("PairedGate(against=...)", against)
        self._score = _callable("PairedGate(score)", score)
        self._margin = _number("PairedGate(margin=...)", margin, low=0.0)
        self._sign = 1.0 if higher_is_better else -1.0
        self._min_examples = _count("PairedGate(min_examples=...)", min_examples, 2)
        if method is not None and method not in _METHODS:
            raise ConfigurationError("PairedGate(method=...)", method, f"one of {_METHODS}")
        self._method: Method | None = method
        self._n_resamples = _count("PairedGate(n_resamples=...)", n_resamples, 200)
        self._seed = _count("PairedGate(seed=...)", seed, 0)

    @property
    def __name__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<PairedGate {self.name} against {self.against.ref}, alpha {self.alpha:g}>"

    def __call__(self, version: ModelVersion, /) -> Evidence:
        """Return whether *version* passes, with the estimate, its bounds, and how they were found.

        Args:
            version: The candidate.
        """
        import numpy as np

        new, old = _sample(self._score(version)), _sample(self._score(self.against))
        facts: dict[str, Any] = {"against": self.against.ref, "n": len(new), "alpha": self.alpha}
        if len(new) != len(old):
            raise ConfigurationError(
                f"{self.name}: score(version)", f"{len(new)} and {len(old)} scores", "as many"
            )
        if len(new) < self._min_examples:
            return Evidence(
                passed=False,
                why=f"{len(new)} examples; at least {self._min_examples} are needed",
                facts=facts,
            )
        bad = int((~(np.isfinite(new) & np.isfinite(old))).sum())
        if bad:
            return Evidence(
                passed=False, why=f"{bad} of {len(new)} scores are not finite", facts=facts
            )
        binary = bool(np.isin(new, (0, 1)).all() and np.isin(old, (0, 1)).all())
        method = self._method or ("exact" if binary else "t")
        if method == "exact" and not binary:
            raise ConfigurationError(f"{self.name}: score(version)", "other scores", "0 or 1")
        estimate, low, high = self._bounds(method, self._sign * (new - old))
        facts |= {
            "method": method,
            "estimate": estimate,
            "low": low,
            "high": high,
            "margin": self._margin,
            "candidate": float(new.mean()),
            "incumbent": float(old.mean()),
        }
        if method == "bootstrap":
            facts |= {"seed": self._seed, "n_resamples": self._n_resamples}
        why = (
            f"{self.name} {estimate:+.3g}, at least {low:+.3g} ({1 - self.alpha:g} confidence, {len(new)} examples); "
            f"must be above {0.0 - self._margin:g}"
        )
        return Evidence(passed=low > -self._margin, why=why, facts=facts)

    def at(self, alpha: float) -> PairedGate:
        """Return the same gate at another level.

        Args:
            alpha: In (0, 0.5).

        Raises:
            ConfigurationError: If it is not.
        """
        return _copy(self, alpha)

    def _bounds(self, method: Method, differences: np.ndarray) -> tuple[float, float, float]:
        """Return the mean difference and its bounds, each wrong with probability at most alpha."""
        n, mean = len(differences), float(differences.mean())
        if method == "exact":
            won, lost = int((differences > 0).sum()), int((differences < 0).sum())
            return mean, *self._exact_bounds(won, lost, n)
        error = float(differences.std(ddof=1)) / sqrt(n)
        if error == 0.0:
            return mean, mean, mean
        if method == "t":
            reach = student_quantile(1 - self.alpha, n - 1)
            return mean, mean - reach * error, mean + reach * error
        import numpy as np

        ratios = _studentised(differences, self._n_resamples, np.random.default_rng(self._seed))
        # Of the order statistics, the one that errs to the careful side.
        below = float(np.quantile(ratios, self.alpha, method="lower"))
        above = float(np.quantile(ratios, 1 - self.alpha, method="higher"))
        return mean, mean - above * error, mean - below * error

    def _exact_bounds(self, won: int, lost: int, n: int) -> tuple[float, float]:
        if (
            self._margin == 0.0
        ):  # given how many differ at all, those won are a fair coin's if nothing is better
            differ = won + lost
            low, high = share_bounds(won, differ, self.alpha) if differ else (0.0, 1.0)
            return (2 * low - 1) * (differ / n) + 0.0, (2 * high - 1) * (differ / n)
        won_low, won_high = share_bounds(won, n, self.alpha / 2)
        lost_low, lost_high = share_bounds(lost, n, self.alpha / 2)
        return won_low - lost_high, won_high - lost_low


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
        self.name, self.alpha = _name("LatencyGate(name)", name), _alpha("LatencyGate", alpha)
        self._seconds = _callable("LatencyGate(seconds)", seconds)
        if (limit is None) == (max_ratio is None):
            raise ConfigurationError(
                "LatencyGate(limit=..., max_ratio=...)", (limit, max_ratio), "one of the two"
            )
        if (max_ratio is None) != (against is None):
            raise ConfigurationError(
                "LatencyGate(against=...)", against, "the incumbent with max_ratio, else nothing"
            )
        self.against = None if against is None else _version("LatencyGate(against=...)", against)
        self._limit = None if limit is None else _number("LatencyGate(limit=...)", limit, low=0.0)
        self._max_ratio = (
            None if max_ratio is None else _number("LatencyGate(max_ratio=...)", max_ratio, low=0.0)
        )
        self._quantile = _number("LatencyGate(quantile=...)", quantile, low=0.0)
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
        return _copy(self, alpha)

    def _bounds(self, version: ModelVersion, alpha: float) -> tuple[float, float, float, int]:
        """Return the quantile of a version's latencies, its bounds, and how many there are."""
        import numpy as np

        values = np.sort(_sample(self._seconds(version)))
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


Gate: TypeAlias = "PairedGate | LatencyGate"


def share_alpha(*gates: PairedGate | LatencyGate, alpha: float = 0.05) -> list[Gate]:
    """Return the gates with the level divided among them, so that all their bounds hold together.

    A promotion needs every gate, so the probability to promote a version that fails what one gate asks is at most that
    gate's own alpha however many gates there are (an intersection-union test; Berger 1982): for that alone nothing need
    be divided. Divided by their number (Bonferroni), the recorded bounds of all gates are true at once with probability
    `1 - alpha`, and may be quoted together.

    Args:
        gates: At least one.
        alpha: For all of them, in (0, 0.5).

    Returns:
        Copies at `alpha / len(gates)`.

    Raises:
        ConfigurationError: If there is no gate, or *alpha* is out of range.

    Examples:
        >>> import tempfile
        >>> from mlkit.models import ModelStore
        >>> old = ModelStore(tempfile.mkdtemp()).save("churn", b"")
        >>> score = {1: [0.0] * 100}
        >>> gates = [PairedGate(name, lambda version: score, against=old) for name in ("recall", "precision")]
        >>> [gate.alpha for gate in share_alpha(*gates, alpha=0.05)]
        [0.025, 0.025]
    """
    if not gates or not all(isinstance(gate, (PairedGate, LatencyGate)) for gate in gates):
        raise ConfigurationError("share_alpha(*gates)", gates, "PairedGates and LatencyGates")
    part = _alpha("share_alpha", alpha) / len(gates)
    return [gate.at(part) for gate in gates]


def _studentised(differences: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how far the means of resamples lie from the mean, in their own standard errors."""
    import numpy as np

    n, mean = len(differences), differences.mean()
    ratios = []
    rows = max(1, _MAX_CELLS // n)
    for first in range(0, n_resamples, rows):
        shape = (min(rows, n_resamples - first), n)
        drawn = differences[rng.integers(0, n, shape)]
        errors = drawn.std(axis=1, ddof=1) / sqrt(n)
        moved = drawn.mean(axis=1) - mean
        # A resample of equal values says that the mean is anywhere on that side.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.where(errors > 0, moved / errors, np.sign(moved) * inf))
    found: np.ndarray = np.nan_to_num(np.concatenate(ratios), nan=0.0, posinf=1e300, neginf=-1e300)
    return found


def _copy(gate: _G, alpha: float) -> _G:
    import copy

    twin = copy.copy(gate)
    twin.alpha = _alpha(f"{type(gate).__name__}.at", alpha)
    return twin


def _sample(values: Any) -> np.ndarray:
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ConfigurationError("a gate's values", f"shape {sample.shape}", "one axis, (n,)")
    return sample


def _alpha(where: str, alpha: object) -> float:
    checked = _number(f"{where}(alpha=...)", alpha, low=0.0)
    if not 0.0 < checked < 0.5:
        raise ConfigurationError(f"{where}(alpha=...)", alpha, "a number in (0, 0.5)")
    return checked


def _number(where: str, value: object, *, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ConfigurationError(where, value, "a finite number")
    if value < low:
        raise ConfigurationError(where, value, f"a number >= {low:g}")
    return float(value)


def _count(where: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(where, value, f"a whole number >= {low}")
    return value


def _name(where: str, name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise ConfigurationError(where, name, "text of 1 to 100 characters")
    return name


def _callable(where: str, function: Any) -> Any:
    if not callable(function):
        raise ConfigurationError(where, function, "a callable of one ModelVersion")
    return function


def _version(where: str, version: object) -> ModelVersion:
    if not isinstance(version, ModelVersion):
        raise ConfigurationError(where, version, "a ModelVersion, as store.get returns it")
    return version
