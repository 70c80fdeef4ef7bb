"""Gates: whether an answer may be given out, for the whole of it or row by row."""

from __future__ import annotations

import cmath
import math
from functools import partial
from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import fraction
from mlkit.errors import ConfigurationError
from mlkit.resilience._kinds import is_array, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate", "confidence", "finite", "in_range"]


@final
class Gate:
    """A question about an answer. Gates compose with `&`, `|` and `~`.

    Called with an answer it says whether all of it passes; `mask` says it for each row.

    Immutable, thread-safe; picklable if *check* is.

    Args:
        check: From an answer to a bool, or to bools for its elements (array, tensor or list, rows first). A single bool
            decides about all rows.
        name: How it is shown; default the name of *check*.

    Raises:
        ConfigurationError: If *check* is not callable.

    Examples:
        >>> short = Gate(lambda text: len(text) < 5, name="short")
        >>> short("four"), (~short)("four")
        (True, False)
        >>> finite & confidence(0.6)
        finite & confidence(0.6)
    """

    __slots__ = ("_check", "_loose", "_of_rows", "name")
    name: str

    def __init__(self, check: Callable[[Any], Any], *, name: str | None = None) -> None:
        if not callable(check):
            raise ConfigurationError("Gate(check)", check, "a callable of the answer")
        self._check: Callable[[Any], Any] = check
        self._of_rows: Callable[[Any, int], Any] | None = None
        self._loose = False
        self.name = name or str(getattr(check, "__name__", type(check).__name__))

    @classmethod
    def of(cls, where: str, value: Gate | Callable[[Any], Any]) -> Gate:
        """Return *value* as a gate.

        Args:
            where: The argument it came from, for the error.
            value: A gate, or a callable of the answer.
        """
        if isinstance(value, Gate):
            return value
        if not callable(value):
            raise ConfigurationError(where, value, "a gate or a callable of the answer")
        return cls(value)

    def __call__(self, answer: Any) -> bool:
        """Return whether all of *answer* passes.

        Raises:
            ConfigurationError: If the check gives something else than bools, or is one of mlkit's that cannot judge the
                answer.
        """
        return _all(self._check(answer), self.name)

    def mask(self, answer: Any, n: int) -> Any:
        """Return which rows of *answer* pass, as a NumPy array of bool of shape `(n,)`.

        Args:
            answer: `(n, ...)`, rows first.
            n: The number of rows.

        Raises:
            ConfigurationError: If the check gives neither one bool nor one per row, or is one of mlkit's that cannot
                judge the answer.
        """
        if self._of_rows is not None:
            return self._of_rows(answer, n)
        return _row_mask(self._check(answer), n, self.name)

    def __and__(self, other: Gate | Callable[[Any], Any]) -> Gate:
        right = Gate.of("gate & other", other)
        return _composed(
            partial(_both, self, right),
            partial(_both_rows, self, right),
            f"{self._tight()} & {right._tight()}",
        )

    def __or__(self, other: Gate | Callable[[Any], Any]) -> Gate:
        right = Gate.of("gate | other", other)
        gate = _composed(
            partial(_either, self, right),
            partial(_either_rows, self, right),
            f"{self.name} | {right.name}",
        )
        gate._loose = True
        return gate

    def __invert__(self) -> Gate:
        composed = " & " in self.name or " | " in self.name
        name = f"({self.name})" if composed else self.name
        return _composed(partial(_not, self), partial(_not_rows, self), f"~{name}")

    def _tight(self) -> str:
        return f"({self.name})" if self._loose else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        if self is finite:
            return _finite_gate, ()
        return _rebuild, (self._check, self._of_rows, self._loose, self.name)

    def __repr__(self) -> str:
        return self.name


def _composed(check: Callable[[Any], Any], of_rows: Callable[[Any, int], Any], name: str) -> Gate:
    return _rebuild(check, of_rows, False, name)  # noqa: FBT003 - a private field


def _rebuild(
    check: Callable[[Any], Any],
    of_rows: Callable[[Any, int], Any] | None,
    loose: bool,  # noqa: FBT001 - a private field
    name: str,
) -> Gate:
    gate = Gate(check, name=name)
    gate._of_rows, gate._loose = of_rows, loose  # noqa: SLF001 - its own kind
    return gate


def _is_finite(answer: Any) -> Any:
    if isinstance(answer, float):
        return math.isfinite(answer)
    if answer is None:
        return False
    if isinstance(answer, int):
        return True
    if isinstance(answer, complex):
        return cmath.isfinite(answer)
    if is_tensor(answer):
        return answer.isfinite()
    if is_array(answer) and answer.dtype.kind not in "OSU":
        import numpy as np

        return np.isfinite(answer)
    if isinstance(answer, (list, tuple)):
        return [_all(_is_finite(item), "finite") for item in answer]
    if isinstance(answer, dict):
        return all(_all(_is_finite(item), "finite") for item in answer.values())
    raise ConfigurationError(
        "finite(answer)",
        _kind(answer),
        "numbers, arrays, tensors, or lists and dicts of them",
        hint="to judge a part of an answer, pass a function: lambda answer: finite(answer['score'])",
    )


finite: Gate = Gate(_is_finite, name="finite")
"""Passes numbers that are neither NaN nor infinite, in arrays, tensors, lists, tuples and dicts; None does not pass.

What is no number (text, also beside numbers, or an array of text or objects) it cannot judge: `ConfigurationError`.
"""


def _finite_gate() -> Gate:
    return finite


_ROUNDING = 1e-3  # what half precision may add up to beyond 0 and 1


@final
class _Confidence:
    """Largest probability along the last axis against a bound; a NaN or an infinity among them never passes."""

    __slots__ = ("minimum",)

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def __call__(self, answer: Any) -> Any:
        values = _numeric("confidence", answer)
        known = _known_probabilities(values)
        if not values.ndim:
            return known & (values >= self.minimum)
        if is_tensor(values):
            return known.all(-1) & (values.amax(-1) >= self.minimum)
        return known.all(-1) & (values.max(-1) >= self.minimum)

    def of_rows(self, answer: Any, n: int) -> Any:
        probabilities = _numeric("confidence", answer)
        if probabilities.ndim < 2:
            raise ConfigurationError(
                "confidence with per_row=True",
                f"an answer of shape {tuple(probabilities.shape)}",
                "class probabilities of shape (n, n_classes)",
            )
        return _row_mask(self(probabilities), n, "confidence")


def _known_probabilities(values: Any) -> Any:
    """Return which of *values* are numbers, or raise if a number among them is clearly no probability."""
    if is_tensor(values):
        known = values.isfinite()
    else:
        import numpy as np

        known = np.isfinite(values)
    outside = known & ((values < -_ROUNDING) | (values > 1 + _ROUNDING))
    if outside.any():
        raise ConfigurationError(
            "confidence(answer)",
            values[outside].reshape(-1)[0].item(),
            "probabilities in [0, 1]",
            hint="apply softmax first",
        )
    return known


def confidence(minimum: float) -> Gate:
    """Return a gate that passes probabilities whose largest along the last axis is at least *minimum*.

    The gate raises `ConfigurationError` for a number clearly outside of [0, 1] (by more than 0.001): it was given logits
    or a score, of which the largest says nothing.

    Args:
        minimum: In (0, 1]. A row with a NaN or an infinity does not pass.

    Raises:
        ConfigurationError: If *minimum* is not a fraction.

    Examples:
        >>> confidence(0.6)([0.7, 0.3]), confidence(0.6)([0.5, 0.5])
        (True, False)
    """
    check = _Confidence(fraction("confidence(minimum)", minimum))
    return _rebuild(check, check.of_rows, False, f"confidence({check.minimum:g})")  # noqa: FBT003


@final
class _InRange:
    __slots__ = ("high", "low")

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, answer: Any) -> Any:
        numbers = _numeric("in_range", answer)
        return (numbers >= self.low) & (numbers <= self.high)


def in_range(low: float, high: float) -> Gate:
    """Return a gate that passes numbers in `[low, high]`; NaN does not pass.

    Args:
        low: The smallest number that passes; may be `-inf`.
        high: The largest number that passes; may be `inf`.

    Raises:
        ConfigurationError: If *low* is not below or equal to *high*, or either is no number.

    Examples:
        >>> in_range(0, 1)([0.2, 0.9]), in_range(0, 1)(float("nan"))
        (True, False)
    """
    for where, bound in (("in_range(low)", low), ("in_range(high)", high)):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or math.isnan(bound):
            raise ConfigurationError(where, bound, "a number")
    if low > high:
        raise ConfigurationError("in_range(high)", high, f"a number >= low, which is {low!r}")
    return Gate(_InRange(low, high), name=f"in_range({low:g}, {high:g})")


def _numeric(gate: str, answer: Any) -> Any:
    if is_tensor(answer):
        return answer
    import numpy as np

    try:
        values = answer if is_array(answer) else np.asarray(answer)
        if values.dtype.kind == "O":  # decimals, or None, which becomes NaN
            values = values.astype(float)
    except (TypeError, ValueError):
        values = None
    if values is None or values.dtype.kind in "SU":  # which NumPy would read as numbers
        raise ConfigurationError(
            f"{gate}(answer)",
            _kind(answer),
            "numbers, or a regular array, tensor or list of them",
        )
    return values


def _kind(answer: Any) -> object:
    """Return what *answer* is, without its data."""
    return answer.dtype if is_array(answer) else type(answer)


def _all(verdict: Any, gate: str) -> bool:
    if isinstance(verdict, bool):
        return verdict
    if is_tensor(verdict) or is_array(verdict):
        if "bool" in str(verdict.dtype):
            return bool(verdict.all())
    elif isinstance(verdict, (list, tuple)):
        return all(_all(item, gate) for item in verdict)
    raise ConfigurationError(f"gate {gate!r}", type(verdict), "a bool, or bools, from its check")


def _row_mask(verdict: Any, n: int, gate: str) -> Any:
    import numpy as np

    if is_tensor(verdict):
        verdict = verdict.detach().cpu().numpy()
    elif isinstance(verdict, (list, tuple)):
        verdict = np.array([_all(item, gate) for item in verdict], dtype=bool)
    verdict = np.asarray(verdict)
    if verdict.dtype != bool:
        raise ConfigurationError(
            f"gate {gate!r}", verdict.dtype, "a bool, or bools, from its check"
        )
    if verdict.ndim == 0:
        return np.full(n, bool(verdict))
    if len(verdict) != n:
        raise ConfigurationError(f"gate {gate!r}", len(verdict), f"one bool for each of {n} rows")
    return verdict.all(axis=tuple(range(1, verdict.ndim))) if verdict.ndim > 1 else verdict


def _both(one: Gate, other: Gate, answer: Any) -> bool:
    return one(answer) and other(answer)


def _both_rows(one: Gate, other: Gate, answer: Any, n: int) -> Any:
    return one.mask(answer, n) & other.mask(answer, n)


def _either(one: Gate, other: Gate, answer: Any) -> bool:
    return one(answer) or other(answer)


def _either_rows(one: Gate, other: Gate, answer: Any, n: int) -> Any:
    return one.mask(answer, n) | other.mask(answer, n)


def _not(gate: Gate, answer: Any) -> bool:
    return not gate(answer)


def _not_rows(gate: Gate, answer: Any, n: int) -> Any:
    return ~gate.mask(answer, n)
