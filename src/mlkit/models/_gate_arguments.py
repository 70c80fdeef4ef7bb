"""What is passed to gates, checked early."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING, Any, TypeVar

from mlkit.errors import ConfigurationError
from mlkit.models._version import ModelVersion

if TYPE_CHECKING:
    import numpy as np

    from mlkit.models._latency import LatencyGate
    from mlkit.models._paired import PairedGate

__all__ = [
    "at_level",
    "count",
    "function",
    "gate_name",
    "incumbent",
    "level",
    "number",
    "sample",
    "width_of",
]

_G = TypeVar("_G", "PairedGate", "LatencyGate")


def at_level(gate: _G, alpha: float) -> _G:
    """Return a copy of a gate at another level.

    Args:
        gate: The gate.
        alpha: The level.
    """
    import copy

    twin = copy.copy(gate)
    twin.alpha = level(f"{type(gate).__name__}.at", alpha)
    return twin


def sample(values: Any) -> np.ndarray:
    """Return values as an array of floats, `(n,)`.

    Args:
        values: What the caller's function returned.
    """
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise ConfigurationError("a gate's values", f"shape {sample.shape}", "one axis, (n,)")
    return sample


def level(where: str, alpha: object) -> float:
    """Return *alpha* if it may be a level.

    Args:
        where: The class or method, for the error.
        alpha: What the caller passed.
    """
    checked = number(f"{where}(alpha=...)", alpha, low=0.0)
    if not 0.0 < checked < 0.5:
        raise ConfigurationError(f"{where}(alpha=...)", alpha, "a number in (0, 0.5)")
    return checked


def number(where: str, value: object, *, low: float) -> float:
    """Return *value* if it is a finite number.

    Args:
        where: The argument, for the error.
        value: What the caller passed.
        low: The smallest that may be.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ConfigurationError(where, value, "a finite number")
    if value < low:
        raise ConfigurationError(where, value, f"a number >= {low:g}")
    return float(value)


def width_of(where: str, bounds: object) -> float:
    """Return how far apart two scores can be, 0 if nothing is known.

    Args:
        where: The argument, for the error.
        bounds: What the caller passed.
    """
    if bounds is None:
        return 0.0
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ConfigurationError(where, bounds, "the smallest and the largest score, (0.0, 1.0)")
    least, most = (number(where, one, low=-inf) for one in bounds)
    if least >= most:
        raise ConfigurationError(where, bounds, "the smallest score, and a larger one")
    return most - least


def count(where: str, value: object, low: int) -> int:
    """Return *value* if it is a whole number.

    Args:
        where: The argument, for the error.
        value: What the caller passed.
        low: The smallest that may be.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(where, value, f"a whole number >= {low}")
    return value


def gate_name(where: str, name: object) -> str:
    """Return *name* if it may name a gate.

    Args:
        where: The argument, for the error.
        name: What the caller passed.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 100:
        raise ConfigurationError(where, name, "text of 1 to 100 characters")
    return name


def function(where: str, function: Any) -> Any:
    """Return *function* if it can be called.

    Args:
        where: The argument, for the error.
        function: What the caller passed.
    """
    if not callable(function):
        raise ConfigurationError(where, function, "a callable of one ModelVersion")
    return function


def incumbent(where: str, version: object) -> ModelVersion:
    """Return *version* if it is one.

    Args:
        where: The argument, for the error.
        version: What the caller passed.
    """
    if not isinstance(version, ModelVersion):
        raise ConfigurationError(where, version, "a ModelVersion, as store.get returns it")
    return version
