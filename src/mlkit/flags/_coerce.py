"""What JsonLogic's operators make of values of another type: the rules of ECMAScript, made total.

Values are plain JSON (`None`, `bool`, `int`, `float`, `str`, `list`, `dict`); `plain` brings a caller's attributes into that
form. JsonLogic's own tests come first, then flagd-core for Python where they say nothing and it has an answer, then
ECMAScript, which JsonLogic names as the tie-breaker; an empty list or object is falsy, unlike there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PLAIN",
    "ContextError",
    "LimitError",
    "less",
    "loosely_equal",
    "number",
    "plain",
    "reduced",
    "strictly_equal",
    "text",
    "truthy",
]

PLAIN = frozenset({str, int, float, bool, type(None)})
_NUMERIC = frozenset({int, float, bool})
MAX_TEXT = 65_536
_MAX_ITEMS = 10_000
_MAX_DEPTH = 32
_EXACT = 2.0**53
_NAN = math.nan


class ContextError(Exception):
    """An attribute that a rule reads is not plain data."""


class LimitError(Exception):
    """A rule did more work, or made a larger value, than it may."""


def truthy(value: Any) -> bool:
    """Return whether a condition holds: `0`, `NaN`, `""`, `[]`, `{}`, null and false do not, `"0"` does."""
    if type(value) is float:
        return bool(value) and value == value  # noqa: PLR0124 - NaN test
    return bool(value)


def number(value: Any) -> float:
    """Return *value* as a number; NaN where there is none."""
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return 1 if value else 0
    if value is None:
        return 0
    if kind is list:
        # An empty list is 0, where an empty text is no number: so have it flagd-core for Python and ECMAScript.
        written = text(value)
        return _parse(written) if written.strip() else 0
    return _parse(value) if kind is str else _NAN


def text(value: Any) -> str:
    """Return *value* as text: `1.0` is `"1"`, a list is its items joined by commas.

    Raises:
        LimitError: If it would be longer than 65,536 characters.
    """
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is float:
        return _float_text(value)
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "null"
    if kind is list:
        return ",".join(_parts(value))
    return str(value) if kind is int else "[object Object]"


def loosely_equal(left: Any, right: Any) -> bool:
    """Return whether `left == right` with coercion; null is 0 to a number or boolean, and equals no text."""
    one, two = type(left), type(right)
    if one is two:
        return left is right if one is list or one is dict else bool(left == right)
    if left is None or right is None:
        other = two if left is None else one
        return other in _NUMERIC and number(left) == number(right)
    if one is dict or two is dict:
        return "[object Object]" in {left if one is str else None, right if two is str else None}
    if (one is list and two is str) or (one is str and two is list):
        return text(left) == text(right)
    return bool(number(left) == number(right))


def strictly_equal(left: Any, right: Any) -> bool:
    """Return whether *left* and *right* are of one JSON type and equal; lists and objects only if identical."""
    one, two = type(left), type(right)
    if one is two:
        return left is right if one is list or one is dict else bool(left == right)
    return {one, two} == {int, float} and bool(left == right)


def less(left: Any, right: Any, compare: Callable[[Any, Any], bool]) -> bool:
    """Return `compare(left, right)` as text if both are text, else as numbers.

    Args:
        left: A JSON value.
        right: A JSON value.
        compare: One of the ordering functions of `operator`.
    """
    one = text(left) if type(left) in {list, dict} else left
    two = text(right) if type(right) in {list, dict} else right
    if type(one) is str and type(two) is str:
        return compare(one, two)
    return compare(number(left), number(right))


def reduced(value: float) -> float:
    """Return a whole *value* as an int, as JSON has one number type, and cap what would not fit a double."""
    if type(value) is int:
        return value if -_EXACT <= value <= _EXACT else _double(value)
    if value.is_integer() and -_EXACT <= value <= _EXACT:
        return int(value)
    return value


def plain(value: Any) -> Any:
    """Return a caller's *value* as plain JSON.

    Enums give their value, NumPy scalars and arrays their Python form, dates their ISO text, sets a sorted list.

    Raises:
        ContextError: If it is anything else, too large or nested too deeply.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    # As it is where nothing needs a change: two reads of one attribute then are the same list.
    if kind is list and len(value) <= _MAX_ITEMS and all(type(item) in PLAIN for item in value):
        return value
    if (
        kind is dict
        and len(value) <= _MAX_ITEMS
        and all(type(key) is str and type(item) in PLAIN for key, item in value.items())
    ):
        return value
    return _plain(value, [_MAX_ITEMS], _MAX_DEPTH)


def _plain(value: Any, room: list[int], depth: int) -> Any:
    room[0] -= 1
    if room[0] < 0 or depth < 0:
        raise ContextError("an attribute is too large or nested too deeply")
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is list or kind is tuple:
        return [_plain(item, room, depth - 1) for item in value]
    if kind is dict:
        return {_key(key): _plain(item, room, depth - 1) for key, item in value.items()}
    return _plain(_foreign(value), room, depth - 1)


def _foreign(value: Any) -> Any:
    """Return what a value of no JSON type stands for, one level deep."""
    from collections.abc import Mapping
    from datetime import date
    from enum import Enum
    from uuid import UUID

    if isinstance(value, Enum):
        return value.value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    tolist = getattr(value, "tolist", None)  # NumPy scalars and arrays
    if callable(tolist) and type(value).__module__.partition(".")[0] == "numpy":
        return tolist()
    raise ContextError(f"an attribute is of type {type(value).__name__}, which is not plain data")


def _key(key: Any) -> str:
    return key if type(key) is str else text(plain(key))


def _double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _parse(value: str) -> float:
    stripped = value.strip()
    if not stripped:
        return _NAN
    if stripped[:2].lower() in {"0x", "0o", "0b"}:
        try:
            return _double(int(stripped, 0)) if "_" not in stripped else _NAN
        except ValueError:
            return _NAN
    if stripped in {"Infinity", "+Infinity", "-Infinity"}:
        return float(stripped)
    # Python also reads "1_000", "nan", "inf" and digits of other scripts.
    if not stripped.isascii() or stripped.strip("+-.0123456789eE"):
        return _NAN
    try:
        return reduced(float(stripped))
    except ValueError:
        return _NAN


def _float_text(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN test
        return "NaN"
    if value in {math.inf, -math.inf}:
        return "Infinity" if value > 0 else "-Infinity"
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    shown = repr(value)
    mantissa, mark, exponent = shown.partition("e")
    if not mark:
        return shown
    power = int(exponent)
    if power < -6 or power >= 21:
        return f"{mantissa}e{power:+d}"
    # Python turns to exponents below 1e-4, ECMAScript below 1e-6.
    sign, digits = ("-", mantissa[1:]) if mantissa[0] == "-" else ("", mantissa)
    return f"{sign}0.{'0' * (-power - 1)}{digits.replace('.', '')}"


def _parts(items: list[Any]) -> list[str]:
    parts: list[str] = []
    room = MAX_TEXT
    for item in items:
        part = "" if item is None else text(item)
        room -= len(part) + 1
        if room < 0:
            raise LimitError("a text is too long")
        parts.append(part)
    return parts
