"""Arguments of public calls, checked early: a bool is no number, NaN is nothing, text is not a list.

Each check returns the value in its plain type, or raises a `ConfigurationError` that names the
argument as the reader wrote it: `"Batcher(max_wait=...)"`.
"""

from __future__ import annotations

from math import inf
from operator import index
from typing import TYPE_CHECKING

from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["fraction", "number", "one_of", "seconds", "whole"]


def whole(where: str, value: object, *, low: int = 0, high: int | None = None) -> int:
    """Return *value* as an int if it is a whole number in range: an int or a NumPy integer.

    Args:
        where: The argument, for the error.
        value: What was passed.
        low: The least that is allowed.
        high: The most that is allowed, or None.
    """
    expected = (
        f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high}"
    )
    if isinstance(value, bool):
        raise ConfigurationError(where, value, expected)
    try:
        result = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigurationError(where, value, expected) from None
    if result < low or (high is not None and result > high):
        raise ConfigurationError(where, value, expected)
    return result


def number(
    where: str, value: object, expected: str, *, low: float = -inf, high: float = inf
) -> float:
    """Return *value* as a float if it is a real number in [low, high]; NaN never is.

    Args:
        where: The argument, for the error.
        value: What was passed.
        expected: What would have been right, for the error.
        low: The least that is allowed.
        high: The most that is allowed.
    """
    result = _as_float(value)
    if result is None or not low <= result <= high:
        raise ConfigurationError(where, value, expected)
    return result


def seconds(where: str, value: object, *, zero: bool = True, endless: bool = False) -> float:
    """Return *value* as a number of seconds.

    Args:
        where: The argument, for the error.
        value: What was passed.
        zero: Whether 0 is allowed.
        endless: Whether infinity is allowed.
    """
    expected = f"a {'' if endless else 'finite '}number of seconds {'>=' if zero else '>'} 0"
    result = number(where, value, expected, low=0.0)
    if (result == 0 and not zero) or (result == inf and not endless):
        raise ConfigurationError(where, value, expected)
    return result


def fraction(where: str, value: object, *, zero: bool = False) -> float:
    """Return *value* as a fraction in (0, 1].

    Args:
        where: The argument, for the error.
        value: What was passed.
        zero: Whether 0 is allowed.
    """
    expected = f"a fraction in {'[' if zero else '('}0, 1]"
    result = number(where, value, expected, low=0.0, high=1.0)
    if result == 0 and not zero:
        raise ConfigurationError(where, value, expected)
    return result


def one_of(where: str, value: object, allowed: Iterable[str]) -> str:
    """Return *value* if it is one of *allowed*.

    Args:
        where: The argument, for the error.
        value: What was passed.
        allowed: The words that are understood, in the order to show them.
    """
    words = list(allowed)
    if isinstance(value, str) and value in words:
        return value
    near = did_you_mean(value, words) if isinstance(value, str) else ""
    raise ConfigurationError(where, value, " or ".join(map(repr, words)), hint=near[2:])


def _as_float(value: object) -> float | None:
    """Return a real number as a float: int, float, NumPy's, and what counts as an index."""
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, (int, float)):
            return float(value)
        return float(value.item()) if _is_numpy_number(value) else float(index(value))  # type: ignore[attr-defined, arg-type]
    except (TypeError, OverflowError):
        return None


def _is_numpy_number(value: object) -> bool:
    import sys

    numpy = sys.modules.get("numpy")  # whoever holds a NumPy value has imported it
    return numpy is not None and isinstance(value, (numpy.integer, numpy.floating))
