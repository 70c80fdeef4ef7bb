"""Values that hold settings: checked when made, then frozen, equal and hashed by their fields."""

from __future__ import annotations

from math import isfinite
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Frozen", "at_least", "fraction", "seconds"]


class Frozen:
    """Base of settings: the public slots are the fields, and the arguments of the constructor."""

    __slots__: ClassVar[tuple[str, ...]] = ()

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name[0] != "_"}

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{type(self).__name__} is frozen; make another one to change {name!r}"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), *self._fields().values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._fields())

    def __copy__(self) -> Self:
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._fields().items())
        return f"{type(self).__name__}({shown})"


def _rebuild(kind: type[Frozen], fields: dict[str, Any]) -> Frozen:
    return kind(**fields)


def seconds(where: str, value: object, *, zero: bool = False) -> float:
    """Return *value* as seconds, or raise: positive and finite, 0 only where *zero* allows it."""
    expected = f"a number of seconds {'>=' if zero else '>'} 0"
    number = _number(where, value, expected)
    if not isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ConfigurationError(where, value, expected)
    return number


def fraction(where: str, value: object, *, zero: bool = False) -> float:
    """Return *value* as a fraction in (0, 1], or in [0, 1] where *zero* allows it."""
    expected = "a fraction in [0, 1]" if zero else "a fraction in (0, 1]"
    number = _number(where, value, expected)
    if not (0 < number <= 1 or (zero and number == 0)):
        raise ConfigurationError(where, value, expected)
    return number


def at_least(where: str, value: object, minimum: int) -> int:
    """Return *value* as a whole number that is at least *minimum*."""
    expected = f"a whole number >= {minimum}"
    if isinstance(value, bool):
        raise ConfigurationError(where, value, expected)
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigurationError(where, value, expected) from None
    if number < minimum:
        raise ConfigurationError(where, value, expected)
    return number


def _number(where: str, value: object, expected: str) -> float:
    if isinstance(value, bool):
        raise ConfigurationError(where, value, expected)
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            raise ConfigurationError(where, value, expected) from None
    return float(at_least(where, value, 0))
