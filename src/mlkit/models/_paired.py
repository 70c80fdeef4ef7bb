"""Whether a version is better than the incumbent, or not much worse, from its scores of the same examples."""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from mlkit.errors import ConfigurationError
from mlkit.models._checks import Evidence
from mlkit.models._gate_arguments import (
    at_level,
    count,
    function,
    gate_name,
    incumbent,
    level,
    number,
    sample,
    width_of,
)
from mlkit.models._intervals import share_bounds, student_quantile

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mlkit.models._version import ModelVersion

__all__ = ["PairedGate"]

Method: TypeAlias = Literal["t", "bootstrap", "exact", "bounded"]
_METHODS = ("t", "bootstrap", "exact", "bounded")
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
        method: How the bound is found. Two hold for every sample and every distribution: `"exact"` for scores of 0
            and 1 (with margin 0 it is McNemar's exact test), and `"bounded"` for scores within *bounds*. Two are
            narrower and hold the better the more examples there are and the less skewed the differences: `"t"`,
            Student's interval, and `"bootstrap"`, the studentised bootstrap, for skewed ones. By default `"exact"` if
            all scores are 0 or 1, `"bounded"` if there are *bounds*, else `"t"`.
        bounds: The smallest and the largest score that there can be, for `"bounded"`.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap, and of the order that `"bounded"` takes the examples in; the same seed and scores give
            the same answer.

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
        Student 1908; Efron and Tibshirani 1993, chapter 12 (bootstrap-t); McNemar 1947 and Clopper and Pearson 1934;
        Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024. How often
        each passes what it should not is measured in the docs and by `tests/test_models/test_gates.py`.
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
        bounds: tuple[float, float] | None = None,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        self.name, self.alpha = gate_name("PairedGate(name)", name), level("PairedGate", alpha)
        self.against = incumbent("PairedGate(against=...)", against)
        self._score = function("PairedGate(score)", score)
        self._margin = number("PairedGate(margin=...)", margin, low=0.0)
        self._sign = 1.0 if higher_is_better else -1.0
        self._min_examples = count("PairedGate(min_examples=...)", min_examples, 2)
        if method is not None and method not in _METHODS:
            raise ConfigurationError("PairedGate(method=...)", method, f"one of {_METHODS}")
        self._method: Method | None = method
        self._width = width_of("PairedGate(bounds=...)", bounds)
        self._bounded = bounds
        if method == "bounded" and bounds is None:
            raise ConfigurationError("PairedGate(bounds=...)", None, "what 'bounded' is bounded by")
        self._n_resamples = count("PairedGate(n_resamples=...)", n_resamples, 200)
        self._seed = count("PairedGate(seed=...)", seed, 0)

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

        new, old = sample(self._score(version)), sample(self._score(self.against))
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
        method = self._method or ("exact" if binary else "bounded" if self._width else "t")
        if method == "exact" and not binary:
            raise ConfigurationError(f"{self.name}: score(version)", "other scores", "0 or 1")
        if method == "bounded" and self._bounded is not None:
            least, most = self._bounded
            if min(new.min(), old.min()) < least or max(new.max(), old.max()) > most:
                where = f"{self.name}: score(version)"
                raise ConfigurationError(
                    where, "scores beyond them", f"scores in [{least}, {most}]"
                )
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
        if method == "bounded":
            facts |= {"seed": self._seed, "width": self._width}
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
        return at_level(self, alpha)

    def _bounds(self, method: Method, differences: np.ndarray) -> tuple[float, float, float]:
        """Return the mean difference and its bounds, each wrong with probability at most alpha."""
        n, mean = len(differences), float(differences.mean())
        if method == "exact":
            won, lost = int((differences > 0).sum()), int((differences < 0).sum())
            return mean, *self._exact_bounds(won, lost, n)
        if method == "bounded":
            import numpy as np

            shuffled = np.random.default_rng(self._seed).permutation(differences)
            low = _bet(shuffled, self._width, self.alpha)
            return mean, low, -_bet(-shuffled, self._width, self.alpha)
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
        # Given how many differ at all, those won are a fair coin's if nothing is better.
        if self._margin == 0.0:
            differ = won + lost
            low, high = share_bounds(won, differ, self.alpha) if differ else (0.0, 1.0)
            return (2 * low - 1) * (differ / n) + 0.0, (2 * high - 1) * (differ / n)
        won_low, won_high = share_bounds(won, n, self.alpha / 2)
        lost_low, lost_high = share_bounds(lost, n, self.alpha / 2)
        return won_low - lost_high, won_high - lost_low


def _bet(differences: np.ndarray, width: float, alpha: float) -> float:
    """Return a lower bound of the mean of values in [-width, width], wrong with probability at most *alpha*.

    For a mean m that is too high nobody wins by betting that the values are above it: the capital of one who bets a
    share that only depends on the values before grows 1/alpha-fold with probability at most alpha (Ville). The bound is
    the largest mean that such a bettor has refuted; the shares are those for a sample of this size.
    """
    import numpy as np

    x = (differences + width) / (2 * width)
    n = len(x)
    before = np.arange(1, n + 1)
    # Running mean and variance of what came before, begun at a half and a quarter, as in the paper.
    means = (0.5 + np.cumsum(x)) / (before + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (before + 1)
    variances = np.concatenate([[0.25], variances[:-1]])
    shares = np.sqrt(2 * np.log(1 / alpha) / (n * variances))

    def refuted(mean: float) -> bool:
        capital = np.cumsum(np.log1p(np.minimum(shares, 0.75 / mean) * (x - mean)))
        return bool(capital.max() >= -np.log(alpha))

    low, high = 0.0, float(x.mean())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if middle > 0.0 and refuted(middle) else (low, middle)
    return low * 2 * width - width


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
