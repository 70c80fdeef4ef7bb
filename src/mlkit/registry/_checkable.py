"""Annotations as pydantic has to see them, so that it checks what they say.

To Python, and so to pydantic, True and 1 are one value: here a bool is no int, in a literal or an enumeration. Of an
`Iterable` pydantic would check the items only when somebody reads them: here those of data are checked at once.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["checkable"]

_CONTAINERS = frozenset({list, dict, set, frozenset, tuple})


def checkable(annotation: Any) -> Any:
    """Return *annotation*, with those of its parts changed of which pydantic would let pass what they do not say."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Iterable or origin is Iterable:
        return _iterable(args[0] if args else Any)
    if origin is Literal:
        return _checked(annotation, args)
    if not args:
        return _checked(annotation, _members(annotation))
    if origin is Annotated:
        inner = checkable(annotation.__origin__)
        if inner is annotation.__origin__:
            return annotation
        made: Any = Annotated
        return made[(inner, *annotation.__metadata__)]
    changed = [checkable(arg) for arg in args]
    if all(a is b for a, b in zip(changed, args, strict=True)):
        return annotation
    if origin is Union or origin is types.UnionType:
        return Union[tuple(changed)]  # noqa: UP007 - the members are a list
    kind: Any = origin
    return kind[tuple(changed)] if origin in _CONTAINERS else _copied(annotation, changed)


def _iterable(item: Any) -> Any:
    from pydantic import WrapValidator

    return Annotated[Sequence[checkable(item)], WrapValidator(_read_by_item)]  # type: ignore[misc]


def _read_by_item(value: Any, check: Callable[[Any], Any]) -> Any:
    """Let a live iterable pass unread, for it may be good for one reading; check the items of data."""
    if isinstance(value, str):  # an iterable of its letters, which nobody means
        from pydantic_core import PydanticKnownError

        raise PydanticKnownError("list_type")
    live = isinstance(value, Iterable) and not isinstance(value, (list, tuple, dict))
    return value if live else check(value)


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
