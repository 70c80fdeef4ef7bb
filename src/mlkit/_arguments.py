"""Arguments of public calls, checked early: a bool is no number, NaN is nothing, text is not a list.

Each check returns the value in its plain type, or raises a `ConfigurationError` that names the
argument as the reader wrote it: `"Batcher(max_wait=...)"`.
"""

from __future__ import annotations

import sys
from math import inf
from typing import TYPE_CHECKING, Any

from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["fraction", "number", "one_of", "seconds", "whole"]


def whole(
    where: str, value: object, *, low: int | None = 0, high: int | None = None, also: str = ""
) -> int:
    """Return *value* as an int if it is a whole number in range: an int or a NumPy integer.

    Args:
        where: The argument, for the error.
        value: What was passed.
        low: The least that is allowed, or None.
        high: The most that is allowed, or None.
        also: What else the caller takes, for the error: `"None or "`.
    """
    real = _plain(value)
    if isinstance(real, int) and (low is None or low <= real) and (high is None or real <= high):
        return int(real)
    if high is None:
        bounds = "" if low is None else f" >= {_shown(low)}"
    else:
        bounds = f" <= {_shown(high)}" if low is None else f" from {_shown(low)} to {_shown(high)}"
    raise ConfigurationError(where, value, f"{also}a whole number{bounds}")


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
    real = _plain(value)
    try:
        result = None if real is None else float(real)
    except OverflowError:
        result = None
    if result is None or not low <= result <= high:
        raise ConfigurationError(where, value, expected)
    return result


def seconds(where: str, value: object, *, zero: bool = False, endless: bool = False) -> float:
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


def _shown(bound: int) -> str:
    """Return a bound as a person would write it: `2**63 - 1`."""
    size = abs(bound)
    if size < 2**20:
        return str(bound)
    power = f"2**{(size - 1).bit_length()}" + ("" if size & (size - 1) == 0 else " - 1")
    return f"-({power})" if bound < 0 and " " in power else f"{'-' if bound < 0 else ''}{power}"


def _plain(value: object) -> Any:
    """Return an int or float, or NumPy's, as the plain number; None for anything else, a bool too."""
    if isinstance(value, (int, float)):
        return None if isinstance(value, bool) else value
    numpy = sys.modules.get("numpy")  # whoever holds a NumPy value has imported it
    if numpy is not None and isinstance(value, (numpy.integer, numpy.floating)):
        return value.item()
    return None
