"""Literals and enumerations in which a bool is no int: Python, and so pydantic, takes True and 1 for one value."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["told_apart"]

_CONTAINERS = frozenset({list, dict, set, frozenset, tuple})


def told_apart(annotation: Any) -> Any:
    """Return *annotation*, with a check of that on every literal and enumeration in it that needs one."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _checked(annotation, args)
    if not args:
        return _checked(annotation, _members(annotation))
    if origin is Annotated:
        inner = told_apart(annotation.__origin__)
        if inner is annotation.__origin__:
            return annotation
        made: Any = Annotated
        return made[(inner, *annotation.__metadata__)]
    changed = [told_apart(arg) for arg in args]
    if all(a is b for a, b in zip(changed, args, strict=True)):
        return annotation
    if origin is Union or origin is types.UnionType:
        return Union[tuple(changed)]  # noqa: UP007 - the members are a list
    kind: Any = origin
    return kind[tuple(changed)] if origin in _CONTAINERS else _copied(annotation, changed)


def _copied(annotation: Any, args: list[Any]) -> Any:
    origin: Any = get_origin(annotation)
    try:
        return origin[tuple(args)]
    except TypeError:  # a generic that cannot be put together again: checked as Python does
        return annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    import sys

    enum = sys.modules.get("enum")  # whoever has an enumeration has imported it
    if enum is None or not isinstance(annotation, type) or not issubclass(annotation, enum.Enum):
        return ()
    members: Any = annotation
    return tuple(member.value for member in members)


def _checked(annotation: Any, values: Sequence[Any]) -> Any:
    if not any(type(value) in {bool, int} for value in values):
        return annotation
    from pydantic import BeforeValidator

    return Annotated[annotation, BeforeValidator(_check(values))]


def _check(values: Sequence[Any]) -> Callable[[Any], Any]:
    numbers = {bool, int, float}
    allowed = {(type(value) is bool, value) for value in values if type(value) in numbers}
    *others, last = map(repr, values)
    expected = f"{', '.join(others)} or {last}" if others else last

    def check(value: Any) -> Any:
        if type(value) in numbers and (type(value) is bool, value) not in allowed:
            from pydantic_core import PydanticKnownError

            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    return check
