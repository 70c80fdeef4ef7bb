"""Annotations as pydantic has to see them, so that it checks what they say.

To Python, and so to pydantic, True and 1 are one value: here a bool is no int, in a literal or an enumeration. Of an
`Iterable` pydantic would check the items only when somebody reads them: here those of data are checked at once. The
`TypedDict` of `typing` it refuses before Python 3.12: here it is made again as that of `typing_extensions`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    LiteralString,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["checkable", "with_self"]

_CONTAINERS = frozenset({list, dict, set, frozenset, tuple})


def checkable(annotation: Any) -> Any:
    """Return *annotation*, with those of its parts changed of which pydantic would let pass what they do not say."""
    return _checkable(annotation, {})


def with_self(annotation: Any, kind: type) -> Any:
    """Return *annotation* with *kind* for each `Self` in it."""
    if annotation is Self:
        return kind
    args = () if get_origin(annotation) is Literal else get_args(annotation)
    return _rebuilt(annotation, args, [with_self(arg, kind) for arg in args])


def _checkable(annotation: Any, twins: dict[Any, Any]) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Iterable or origin is Iterable:
        return _iterable(_checkable(args[0], twins) if args else Any)
    if origin is Literal:
        return _checked(annotation, args)
    if annotation is LiteralString:
        return str
    if not args:
        if sys.version_info < (3, 12) and is_typeddict(annotation):
            return twins.get(annotation) or _twin(annotation, twins)
        return _checked(annotation, _members(annotation))
    if origin is Annotated:
        changed = [_checkable(args[0], twins), *args[1:]]
    else:
        changed = [_checkable(arg, twins) for arg in args]
    return _rebuilt(annotation, args, changed)


def _rebuilt(annotation: Any, args: tuple[Any, ...], changed: list[Any]) -> Any:
    """Return *annotation* with *changed* in place of *args*, its own; the very object if they are the same."""
    if all(a is b for a, b in zip(changed, args, strict=True)):
        return annotation
    origin: Any = get_origin(annotation)
    if origin is Union or origin is types.UnionType:
        return Union[tuple(changed)]  # noqa: UP007 - the members are a list
    if origin is Annotated or origin in _CONTAINERS:
        return origin[tuple(changed)]
    return _copied(annotation, changed)


def _twin(kind: Any, twins: dict[Any, Any]) -> Any:
    """Return a typed dictionary of *kind*'s keys that pydantic takes; it may hold itself."""
    from typing_extensions import TypedDict

    make: Any = TypedDict  # mypy wants a literal here
    twins[kind] = twin = make(kind.__name__, {})
    for name in ("__module__", "__qualname__", "__required_keys__", "__pydantic_config__"):
        if hasattr(kind, name):
            setattr(twin, name, getattr(kind, name))
    hints = get_type_hints(kind, include_extras=True)
    twin.__annotations__ = {name: _checkable(hint, twins) for name, hint in hints.items()}
    return twin


def _iterable(item: Any) -> Any:
    from pydantic import WrapValidator

    return Annotated[Sequence[item], WrapValidator(_read_by_item)]


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
    enum = sys.modules.get("enum")  # whoever has an enumeration has imported it
    if enum is None or not isinstance(annotation, type) or not issubclass(annotation, enum.Enum):
        return ()
    members: Any = annotation
    return tuple(member.value for member in members)


def _checked(annotation: Any, values: Sequence[Any]) -> Any:
    if not any(type(value) in {bool, int} for value in values):
        return annotation
    from enum import Flag

    from pydantic import BeforeValidator

    is_flag = isinstance(annotation, type) and issubclass(annotation, Flag)
    return Annotated[annotation, BeforeValidator(_no_bool if is_flag else _check(values))]


def _no_bool(value: Any) -> Any:
    """Leave it to a flag which of its members a number is made of."""
    if type(value) is bool or (type(value) in {int, float} and value < 0):
        from pydantic_core import PydanticKnownError

        raise PydanticKnownError("int_type")
    return value


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
