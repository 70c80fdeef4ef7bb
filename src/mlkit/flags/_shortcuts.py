"""The forms that nearly all rules have, each in one function: an attribute beside a constant.

They give what the general way gives, in less than half the time; where a value is not of the type they are for, they go that
way.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from mlkit.flags._coerce import less, loosely_equal, plain, strictly_equal

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.flags._rule import Scope

    Code = Callable[[Any], Any]

__all__ = ["comparison", "shortcut"]

_EQUAL: dict[str, tuple[Callable[[Any, Any], bool], bool]] = {
    "==": (loosely_equal, True),
    "!=": (loosely_equal, False),
    "===": (strictly_equal, True),
    "!==": (strictly_equal, False),
}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def shortcut(name: str, given: list[Any], scope: Scope) -> Code | None:
    """Return a function of the data for a rule of a common form, None for any other.

    Args:
        name: The operator.
        given: Its arguments.
        scope: Where the rule stands.
    """
    found = comparison(name, given, scope)
    if found is None:
        return None
    if name in _EQUAL:
        return _equals(*found, *_EQUAL[name])
    return _compares(*found, _ORDER[name]) if name in _ORDER else _among(*found)


def comparison(name: str, given: list[Any], scope: Scope) -> tuple[str, Any] | None:
    """Return the attribute and the constant that a rule of a common form compares, None for any other.

    Args:
        name: The operator.
        given: Its arguments.
        scope: Where the rule stands.

    Returns:
        With `==` and its kin a text to be equal to, with `<` and its kin a number, with `in` the texts as a set.
    """
    if len(given) != 2 or scope.inner:
        return None
    attribute, constant = _attribute(given[0]), given[1]
    if name in _EQUAL and attribute is None:
        attribute, constant = _attribute(given[1]), given[0]
    if attribute is None:
        return None
    if name in _EQUAL:
        return (attribute, constant) if type(constant) is str else None
    if name in _ORDER:
        return (attribute, constant) if type(constant) in {int, float} else None
    if name == "in" and type(constant) is list and all(type(item) is str for item in constant):
        return attribute, frozenset(constant)
    return None


def _attribute(node: Any) -> str | None:
    """Return the attribute that a node reads, if it is one by its name and without a default."""
    if type(node) is not dict or len(node) != 1:
        return None
    path = node.get("var")
    path = path[0] if type(path) is list and len(path) == 1 else path
    return path if type(path) is str and path and "." not in path else None


def _equals(
    attribute: str,
    wanted: str,
    same: Callable[[Any, Any], bool],
    expected: bool,  # noqa: FBT001 - a row of the table
) -> Code:
    def run(data: Any) -> bool:
        value = data.get(attribute)
        if type(value) is str:
            return (value == wanted) is expected
        return same(plain(value), wanted) is expected

    return run


def _compares(attribute: str, bound: float, test: Callable[[Any, Any], bool]) -> Code:
    def run(data: Any) -> bool:
        value = data.get(attribute)
        kind = type(value)
        if kind is int or kind is float:
            return test(value, bound)
        return less(plain(value), bound, test)

    return run


def _among(attribute: str, members: frozenset[str]) -> Code:
    def run(data: Any) -> bool:
        value = data.get(attribute)
        if type(value) is str:
            return value in members
        value = plain(value)
        return type(value) is str and value in members

    return run
