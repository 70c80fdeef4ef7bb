"""The gates that are ready to use: finite, confidence, in_range, agrees."""

from __future__ import annotations

import cmath
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import fraction, number
from mlkit.errors import ConfigurationError
from mlkit.resilience._gates import Gate, gate_of, rows_verdict, whole_verdict
from mlkit.resilience._kinds import is_array, is_tensor
from mlkit.resilience._leaves import is_table
from mlkit.resilience._rows import columns_of, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["agrees", "confidence", "finite", "in_range"]

_NUMBERS = "biufcmM"


class _Finite(NamedTuple):
    cost: int = 0
    arguments: bool = False

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:  # noqa: ARG002 - as all
        kind = type(answer)
        if kind is float or kind is int:
            return kind is int or math.isfinite(answer)
        return whole_verdict(_is_finite(answer), "finite") is True

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        columns = columns_of(answer)
        yes, no = rows_verdict(_is_finite(columns[0] if columns else answer), n, "finite")
        for column in columns[1:]:
            yes = yes & rows_verdict(_is_finite(column), n, "finite")[0]
        return (yes, ~yes) if columns[1:] else (yes, no)


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
    if is_table(answer):
        answer = _values(answer)
    if is_array(answer) and answer.dtype.kind in _NUMBERS:
        import numpy as np

        found = np.isfinite(answer)
        return found.filled(fill_value=False) if hasattr(found, "filled") else found  # masked
    if isinstance(answer, list):
        return [whole_verdict(_is_finite(item), "finite") for item in answer]
    parts = parts_of(answer, loose=True)
    if parts is not None:
        # Beside rows, None is a column that is not there, and a text a remark; alone, they are the answer.
        beside = parts_of(answer) is not None and columns_of(answer)
        items = [
            part for part in parts.values() if not (beside and (part is None or type(part) is str))
        ]
        return all(whole_verdict(_is_finite(item), "finite") for item in items)
    raise ConfigurationError(
        "finite(answer)",
        _kind(answer),
        "numbers, arrays, tensors, or lists and dicts of them",
        hint="to judge a part of an answer, pass a function: lambda answer: finite(answer['score'])",
    )


finite: Gate = gate_of(_Finite(), "finite")
"""Passes numbers that are neither NaN nor infinite, in arrays, tensors, tables, lists, tuples, dicts and dataclasses; None
does not pass, except beside rows: there it is a column that is not given.

What is no number (text, also beside numbers, or an array of text or objects) it cannot judge: `ConfigurationError`.
"""

_ROUNDING = 1e-3  # what half precision may add up to beyond 0 and 1


class _Confidence(NamedTuple):
    """Largest probability along the last axis against a bound, and against the second largest."""

    minimum: float
    margin: float
    cost: int = 0
    arguments: bool = False

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:  # noqa: ARG002
        if type(answer) is float and not self.margin and 0.0 <= answer <= 1.0:
            return answer >= self.minimum
        yes, known = self._judged(_numeric("confidence", answer))
        return _whole(yes, known)

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        probabilities = _numeric("confidence", answer)
        if probabilities.ndim < 2:
            raise ConfigurationError(
                "confidence with per_row=True",
                f"an answer of shape {tuple(probabilities.shape)}",
                "class probabilities of shape (n, n_classes)",
            )
        return _rows(*self._judged(probabilities), n, "confidence")

    def _judged(self, values: Any) -> tuple[Any, Any]:
        known = _known_probabilities(values)
        if not values.ndim:
            self._need_classes(1)
            return known & (values >= self.minimum), known
        known = known.all(-1)
        if not self.margin:
            top = values.amax(-1) if is_tensor(values) else values.max(-1)
            return known & (top >= self.minimum), known
        self._need_classes(values.shape[-1])
        if is_tensor(values):
            best = values.topk(2, -1).values
            top, second = best[..., 0], best[..., 1]
        else:
            import numpy as np

            best = np.partition(values, -2, -1)
            top, second = best[..., -1], best[..., -2]
        return known & (top >= self.minimum) & (top - second >= self.margin), known

    def _need_classes(self, n: int) -> None:
        if self.margin and n < 2:
            raise ConfigurationError(
                "confidence(margin=...)", f"{n} class", "probabilities of two classes or more"
            )


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


def confidence(minimum: float, *, margin: float = 0.0) -> Gate:
    """Return a gate that passes probabilities whose largest along the last axis is at least *minimum*.

    The gate raises `ConfigurationError` for a number clearly outside of [0, 1] (by more than 0.001): it was given logits
    or a score, of which the largest says nothing.

    Args:
        minimum: In (0, 1]. A row with a NaN or an infinity does not pass.
        margin: By how much the largest must at least exceed the second largest, from 0 to 1.

    Raises:
        ConfigurationError: If *minimum* or *margin* is not a fraction.

    Examples:
        >>> confidence(0.6)([0.7, 0.3]), confidence(0.6)([0.5, 0.5])
        (True, False)
        >>> confidence(0.4, margin=0.2)([0.45, 0.40, 0.15])
        False
    """
    least = fraction("confidence(minimum)", minimum)
    apart = fraction("confidence(margin=...)", margin, zero=True)
    shown = f", margin={apart:g}" if apart else ""
    return gate_of(_Confidence(least, apart), f"confidence({least:g}{shown})")


class _InRange(NamedTuple):
    low: float
    high: float
    cost: int = 0
    arguments: bool = False

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:  # noqa: ARG002
        if type(answer) is float:
            return self.low <= answer <= self.high if answer == answer else None  # noqa: PLR0124 - NaN
        return _whole(*self._judged(answer))

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        return _rows(*self._judged(answer), n, "in_range")

    def _judged(self, answer: Any) -> tuple[Any, Any]:
        numbers = _numeric("in_range", answer)
        return (numbers >= self.low) & (numbers <= self.high), numbers == numbers  # noqa: PLR0124 - NaN


def in_range(low: float, high: float) -> Gate:
    """Return a gate that passes numbers in `[low, high]`.

    NaN is in no range, and cannot be said to be outside of one: neither the gate nor its opposite passes it.

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
        number(where, bound, "a number")
    if low > high:
        raise ConfigurationError("in_range(high)", high, f"a number >= low, which is {low!r}")
    return gate_of(_InRange(low, high), f"in_range({low:g}, {high:g})")


class _Agrees(NamedTuple):
    """Whether another function says the same."""

    fn: Callable[..., Any]
    by: Callable[[Any], Any] | None
    atol: float
    rtol: float
    name: str
    cost: int = 2
    arguments: bool = True

    def whole(self, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        other = self._asked(args, kwargs)
        return None if other is None else _whole(*self._compared(answer, other[0]))

    def rows(self, answer: Any, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        other = self._asked(args, kwargs)
        if other is None:
            return rows_verdict(None, n, self.name)
        return _rows(*self._compared(answer, other[0]), n, self.name)

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """Return what the other one says, as a tuple of one, or None if it fails."""
        if not args and not kwargs and _needs_arguments(self.fn):
            raise ConfigurationError(
                self.name,
                "no arguments",
                "the arguments of the call, which its function needs",
                hint="give the gate to a tier: tier(fn, accept=...)",
            )
        try:
            return (self.fn(*args, **kwargs),)
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - whether it would agree is unknown
            return None

    def _compared(self, answer: Any, other: Any) -> tuple[Any, Any]:
        import numpy as np

        if self.by is not None:
            answer, other = self.by(answer), self.by(other)
        mine, theirs = _as_array(answer), _as_array(other)
        if mine.shape != theirs.shape:
            raise ConfigurationError(
                self.name,
                f"answers of shapes {mine.shape} and {theirs.shape}",
                "answers of one shape",
                hint="make them comparable: agrees(fn, by=lambda p: p.argmax(-1))",
            )
        equal = np.asarray(mine == theirs)
        if mine.dtype.kind not in "iufc" or theirs.dtype.kind not in "iufc":
            return equal, np.ones_like(equal)
        known = ~(np.isnan(mine) | np.isnan(theirs))
        wide = np.result_type(mine, theirs, np.float64)  # unsigned numbers cannot be below zero
        with np.errstate(invalid="ignore"):  # infinity less infinity
            near = abs(mine.astype(wide) - theirs) <= self.atol + self.rtol * abs(theirs)
        return known & (near | equal), known


def _needs_arguments(fn: Callable[..., Any]) -> bool:
    from inspect import signature

    try:
        signature(fn).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin that does not say
        return False
    return False


def agrees(
    fn: Callable[..., Any],
    /,
    *,
    by: Callable[[Any], Any] | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
) -> Gate:
    """Return a gate that asks another model or function with the same arguments and passes what it agrees with.

    Numbers agree within the tolerances, anything else (labels) if it is equal; with `per_row`, row by row, and *fn* gets
    the rows that the tier got. If *fn* fails, or either says NaN, agreement is unknown, and nothing passes.

    Args:
        fn: Called as the tier is. Asked last, and only if cheaper gates have not decided.
        by: What is compared, from the answer of each: `lambda p: p.argmax(-1)` for the labels of class probabilities.
        atol: How far numbers may be apart, at least 0.
        rtol: How far they may be apart as a share of what *fn* says, at least 0.

    Raises:
        ConfigurationError: If an argument is out of its range, or *fn* is an `async def`; from the gate, if the shapes of
            the answers differ.

    Examples:
        >>> gate = agrees(lambda x: 2 * x, atol=0.5)
        >>> gate(4.25, 2.0), gate(5.0, 2.0)
        (True, False)
    """
    from inspect import iscoroutinefunction

    if not callable(fn):
        raise ConfigurationError("agrees(fn)", fn, "a callable")
    if iscoroutinefunction(fn) or iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        raise ConfigurationError("agrees(fn)", fn, "a `def`", hint="a gate cannot await")
    if by is not None and not callable(by):
        raise ConfigurationError("agrees(by=...)", by, "a callable of an answer, or None")
    near = [
        number(f"agrees({name}=...)", value, "a number >= 0", low=0.0)
        for name, value in (("atol", atol), ("rtol", rtol))
    ]
    name = f"agrees({getattr(fn, '__name__', type(fn).__name__)})"
    return gate_of(_Agrees(fn, by, near[0], near[1], name), name)


def _whole(yes: Any, known: Any) -> bool | None:
    """Return the verdict about all elements: no if one is known not to pass."""
    if bool(yes.all()):
        return True
    return False if bool((known & ~yes).any()) else None


def _rows(yes: Any, known: Any, n: int, gate: str) -> Any:
    """Return the rows of which all elements pass, and those of which one is known not to."""
    passes = rows_verdict(yes, n, gate)[0]
    return passes, rows_verdict(yes | ~known, n, gate)[1]


def _numeric(gate: str, answer: Any) -> Any:
    if is_tensor(answer):
        return answer
    import numpy as np

    try:
        values = answer if is_array(answer) else _as_array(answer)
        if values.dtype.kind == "O":  # decimals, or None, which becomes NaN
            values = values.astype(float)
        if hasattr(values, "filled"):  # so do masked ones
            values = np.where(values.mask, np.nan, values.data)
    except (TypeError, ValueError):
        values = None
    if values is None or values.dtype.kind in "SUV":  # which NumPy would read as numbers
        raise ConfigurationError(
            f"{gate}(answer)",
            _kind(answer),
            "numbers, or a regular array, tensor or list of them",
        )
    return np.asarray(values)


def _as_array(answer: Any) -> Any:
    import numpy as np

    if is_tensor(answer):
        answer = answer.detach().cpu()
        return (answer.float() if "bfloat" in str(answer.dtype) else answer).numpy()
    return _values(answer) if is_table(answer) else np.asarray(answer)


def _values(table: Any) -> Any:
    """Return the values of a pandas table, those that are missing in a column of numbers as NaN."""
    values = table.to_numpy()
    if values.dtype.kind != "O":
        return values
    try:
        return table.to_numpy(dtype=float, na_value=math.nan)
    except (TypeError, ValueError):
        return values


def _kind(answer: Any) -> object:
    """Return what *answer* is, without its data."""
    return answer.dtype if is_array(answer) else type(answer)
