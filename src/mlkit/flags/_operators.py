"""The operators that want nothing but the values of their arguments."""

from __future__ import annotations

import math
import operator
import threading
from typing import TYPE_CHECKING, Any

from mlkit.flags._coerce import (
    MAX_TEXT,
    LimitError,
    less,
    number,
    reduced,
    strictly_equal,
    text,
    truthy,
)
from mlkit.flags._version import compare

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_ITERATIONS", "SPREAD", "VALUE_OPERATORS", "contains", "limited", "spend"]

MAX_ITERATIONS = 100_000
_room = threading.local()


def limited(code: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *code* with a bound on the list elements it may look at in one evaluation."""

    def run(data: Any) -> Any:
        _room.left = MAX_ITERATIONS
        return code(data)

    return run


def spend(n: int) -> None:
    """Count *n* list elements that a rule looks at."""
    _room.left = left = getattr(_room, "left", MAX_ITERATIONS) - n - 1
    if left < 0:
        raise LimitError(f"a rule looked at more than {MAX_ITERATIONS} list elements")


def contains(needle: Any, haystack: Any) -> bool:
    """Return whether a list holds *needle*, or a text its text."""
    if type(haystack) is list:
        return any(strictly_equal(item, needle) for item in haystack)
    return type(haystack) is str and text(needle) in haystack


def _ordering(test: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def compare_all(one: Any = None, two: Any = None, *more: Any) -> bool:
        if not less(one, two, test):
            return False
        for three in more:
            two, one = three, two
            if not less(one, two, test):
                return False
        return True

    return compare_all


# --- computing ---------------------------------------------------------------------------------------------------


def _add(*values: Any) -> float:
    return reduced(sum(map(_term, values)))


def _multiply(*values: Any) -> float:
    product: float = 1
    for value in values:
        product = reduced(product * _term(value))
    return product


def _term(value: Any) -> float:
    """Return *value* as a number to calculate with: no text counts as 0, where a comparison has it as no number."""
    if type(value) is str and not value.strip():
        return 0
    return math.nan if type(value) is list else number(value)


def _subtract(*values: Any) -> float:
    if len(values) < 2:
        return reduced(-_term(values[0])) if values else math.nan
    left = _term(values[0])
    for value in values[1:]:
        left = reduced(left - _term(value))
    return left


def _divide(*values: Any) -> float:
    if len(values) < 2:
        return _quotient(1, _term(values[0])) if values else math.nan
    left = _term(values[0])
    for value in values[1:]:
        left = _quotient(left, _term(value))
    return left


def _quotient(above: float, below: float) -> float:
    if below == 0:
        if above == 0 or above != above:  # noqa: PLR0124 - NaN test
            return math.nan
        return math.copysign(math.inf, above) * math.copysign(1.0, below)
    return reduced(float(above) / float(below))


def _modulo(*values: Any) -> float:
    if len(values) < 2:
        return math.nan
    left = float(_term(values[0]))
    for value in values[1:]:
        below = float(_term(value))
        if below == 0 or math.isinf(left):
            return math.nan
        left = math.fmod(left, below)
    return reduced(left)


def _extreme(choose: Callable[..., float]) -> Callable[..., float]:
    def run(*values: Any) -> float:
        numbers = [number(value) for value in values]
        if not numbers or any(value != value for value in numbers):  # noqa: PLR0124 - NaN test
            return math.nan
        return choose(numbers)

    return run


def _cat(*values: Any) -> str:
    return _bounded("".join(map(text, values)))


def _bounded(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise LimitError("a text is too long")
    return value


def _substr(value: Any = None, start: Any = 0, length: Any = None, *_: Any) -> str:
    whole = text(value)
    begin = _position(start)
    begin = max(len(whole) + begin, 0) if begin < 0 else begin
    if length is None:
        return whole[begin:]
    size = _position(length)
    # JsonLogic: a negative length stops that many characters before the end.
    return whole[begin : max(begin, len(whole) + size) if size < 0 else begin + size]


def _position(value: Any) -> int:
    place = number(value)
    if place != place:  # noqa: PLR0124 - NaN test
        return 0
    return int(max(-MAX_TEXT - 1, min(MAX_TEXT + 1, place)))


def _merge(*values: Any) -> list[Any]:
    merged: list[Any] = []
    for value in values:
        merged += value if type(value) is list else [value]
        spend(len(value) if type(value) is list else 1)
    return merged


def _text_test(test: Callable[[str, str], bool]) -> Callable[..., bool | None]:
    def run(*values: Any) -> bool | None:
        if len(values) != 2 or type(values[0]) is not str or type(values[1]) is not str:
            return None
        return test(values[0], values[1])

    return run


def _sem_ver(*values: Any) -> bool | None:
    return compare(*values) if len(values) == 3 else None


VALUE_OPERATORS: dict[str, Callable[..., Any]] = {
    "!": lambda value=None, *_: not truthy(value),
    "!!": lambda value=None, *_: truthy(value),
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "+": _add,
    "*": _multiply,
    "-": _subtract,
    "/": _divide,
    "%": _modulo,
    "min": _extreme(min),
    "max": _extreme(max),
    "cat": _cat,
    "substr": _substr,
    "merge": _merge,
    "log": lambda value=None, *_: value,  # printing the context would leak it
    "starts_with": _text_test(str.startswith),
    "ends_with": _text_test(str.endswith),
    "sem_ver": _sem_ver,
}
# What they take may also come as one list that a rule makes: {"max": {"var": "scores"}}.
SPREAD = frozenset({"+", "-", "*", "/", "%", "min", "max", "cat"})
